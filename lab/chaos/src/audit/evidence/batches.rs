//! The chain of `deltas`: each batch beside the messages that it says it is of.

use super::partition::{Batch, MessageCounts};
use super::{Evidence, cells, kafka};
use crate::audit::codec::DeltaBatch;
use crate::audit::verdict::FindingKind;

impl Evidence<'_> {
    /// The next batch of a partition of `deltas`.
    pub(in crate::audit) fn batch(&mut self, partition: i32, offset: i64, batch: &DeltaBatch) {
        let at = Some((partition, batch.from));
        let mut digest = cells::Digest::default();
        let mut events = 0;
        let deltas = &mut self.partitions[partition.cast_unsigned() as usize].deltas;
        for delta in &batch.deltas {
            let cell = (self.names.number(&delta.namespace, &delta.key), delta.bucket);
            cells::add(deltas, cell, delta.sum.into(), delta.events);
            digest.add(cell, delta.sum, delta.events);
            events += delta.events;
        }
        let numbers = MessageCounts {
            counted: batch.counted,
            duplicate: batch.duplicate,
            rejected: batch.rejected,
            increments: batch.increments,
        };
        let topic_id = self.topic_id.get_or_insert_with(|| batch.topic_id.clone());
        let faults = [
            (
                batch.partition != partition,
                format!("it says that it is of partition {}", batch.partition),
            ),
            (
                batch.topic_id != *topic_id,
                format!("it is of topic {}, others are of {topic_id}", batch.topic_id),
            ),
            (batch.correction, "it is a correction".to_owned()),
            (
                events != batch.increments,
                format!("its deltas are of {events} increments, its head of {}", batch.increments),
            ),
        ];
        for (_, what) in faults.iter().filter(|(is_wrong, _)| *is_wrong) {
            self.audit.findings.add(
                FindingKind::Accounting,
                at,
                format_args!("the batch at {offset} of deltas: {what}"),
            );
        }
        let (from, to) = (batch.from, batch.to);
        let batches = &mut self.partitions[partition.cast_unsigned() as usize].batches;
        batches.push(Batch { offset, from, to, numbers, digest });
    }

    pub(super) fn judge_batches(&mut self, number: usize) {
        let partition = &self.partitions[number];
        let findings = &mut self.audit.findings;
        self.audit.logged.batches += partition.batches.len() as u64;
        let mut expected = partition.begin;
        for batch in &partition.batches {
            let at = Some((kafka(number), batch.from));
            let Batch { offset, from, to, numbers, digest } = *batch;
            if from != expected || to < from {
                let kind = if from > expected { "a hole" } else { "an overlap" };
                let what = format_args!(
                    "the batch at {offset} of deltas is of [{from}, {to}), \
                         but {expected} is next: {kind}"
                );
                findings.add(FindingKind::Chain, Some((kafka(number), from.min(expected))), what);
            }
            expected = to;
            let messages = partition.between(from, to);
            let own = MessageCounts::of(messages);
            if own != numbers {
                let what = format_args!(
                    "the batch at {offset} of deltas, of [{from}, {to}), has {numbers:?}; \
                         Kafka has {own:?}"
                );
                findings.add(FindingKind::Accounting, at, what);
            }
            let mut sums = cells::Digest::default();
            messages.iter().for_each(|seen| sums.join(seen.digest));
            if sums != digest {
                let what = format_args!(
                    "the deltas of the batch at {offset}, of [{from}, {to}), \
                         are not what its messages come to"
                );
                findings.add(FindingKind::Sums, at, what);
            }
        }
        if expected != partition.end() {
            let what = format_args!(
                "batches cover increments up to {expected}, but it ends at {}",
                partition.end()
            );
            let is_lag = expected < partition.end();
            let kind = if is_lag { FindingKind::Behind } else { FindingKind::Chain };
            findings.add(kind, Some((kafka(number), expected.min(partition.end()))), what);
        }
    }
}
