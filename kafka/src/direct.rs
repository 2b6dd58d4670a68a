//! Messages straight from the brokers that lead the partitions, many at a time.
//!
//! ```text
//!  broker ══ BrokerFetcher, a task each ══► answer ─► RecordBatches: checked, decompressed
//!              one fetch at a time                          │ channel
//!                   ▲                                       ▼
//!                   └──── buffers used again ────  DirectFetcher: message by message
//!
//!  Leaders, a thread: which broker leads which partition; starts BrokerFetchers
//! ```
//!
//! What is fetched and not read yet is bounded ([`shared::UnreadBytes`]): from there on nothing is
//! asked for. Nothing more is asked for of a partition that is paused either; what has come of it
//! waits. Where partitions take short turns, what waits is besides one answer of each at most.
//!
//! Partitions are read as `read_committed` consumers read them: brokers send nothing beyond the
//! last stable offset, and the messages of transactions that the broker names as aborted are passed
//! over. A fetch names the topic by its id, and the leader epoch that was read last (KIP-320). So
//! neither another topic of the same name, nor a log that was cut off and written anew, is read on
//! as if nothing had happened.

mod broker_fetcher;
mod compression;
mod connection;
mod inflated_bytes;
mod leaders;
mod record_batches;
mod records;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;
use uuid::Uuid;

use self::leaders::Leaders;
use self::record_batches::{MessageRanges, RecordBatches};
use self::shared::{Partition, Shared};
use super::leader_epochs::known;
use super::{FetchedMessage, KeptMessage, Membership, Unreadable, Unserved};

pub(super) struct DirectFetcher {
    shared: Arc<Shared>,
    partition_fetches: Receiver<PartitionFetch>,
    /// The partition and the batches that messages come from right now.
    current: Option<(i32, RecordBatches)>,
    /// By partition that is read.
    runs: BTreeMap<i32, PartitionRun>,
    /// The partition that was read last. The next one is looked for from the number after it.
    turn: i32,
    last_run: u64,
    leaders: Option<JoinHandle<()>>,
}

struct PartitionRun {
    /// A number that is new each time that the partition is started: what was asked for in an
    /// earlier run is dropped.
    run: u64,
    /// The offset that the next fetch must begin at.
    next: i64,
    is_paused: bool,
    /// What has come and is not read yet. Nothing more is asked for until it is, but for what is on
    /// its way.
    waiting: VecDeque<Result<RecordBatches, Unreadable>>,
}

/// What a [`BrokerFetcher`](broker_fetcher::BrokerFetcher) has of one partition.
struct PartitionFetch {
    partition: i32,
    run: u64,
    content: Result<FetchedRange, Unreadable>,
}

/// All that a partition has from one offset up to another.
struct FetchedRange {
    from: i64,
    next: i64,
    batches: RecordBatches,
}

impl DirectFetcher {
    /// Fetches from this topic, and from no other that comes to have its name; `topic_id` is as
    /// librdkafka prints it.
    ///
    /// # Panics
    /// If `topic_id` is not 16 bytes in base64 without padding.
    pub(super) fn new(
        consumer: &Arc<BaseConsumer<Membership>>,
        topic: &str,
        topic_id: &str,
        client_id: &str,
        runtime: &Handle,
    ) -> DirectFetcher {
        let topic_id =
            STANDARD_NO_PAD.decode(topic_id).expect("librdkafka prints a topic's id in base64");
        let topic_id = Uuid::from_slice(&topic_id).expect("a topic's id has 16 bytes");
        let (sender, partition_fetches) = channel();
        let shared = Shared::new(topic, topic_id, client_id, sender);
        let leaders = Some(Leaders::start(&shared, consumer, topic, runtime));
        DirectFetcher {
            shared,
            partition_fetches,
            current: None,
            runs: BTreeMap::new(),
            turn: 0,
            last_run: 0,
            leaders,
        }
    }

