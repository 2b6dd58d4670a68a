use std::collections::BTreeSet;
use std::sync::Arc;

use indicatif::ProgressBar;
use rdkafka::Message;
use rdkafka::consumer::Consumer;
use tally_platform::config::Config;
use tally_platform::plans::Refusal;
use tally_platform::store::{self, Ledger};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::partition_reader::kafka_client;
use crate::reject_reasons::{RejectReasons, read_reject_reasons};
use crate::replay::{Fate, Replay, ReplayTotals, Replayed};
use crate::{Error, Finding, PartitionReport, Report};

/// Verifies every partition as of the ledger's position: what is in Kafka but not in ClickHouse yet
/// is lag, not a mismatch.
///
/// `progress` counts offsets.
pub async fn verify(config: &Config, progress: &ProgressBar) -> Result<Report, Error> {
    let client = store::client(&config.store);
    let (have, want) = (store::rules(&client).await?, config.rules());
    match have {
        None => return Err(Error::NoTable),
        Some(have) if have != want => {
            return Err(Error::OtherRules { have, want });
        }
        Some(_) => {}
    }
    let ledgers = store::ledgers(&client, true).await?;
    let config = Arc::new(config.clone());
    let runtime = Handle::current();
    let (count, reasons) = {
        let config = config.clone();
        blocking(move || {
            let kafka = &config.kafka;
            let count =
                tally_kafka::partition_count(kafka_client(kafka)?.client(), &kafka.increments)?;
            Ok((count, read_reject_reasons(kafka)?))
        })
        .await?
    };
    let ends = ledgers.values().map(|ledger| ledger.increments.high.cast_unsigned());
    progress.set_length(ends.sum());
    let slots = Arc::new(Semaphore::new(config.reconciler.parallel));
    let mut replays = JoinSet::new();
    // A partition that only the ledger has is no longer in Kafka: it must not be overlooked.
    let known: BTreeSet<i32> = (0..count).chain(ledgers.keys().copied()).collect();
    for partition in known {
        // Without a ledger nothing is stored yet, and without reasons nothing was rejected.
        let ledger = ledgers.get(&partition).copied().unwrap_or_default();
        let reasons = reasons.get(&partition).cloned().unwrap_or_default();
        let (config, runtime, progress) = (config.clone(), runtime.clone(), progress.clone());
        let slots = slots.clone();
        replays.spawn(async move {
            let _slot = slots.acquire().await.expect("the semaphore is never closed");
            blocking(move || {
                verify_partition(&config, partition, &ledger, &reasons, &runtime, &progress)
            })
            .await
        });
    }
    let mut partitions = Vec::new();
    while let Some(joined) = replays.join_next().await {
        partitions
            .push(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?);
    }
    partitions.sort_by_key(|report| report.partition);
    Ok(Report { partitions })
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn verify_partition(
    config: &Config,
    partition: i32,
    ledger: &Ledger,
    reasons: &RejectReasons,
    runtime: &Handle,
    progress: &ProgressBar,
) -> Result<PartitionReport, Error> {
    let mut findings = Vec::new();
    for (name, stored) in [("deltas", ledger.deltas), ("increments", ledger.increments)] {
        if let Err(error) = stored.position() {
            findings.push(Finding::Ledger(format!("position in {name}: {error}")));
        }
    }
    // Where the position contradicts itself, the replay goes as far as the counts ever did.
    let position = ledger.increments.high;
    let mut replay = Replay::new(config, partition, position, reasons, runtime)?;
    while let Some(Replayed { message, fate }) = replay.next()? {
        progress.inc(1);
        if let Fate::NotCountable(Refusal { reason, detail }) = fate {
            findings.push(Finding::NotCountable { offset: message.offset(), reason, detail });
        }
    }
    let totals = replay.finish();
    compare(&totals, ledger, &mut findings);
    let kafka = &config.kafka;
    let (_, end) =
        tally_kafka::watermarks(kafka_client(kafka)?.client(), &kafka.increments, partition)?;
    Ok(PartitionReport {
        partition,
        position,
        lag: end - position,
        messages: totals.messages,
        counted: totals.counted,
        duplicate: totals.duplicate,
        rejected: totals.rejected,
        increments: totals.increments,
        replayed: totals.fingerprint,
        stored: ledger.fingerprint,
        findings,
    })
}

/// Compares what a replay came to with what the ledger says.
fn compare(totals: &ReplayTotals, ledger: &Ledger, findings: &mut Vec<Finding>) {
    if totals.fingerprint != ledger.fingerprint {
        findings.push(Finding::Fingerprint);
    }
    let accounts = [
        ("messages counted", ledger.counted, totals.counted),
        ("messages duplicate", ledger.duplicate, totals.duplicate),
        ("messages rejected", ledger.rejected, totals.rejected),
        ("increments", ledger.counted_increments, totals.increments),
        ("events of the counts", ledger.events, totals.increments),
    ];
    for (what, stored, replayed) in accounts {
        if i64::try_from(replayed).is_ok_and(|replayed| replayed == stored) {
            continue;
        }
        findings.push(Finding::Accounting { what, stored, replayed });
    }
    if totals.messages != totals.counted + totals.duplicate + totals.rejected {
        findings.push(Finding::Accounting {
            what: "messages seen",
            stored: ledger.counted + ledger.duplicate + ledger.rejected,
            replayed: totals.messages,
        });
    }
}
