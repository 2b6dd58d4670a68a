//! Replays one partition of `increments` through the fold, message by message.
//!
//! ```text
//!  PartitionReader ─► message ─► rejected then? ─yes───────────────────► Fate::Rejected
//!                                   └─no─► Plans ─► Fold::count_again ─► Fate::Counted, Duplicate
//!                                            └────────────┴─────────────► Fate::NotCountable
//! ```

use rdkafka::Message;
use rdkafka::message::BorrowedMessage;
use tally_counts::{CountedAs, Envelope, Fingerprint, Fold, Reject};
use tally_platform::config::Config;
use tally_platform::plans::{Plans, Refusal};
use tally_platform::registry::Registry;
use tokio::runtime::Handle;

use crate::Error;
use crate::partition_reader::{PartitionReader, Until};
use crate::reject_reasons::RejectReasons;

/// A replay needs sums only for their fingerprint. They are taken before they grow beyond this.
const FOLD_BYTES: usize = 32 << 20;

/// What becomes of a message.
#[derive(Debug)]
pub(crate) enum Fate {
    Counted,
    Duplicate,
    /// It was rejected when the aggregator read it.
    Rejected(Reject),
    /// It cannot be counted, and was not rejected either: Kafka and the counts disagree.
    NotCountable(Refusal),
}

pub(crate) struct Replayed<'a> {
    pub(crate) message: BorrowedMessage<'a>,
    pub(crate) fate: Fate,
}

/// What the replayed messages come to.
#[derive(Default)]
pub(crate) struct ReplayTotals {
    pub(crate) messages: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    pub(crate) rejected: u64,
    pub(crate) increments: u64,
    pub(crate) fingerprint: Fingerprint,
}

impl ReplayTotals {
    fn add(&mut self, fold: &mut Fold) {
        let flush = fold.take();
        self.counted += flush.counted;
        self.duplicate += flush.duplicate;
        self.rejected += flush.rejected;
        self.increments += flush.increments;
        self.fingerprint += flush.fingerprint;
    }
}

/// The replay of one partition, from its first message on. Blocks the thread.
pub(crate) struct Replay<'a> {
    reader: PartitionReader,
    reasons: &'a RejectReasons,
    runtime: &'a Handle,
    plans: Plans,
    fold: Fold,
    totals: ReplayTotals,
}

impl<'a> Replay<'a> {
    /// A replay up to the next offset `to`. It takes from `reasons` which messages were rejected.
    pub(crate) fn new(
        config: &Config,
        partition: i32,
        to: i64,
        reasons: &'a RejectReasons,
        runtime: &'a Handle,
    ) -> Result<Replay<'a>, Error> {
        let plans = Plans::new(Registry::new(&config.registry)?);
        let fold = Fold::new(config.rules(), 0);
        let (kafka, topic) = (&config.kafka, &config.kafka.increments);
        let reader = PartitionReader::new(kafka, topic, partition, Until::Offset(to))?;
        Ok(Replay { reader, reasons, runtime, plans, fold, totals: ReplayTotals::default() })
    }

    /// The next message and its fate; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Replayed<'_>>, Error> {
        let Some(message) = self.reader.next()? else { return Ok(None) };
        self.totals.messages += 1;
        let payload = message.payload().unwrap_or(b"");
        let reason = self.reasons.get(&message.offset()).copied();
        let fate = fold(&mut self.fold, &mut self.plans, self.runtime, &message, reason)?;
        if let Fate::Rejected(reason) = fate {
            self.fold.reject(message.offset(), reason, payload);
        }
        if self.fold.sums().encoded_bytes() > FOLD_BYTES {
            self.totals.add(&mut self.fold);
        }
        Ok(Some(Replayed { message, fate }))
    }

    /// What all messages so far come to.
    pub(crate) fn finish(mut self) -> ReplayTotals {
        self.totals.add(&mut self.fold);
        self.totals
    }
}

/// Counts a message, or for one that was rejected remembers the ids that it left.
fn fold(
    fold: &mut Fold,
    plans: &mut Plans,
    runtime: &Handle,
    message: &BorrowedMessage<'_>,
    rejected: Option<Reject>,
) -> Result<Fate, Error> {
    // Of the messages that were rejected, only those whose sums would have overflowed left ids.
    if let Some(reason) = rejected.filter(|reason| *reason != Reject::Overflow) {
        return Ok(Fate::Rejected(reason));
    }
    let mut increments = Vec::new();
    let payload = message.payload().unwrap_or(b"");
    let decoded = match plans.decode_or_learn(runtime, payload, &mut increments)? {
        Ok(decoded) => decoded,
        Err(refusal) => return Ok(Fate::NotCountable(refusal)),
    };
    let envelope = Envelope {
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().filter(|at_ms| *at_ms >= 0),
        schema: decoded.schema,
        batch_id: decoded.batch_id,
    };
    if let Some(reason) = rejected {
        fold.remember(&envelope, &increments);
        return Ok(Fate::Rejected(reason));
    }
    Ok(match fold.count_again(&envelope, &increments) {
        Ok(CountedAs::New) => Fate::Counted,
        Ok(CountedAs::Duplicate) => Fate::Duplicate,
        Err(reason) => {
            Fate::NotCountable(Refusal { reason, detail: String::from("as counted by the fold") })
        }
    })
}
