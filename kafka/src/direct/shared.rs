//! What the reader of messages, the fetchers of brokers and the search for leaders have in common.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::PartitionFetch;
use super::broker_fetcher::PARTITION_BYTES;
use super::inflated_bytes::InflatedBytes;
use crate::Unserved;
use crate::buffer_pool::BufferPool;

/// The most that buffers for later answers take up.
const BUFFER_POOL_BYTES: usize = 96 << 20;

/// Between two log lines about the same trouble, and how long a partition may go unserved before
/// that is told: leaders change within seconds.
const REMINDER: Duration = Duration::from_secs(10);

pub(super) struct Shared {
    pub(super) topic_id: Uuid,
    pub(super) client_id: String,
    pub(super) buffers: BufferPool,
    pub(super) partition_fetches: Sender<PartitionFetch>,
    /// Bytes of the buffers in `partition_fetches` that nobody has taken yet.
    pub(super) unread: UnreadBytes,
    /// Bytes that were decompressed, those of partitions that wait included.
    pub(super) inflated: InflatedBytes,
    /// Whether no more of a partition is asked for until what came of it last is read.
    pub(super) one_at_a_time: AtomicBool,
    state: Mutex<State>,
    /// Notified when a partition may have no leader that there is a fetcher for, and when the state
    /// is closed.
    pub(super) leader_missing: Condvar,
    /// Notified when there may be more to ask for.
    pub(super) wanted: Notify,
}

#[derive(Default)]
pub(super) struct State {
    /// As the log names it.
    topic: String,
    pub(super) partitions: BTreeMap<i32, Partition>,
    /// The fetchers' tasks, by broker.
    pub(super) fetchers: BTreeMap<i32, AbortHandle>,
    pub(super) is_closed: bool,
    /// When a broker's or partition's trouble was last logged.
    logged: BTreeMap<Trouble, Instant>,
    /// The partitions that were asked for, or have nobody to ask, and were not served since.
    unserved: BTreeMap<i32, Unserved>,
    /// Where the logs of partitions that were ever read ended when a broker last told.
    pub(super) ends: BTreeMap<i32, i64>,
}

/// A partition that is read.
#[derive(Clone, Copy)]
pub(super) struct Partition {
    /// A number that is new each time that the partition is started: answers to fetches of an
    /// earlier run are out of date.
    pub(super) run: u64,
    pub(super) leader: Option<i32>,
    /// Whether nothing more is to be asked for at present.
    pub(super) is_paused: bool,
    /// The offset that is to be asked for next, and the leader epoch of the batch before it.
    pub(super) next: i64,
    pub(super) leader_epoch: i32,
    /// How many bytes are to be asked for.
    pub(super) max_bytes: i32,
}

impl Partition {
    /// A partition that is read from this offset on, by whichever broker leads it.
    pub(super) fn started(run: u64, next: i64, leader: Option<i32>) -> Partition {
        Partition {
            run,
            leader,
            is_paused: false,
            next,
            leader_epoch: -1,
            max_bytes: PARTITION_BYTES,
        }
    }
}

impl Shared {
    pub(super) fn new(
        topic: &str,
        topic_id: Uuid,
        client_id: &str,
        partition_fetches: Sender<PartitionFetch>,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            topic_id,
            client_id: client_id.to_owned(),
            buffers: BufferPool::new(BUFFER_POOL_BYTES),
            partition_fetches,
            unread: UnreadBytes::default(),
            inflated: InflatedBytes::default(),
            one_at_a_time: AtomicBool::new(false),
            state: Mutex::new(State { topic: topic.to_owned(), ..State::default() }),
            leader_missing: Condvar::new(),
            wanted: Notify::new(),
        })
    }

    /// Asks for more of a partition that is paused.
    pub(super) fn ask_again(&self, partition: i32) {
        let mut state = self.lock();
        let Some(partition) =
            state.partitions.get_mut(&partition).filter(|partition| partition.is_paused)
        else {
            return;
        };
        partition.is_paused = false;
        drop(state);
        self.wanted.notify_waiters();
    }

    /// Drops what has been asked for of this partition, and asks for it from this offset on.
    pub(super) fn ask_from(&self, partition: i32, run: u64, next: i64) {
        let mut state = self.lock();
        let Some(partition) = state.partitions.get_mut(&partition) else { return };
        let Partition { leader, is_paused, .. } = *partition;
        *partition = Partition { is_paused, ..Partition::started(run, next, leader) };
        drop(state);
        self.wanted.notify_waiters();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another thread is handled there; nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A trouble that keeps partitions from being read, and passes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// The connection to this broker ended.
    Broker(i32),
    /// This partition is not served.
    Partition(i32),
}

