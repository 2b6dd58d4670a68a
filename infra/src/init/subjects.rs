use tally_platform::config::Config;
use tally_platform::registry::Registry;
use tally_schemas::avsc;

use super::{Error, Report};

/// Old messages stay readable by new schemas.
const COMPATIBILITY: &str = "BACKWARD";
/// Levels that ask for that and for more: an operator's choice, which stays.
const STRICTER: [&str; 3] = ["BACKWARD_TRANSITIVE", "FULL", "FULL_TRANSITIVE"];

pub(super) async fn init(
    config: &Config,
    has_deltas: bool,
    report: &mut Report,
) -> Result<(), Error> {
    let registry = Registry::new(&config.registry)?;
    let deltas = format!("{}-value", config.kafka.deltas);
    if has_deltas && !registry.has_subject(&deltas).await? {
        // Ids that it gives anew would stand for other schemas than those in the log do.
        return Err(Error::Registry(registry.not_ours(format!(
            "has no subject {deltas}, although topic {} has messages",
            config.kafka.deltas
        ))));
    }
    let subjects = [
        (format!("{}-value", config.kafka.increments), avsc::INCREMENT),
        (avsc::INCREMENT_BATCH_SUBJECT.to_owned(), avsc::INCREMENT_BATCH),
        (deltas, avsc::DELTA_BATCH),
    ];
    for (subject, schema) in subjects {
        let id = registry.register(&subject, schema).await?;
        match registry.compatibility(&subject).await? {
            Some(level) if STRICTER.contains(&level.as_str()) => {
                report.add(format!("subject {subject}: schema {id}, compatibility {level} kept"));
            }
            _ => {
                registry.set_compatibility(&subject, COMPATIBILITY).await?;
                report.add(format!("subject {subject}: schema {id}"));
            }
        }
    }
    Ok(())
}
