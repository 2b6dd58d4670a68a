//! A Tally of a test's own: topics, groups and a database that no other test has, on the stack that
//! all share.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use clickhouse::{Client, Row};
use serde::Deserialize;
use serde_json::Value;
use tally_platform::config::{self, Config, LogFormat};
use tally_platform::store;

use crate::model::{Cell, Model, Total};
use crate::ports::free_port;
use crate::run::{Ended, run, std_tally, tally};
use crate::service::{Launch, Service, ServiceProcess};
use crate::source::Source;
use crate::stack;
use crate::topics;
use crate::wait::until;

const PARTITIONS: i32 = 3;
/// The least that the broker allows.
const SESSION_TIMEOUT_MS: u64 = 6_000;
const FLUSH_INTERVAL_MS: u64 = 200;
/// No balancer has to notice.
const SHUTDOWN_GRACE_MS: u64 = 0;
/// What is warned of in the course of things, and goes on.
const ALWAYS_ALLOWED: [&str; 11] = [
    // A producer comes up while the coordinator loads, or while it ends the transaction of the
    // producer before.
    "librdkafka: GETPID",
    // The same, for more than five seconds: a new broker on a busy machine makes its log of
    // transactions first.
    "wait for the transaction coordinator",
    // A broker that has other work, as on a machine that runs many tests at once, took some seconds
    // to answer a request: librdkafka sends it again.
    "librdkafka: REQTMOUT",
    // It took so long that the group went on without the member, which joins again.
    "librdkafka: SESSTMOUT",
    // A flush is aborted, and its messages are read again: the group's next generation overtook it,
    // the broker did not take a batch within a transaction's time, or ended the transaction itself.
    // That nothing is lost or doubled by it is for the totals to show.
    "librdkafka: TXNERR",
    "librdkafka: FATAL",
    "a flush did not commit; its partitions are read again from the committed offsets",
    "a flush did not get through to Kafka within its transaction's time",
    "Kafka has not answered a flush for as long as a transaction may take",
    // The sink's offsets, which are for dashboards only, of a generation of the group that has just
    // ended.
    "librdkafka: COMMITFAIL",
    // A process had drained, and a Kafka client of it did not close within 20 s: docs/faults.md.
    "the process's Kafka clients are not closed yet",
];
/// Lines of each log that a failed test shows.
const SHOWN_LINES: usize = 40;

pub(crate) struct Installation {
    pub(crate) config: Config,
    folder: PathBuf,
    store: Client,
    allowed: Vec<&'static str>,
}

impl Installation {
    /// An installation with topics, subjects and tables in place.
    pub(crate) async fn new(name: &str) -> Installation {
        let installation = Installation::bare(name);
        installation.tally(&["init"]).await.expect_code(0);
        installation
    }

    /// An installation that has names only: nothing was made yet.
    pub(crate) fn bare(name: &str) -> Installation {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let stack = stack::shared();
        let name = format!("{name}_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let config = Config {
            kafka: config::Kafka {
                bootstrap: stack.bootstrap(),
                increments: format!("increments-{name}"),
                deltas: format!("deltas-{name}"),
                rejected: format!("increments.rejected-{name}"),
                checkpoints: format!("tally.checkpoints-{name}"),
                partitions: PARTITIONS,
                ..config::Kafka::default()
            },
            registry: config::Registry { url: stack.registry_url(), ..config::Registry::default() },
            store: config::Store {
                url: stack.store_url(),
                database: format!("tally_{name}"),
                ..config::Store::default()
            },
            aggregator: config::Aggregator {
                group: format!("aggregator-{name}"),
                flush_interval_ms: FLUSH_INTERVAL_MS,
                session_timeout_ms: SESSION_TIMEOUT_MS,
                ..config::Aggregator::default()
            },
            sink: config::Sink {
                group: format!("sink-{name}"),
                session_timeout_ms: SESSION_TIMEOUT_MS,
                ..config::Sink::default()
            },
            producer: config::Producer {
                shutdown_grace_ms: SHUTDOWN_GRACE_MS,
                ..config::Producer::default()
            },
            reader: config::Reader {
                shutdown_grace_ms: SHUTDOWN_GRACE_MS,
                ..config::Reader::default()
            },
            telemetry: config::Telemetry {
                log_format: LogFormat::Json,
                ..config::Telemetry::default()
            },
            ..Config::default()
        };
        let folder = stack.dir().join("tests").join(&name);
        fs::create_dir_all(&folder).expect("the stack's folder takes another");
        let store = store::client(&config.store);
        let installation = Installation { config, folder, store, allowed: ALWAYS_ALLOWED.to_vec() };
        installation.write_config();
        installation
    }

    /// Log lines of level WARN and ERROR that contain this text are no failure of this test.
    pub(crate) fn allow(&mut self, text: &'static str) {
        self.allowed.push(text);
    }

