//! The tail: every batch of `deltas`, in order, from where the store was when the reader started.
//!
//! ```text
//!  deltas, all partitions ──poll──► read and check ──► SharedMemory::apply
//!                                       │                 │ no room: the partition waits for it
//!                                       │                 └ not what must come next ─┐
//!                                       └── unreadable: ask the registry, else ──────┤
//!                 the partition stands still, the others go on ◄─────────────────────┘
//!                     └─ now and then ──► where ClickHouse and Kafka are ──► go_on
//! ```
//!
//! A partition is either read, by the consumer's assignment, or not. This thread alone decides on
//! that; what others find out for it comes as [`News`].

mod backlog;
mod batch;
mod go_on;

use std::time::{Duration, Instant};

use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Offset, TopicPartitionList};
use tally_counts::StoredOffsets;
use tally_kafka::{ErrorsByPoll, known_end};
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::health::Heartbeat;
use tally_schemas::wire;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::counter_memory::{Broken, Unreadable};
use crate::shared_memory::{Applied, SharedMemory};
use crate::standstills::Standstills;
use crate::starting_point::first_offset;
use crate::vector::number;
use backlog::{Backlog, Tailed};
use go_on::{GoOn, go_on};

/// How often the loop looks up from waiting.
const PATIENCE: Duration = Duration::from_millis(100);

/// Between two tries of a partition that stands still.
const RETRY: Duration = Duration::from_secs(5);

/// How long a partition waits for room in the window before it is said to stand still.
const FULL_PATIENCE: Duration = Duration::from_secs(5);

/// What others found out.
pub(crate) enum News {
    /// The topic has partitions from this number on besides those that were known, which have
    /// these offsets: the first and the next.
    Added { from: usize, bounds: Vec<(i64, i64)> },
    /// Where the log of each partition ends, where a broker tells.
    Ends(Vec<Option<i64>>),
    /// Where ClickHouse and Kafka are, as the look of this number found.
    Looked { look: u64, places: Vec<Option<Place>> },
    /// Whether the registry said anything new about the schema of the batch that is next in a
    /// partition; the reason if it did not answer.
    Asked { partition: usize, learned: Result<bool, String> },
    /// ClickHouse and the memory disagree.
    Disagrees { partition: usize, broken: Broken },
}

/// Where ClickHouse and Kafka are in one partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Unless its ledger is damaged.
    pub(crate) stored: Option<StoredOffsets>,
    /// The first and the next offset.
    pub(crate) bounds: (i64, i64),
}

/// Asks for the schema of a batch that was not understood, whose message begins with this.
pub(crate) struct SchemaAsk {
    pub(crate) partition: usize,
    pub(crate) prefix: [u8; wire::PREFIX_BYTES],
}

/// What the tail asks others to find out.
pub(crate) struct Questions {
    /// Where ClickHouse and Kafka are: the number of the look that is wanted.
    pub(crate) looks: watch::Sender<u64>,
    pub(crate) schemas: mpsc::Sender<SchemaAsk>,
}

/// What a partition is doing.
#[derive(Debug)]
enum Reading {
    /// Its batches are counted in as they come.
    Goes,
    /// The same, after it stood still for a reason that is over once a batch was counted in.
    TriesAgain(Stop),
    /// Its next batch waits for room in the window.
    Full {
        bytes: usize,
        kept: usize,
        since: Instant,
    },
    /// Its next batch was not understood, and the registry is asked for its schema.
    AsksForSchema(Stop),
    Stands(Stop),
}

impl Reading {
    /// As metrics name it.
    fn name(&self) -> &'static str {
        match self {
            Reading::Goes | Reading::TriesAgain(_) => "tailing",
            Reading::Full { .. } => "waiting_for_room",
            Reading::AsksForSchema(_) => "waiting_for_schema",
            Reading::Stands(_) => "stopped",
        }
    }

    /// Whether its batches come from Kafka.
    fn is_read(&self) -> bool {
        matches!(self, Reading::Goes | Reading::TriesAgain(_))
    }
}

#[derive(Clone, Debug)]
struct Stop {
    broken: Broken,
    again: Instant,
    /// The look that was asked for last.
    look: u64,
    /// Whether it began anew from ClickHouse's position for this trouble.
    has_restarted: bool,
}

pub(crate) struct Tail<'a> {
    pub(crate) consumer: &'a BaseConsumer<ErrorsByPoll>,
    pub(crate) topic: &'a str,
    pub(crate) batches: &'a DeltaBatches,
    pub(crate) memory: &'a SharedMemory,
    pub(crate) standstills: Standstills,
    pub(crate) questions: Questions,
}

