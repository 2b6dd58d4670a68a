//! The log beside the record: each message recognised, its content compared, and what was
//! acknowledged looked for.

use super::partition::Fate;
use super::{Evidence, kafka, request_partition};
use crate::audit::codec::{self, IncrementBatch};
use crate::audit::content::{Counts, Route};
use crate::audit::record::{Entry, State};
use crate::audit::verdict::FindingKind;

/// What the log has of an entry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Occurrences {
    times: u32,
    /// Partition and offset of the first time.
    first: (i32, i64),
    is_spread: bool,
    /// Once where its acknowledgement said.
    is_in_place: bool,
}

impl Evidence<'_> {
    /// The next message of a partition of `increments`; `mark` is its header.
    pub(in crate::audit) fn message(
        &mut self,
        partition: i32,
        offset: i64,
        mark: Option<u32>,
        payload: &[u8],
    ) {
        let read = match mark.and_then(|mark| self.record.entries.get(mark as usize)) {
            // Decoded it would take gigabytes.
            Some(entry) if entry.is_poison() => Err(codec::Error::Poison),
            _ => codec::read_message(self.record.plan.schemas, payload),
        };
        let at = Some((partition, offset));
        let known = self.recognise(mark, read.as_ref().ok());
        match known {
            Some(mark) => {
                self.find(mark, partition, offset);
                self.compare(mark, (partition, offset), payload, read.as_ref());
            }
            None => {
                let what = match &read {
                    Ok(message) => format!("nobody sent it: {message:?}"),
                    Err(error) => format!("nobody sent it: {} bytes, {error}", payload.len()),
                };
                self.findings().add(FindingKind::Foreign, at, what);
            }
        }
        let is_bad = known.is_some_and(|mark| self.record.entries[mark as usize].way == Route::Bad);
        let folded = &mut self.partitions[partition.cast_unsigned() as usize];
        match read {
            Ok(message) if !is_bad => {
                folded.fold(offset, known, &message, &mut self.names);
            }
            Ok(_) | Err(_) => folded.reject(offset, known),
        }
    }

    /// The entry that a message is of: by its header, or by the id that a request gave it.
    fn recognise(&self, mark: Option<u32>, message: Option<&IncrementBatch>) -> Option<u32> {
        if let Some(mark) = mark {
            let entry = self.record.entries.get(mark as usize)?;
            return (entry.way != Route::Request).then_some(mark);
        }
        let message = message?;
        let id = message.id.as_deref().or_else(|| message.increments.first()?.id.as_deref())?;
        let number = id.strip_prefix("request-")?.split('-').next()?.parse().ok()?;
        self.requests.get(&number).copied()
    }

    fn find(&mut self, mark: u32, partition: i32, offset: i64) {
        let entry = &self.record.entries[mark as usize];
        let found = &mut self.found[mark as usize];
        if found.times == 0 {
            found.first = (partition, offset);
        }
        if found.first.0 != partition {
            // An id is recognised within its partition. Once partitions are added, a gateway
            // chooses another one for it.
            let counts = self.record.first_partitions..=kafka(self.partitions.len());
            let is_by_count = entry.way == Route::Request
                && request_partition::under_counts(&self.record.content(entry), counts)
                    .is_superset(&[found.first.0, partition].into());
            found.is_spread |= !is_by_count;
        }
        found.times += 1;
        found.is_in_place |= entry.acknowledged_at() == Some((partition, offset));
    }

    fn compare(
        &mut self,
        mark: u32,
        (partition, offset): (i32, i64),
        payload: &[u8],
        read: Result<&IncrementBatch, &codec::Error>,
    ) {
        let entry = &self.record.entries[mark as usize];
        let is_same = match entry.way {
            Route::Bad => self.record.plan.bad(entry.number, entry.clock_ms).payload == payload,
            Route::Single | Route::Batch | Route::Request => {
                read.is_ok_and(|message| *message == self.record.content(entry).batch)
            }
        };
        if !is_same {
            let what = format_args!("it is not what was sent as {entry}: {read:?}");
            self.audit.findings.add(FindingKind::Altered, Some((partition, offset)), what);
        }
    }

    pub(super) fn judge_messages(&mut self) {
        for mark in 0..self.found.len() {
            self.judge_entry(&self.record.entries[mark], self.found[mark]);
        }
        for (number, partition) in self.partitions.iter().enumerate() {
            let logged = &mut self.audit.logged;
            for seen in &partition.seen {
                logged.messages += 1;
                logged.increments += u64::from(seen.increments);
                match seen.fate {
                    Fate::Counted => logged.counted += 1,
                    Fate::Duplicate => logged.duplicate += 1,
                    Fate::Rejected => logged.rejected += 1,
                }
                let holds = seen.mark.map(|mark| &self.record.entries[mark as usize]);
                let holds = holds
                    .filter(|entry| entry.way != Route::Bad)
                    .map(|entry| self.record.content(entry));
                let holds = holds.map_or(0, |content| content.batch.increments.len() as u64);
                logged.skipped += holds.saturating_sub(seen.increments.into());
            }
            let pairs = partition.seen.windows(2);
            if let Some(pair) = pairs.into_iter().find(|pair| pair[0].offset >= pair[1].offset) {
                let at = Some((kafka(number), pair[1].offset));
                let what = format_args!("it comes after {}", pair[0].offset);
                self.audit.findings.add(FindingKind::Misplaced, at, what);
            }
        }
    }

    fn judge_entry(&mut self, entry: &Entry, found: Occurrences) {
        let at = entry.acknowledged_at().or((found.times > 0).then_some(found.first));
        let content = (entry.way != Route::Bad).then(|| self.record.content(entry));
        let increments =
            content.as_ref().map_or(0, |content| content.batch.increments.len() as u64);
        // A bad one is rejected as often as it is there.
        let may_repeat = content.is_none_or(|content| content.counts != Counts::EachTime);
        if found.times > 1 && entry.way != Route::Request {
            self.audit.logged.repeated += u64::from(found.times) - 1;
        }
        match (entry.state, found.times) {
            (State::Acknowledged, 0) => {
                self.audit.lost += increments;
                self.findings().add(FindingKind::Lost, at, format_args!("not in Kafka: {entry}"));
            }
            (State::NotApplied, 1..) => {
                self.findings().add(
                    FindingKind::Applied,
                    at,
                    format_args!("{} times in Kafka: {entry}", found.times),
                );
            }
            (_, 2..) if !may_repeat || found.is_spread => {
                self.audit.doubled += increments;
                let spread = if found.is_spread { " in several partitions" } else { "" };
                self.findings().add(
                    FindingKind::Doubled,
                    at,
                    format_args!("{} times in Kafka{spread}: {entry}", found.times),
                );
            }
            (State::Acknowledged, _) if entry.acknowledged_at().is_some() && !found.is_in_place => {
                let (partition, offset) = found.first;
                let what = format_args!("it is at {partition}:{offset} instead: {entry}");
                self.findings().add(FindingKind::Misplaced, at, what);
            }
            _ => {}
        }
    }
}
