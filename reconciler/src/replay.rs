//! Replays one partition of `increments` through the fold, message by message, and judges each
//! again.
//!
//! ```text
//!  message before the checkpoint's offset ─► its ids are remembered, nothing is counted
//!  message ─► rejected for its schema? ─yes─► rejected: what the registry knew then is believed
//!                 └─no─► Plans ─► Fold::count ─► counted, duplicate ─► rejected then? a finding
//!                          └──────────┴────────► cannot count ─► not rejected then? a finding
//!
//!  sums ─► KeyedFingerprinter ─► fingerprints by range
//!      └─► (watch) quick fingerprint, from the first look at all rows on
//! ```

use std::collections::BTreeMap;

use tally_counts::{
    Bookmark, Flush, Fold, IdScope, KeyedFingerprint, KeyedFingerprintSums, QuickFingerprint,
    Reject, Rules, Salt, Sums,
};
use tally_kafka::FetchedMessage;
use tally_platform::plans::{Plans, Refusal, reuse};
use tally_schemas::{Delta, Increment};
use tokio::runtime::Handle;

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::rejections::Rejections;
use crate::report::{Finding, Findings};
use crate::scope::Scope;

/// What the replayed messages come to, and those before the checkpoint that the replay began at.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReplayTotals {
    pub(crate) messages: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    /// Messages that were rejected, by reason.
    pub(crate) rejected: BTreeMap<&'static str, u64>,
    pub(crate) increments: u64,
    /// Events of the counts within the scope.
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

/// The fingerprints of the counts within the scope, under one salt.
struct Prints {
    salt: Salt,
    sums: KeyedFingerprintSums,
}

impl Prints {
    fn new(salt: &Salt) -> Prints {
        Prints::resume(salt, vec![KeyedFingerprint::ZERO; KeyedFingerprint::RANGES])
    }

    fn resume(salt: &Salt, of_ranges: Vec<KeyedFingerprint>) -> Prints {
        Prints { salt: *salt, sums: KeyedFingerprintSums::resume(salt, of_ranges) }
    }
}

/// The replay of one partition, from its first message on, or from a checkpoint.
pub(crate) struct Replay {
    partition: i32,
    pub(crate) rejections: Rejections,
    scope: Scope,
    rules: Rules,
    /// Sums are taken before they take more than this, in bytes.
    fold_bytes: usize,
    fold: Fold,
    /// Messages before this offset are in the totals already; their ids are remembered.
    counts_from: i64,
    /// Whose first is compared with ClickHouse; the key's own is among them.
    prints: Vec<Prints>,
    /// From a first look at all rows on: what ClickHouse had then, and what was counted since.
    quick: Option<(Salt, QuickFingerprint)>,
    totals: ReplayTotals,
    findings: Findings,
}

/// What a replay is of, and how.
pub(crate) struct ReplayOptions<'a> {
    pub(crate) partition: i32,
    pub(crate) rules: Rules,
    pub(crate) scope: &'a Scope,
    pub(crate) fold_bytes: usize,
}

impl Replay {
    /// A replay from the first message on, with fingerprints under these salts.
    pub(crate) fn new(
        options: &ReplayOptions<'_>,
        salts: &[&Salt],
        rejections: Rejections,
    ) -> Replay {
        let &ReplayOptions { partition, rules, scope, fold_bytes } = options;
        Replay {
            partition,
            rejections,
            scope: scope.clone(),
            rules,
            fold_bytes,
            fold: Fold::new(rules, 0),
            counts_from: 0,
            prints: salts.iter().map(|salt| Prints::new(salt)).collect(),
            quick: None,
            totals: ReplayTotals::default(),
            findings: Findings::default(),
        }
    }

