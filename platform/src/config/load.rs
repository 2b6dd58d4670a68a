use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{anyhow, bail, ensure};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::Value;
use jiff::Timestamp;
use tally_kafka::{RESERVED_PROPERTIES, canonical_property};

use super::Config;

/// The file that is read when none is named, if it is there.
const DEFAULT_FILE: &str = "tally.toml";
const ENV_PREFIX: &str = "TALLY_";
/// Between a section and a key. Other variables with the prefix are no keys: Kubernetes sets
/// `TALLY_PORT` for a Service that is called tally.
const ENV_SEPARATOR: &str = "__";

/// Keys of texts that have no default, which would tell that they are texts.
const TEXTS: [&str; 6] = [
    "aggregator.instance",
    "registry.password",
    "registry.user",
    "store.password",
    "store.user",
    "telemetry.otlp_endpoint",
];

/// Loads the configuration: defaults, then the file, then the environment.
///
/// `file` must be there when it is named; without it `tally.toml` is read if it is there.
pub fn load(file: Option<&Path>) -> anyhow::Result<Config> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    match file {
        Some(path) => {
            ensure!(path.is_file(), "the configuration file {} is not there", path.display());
            figment = figment.merge(Toml::file_exact(path));
        }
        None if Path::new(DEFAULT_FILE).is_file() => {
            figment = figment.merge(Toml::file_exact(DEFAULT_FILE))
        }
        None => {}
    }
    for (name, _) in Env::prefixed(ENV_PREFIX).iter() {
        if let Some(meant) = meant(name.as_str(), &figment) {
            let name = name.as_str().to_uppercase();
            bail!("configuration: {ENV_PREFIX}{name} is not read: {ENV_PREFIX}{meant} is");
        }
    }
    let env = Env::prefixed(ENV_PREFIX)
        .filter(|key| key.as_str().contains(ENV_SEPARATOR))
        .split(ENV_SEPARATOR);
    // A password of digits, or an instance called `0`, must not be taken for a number.
    let is_text = |key: &str| {
        TEXTS.contains(&key) || matches!(figment.find_value(key), Ok(Value::String(..)))
    };
    let texts: Vec<(String, String)> = env
        .iter()
        .map(|(key, value)| (key.as_str().to_lowercase(), value))
        .filter(|(key, _)| is_text(key))
        .collect();
    let others = env.ignore(&texts.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>());
    figment = texts.into_iter().fold(figment.merge(others), Figment::merge);
    let config: Config = figment.extract().map_err(|error| anyhow!("configuration: {error}"))?;
    check(&config)?;
    Ok(config)
}

/// The variable that somebody meant who wrote a key with a single underscore after its section.
fn meant(name: &str, known: &Figment) -> Option<String> {
    let name = name.to_lowercase();
    let (section, key) = name.split_once('_')?;
    let dotted = format!("{section}.{key}");
    let is_key = TEXTS.contains(&dotted.as_str()) || known.find_value(&dotted).is_ok();
    is_key.then(|| format!("{section}{ENV_SEPARATOR}{key}").to_uppercase())
}

fn check(config: &Config) -> anyhow::Result<()> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for name in config.kafka.properties.keys() {
        let property = canonical_property(name);
        if RESERVED_PROPERTIES.contains(&property) {
            bail!(
                "configuration: kafka.properties.{name} is set by Tally itself, \
                 since exactly-once depends on it"
            );
        }
        if let Some(other) = names.insert(property, name) {
            bail!(
                "configuration: kafka.properties.{other} and kafka.properties.{name} are one \
                 property of librdkafka under two names: keep one"
            );
        }
    }
    let ranges = [
        (
            "counts.min_event_time",
            is_event_second(config.counts.min_event_time),
            "must be a whole second from 1970-01-01T00:00:00Z to 2106-02-07T06:28:15Z",
        ),
        ("kafka.partitions", config.kafka.partitions >= 1, "must be at least 1"),
        ("kafka.replication", config.kafka.replication >= 1, "must be at least 1"),
        ("aggregator.workers", config.aggregator.workers >= 1, "must be at least 1"),
        (
            "aggregator.flush_interval_ms",
            config.aggregator.flush_interval_ms >= 1,
            "must be at least 1",
        ),
        (
            "aggregator.flush_batch_bytes",
            (1..=14 << 20).contains(&config.aggregator.flush_batch_bytes),
            "must be between 1 and 14680064, since a batch is one message of at most 16 MiB",
        ),
        ("sink.queued_batches", config.sink.queued_batches >= 1, "must be at least 1"),
        ("reader.cached_counters", config.reader.cached_counters >= 1, "must be at least 1"),
        ("producer.max_connections", config.producer.max_connections >= 1, "must be at least 1"),
        ("reader.max_connections", config.reader.max_connections >= 1, "must be at least 1"),
        (
            "reader.cached_bytes",
            config.reader.cached_bytes >= 1 << 20,
            "must be at least 1048576, since a counter's names may have 16 KiB",
        ),
        ("producer.max_in_flight", config.producer.max_in_flight >= 1, "must be at least 1"),
        (
            "producer.body_limit_bytes",
            (1..=1 << 30).contains(&config.producer.body_limit_bytes),
            "must be between 1 and 1073741824",
        ),
        (
            "producer.max_bytes_in_flight",
            config.producer.max_bytes_in_flight / 2 >= config.producer.body_limit_bytes,
            "must be at least twice producer.body_limit_bytes, since a compressed body is in \
             memory beside what it comes to",
        ),
        ("reconciler.parallel", config.reconciler.parallel >= 1, "must be at least 1"),
        (
            "store.database",
            is_identifier(&config.store.database),
            "must be a name of letters, digits and underscores",
        ),
    ];
    for (key, holds, reason) in ranges {
        ensure!(holds, "configuration: {key}: {reason}");
    }
    Ok(())
}

