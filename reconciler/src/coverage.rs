//! Whether ClickHouse has what it should have by now, and whether its positions are Kafka's.

use std::time::Duration;

use rdkafka::Message;
use tally_platform::config::Config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::store::Ledger;
use tally_schemas::DeltaBatch;
use tokio::runtime::Handle;

use crate::Error;
use crate::partition_reader::PartitionReader;
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

impl Coverage<'_> {
    /// Whether the ledger contradicts itself.
    pub(crate) fn check_ledger(ledger: &Ledger, findings: &mut Findings) {
        for (name, stored) in [("deltas", ledger.deltas), ("increments", ledger.increments)] {
            if let Err(error) = stored.position() {
                findings.add(Finding::Ledger { reason: format!("position in {name}: {error}") });
            }
        }
    }

    /// Whether ClickHouse has what it should have by now.
    pub(crate) fn check(
        &self,
        partition: i32,
        ledger: &Ledger,
        end: i64,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let kafka = &self.config.kafka;
        let (stored, position) = (ledger.deltas.high, ledger.increments.high);
        // From the last batch that is stored on.
        let from = (stored - 1).max(0);
        let mut batches = PartitionReader::new(kafka, &kafka.deltas, partition, from)?;
        let (begins, batches_end) = (batches.begins(), batches.end());
        if stored > batches_end {
            let reason = format!(
                "position in deltas: ClickHouse is at offset {stored}, but Kafka ends at \
                 {batches_end}"
            );
            findings.add(Finding::Ledger { reason });
            return Ok(());
        }
        if begins > stored {
            findings.add(Finding::DeltasBegin { begins, stored });
        }
        let mut last_is_seen = stored == 0 || begins >= stored;
        while let Some(batch) = batches.next()? {
            let (offset, at_ms) = (batch.offset(), batch.timestamp().to_millis());
            let payload = batch.payload().unwrap_or_default();
            let body = self.batches.sound_body(self.runtime, payload)?.ok();
            let header = body.as_deref().and_then(|body| DeltaBatch::decode(body).ok());
            let (from, to) = header.map_or((-1, -1), |batch| (batch.header.from, batch.header.to));
            if offset < stored {
                last_is_seen = true;
                if to != position {
                    let reason = format!(
                        "position in increments: ClickHouse is at offset {position}, but its last \
                         batch, at offset {offset} of deltas, ends at {to}"
                    );
                    findings.add(Finding::Ledger { reason });
                }
                continue;
            }
            // The first batch of all sets where the chain begins.
            if stored > 0 && from != position && begins <= stored {
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
                findings.add(Finding::Behind { offset, seconds, allowed });
            }
            break;
        }
        if !last_is_seen {
            let reason = format!(
                "position in deltas: ClickHouse is at offset {stored}, but deltas has no batch \
                 before that"
            );
            findings.add(Finding::Ledger { reason });
        }
        if position == 0 && end > 0 && self.has_messages(partition)? {
            findings.add(Finding::NothingStored);
        }
        Ok(())
    }

    /// Whether `increments` has a committed message, besides markers and what was aborted.
    fn has_messages(&self, partition: i32) -> Result<bool, Error> {
        let kafka = &self.config.kafka;
        let mut reader = PartitionReader::from_the_first(kafka, &kafka.increments, partition)?;
        Ok(reader.next()?.is_some())
    }
}
