//! Whether ClickHouse has what it should have by now, and whether its positions are Kafka's.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::store::Ledger;
use tally_schemas::DeltaBatch;
use tokio::runtime::Handle;

use crate::Error;
use crate::partition_reader::PartitionReaders;
use crate::report::{Finding, Findings};

/// What a partition's positions are compared with.
pub(crate) struct Coverage<'a> {
    pub(crate) config: &'a Config,
    pub(crate) batches: &'a DeltaBatches,
    pub(crate) runtime: &'a Handle,
    /// How old a committed batch may be that ClickHouse lacks.
    pub(crate) allowed: Duration,
    /// The time before ClickHouse was asked, in milliseconds since 1970: what is older and not
    /// there was late then.
    pub(crate) as_of_ms: i64,
}

/// A batch's place in `deltas`, its time there, and its source offsets; -1 where it is not sound.
struct Batch {
    offset: i64,
    at_ms: Option<i64>,
    from: i64,
    to: i64,
}

/// What a partition of `deltas` has around the ledger's position.
pub(crate) struct Tail {
    /// The first offset, and the next one.
    begins: i64,
    end: i64,
    /// The last batch that is stored.
    last: Option<Batch>,
    /// The first that is not.
    next: Option<Batch>,
}

impl Coverage<'_> {
    /// Whether the ledger contradicts itself.
    pub(crate) fn check_ledger(ledger: &Ledger, findings: &mut Findings) {
        for (name, stored) in [("deltas", ledger.deltas), ("increments", ledger.increments)] {
            if let Err(error) = stored.position() {
                findings.add(Finding::Ledger { reason: format!("position in {name}: {error}") });
            }
        }
    }

    /// Reads `deltas` of these partitions from the last batch on that is stored, given ClickHouse's
    /// next offset of each. Blocks the thread.
    pub(crate) fn tails(
        &self,
        stored: &BTreeMap<i32, i64>,
        readers: &mut PartitionReaders,
    ) -> Result<BTreeMap<i32, Result<Tail, Error>>, Error> {
        let from = stored.iter().map(|(partition, next)| (*partition, (next - 1).max(0))).collect();
        let mut seen: BTreeMap<i32, [Option<Batch>; 2]> = BTreeMap::new();
        let deltas = &self.config.kafka.deltas;
        let bounds = readers.read_all(deltas, &from, |message| {
            let batch = self.batch(message)?;
            let is_new = batch.offset >= stored[&message.partition()];
            let [last, next] = seen.entry(message.partition()).or_default();
            *(if is_new { next } else { last }) = Some(batch);
            Ok(if is_new { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let tail = |(partition, bounds): (i32, Result<(i64, i64), Error>)| {
            let [last, next] = seen.remove(&partition).unwrap_or_default();
            (partition, bounds.map(|(begins, end)| Tail { begins, end, last, next }))
        };
        Ok(bounds.into_iter().map(tail).collect())
    }

    fn batch(&self, message: &BorrowedMessage<'_>) -> Result<Batch, Error> {
        let payload = message.payload().unwrap_or_default();
        let body = self.batches.sound_body(self.runtime, payload)?.ok();
        let header = body.as_deref().and_then(|body| DeltaBatch::decode(body).ok());
        let (from, to) = header.map_or((-1, -1), |batch| (batch.header.from, batch.header.to));
        Ok(Batch { offset: message.offset(), at_ms: message.timestamp().to_millis(), from, to })
    }

    /// Whether ClickHouse has what it should have by now.
    pub(crate) fn check(
        &self,
        partition: i32,
        ledger: &Ledger,
        end: i64,
        tail: &Tail,
        readers: &mut PartitionReaders,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let (stored, position) = (ledger.deltas.high, ledger.increments.high);
        let Tail { begins, end: batches_end, last, next } = tail;
        if stored > *batches_end {
            let reason = format!(
                "position in deltas: ClickHouse is at offset {stored}, but Kafka ends at \
                 {batches_end}"
            );
            findings.add(Finding::Ledger { reason });
            return Ok(());
        }
        if *begins > stored {
            findings.add(Finding::DeltasBegin { begins: *begins, stored });
        }
        match last {
            Some(Batch { offset, to, .. }) if *to != position => {
                let reason = format!(
                    "position in increments: ClickHouse is at offset {position}, but its last \
                     batch, at offset {offset} of deltas, ends at {to}"
                );
                findings.add(Finding::Ledger { reason });
            }
            None if stored > 0 && *begins < stored => {
                let reason = format!(
                    "position in deltas: ClickHouse is at offset {stored}, but deltas has no \
                     batch before that"
                );
                findings.add(Finding::Ledger { reason });
            }
            Some(_) | None => {}
        }
        if let Some(Batch { offset, at_ms, from, .. }) = next {
            // The first batch of all sets where the chain begins.
            if stored > 0 && *from != position && *begins <= stored {
                let reason = format!(
                    "the batch at offset {offset} of deltas begins at {from}, but ClickHouse is \
                     at offset {position} of increments"
                );
                findings.add(Finding::Ledger { reason });
            }
            let age_ms = at_ms.map_or(i64::MAX, |at_ms| self.as_of_ms.saturating_sub(at_ms));
            let age = Duration::from_millis(age_ms.max(0).cast_unsigned());
            if age > self.allowed {
                let (seconds, allowed) = (age.as_secs(), self.allowed.as_secs());
                findings.add(Finding::Behind { offset: *offset, seconds, allowed });
            }
        }
        if position == 0 && end > 0 && self.has_messages(partition, readers)? {
            findings.add(Finding::NothingStored);
        }
        Ok(())
    }

    /// Whether `increments` has a committed message, besides markers and what was aborted.
    fn has_messages(&self, partition: i32, readers: &mut PartitionReaders) -> Result<bool, Error> {
        let mut reader = readers.read_from_the_first(&self.config.kafka.increments, partition)?;
        Ok(reader.next()?.is_some())
    }
}
