//! Replays one partition of `increments` through the fold, message by message, and judges each
//! again.
//!
//! ```text
//!  message ─► rejected for its schema? ─yes─► rejected: what the registry knew then is believed
//!                 └─no─► Plans ─► Fold::count ─► counted, duplicate ─► rejected then? a finding
//!                          └──────────┴────────► cannot count ─► not rejected then? a finding
//!
//!  sums ─► KeyedFingerprinter ─► fingerprints by range
//! ```

use std::collections::BTreeMap;

use tally_counts::{
    Envelope, Flush, Fold, IdScope, KeyedFingerprint, KeyedFingerprinter, Reject, Rules, Salt, Sums,
};
use tally_kafka::FetchedMessage;
use tally_platform::plans::{Plans, Refusal, reuse};
use tally_schemas::{Delta, Increment};
use tokio::runtime::Handle;

use crate::Error;
use crate::rejections::Rejections;
use crate::report::{Finding, Findings};
use crate::scope::Scope;

/// What the replayed messages come to.
#[derive(Clone, Debug)]
pub(crate) struct ReplayTotals {
    pub(crate) messages: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    /// Messages that were rejected, by reason.
    pub(crate) rejected: BTreeMap<&'static str, u64>,
    pub(crate) increments: u64,
    /// Of the counts within the scope, in each range.
    pub(crate) fingerprints: Vec<KeyedFingerprint>,
    /// Of the counts within the scope.
    pub(crate) events: i128,
    /// Kafka's time of the last message, in milliseconds since 1970.
    pub(crate) last_ms: Option<i64>,
}

/// Decodes messages of any partition.
pub(crate) struct Decoder<'r> {
    plans: Plans,
    runtime: &'r Handle,
    /// A buffer for one message's increments, empty between messages.
    increments: Vec<Increment<'static>>,
}

impl<'r> Decoder<'r> {
    pub(crate) fn new(plans: Plans, runtime: &'r Handle) -> Decoder<'r> {
        Decoder { plans, runtime, increments: Vec::new() }
    }
}

/// The replay of one partition, from its first message on.
pub(crate) struct Replay<'a> {
    partition: i32,
    rejections: &'a Rejections,
    scope: &'a Scope,
    ids_within: IdScope,
    /// Sums are taken before they take more than this, in bytes.
    fold_bytes: usize,
    fold: Fold,
    fingerprinter: KeyedFingerprinter,
    totals: ReplayTotals,
    findings: Findings,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(
        partition: i32,
        rules: Rules,
        salt: &Salt,
        rejections: &'a Rejections,
        scope: &'a Scope,
        fold_bytes: usize,
    ) -> Replay<'a> {
        Replay {
            partition,
            rejections,
            scope,
            ids_within: rules.ids_within,
            fold_bytes,
            fold: Fold::new(rules, 0),
            fingerprinter: KeyedFingerprinter::new(salt),
            totals: ReplayTotals {
                messages: 0,
                counted: 0,
                duplicate: 0,
                rejected: BTreeMap::new(),
                increments: 0,
                fingerprints: vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES],
                events: 0,
                last_ms: None,
            },
            findings: Findings::default(),
        }
    }

    /// Judges the next message of the partition. Blocks the thread where the registry is asked.
    #[inline]
    pub(crate) fn take(
        &mut self,
        decoder: &mut Decoder<'_>,
        message: &FetchedMessage<'_>,
    ) -> Result<(), Error> {
        debug_assert_eq!(message.partition, self.partition);
        let &FetchedMessage { offset, timestamp_ms, payload, .. } = message;
        self.totals.messages += 1;
        self.totals.last_ms = timestamp_ms;
        let payload = payload.unwrap_or(b"");
        let said = match self.rejections.is_empty() {
            true => None,
            false => self.rejections.get(&offset).copied(),
        };
        if let Some(reason) = said.filter(|reason| reason.is_of_schema()) {
            self.reject(offset, reason, payload);
            return Ok(());
        }
        let Decoder { plans, runtime, increments } = decoder;
        let mut buffer = reuse(std::mem::take(increments));
        let judged = match plans.decode_or_learn(runtime, payload, &mut buffer)? {
            Err(refusal) => Err(refusal),
            Ok(decoded) => {
                let envelope = Envelope {
                    offset,
                    timestamp_ms,
                    schema: decoded.schema,
                    batch_id: decoded.batch_id,
                };
                match (said, self.ids_within) {
                    // Tally 0.1 rejected what did not fit its sums of 64 bits, and remembered the
                    // ids; only its installations have ids within partitions.
                    (Some(Reject::Overflow), IdScope::Partition) => {
                        self.fold.remember(&envelope, &buffer);
                        self.reject(offset, Reject::Overflow, payload);
                        *increments = reuse(buffer);
                        return Ok(());
                    }
                    _ => self.fold.count(&envelope, &buffer).map_err(|reason| Refusal {
                        reason,
                        detail: String::from("as counted by the fold"),
                    }),
                }
            }
        };
        *increments = reuse(buffer);
        match (judged, said) {
            (Ok(_), None) => {}
            (Ok(_), Some(reason)) => {
                self.findings.add(Finding::WronglyRejected { offset, reason });
            }
            (Err(refusal), Some(_)) => self.reject(offset, refusal.reason, payload),
            (Err(Refusal { reason, detail }), None) => {
                self.reject(offset, reason, payload);
                self.findings.add(Finding::NotCountable { offset, reason, detail });
            }
        }
        if self.fold.sums().encoded_bytes() > self.fold_bytes {
            self.flush();
        }
        Ok(())
    }

    fn reject(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        self.fold.reject(offset, reason, payload);
        *self.totals.rejected.entry(reason.as_str()).or_default() += 1;
    }

    fn flush(&mut self) {
        let flush = self.take_flush();
        for delta in flush.sums.iter().filter(|delta| self.scope.includes(delta)) {
            let Delta { namespace, key, bucket_s, sum, events } = delta;
            let row = self.fingerprinter.row(namespace, key, bucket_s, sum, events);
            self.totals.fingerprints[row.range] += row.fingerprint;
            self.totals.events += i128::from(events);
        }
        self.fold.reuse(flush.sums);
    }

    /// Takes what was folded since the last flush, and accounts for the messages; its sums are the
    /// caller's.
    pub(crate) fn take_flush(&mut self) -> Flush {
        let flush = self.fold.take();
        self.totals.counted += flush.counted;
        self.totals.duplicate += flush.duplicate;
        self.totals.increments += flush.increments;
        flush
    }

    pub(crate) fn sums(&self) -> &Sums {
        self.fold.sums()
    }

    /// What all messages so far come to.
    pub(crate) fn finish(mut self) -> (ReplayTotals, Findings) {
        self.flush();
        (self.totals, self.findings)
    }
}