    /// A replay that begins where the checkpoint ends, with fingerprints under the salt of its key.
    ///
    /// # Panics
    /// If a part of the checkpoint cannot be read: it was opened before.
    pub(crate) fn resume(
        options: &ReplayOptions<'_>,
        checkpoint: &Checkpoint,
        key_salt: &Salt,
        rejections: Rejections,
    ) -> Replay {
        let bookmark: Bookmark = checkpoint.bookmark().expect("it was opened");
        let counted = checkpoint.fingerprints().expect("it was opened");
        let prints = Prints::resume(key_salt, counted);
        let totals = ReplayTotals {
            messages: checkpoint.messages,
            counted: checkpoint.counted,
            duplicate: checkpoint.duplicate,
            rejected: checkpoint.rejected().expect("it was opened"),
            increments: checkpoint.increments,
            events: checkpoint.increments.into(),
            last_ms: checkpoint.through_ms,
        };
        Replay {
            fold: Fold::resume(options.rules, checkpoint.position, &bookmark),
            counts_from: checkpoint.position,
            prints: vec![prints],
            totals,
            ..Replay::new(options, &[], rejections)
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
        if offset < self.counts_from {
            return self.remember(decoder, message);
        }
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
        let judged = match plans.decode_or_learn(runtime, message, &mut buffer)? {
            Err(refusal) => Err(refusal),
            Ok(decoded) => {
                let envelope = decoded.envelope(offset, timestamp_ms);
                match (said, self.rules.ids_within) {
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

    /// Remembers the ids of a message that is in the totals already.
    fn remember(
        &mut self,
        decoder: &mut Decoder<'_>,
        message: &FetchedMessage<'_>,
    ) -> Result<(), Error> {
        let &FetchedMessage { offset, timestamp_ms, payload, .. } = message;
        let payload = payload.unwrap_or(b"");
        if self.fold.was_unread(offset, payload) {
            self.fold.pass_over(offset, Reject::UnknownSchema, payload);
            return Ok(());
        }
        let Decoder { plans, runtime, increments } = decoder;
        let mut buffer = reuse(std::mem::take(increments));
        match plans.decode_or_learn(runtime, message, &mut buffer)? {
            Ok(decoded) => {
                let envelope = decoded.envelope(offset, timestamp_ms);
                self.fold.remember(&envelope, &buffer);
            }
            Err(Refusal { reason, detail }) if reason.is_of_schema() => {
                let reason = format!(
                    "the ids of the message at offset {offset} are needed, but its schema is \
                     gone: {detail}"
                );
                self.findings.add(Finding::Unreadable { reason });
            }
            Err(refusal) => self.fold.pass_over(offset, refusal.reason, payload),
        }
        *increments = reuse(buffer);
        Ok(())
    }

    fn reject(&mut self, offset: i64, reason: Reject, payload: &[u8]) {
        self.fold.reject(offset, reason, payload);
        *self.totals.rejected.entry(reason.as_str()).or_default() += 1;
    }

    fn flush(&mut self) {
        let flush = self.take_flush();
        let deltas = || flush.sums.iter().filter(|delta| self.scope.includes(delta));
        for prints in &mut self.prints {
            prints.sums.add(deltas());
        }
        for Delta { namespace, key, bucket_s, sum, events } in deltas() {
            if let Some((salt, quick)) = &mut self.quick {
                *quick += salt.quick_fingerprint(namespace, key, bucket_s, sum, events);
            }
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

    /// The next offset to read.
    pub(crate) fn next(&self) -> i64 {
        self.fold.next()
    }

    /// What all messages so far come to.
    pub(crate) fn totals(&mut self) -> (ReplayTotals, Findings) {
        self.flush();
        (self.totals.clone(), self.findings.clone())
    }

    /// The fingerprints that are compared with ClickHouse's, by range.
    pub(crate) fn fingerprints(&self) -> &[KeyedFingerprint] {
        self.prints.first().expect("there is a salt to compare under").sums.of_ranges()
    }

    /// The quick fingerprint that ClickHouse must have, if one was begun.
    pub(crate) fn quick(&self) -> Option<QuickFingerprint> {
        self.quick.map(|(_, quick)| quick)
    }

    /// Begins a quick fingerprint at what ClickHouse has, which agrees with all messages so far.
    pub(crate) fn begin_quick(&mut self, salt: &Salt, stored: QuickFingerprint) {
        self.flush();
        self.quick = Some((*salt, stored));
    }

    /// What all messages so far come to, to be signed by the key with this salt.
    pub(crate) fn checkpoint(&mut self, topic_id: &str, key_salt: &Salt) -> Option<Checkpoint> {
        self.flush();
        let prints = self.prints.iter().find(|prints| prints.salt == *key_salt)?;
        let bookmark = self.fold.bookmark();
        let position = self.fold.next();
        let ReplayTotals { messages, counted, duplicate, increments, last_ms, .. } = self.totals;
        let rejected = self.totals.rejected.iter();
        Some(Checkpoint {
            format: Checkpoint::FORMAT,
            topic_id: topic_id.to_owned(),
            partition: self.partition,
            position,
            needs_from: bookmark.from.unwrap_or(position),
            deltas: 0,
            signed_ms: 0,
            through_ms: last_ms,
            messages,
            counted,
            duplicate,
            rejected: rejected.map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            increments,
            bookmark: bookmark.to_string(),
            rules: self.rules.to_string(),
            fingerprints: Checkpoint::encode(prints.sums.of_ranges()),
        })
    }
}