impl State {
    /// Whether this trouble was not logged yet, or long ago. It counts as logged now.
    pub(super) fn is_news(&mut self, trouble: Trouble) -> bool {
        let is_news = self.logged.get(&trouble).is_none_or(|logged| logged.elapsed() >= REMINDER);
        if is_news {
            self.logged.insert(trouble, Instant::now());
        }
        is_news
    }

    /// Sets the leaders of the partitions that are read.
    pub(super) fn set_leaders(&mut self, leaders: &BTreeMap<i32, i32>) {
        let mut leaderless = Vec::new();
        for (id, partition) in &mut self.partitions {
            partition.leader = leaders.get(id).copied();
            if partition.leader.is_none() {
                leaderless.push(*id);
            }
        }
        for id in leaderless {
            self.not_served(id, "no Kafka broker leads it");
        }
    }

    /// Notes that a partition is not served, for this reason. It is asked for again all the same.
    pub(super) fn not_served(&mut self, partition: i32, reason: &str) {
        let unserved = self.unserved.entry(partition).or_insert_with(|| Unserved {
            partition,
            since: Instant::now(),
            reason: String::new(),
        });
        reason.clone_into(&mut unserved.reason);
        let since = unserved.since.elapsed();
        if since >= REMINDER && self.is_news(Trouble::Partition(partition)) {
            tracing::warn!(
                topic = self.topic,
                partition,
                reason,
                ?since,
                "Kafka does not serve the partition; asking for it again, the others go on"
            );
        }
    }

    /// As [`State::not_served`], for all partitions that this broker is asked for.
    pub(super) fn broker_fails(&mut self, broker: i32, reason: &str) {
        let is_asked_for =
            |partition: &Partition| partition.leader == Some(broker) && !partition.is_paused;
        let led = self.partitions.iter().filter(|(_, partition)| is_asked_for(partition));
        let led: Vec<i32> = led.map(|(id, _)| *id).collect();
        led.into_iter().for_each(|partition| self.not_served(partition, reason));
    }

    /// Notes that a broker has answered for the partition.
    pub(super) fn served(&mut self, partition: i32) {
        if self.unserved.remove(&partition).is_some()
            && self.logged.remove(&Trouble::Partition(partition)).is_some()
        {
            let topic = &self.topic;
            tracing::info!(topic, partition, "Kafka serves the partition again");
        }
    }

    /// Asks for nothing more of a partition.
    pub(super) fn pause(&mut self, partition: i32) {
        if let Some(partition) = self.partitions.get_mut(&partition) {
            partition.is_paused = true;
        }
        self.unserved.remove(&partition);
    }

    /// Takes a partition off those that are read.
    pub(super) fn remove(&mut self, partition: i32) {
        self.partitions.remove(&partition);
        self.unserved.remove(&partition);
    }

    /// The partitions that are not served for long.
    pub(super) fn unserved(&self) -> Vec<Unserved> {
        let long = self.unserved.values().filter(|unserved| unserved.since.elapsed() >= REMINDER);
        long.cloned().collect()
    }

    /// Whether a partition has no leader that there is a fetcher for.
    pub(super) fn misses_leader(&self) -> bool {
        let has_fetcher = |id: i32| self.fetchers.contains_key(&id);
        self.partitions.values().any(|partition| !partition.leader.is_some_and(has_fetcher))
    }
}

/// The number of bytes that are fetched and not read yet.
#[derive(Default)]
pub(super) struct UnreadBytes(AtomicUsize);

impl UnreadBytes {
    /// From so many bytes on nothing is asked for.
    const ENOUGH: usize = 12 << 20;

    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Takes bytes away; returns whether that makes room for more.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let before = self.0.fetch_sub(bytes, Ordering::AcqRel);
        before >= Self::ENOUGH && before - bytes < Self::ENOUGH
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    pub(super) fn is_enough(&self) -> bool {
        self.0.load(Ordering::Acquire) >= Self::ENOUGH
    }
}
