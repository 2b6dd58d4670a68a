//! A small run as it should be: what was sent, the log, the batches, the rejected messages and the
//! rows. Tests damage it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::cells::bucket;
use super::super::{Evidence, Rejection, Row};
use crate::audit::codec::{self, Delta, DeltaBatch, SchemaIds};
use crate::audit::content::{LoadPlan, Route};
use crate::audit::record::{Entry, Record, State};
use crate::audit::verdict::Audit;

pub(super) const PARTITIONS: i32 = 2;
const SCHEMAS: SchemaIds = SchemaIds { increment: 1, batch: 2 };
const CLOCK_MS: i64 = 1_780_000_000_000;
const MESSAGES: u32 = 40;
/// Messages of one batch of `deltas`.
const FLUSH: usize = 9;

#[derive(Clone)]
pub(super) struct Message {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) mark: Option<u32>,
    pub(super) payload: Vec<u8>,
}

pub(super) struct RunFixture {
    pub(super) record: Record,
    pub(super) log: Vec<Message>,
    /// With the offset in `deltas`.
    pub(super) batches: Vec<(i64, DeltaBatch)>,
    pub(super) rejections: Vec<Rejection>,
    pub(super) rows: Vec<Row>,
}

impl RunFixture {
    /// A run of every kind of message, nothing wrong with it. Each message has ids.
    pub(super) fn new() -> RunFixture {
        RunFixture::of_plan(LoadPlan::new(2, true, SCHEMAS))
    }

    /// The same, but each message counts as often as it is there.
    pub(super) fn without_ids() -> RunFixture {
        RunFixture::of_plan(LoadPlan::new(2, false, SCHEMAS))
    }

    fn of_plan(plan: LoadPlan) -> RunFixture {
        let record = Record {
            plan,
            entries: Vec::new(),
            oddities: Vec::new(),
            first_partitions: PARTITIONS,
        };
        let mut scene = RunFixture {
            record,
            log: Vec::new(),
            batches: Vec::new(),
            rejections: Vec::new(),
            rows: Vec::new(),
        };
        for number in 0..MESSAGES {
            for way in [Route::Single, Route::Batch, Route::Request, Route::Bad] {
                let partition = (number % 2).cast_signed();
                scene.send(way, number, partition);
            }
        }
        scene.flush();
        scene.store();
        scene
    }

    /// Writes a message down and into the log, and once more if it is sent again on purpose.
    fn send(&mut self, way: Route, number: u32, partition: i32) {
        let mark = self.record.entries.len() as u32;
        let mut entry =
            Entry { state: State::Acknowledged, ..Entry::new(way, number, CLOCK_MS, number) };
        let (payload, twice) = if way == Route::Bad {
            (self.record.plan.bad(number, CLOCK_MS).payload, false)
        } else {
            let content = self.record.content(&entry);
            (self.record.plan.payload(&content), content.repeats)
        };
        (entry.partition, entry.offset) = (partition, self.end(partition));
        self.record.entries.push(entry);
        let header = (way != Route::Request).then_some(mark);
        self.log.push(Message {
            partition,
            offset: entry.offset,
            mark: header,
            payload: payload.clone(),
        });
        if twice {
            let offset = self.end(partition);
            let mut header = None;
            if way != Route::Request {
                header = Some(self.record.entries.len() as u32);
                self.record.entries.push(Entry { is_copy: true, offset, ..entry });
            }
            self.log.push(Message { partition, offset, mark: header, payload });
        }
    }

    pub(super) fn end(&self, partition: i32) -> i64 {
        self.log.iter().filter(|message| message.partition == partition).count() as i64
    }

    /// What aggregators make of the log.
    pub(super) fn flush(&mut self) {
        self.batches.clear();
        self.rejections.clear();
        for partition in 0..PARTITIONS {
            let messages: Vec<Message> =
                self.log.iter().filter(|message| message.partition == partition).cloned().collect();
            let mut seen = BTreeSet::new();
            for (number, flushed) in messages.chunks(FLUSH).enumerate() {
                let batch = self.fold(flushed, &mut seen);
                // Markers of transactions take offsets too.
                self.batches.push((2 * number as i64, batch));
            }
        }
    }