    /// Other settings for what is started from now on.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.store = store::client(&self.config.store);
        self.write_config();
    }

    fn write_config(&self) {
        let text = toml::to_string(&self.config).expect("a configuration is plain TOML");
        fs::write(self.config_file(), text).expect("the test's folder is writable");
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.join("installation.toml")
    }

    /// Queries of the test's own database.
    pub(crate) fn store(&self) -> &Client {
        &self.store
    }

    pub(crate) async fn source(&self) -> Source {
        Source::new(&self.config).await
    }

    /// Runs a command on this installation.
    pub(crate) async fn tally(&self, args: &[&str]) -> Ended {
        run(tally(&self.folder).arg("--config").arg(self.config_file()).args(args)).await
    }

    /// As [`Installation::tally`], with these variables in its environment.
    pub(crate) async fn tally_in(&self, environment: &[(&str, &str)], args: &[&str]) -> Ended {
        let mut command = tally(&self.folder);
        command.arg("--config").arg(self.config_file()).args(args);
        run(command.envs(environment.iter().copied())).await
    }

    /// Starts a service; `member` tells it from others of its kind.
    pub(crate) fn start(&self, service: Service, member: &str) -> ServiceProcess {
        self.start_with(service, member, &[])
    }

    /// As [`Installation::start`], with some keys of the configuration overridden.
    pub(crate) fn start_with(
        &self,
        service: Service,
        member: &str,
        overrides: &[(&str, &str)],
    ) -> ServiceProcess {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (health, listen) = (loopback(free_port()), loopback(free_port()));
        let mut command = std_tally(&self.folder);
        command.arg("--config").arg(self.config_file()).args(service.command());
        command.env(service.health_variable(), health.to_string());
        match service {
            Service::Producer | Service::Reader => {
                command.env(
                    format!("TALLY_{}__LISTEN", service.name().to_uppercase()),
                    listen.to_string(),
                );
            }
            Service::Aggregator => {
                command.env("TALLY_AGGREGATOR__INSTANCE", member);
            }
            Service::Sink | Service::Watch => {}
        }
        command.envs(overrides.iter().copied());
        let log = self.folder.join(format!("{}-{member}.log", service.name()));
        ServiceProcess::start(Launch { service, command, log, health, listen })
    }

    /// Waits until everything that is in `increments` is in ClickHouse.
    pub(crate) async fn caught_up(&self) {
        let ends = topics::ends(&self.config.kafka, &self.config.kafka.increments).await;
        self.stored_up_to(&ends).await;
    }

    async fn stored_up_to(&self, ends: &[i64]) {
        until("ClickHouse to hold all of `increments`", async || {
            let ledgers = store::ledgers(&self.store).await.map_err(|error| error.to_string())?;
            for (partition, end) in (0..).zip(ends) {
                let stored = match ledgers.get(&partition) {
                    Some(ledger) => {
                        ledger.increments.position().map_err(|error| error.to_string())?
                    }
                    None => 0,
                };
                if stored != *end {
                    return Err(format!(
                        "partition {partition} is stored up to {stored}, Kafka has {end}"
                    ));
                }
            }
            Ok(())
        })
        .await;
    }

    /// What people read: the view.
    pub(crate) async fn totals(&self) -> BTreeMap<Cell, Total> {
        #[derive(Row, Deserialize)]
        struct CounterRow {
            namespace: String,
            key: String,
            bucket: u32,
            value: i128,
            events: i64,
        }
        let query = self.store.query("SELECT namespace, key, bucket, value, events FROM counters");
        let rows: Vec<CounterRow> = query.fetch_all().await.expect("the view can be read");
        let count = rows.len();
        let totals: BTreeMap<Cell, Total> = rows
            .into_iter()
            .map(|row| ((row.namespace, row.key, row.bucket), (row.value, row.events)))
            .collect();
        assert_eq!(totals.len(), count, "the view has one row a counter and bucket");
        totals
    }

    pub(crate) async fn verify(&self) -> Ended {
        self.tally(&["reconciler", "verify"]).await
    }

    /// Everything sent is stored, every total is right, and the reconciler agrees. Returns what it
    /// printed.
    pub(crate) async fn prove(&self, model: &Model) -> String {
        self.caught_up().await;
        model.expect(&self.totals().await);
        let verified = self.verify().await.expect_code(0).stdout;
        let increments = format!(" {} increments", model.increments());
        assert!(verified.contains(&increments), "the verdict is not on {increments}:\n{verified}");
        verified
    }

    /// Lines of the services' logs that no test expects: warnings, errors, and what is not a log
    /// line at all.
    fn unexpected_lines(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, text) in self.logs() {
            for line in text
                .lines()
                .filter(|line| !self.allowed.iter().any(|allowed| line.contains(allowed)))
            {
                let level = serde_json::from_str::<Value>(line)
                    .ok()
                    .and_then(|line| line.get("level").and_then(Value::as_str).map(str::to_owned));
                if !matches!(level.as_deref(), Some("INFO" | "DEBUG" | "TRACE")) {
                    found.push(format!("{name}: {line}"));
                }
            }
        }
        found
    }

    fn logs(&self) -> Vec<(String, String)> {
        let entries = fs::read_dir(&self.folder).expect("the test's folder is there");
        let mut logs: Vec<_> = entries
            .map(|entry| entry.expect("the test's folder can be read").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .map(|path| {
                let name =
                    path.file_name().expect("a file has a name").to_string_lossy().into_owned();
                (name, fs::read_to_string(&path).expect("a log is text"))
            })
            .collect();
        logs.sort();
        logs
    }
}

impl Drop for Installation {
    /// The services are gone by now, since they are declared later; their logs have the last word.
    fn drop(&mut self) {
        let unexpected = self.unexpected_lines();
        if std::thread::panicking() || !unexpected.is_empty() {
            for (name, text) in self.logs() {
                let lines: Vec<&str> = text.lines().collect();
                let shown = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
                eprintln!("--- the end of {name}\n{shown}");
            }
        }
        if !std::thread::panicking() {
            assert!(unexpected.is_empty(), "unexpected log lines:\n{}", unexpected.join("\n"));
        }
    }
}