/// Counts batches in until `stop`. Blocks its thread. `offsets` is where each partition is read
/// from, or why it cannot be.
pub(crate) fn run(
    tail: Tail<'_>,
    offsets: Vec<Result<i64, Broken>>,
    mut news: mpsc::Receiver<News>,
    heartbeat: &Heartbeat,
    stop: &CancellationToken,
) -> Result<(), Unreadable> {
    let backlog = Backlog::new();
    let mut running = Running { tail, partitions: Vec::new(), backlog, look: 0, lost: None };
    for (partition, offset) in offsets.into_iter().enumerate() {
        running.partitions.push(Reading::Goes);
        match offset {
            Ok(offset) => running.read_from(partition, offset),
            Err(broken) => running.stand_still(partition, broken),
        }
    }
    while !stop.is_cancelled() {
        heartbeat.beat();
        while let Ok(news) = news.try_recv() {
            running.take(news);
        }
        running.look_after(Instant::now());
        running.tell_backlog();
        match running.tail.consumer.poll(PATIENCE) {
            None => {}
            Some(Ok(message)) => running.count_in(&message),
            Some(Err(KafkaError::PartitionEOF(partition))) => running.has_read_all(partition),
            Some(Err(error)) if is_final(&error) => {
                return Err(Unreadable { reason: error.to_string() });
            }
            // It is not said of which partition. One that the look in progress does not see yet
            // is read again, and says so again.
            Some(Err(error)) if is_lost(&error) => running.find_the_lost(),
            Some(Err(error)) => tracing::warn!(%error, "read deltas"),
        }
    }
    Ok(())
}

struct Running<'a> {
    tail: Tail<'a>,
    partitions: Vec<Reading>,
    backlog: Backlog,
    /// The look that was asked for last.
    look: u64,
    /// Kafka did not have some partition's next offset, and it is not known yet whose.
    lost: Option<Lost>,
}

struct Lost {
    /// The look that tells.
    look: u64,
    /// The next offsets when it was asked for: a partition that is further by then is not it.
    next: Vec<i64>,
}