    fn fold(&mut self, messages: &[Message], seen: &mut BTreeSet<String>) -> DeltaBatch {
        let from = messages[0].offset;
        let to = messages[messages.len() - 1].offset + 1;
        let mut batch = DeltaBatch {
            topic_id: "topic".into(),
            partition: messages[0].partition,
            from,
            to,
            counted: 0,
            duplicate: 0,
            rejected: 0,
            increments: 0,
            fingerprint: 0,
            correction: false,
            deltas: Vec::new(),
        };
        let mut sums: BTreeMap<(String, String, i64), (i64, i64)> = BTreeMap::new();
        for message in messages {
            if let Some(rejection) = self.rejection(message) {
                batch.rejected += 1;
                self.rejections.push(rejection);
                continue;
            }
            let read = codec::read_message(SCHEMAS, &message.payload).unwrap();
            let is_new = read.id.is_none_or(|id| seen.insert(format!("batch {id}")));
            let mut counts = 0;
            for increment in read.increments {
                let is_first = increment.id.is_none_or(|id| {
                    let (namespace, key) = (&increment.namespace, &increment.key);
                    seen.insert(format!("increment {namespace} {key} {id}"))
                });
                if is_new && is_first {
                    let cell =
                        sums.entry((increment.namespace, increment.key, bucket(increment.at)));
                    let (sum, events) = cell.or_default();
                    *sum += increment.delta;
                    *events += 1;
                    counts += 1;
                }
            }
            batch.increments += counts;
            if counts > 0 {
                batch.counted += 1;
            } else {
                batch.duplicate += 1;
            }
        }
        let deltas = sums.into_iter();
        batch.deltas = deltas
            .map(|((namespace, key, bucket), (sum, events))| Delta {
                namespace,
                key,
                bucket,
                sum,
                events,
            })
            .collect();
        batch
    }

    fn rejection(&self, message: &Message) -> Option<Rejection> {
        let entry = &self.record.entries[message.mark? as usize];
        (entry.way == Route::Bad).then(|| Rejection {
            partition: message.partition,
            offset: message.offset,
            reason: self.record.plan.bad(entry.number, entry.clock_ms).reason.into(),
            payload: message.payload.clone(),
        })
    }

    /// What a sink makes of the batches.
    pub(super) fn store(&mut self) {
        self.rows.clear();
        let mut previous = BTreeMap::new();
        for (offset, batch) in &self.batches {
            let previous = previous.entry(batch.partition).or_insert(0);
            let partition = batch.partition.cast_unsigned();
            for delta in &batch.deltas {
                self.rows.push(Row {
                    partition,
                    namespace: delta.namespace.clone(),
                    key: delta.key.clone(),
                    bucket: delta.bucket,
                    sum: delta.sum.into(),
                    events: delta.events,
                    high: 0,
                });
            }
            let next = offset + 1;
            let ledger = [
                ("deltas".to_owned(), next - *previous, next),
                ("increments".to_owned(), batch.to - batch.from, batch.to),
                ("messages.counted".to_owned(), batch.counted, 0),
                ("messages.duplicate".to_owned(), batch.duplicate, 0),
                ("messages.rejected".to_owned(), batch.rejected, 0),
                ("increments.counted".to_owned(), batch.increments, 0),
                (format!("batch:{next:020}"), 0, *previous),
            ];
            self.rows.extend(ledger.map(|(key, sum, high)| Row {
                partition,
                namespace: "__tally".into(),
                key,
                bucket: 0,
                sum: sum.into(),
                events: 1,
                high,
            }));
            *previous = next;
        }
    }

    pub(super) fn audit(&self) -> Audit {
        let mut evidence = Evidence::new(&self.record, &[0; PARTITIONS as usize], &self.rows);
        for message in &self.log {
            evidence.message(message.partition, message.offset, message.mark, &message.payload);
        }
        for (offset, batch) in &self.batches {
            evidence.batch(batch.partition, *offset, batch);
        }
        self.rejections.iter().for_each(|rejection| evidence.rejection(rejection.clone()));
        self.rows.iter().for_each(|row| evidence.row(row.clone()));
        evidence.judge()
    }

    /// Those of the log's messages of one way that were sent once, as indexes into it.
    pub(super) fn of(&self, way: Route) -> Vec<usize> {
        let is_once = |index: &usize| {
            let mark = self.log[*index].mark;
            mark.is_some_and(|mark| {
                let entry = &self.record.entries[mark as usize];
                entry.way == way && (way == Route::Bad || !self.record.content(entry).repeats)
            })
        };
        (0..self.log.len()).filter(is_once).collect()
    }

    /// What was written down of a message that a Kafka client sent.
    pub(super) fn entry(&mut self, index: usize) -> &mut Entry {
        let mark = self.log[index].mark.expect("clients mark their messages");
        &mut self.record.entries[mark as usize]
    }

    /// How many increments a sound message of a Kafka client holds.
    pub(super) fn increments(&mut self, index: usize) -> u64 {
        let entry = *self.entry(index);
        self.record.content(&entry).batch.increments.len() as u64
    }

    /// Appends a message of the log once more, mark and all, and lets the pipeline take it; its
    /// offset comes back.
    pub(super) fn append_again(&mut self, index: usize, partition: i32) -> i64 {
        let offset = self.end(partition);
        self.log.push(Message { partition, offset, ..self.log[index].clone() });
        self.flush();
        self.store();
        offset
    }

    /// Takes a message out of the log; those after it move up, and so do their acknowledgements.
    pub(super) fn remove(&mut self, index: usize) -> Message {
        let removed = self.log.remove(index);
        let is_after =
            |partition, offset| partition == removed.partition && offset > removed.offset;
        for message in
            self.log.iter_mut().filter(|message| is_after(message.partition, message.offset))
        {
            message.offset -= 1;
        }
        for entry in &mut self.record.entries {
            if is_after(entry.partition, entry.offset) {
                entry.offset -= 1;
            }
        }
        removed
    }
}