    /// Reads these partitions from these offsets on, whether they were read before or not.
    pub(super) fn start(&mut self, from: &[(i32, i64)]) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        for (partition, next) in from {
            self.drop_current(*partition);
            self.last_run += 1;
            let reader = PartitionRun {
                run: self.last_run,
                next: *next,
                is_paused: false,
                waiting: VecDeque::new(),
            };
            self.runs.insert(*partition, reader);
            let leader = state.partitions.get(partition).and_then(|before| before.leader);
            state.partitions.insert(*partition, Partition::started(self.last_run, *next, leader));
        }
        drop(state);
        shared.leader_missing.notify_one();
        shared.wanted.notify_waiters();
    }

    /// Stops reading a partition: nothing more comes of it.
    pub(super) fn stop(&mut self, partition: i32) {
        self.shared.lock().remove(partition);
        self.runs.remove(&partition);
        self.drop_current(partition);
    }

    /// Pauses a partition that is read: nothing more comes of it until [`DirectFetcher::resume`].
    pub(super) fn pause(&mut self, partition: i32) {
        let Some(reader) = self.runs.get_mut(&partition) else { return };
        reader.is_paused = true;
        if let Some((_, mut batches)) = self.current.take_if(|(of, _)| *of == partition) {
            batches.pack();
            reader.waiting.push_front(Ok(batches));
        }
        self.shared.lock().pause(partition);
    }

    /// Resumes a partition where it was paused. More of it is asked for only once what waits is
    /// read: else more would wait after each pause.
    pub(super) fn resume(&mut self, partition: i32) {
        let Some(reader) = self.runs.get_mut(&partition) else { return };
        reader.is_paused = false;
        if reader.waiting.is_empty() {
            self.shared.ask_again(partition);
        }
    }

    /// With short turns, ends the one of the partition that is read right now: what comes next is
    /// of others, if they have something.
    pub(super) fn short_turns(&mut self, are_wanted: bool) {
        self.shared.one_at_a_time.store(are_wanted, Ordering::Relaxed);
        if !are_wanted {
            return;
        }
        let Some((partition, mut batches)) = self.current.take() else { return };
        batches.pack();
        while self.receive() {}
        let reader = self.runs.get_mut(&partition).expect("what is read right now has a reader");
        reader.waiting.push_front(Ok(batches));
        for (partition, _) in self.runs.iter().filter(|(_, reader)| !reader.waiting.is_empty()) {
            self.shared.lock().pause(*partition);
        }
    }

    /// The offset up to which there is nothing that was not handed over: beyond the last message
    /// too, where transaction markers follow it.
    pub(super) fn position(&self, partition: i32) -> Option<i64> {
        let is_current = self.current.as_ref().is_some_and(|(of, _)| *of == partition);
        let run = self.runs.get(&partition).filter(|run| run.waiting.is_empty() && !is_current)?;
        Some(run.next)
    }

    /// Where the logs of partitions that were ever read end, as brokers last told.
    pub(super) fn ends(&self) -> BTreeMap<i32, i64> {
        self.shared.lock().ends.clone()
    }

    /// The partitions that Kafka does not serve for long.
    pub(super) fn unserved(&self) -> Vec<Unserved> {
        // From there on nobody is asked.
        if self.shared.unread.is_enough() { Vec::new() } else { self.shared.lock().unserved() }
    }

    /// The next message, if one is there; never waits. A partition that cannot be read on says so
    /// once.
    #[inline]
    pub(super) fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Unreadable>> {
        let (partition, message) = match self.advance()? {
            Ok(next) => next,
            Err(unreadable) => return Some(Err(unreadable)),
        };
        let MessageRanges { offset, timestamp_ms, key, value, leader_epoch, unfit } = message;
        let body = self.current().body();
        let leader_epoch = known(leader_epoch);
        let (key, payload) = (key.map(|range| &body[range]), value.map(|range| &body[range]));
        Some(Ok(FetchedMessage {
            partition,
            offset,
            timestamp_ms,
            key,
            payload,
            leader_epoch,
            unfit,
        }))
    }

    /// As [`DirectFetcher::fetch`], to be kept.
    pub(super) fn fetch_to_keep(&mut self) -> Option<Result<KeptMessage, Unreadable>> {
        let (partition, message) = match self.advance()? {
            Ok(next) => next,
            Err(unreadable) => return Some(Err(unreadable)),
        };
        let MessageRanges { offset, timestamp_ms, value, .. } = message;
        let payload = value.map(|range| self.current().share(range));
        Some(Ok(KeptMessage { partition, offset, timestamp_ms, payload }))
    }

    /// The next message, which is of `current` then; a partition that cannot be read on is given
    /// up.
    #[inline]
    fn advance(&mut self) -> Option<Result<(i32, MessageRanges), Unreadable>> {
        loop {
            if let Some((partition, batches)) = &mut self.current {
                match batches.next() {
                    Ok(Some(message)) => return Some(Ok((*partition, message))),
                    Ok(None) => self.current = None,
                    Err((offset, damage)) => {
                        let reason = format!("the batch at offset {offset}: {damage}");
                        let unreadable = Unreadable::damaged(*partition, reason);
                        return Some(Err(self.give_up(unreadable)));
                    }
                }
            }
            match self.next_batches()? {
                Ok(next) => self.current = Some(next),
                Err(unreadable) => return Some(Err(self.give_up(unreadable))),
            }
        }
    }

    fn current(&self) -> &RecordBatches {
        &self.current.as_ref().expect("the last message is of it").1
    }

    /// The batches that waited, or else those that come, of a partition that is not paused.
    fn next_batches(&mut self) -> Option<Result<(i32, RecordBatches), Unreadable>> {
        loop {
            let has_some = |(partition, reader): (&i32, &PartitionRun)| {
                (!reader.is_paused && !reader.waiting.is_empty()).then_some(*partition)
            };
            let in_turn = self.runs.range(self.turn + 1..).chain(self.runs.range(..=self.turn));
            if let Some(partition) = in_turn.filter_map(has_some).next() {
                let reader = self.runs.get_mut(&partition).expect("it was seen just now");
                let content = reader.waiting.pop_front().expect("it was seen just now");
                if reader.waiting.is_empty() {
                    self.shared.ask_again(partition);
                }
                self.turn = partition;
                return Some(content.map(|batches| (partition, batches)));
            }
            if !self.receive() {
                return None;
            }
        }
    }

    /// Takes what a broker answered, if there is something, to what waits of its partition; says
    /// whether there was.
    fn receive(&mut self) -> bool {
        let Ok(PartitionFetch { partition, run, content }) = self.partition_fetches.try_recv()
        else {
            return false;
        };
        if let Ok(range) = &content
            && self.shared.unread.take(range.batches.bytes())
        {
            self.shared.wanted.notify_waiters();
        }
        let Some(reader) = self.runs.get_mut(&partition).filter(|reader| reader.run == run) else {
            return true;
        };
        let content = match content {
            Ok(FetchedRange { from, next, batches }) if from == reader.next => {
                reader.next = next;
                Ok(batches)
            }
            // Two brokers were asked for the partition, as its leader changed, and the second one
            // was faster.
            Ok(FetchedRange { from, .. }) => {
                tracing::info!(
                    partition,
                    next = reader.next,
                    from,
                    "a Kafka broker answered out of turn; asking for the partition again"
                );
                self.last_run += 1;
                reader.run = self.last_run;
                self.shared.ask_from(partition, reader.run, reader.next);
                return true;
            }
            Err(unreadable) => Err(unreadable),
        };
        reader.waiting.push_back(content);
        true
    }

    fn drop_current(&mut self, partition: i32) {
        self.current.take_if(|(of, _)| *of == partition);
    }

    /// Stops the partition, and says why.
    fn give_up(&mut self, unreadable: Unreadable) -> Unreadable {
        self.stop(unreadable.partition);
        unreadable
    }
}

impl Drop for DirectFetcher {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.fetchers.values().for_each(|fetcher| fetcher.abort());
        drop(state);
        self.shared.leader_missing.notify_one();
        if let Some(leaders) = self.leaders.take()
            && leaders.join().is_err()
        {
            tracing::error!(
                "the thread that looks for partition leaders panicked while it stopped"
            );
        }
    }
}
