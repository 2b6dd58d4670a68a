use std::collections::BTreeSet;
use std::sync::Arc;

use indicatif::ProgressBar;
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tally_counts::{Envelope, Fingerprint, Fold, Reject};
use tally_platform::config::Config;
use tally_platform::plans::{Plans, Undecoded};
use tally_platform::registry::Registry;
use tally_platform::store::{self, Ledger};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::rejected::{Rejected, rejected_messages};
use crate::replay::{Until, replay};
use crate::{Error, Finding, PartitionReport, Report};

/// The sums of a replay are needed only for their fingerprint, and are taken before they grow
/// beyond this.
const FOLD_BYTES: usize = 32 << 20;

/// Verifies every partition as of the ledger's position: what is in the log but not in the store
/// yet is lag, not a mismatch.
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
    let (count, rejected) = {
        let config = config.clone();
        blocking(move || {
            let consumer: BaseConsumer =
                tally_kafka::client(&config.kafka.cluster(), "tally-reconciler")
                    .create()
                    .map_err(Error::kafka("make a consumer"))?;
            let count = tally_kafka::partition_count(consumer.client(), &config.kafka.increments)?;
            Ok((count, rejected_messages(&config.kafka)?))
        })
        .await?
    };
    let ends = ledgers.values().map(|ledger| ledger.increments.high.cast_unsigned());
    progress.set_length(ends.sum());
    let slots = Arc::new(Semaphore::new(config.reconciler.parallel));
    let mut replays = JoinSet::new();
    // A partition that only the ledger has is no partition of the log any more: it must not go
    // unseen.
    let known: BTreeSet<i32> = (0..count).chain(ledgers.keys().copied()).collect();
    for partition in known {
        // Without a ledger nothing is stored yet, and nothing is rejected where the topic names
        // nothing.
        let ledger = ledgers.get(&partition).copied().unwrap_or_default();
        let rejected = rejected.get(&partition).cloned().unwrap_or_default();
        let (config, runtime, progress) = (config.clone(), runtime.clone(), progress.clone());
        let slots = slots.clone();
        replays.spawn(async move {
            let _slot = slots.acquire().await.expect("the semaphore is never closed");
            blocking(move || {
                verify_partition(&config, partition, &ledger, &rejected, &runtime, &progress)
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
    rejected: &Rejected,
    runtime: &Handle,
    progress: &ProgressBar,
) -> Result<PartitionReport, Error> {
    let topic = &config.kafka.increments;
    let mut findings = Vec::new();
    for (name, stored) in [("deltas", ledger.deltas), ("increments", ledger.increments)] {
        if let Err(error) = stored.position() {
            findings.push(Finding::Ledger(format!("position in {name}: {error}")));
        }
    }
    // Where the position contradicts itself, the replay goes as far as the store ever was.
    let position = ledger.increments.high;
    let mut plans = Plans::new(Registry::new(&config.registry)?);
    let mut fold = Fold::new(config.rules(), 0);
    let mut total = Total::default();
    replay(&config.kafka, topic, partition, Until::Offset(position), |message| {
        let offset = message.offset();
        total.messages += 1;
        progress.inc(1);
        let payload = message.payload().unwrap_or(b"");
        let rejected = rejected.get(&offset).copied();
        // Of the messages that were rejected, those that did not fit alone left their ids.
        if let Some(reason) = rejected.filter(|reason| *reason != Reject::Overflow) {
            fold.reject(offset, reason, payload);
            return Ok(());
        }
        let mut increments = Vec::new();
        let decoded = loop {
            match plans.decode(payload, &mut increments) {
                Ok(decoded) => break Ok(decoded),
                Err(Undecoded::Refused(refusal)) => break Err(refusal),
                Err(Undecoded::AskRegistry) => runtime.block_on(plans.learn(payload))?,
            }
        };
        let refused = match decoded {
            Ok(decoded) => {
                let envelope = Envelope {
                    offset,
                    timestamp_ms: message.timestamp().to_millis().filter(|at_ms| *at_ms >= 0),
                    schema: decoded.schema,
                    batch_id: decoded.batch_id,
                };
                if let Some(reason) = rejected {
                    fold.remember(&envelope, &increments);
                    fold.reject(offset, reason, payload);
                    return Ok(());
                }
                match fold.count_again(&envelope, &increments) {
                    Ok(()) => None,
                    Err(reason) => Some((reason, String::from("as counted by the fold"))),
                }
            }
            Err(refusal) => Some((refusal.reason, refusal.detail)),
        };
        if let Some((reason, detail)) = refused {
            findings.push(Finding::NotCountable { offset, reason, detail });
        }
        if fold.sums().encoded_bytes() > FOLD_BYTES {
            total.add(&mut fold);
        }
        Ok(())
    })?;
    total.add(&mut fold);
    total.compare(ledger, &mut findings);
    let consumer: BaseConsumer = tally_kafka::client(&config.kafka.cluster(), "tally-reconciler")
        .create()
        .map_err(Error::kafka("make a consumer"))?;
    let (_, end) = tally_kafka::watermarks(consumer.client(), topic, partition)?;
    Ok(PartitionReport {
        partition,
        position,
        lag: end - position,
        messages: total.messages,
        counted: total.counted,
        duplicate: total.duplicate,
        rejected: total.rejected,
        increments: total.increments,
        replayed: total.fingerprint,
        stored: ledger.fingerprint,
        findings,
    })
}

/// What a replay comes to.
#[derive(Default)]
struct Total {
    messages: u64,
    counted: u64,
    duplicate: u64,
    rejected: u64,
    increments: u64,
    fingerprint: Fingerprint,
}

impl Total {
    fn add(&mut self, fold: &mut Fold) {
        let flush = fold.take();
        self.counted += flush.counted;
        self.duplicate += flush.duplicate;
        self.rejected += flush.rejected;
        self.increments += flush.increments;
        self.fingerprint += flush.fingerprint;
    }

    fn compare(&self, ledger: &Ledger, findings: &mut Vec<Finding>) {
        if self.fingerprint != ledger.fingerprint {
            findings.push(Finding::Fingerprint);
        }
        let accounts = [
            ("messages counted", ledger.counted, self.counted),
            ("messages duplicate", ledger.duplicate, self.duplicate),
            ("messages rejected", ledger.rejected, self.rejected),
            ("increments", ledger.counted_increments, self.increments),
            ("events of the counts", ledger.events, self.increments),
        ];
        for (what, stored, replayed) in accounts {
            if i64::try_from(replayed).is_ok_and(|replayed| replayed == stored) {
                continue;
            }
            findings.push(Finding::Accounting { what, stored, replayed });
        }
        if self.messages != self.counted + self.duplicate + self.rejected {
            findings.push(Finding::Accounting {
                what: "messages seen",
                stored: ledger.counted + ledger.duplicate + ledger.rejected,
                replayed: self.messages,
            });
        }
    }
}