/// Whether events can have this time: buckets are seconds since 1970 in 32 bits.
fn is_event_second(time: Timestamp) -> bool {
    u32::try_from(time.as_second()).is_ok() && time.subsec_nanosecond() == 0
}

fn is_identifier(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn with(toml: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tally.toml");
        std::fs::write(&path, toml).unwrap();
        load(Some(&path))
    }

    #[test]
    fn by_default_what_counts_is_what_the_rules_say_by_default() {
        let rules = tally_counts::Rules { min_event_s: 946_684_800, ..Default::default() };
        assert_eq!(Config::default().rules(), rules);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = with("[sink]\nqueud_batches = 3").unwrap_err().to_string();
        assert!(error.contains("queud_batches") && error.contains("sink"), "{error}");
        let error = with("[snik]\n").unwrap_err().to_string();
        assert!(error.contains("snik"), "{error}");
    }

    #[test]
    fn what_exactly_once_depends_on_cannot_be_passed_through() {
        for (name, value) in [
            ("isolation.level", "read_uncommitted"),
            ("group.protocol", "consumer"),
            ("log.connection.close", "false"),
            ("log.queue", "true"),
            ("metadata.broker.list", "elsewhere:9092"),
            ("delivery.timeout.ms", "1"),
            ("auto.commit.enable", "true"),
            ("request.required.acks", "1"),
        ] {
            let error = with(&format!("[kafka.properties]\n\"{name}\" = \"{value}\"")).unwrap_err();
            assert!(error.to_string().contains(&format!("kafka.properties.{name} ")), "{error}");
        }
    }

    #[test]
    fn a_property_under_two_names_is_refused_with_both() {
        let error =
            with("[kafka.properties]\n\"linger.ms\" = \"5\"\n\"queue.buffering.max.ms\" = \"9\"");
        let error = error.unwrap_err().to_string();
        assert!(error.contains("linger.ms and kafka.properties.queue.buffering.max.ms"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_named() {
        let error = with("[aggregator]\nworkers = 0").unwrap_err().to_string();
        assert!(error.contains("aggregator.workers"), "{error}");
        let error = with("[counts]\nbucket_seconds = 7").unwrap_err().to_string();
        assert!(error.contains("bucket_seconds"), "{error}");
        let error = with("[producer]\nbody_limit_bytes = 200000000").unwrap_err().to_string();
        assert!(error.contains("producer.max_bytes_in_flight"), "{error}");
        for time in
            ["1969-12-31T23:59:59Z", "2106-02-07T06:28:16Z", "2000-01-01T00:00:00.5Z", "2000"]
        {
            let error = with(&format!("[counts]\nmin_event_time = \"{time}\"")).unwrap_err();
            assert!(error.to_string().contains("min_event_time"), "{error}");
        }
    }

    #[test]
    fn the_earliest_event_time_is_the_year_2000_unless_set() {
        assert_eq!(Config::default().rules().min_event_s, 946_684_800);
        let config = with("[counts]\nmin_event_time = \"1970-01-01T01:00:01+01:00\"").unwrap();
        assert_eq!(config.rules().min_event_s, 1);
        // Toml's own times are not taken: they need not have an offset.
        let error = with("[counts]\nmin_event_time = 2000-01-01T00:00:00Z").unwrap_err();
        assert!(error.to_string().contains("min_event_time"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = with("[store]\nuser = \"tally\"\npassword = 12345").unwrap();
        assert_eq!(config.store.password.as_ref().map(Secret::expose), Some("12345"));
        assert!(!format!("{config:?}").contains("12345"));
        assert!(!toml::to_string(&config).unwrap().contains("12345"));
    }

    #[test]
    fn a_named_file_must_be_there() {
        let error = load(Some(Path::new("/nowhere/tally.toml"))).unwrap_err();
        assert!(error.to_string().ends_with("/nowhere/tally.toml is not there"), "{error}");
    }
}
