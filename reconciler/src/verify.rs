use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use tally_platform::config::Config;
use tally_platform::store::{self, TableRules};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::checkpoint_topic;
use crate::round::Rounds;
use crate::scope::Scope;
use crate::{Error, Report};

/// What is verified, and what is allowed.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    pub scope: Scope,
    /// How old a committed batch may be that ClickHouse lacks; ten flush intervals when absent.
    pub max_lag: Option<Duration>,
    /// How many messages may have been rejected for reasons that the gateway refuses; any number
    /// when absent.
    pub max_rejected: Option<u64>,
    /// Replay every message, whatever the checkpoints say.
    pub from_beginning: bool,
    /// Sign no checkpoint, though there is a key.
    pub signs_nothing: bool,
    /// A file of exported checkpoints, which are read instead of the topic.
    pub checkpoints_file: Option<PathBuf>,
}

/// Verifies every partition as of the ledger's position: what is in Kafka but not in ClickHouse yet
/// is lag, not a mismatch. It writes nothing but checkpoints: of partitions that agree, if there is
/// a key.
///
/// `progress` counts offsets.
pub async fn verify(
    config: &Config,
    options: &VerifyOptions,
    progress: &ProgressBar,
) -> Result<Report, Error> {
    check_rules(config).await?;
    let (config, options, progress) = (config.clone(), options.clone(), progress.clone());
    let runtime = Handle::current();
    let (mut report, signed) = blocking(move || {
        let mut rounds =
            Rounds::new(&config, &options, progress, &runtime, &CancellationToken::new())?;
        let mut report = rounds.round()?;
        let mut signed = Vec::new();
        if let Some(key) = rounds.key().filter(|_| !options.signs_nothing) {
            signed = rounds.signable(&report);
            runtime.block_on(checkpoint_topic::append(&config.kafka, key, &signed))?;
        }
        report.notes.append(&mut rounds.notes(&report));
        Ok((report, signed))
    })
    .await?;
    if !signed.is_empty() {
        let needed: Vec<String> = signed
            .iter()
            .map(|one| format!("{} of partition {}", one.needs_from, one.partition))
            .collect();
        report.notes.push(format!(
            "signed {} checkpoints; the next verify needs the messages from these offsets on: {}",
            signed.len(),
            needed.join(", ")
        ));
    }
    Ok(report)
}

/// Refuses a table that this version, by this configuration, does not count into.
pub(crate) async fn check_rules(config: &Config) -> Result<(), Error> {
    store::check_support(&config.store).await?;
    let (have, want) = (store::rules(&store::client(&config.store)).await?, config.rules());
    match have {
        None => Err(Error::NoTable),
        Some(TableRules { format, .. }) if format != TableRules::FORMAT => {
            Err(Error::OtherFormat { have: format, want: TableRules::FORMAT })
        }
        Some(TableRules { rules, .. }) if rules != want => {
            Err(Error::OtherRules { have: rules, want })
        }
        Some(_) => Ok(()),
    }
}

/// Runs what blocks on a thread of its own.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}