impl Running<'_> {
    fn count_in(&mut self, message: &BorrowedMessage<'_>) {
        let (number, offset) = (message.partition(), message.offset());
        let partition = usize::try_from(number).expect("Kafka counts partitions from 0");
        if !self.partitions.get(partition).is_some_and(Reading::is_read) {
            // It was fetched before the partition was given up.
            return;
        }
        let payload = message.payload();
        match batch::read(self.tail.batches, number, offset, payload) {
            Ok(arrival) => match self.tail.memory.apply(arrival) {
                Ok(Applied::Counted) => {
                    self.backlog.counted_in(partition, message.timestamp().to_millis());
                    self.goes(partition);
                }
                Ok(Applied::Known) => {}
                Ok(Applied::NoRoom { bytes }) => {
                    self.leave(partition);
                    let kept = self.tail.memory.unstored_bytes_of(partition);
                    let since = Instant::now();
                    self.partitions[partition] = Reading::Full { bytes, kept, since };
                }
                Err(broken) => self.stand_still(partition, broken),
            },
            Err(broken) => self.ask_for_schema(partition, broken, payload.unwrap_or_default()),
        }
    }

    /// All that the log has of the partition now was given to [`Running::count_in`].
    fn has_read_all(&mut self, partition: i32) {
        let client = self.tail.consumer.client();
        if let (Some(end), Ok(partition)) =
            (known_end(client, self.tail.topic, partition), usize::try_from(partition))
        {
            self.backlog.read_to(partition, end);
        }
    }

    fn tell_backlog(&mut self) {
        let Running { backlog, partitions, tail, .. } = self;
        backlog.tell(|| {
            let tailed = |(partition, reading): (usize, &Reading)| Tailed {
                state: reading.name(),
                next: tail.memory.tail(partition).deltas,
                is_read: reading.is_read(),
            };
            partitions.iter().enumerate().map(tailed).collect()
        });
    }

    /// The partition's trouble, if it has one, is over.
    fn goes(&mut self, partition: usize) {
        if !matches!(self.partitions[partition], Reading::Goes) {
            self.partitions[partition] = Reading::Goes;
            self.tail.standstills.goes_on(number(partition));
        }
    }

    /// Stops the partition, if only for the moment that the registry takes: the batch may be by the
    /// schema of another version.
    fn ask_for_schema(&mut self, partition: usize, broken: Broken, payload: &[u8]) {
        let Some(prefix) = payload.first_chunk() else {
            return self.stand_still(partition, broken);
        };
        let ask = SchemaAsk { partition, prefix: *prefix };
        self.leave(partition);
        let stop = self.stop(partition, broken);
        // A queue that is full is asked again with the next try.
        self.partitions[partition] = match self.tail.questions.schemas.try_send(ask) {
            Ok(()) => Reading::AsksForSchema(stop),
            Err(_) => Reading::Stands(stop),
        };
    }

    fn stand_still(&mut self, partition: usize, broken: Broken) {
        self.leave(partition);
        self.tail.standstills.stands_still(number(partition), &broken.to_string());
        self.partitions[partition] = Reading::Stands(self.stop(partition, broken));
    }

    /// A stop for this reason, due to be tried again: later, if it was tried for the same reason
    /// before.
    fn stop(&mut self, partition: usize, broken: Broken) -> Stop {
        let (Reading::TriesAgain(before)
        | Reading::AsksForSchema(before)
        | Reading::Stands(before)) = &self.partitions[partition]
        else {
            return Stop { broken, again: Instant::now(), look: u64::MAX, has_restarted: false };
        };
        let has_restarted = before.has_restarted && before.broken == broken;
        Stop { broken, again: Instant::now() + RETRY, look: u64::MAX, has_restarted }
    }

    fn read_from(&mut self, partition: usize, offset: i64) {
        self.backlog.read_anew(partition);
        let mut assignment = TopicPartitionList::new();
        let assigned: KafkaResult<()> = assignment
            .add_partition_offset(self.tail.topic, number(partition), Offset::Offset(offset))
            .and_then(|()| self.tail.consumer.incremental_assign(&assignment));
        if let Err(error) = assigned {
            let reason = error.to_string();
            let broken = Broken::Unassigned { partition: number(partition), reason };
            self.stand_still(partition, broken);
        }
    }

    /// Does not read the partition for now, nor what was fetched of it.
    fn leave(&self, partition: usize) {
        if !self.partitions[partition].is_read() {
            return;
        }
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition(self.tail.topic, number(partition));
        if let Err(error) = self.tail.consumer.incremental_unassign(&assignment) {
            tracing::debug!(%error, partition, "the partition was not read");
        }
    }

    fn ask_for_look(&mut self) -> u64 {
        self.look += 1;
        self.tail.questions.looks.send_replace(self.look);
        self.look
    }

    /// Tries what is due.
    fn look_after(&mut self, now: Instant) {
        let mut asked = None;
        for partition in 0..self.partitions.len() {
            match &self.partitions[partition] {
                Reading::Goes | Reading::TriesAgain(_) | Reading::AsksForSchema(_) => {}
                Reading::Full { bytes, kept, since } => {
                    let (bytes, kept, since) = (*bytes, *kept, *since);
                    self.wait_for_room(partition, bytes, kept, now.duration_since(since));
                }
                Reading::Stands(stop) if stop.again <= now => {
                    let look = *asked.get_or_insert_with(|| self.look + 1);
                    if let Reading::Stands(stop) = &mut self.partitions[partition] {
                        (stop.look, stop.again) = (look, now + RETRY);
                    }
                }
                Reading::Stands(_) => {}
            }
        }
        if asked.is_some() {
            self.ask_for_look();
        }
    }

    /// Reads on once there is room for some batches, not for each alone: what was fetched ahead is
    /// fetched again each time.
    fn wait_for_room(&mut self, partition: usize, bytes: usize, kept: usize, waited: Duration) {
        let next = self.tail.memory.tail(partition).deltas;
        let has_room = self.tail.memory.has_room(partition, bytes)
            && self.tail.memory.unstored_bytes_of(partition) <= kept / 2;
        if has_room {
            self.partitions[partition] = Reading::Goes;
            self.tail.standstills.goes_on(number(partition));
            self.read_from(partition, next);
        } else if waited >= FULL_PATIENCE {
            let reason = format!(
                "deltas, partition {partition}, offset {next}: the {kept} bytes of batches before \
                 it that ClickHouse has not stored yet fill the partition's share of \
                 reader.unstored_bytes"
            );
            self.tail.standstills.stands_still(number(partition), &reason);
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Added { from, bounds } => self.add(from, bounds),
            News::Ends(ends) => {
                for (partition, end) in ends.into_iter().enumerate() {
                    self.backlog.ends(partition, end);
                }
            }
            News::Looked { look, places } => self.looked(look, &places),
            News::Asked { partition, learned } => self.asked(partition, learned),
            News::Disagrees { partition, broken } => {
                if let Some(Reading::Goes) = self.partitions.get(partition) {
                    self.stand_still(partition, broken);
                }
            }
        }
    }

    /// Partitions that were added to the topic are read from their beginning.
    fn add(&mut self, from: usize, bounds: Vec<(i64, i64)>) {
        for (partition, bounds) in (from..).zip(bounds) {
            if partition != self.partitions.len() {
                // It was told before.
                continue;
            }
            self.partitions.push(Reading::Goes);
            self.tail.memory.grow(self.partitions.len());
            tracing::info!(partition, topic = self.tail.topic, "a partition was added; it is read");
            let beginning = self.tail.memory.tail(partition);
            match first_offset(partition, beginning, bounds) {
                Ok(offset) => self.read_from(partition, offset),
                Err(broken) => self.stand_still(partition, broken),
            }
        }
    }

    fn asked(&mut self, partition: usize, learned: Result<bool, String>) {
        let Reading::AsksForSchema(stop) = &self.partitions[partition] else { return };
        let mut stop = stop.clone();
        let next = self.tail.memory.tail(partition).deltas;
        match learned {
            Ok(true) => {
                self.partitions[partition] = Reading::TriesAgain(stop);
                self.read_from(partition, next);
                return;
            }
            Ok(false) => {}
            Err(reason) => {
                let partition = number(partition);
                stop.broken = Broken::UnknownSchema { partition, offset: next, reason };
            }
        }
        self.tail.standstills.stands_still(number(partition), &stop.broken.to_string());
        self.partitions[partition] = Reading::Stands(stop);
    }

    fn looked(&mut self, look: u64, places: &[Option<Place>]) {
        for (partition, place) in places.iter().enumerate().take(self.partitions.len()) {
            let Some(place) = place else { continue };
            match &self.partitions[partition] {
                Reading::Stands(stop) if stop.look <= look => {
                    let stop = stop.clone();
                    self.try_again(partition, stop, *place);
                }
                _ => {}
            }
        }
        if let Some(lost) = self.lost.take_if(|lost| lost.look <= look) {
            let mut is_told = true;
            for (partition, next) in lost.next.into_iter().enumerate() {
                match places.get(partition).copied().flatten() {
                    Some(place) => self.judge(partition, next, place.bounds),
                    None => is_told = false,
                }
            }
            if !is_told {
                self.find_the_lost();
            }
        }
    }

    fn find_the_lost(&mut self) {
        if self.lost.is_some() {
            return;
        }
        let next = |partition| self.tail.memory.tail(partition).deltas;
        let next = (0..self.partitions.len()).map(next).collect();
        self.lost = Some(Lost { look: self.ask_for_look(), next });
    }

    /// If Kafka does not have what is next in this partition, it stands still; if not, it is read
    /// on as it was.
    fn judge(&mut self, partition: usize, next: i64, (low, high): (i64, i64)) {
        if !self.partitions[partition].is_read() || self.tail.memory.tail(partition).deltas != next
        {
            return;
        }
        if (low..=high).contains(&next) {
            self.leave(partition);
            self.read_from(partition, next);
        } else {
            let broken = Broken::Log { partition: number(partition), next, low, high };
            self.stand_still(partition, broken);
        }
    }

    fn try_again(&mut self, partition: usize, mut stop: Stop, place: Place) {
        let tail = self.tail.memory.tail(partition);
        let stored = place.stored.unwrap_or(tail);
        let next = go_on(partition, &stop.broken, stop.has_restarted, tail, stored, place.bounds);
        let GoOn { restart, offset } = match next {
            Ok(next) => next,
            Err(broken) => {
                self.tail.standstills.stands_still(number(partition), &broken.to_string());
                stop.broken = broken;
                self.partitions[partition] = Reading::Stands(stop);
                return;
            }
        };
        if let Some(stored) = restart {
            tracing::info!(
                partition,
                offset = stored.deltas,
                was = tail.deltas,
                "the partition begins anew from ClickHouse's position; counters are looked up anew"
            );
            self.tail.memory.restart(partition, stored);
            stop.has_restarted = true;
        }
        let is_over = match stop.broken {
            Broken::Chain { offset: at, .. }
            | Broken::Undecodable { offset: at, .. }
            | Broken::UnknownSchema { offset: at, .. } => offset > at,
            Broken::Log { .. } | Broken::Disagrees { .. } | Broken::Unassigned { .. } => true,
        };
        self.partitions[partition] = Reading::TriesAgain(stop);
        if is_over {
            self.goes(partition);
        }
        self.read_from(partition, offset);
    }
}

/// Nothing can be read with this client any more. Everything else librdkafka tries again by itself.
fn is_final(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumptionFatal(_))
}

/// Kafka does not have the offset that is to be read next.
fn is_lost(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}
