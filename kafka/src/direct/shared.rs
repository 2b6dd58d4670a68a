//! What the reader of messages, the links to brokers and the search for leaders know in common.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::Piece;
use super::link::PARTITION_BYTES;
use crate::buffer_pool::BufferPool;

/// Bytes of memory that are kept for later answers.
const KEPT: usize = 96 << 20;

/// Between two lines on the same trouble, and how long a partition may be without a leader before
/// there is one.
const REMINDER: Duration = Duration::from_secs(10);

pub(super) struct Shared {
    pub(super) topic_id: Uuid,
    pub(super) client_id: String,
    pub(super) buffers: BufferPool,
    pub(super) pieces: Sender<Piece>,
    /// Bytes of memory in pieces that nobody has taken yet.
    pub(super) ahead: Ahead,
    state: Mutex<State>,
    /// A leader may be missing, or this is closed.
    pub(super) missing: Condvar,
    /// There may be more to ask for.
    pub(super) more: Notify,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) partitions: BTreeMap<i32, Partition>,
    /// By broker.
    pub(super) links: BTreeMap<i32, AbortHandle>,
    pub(super) is_closed: bool,
    /// When a broker's or partition's trouble was last told.
    told: BTreeMap<Trouble, Instant>,
}

/// A partition that is read.
#[derive(Clone, Copy)]
pub(super) struct Partition {
    /// Which time it was started: answers to questions of an earlier time are out of date.
    pub(super) run: u64,
    pub(super) leader: Option<i32>,
    /// Since when nobody is known to lead it.
    pub(super) leaderless: Option<Instant>,
    /// Nothing more is to be asked for as yet.
    pub(super) is_paused: bool,
    /// What is to be asked for next, and the leader's epoch of the batch before it.
    pub(super) next: i64,
    pub(super) leader_epoch: i32,
    /// How much is to be asked for.
    pub(super) max_bytes: i32,
}

impl Partition {
    /// Read from this offset on, by whichever broker leads it.
    pub(super) fn started(run: u64, next: i64, leader: Option<i32>) -> Partition {
        Partition {
            run,
            leader,
            leaderless: None,
            is_paused: false,
            next,
            leader_epoch: -1,
            max_bytes: PARTITION_BYTES,
        }
    }
}

impl Shared {
    pub(super) fn new(topic_id: Uuid, client_id: &str, pieces: Sender<Piece>) -> Arc<Shared> {
        Arc::new(Shared {
            topic_id,
            client_id: client_id.to_owned(),
            buffers: BufferPool::new(KEPT),
            pieces,
            ahead: Ahead::default(),
            state: Mutex::default(),
            missing: Condvar::new(),
            more: Notify::new(),
        })
    }

    /// More of this partition is wanted, if it was not.
    pub(super) fn ask_again(&self, partition: i32) {
        let mut state = self.lock();
        let Some(partition) =
            state.partitions.get_mut(&partition).filter(|partition| partition.is_paused)
        else {
            return;
        };
        partition.is_paused = false;
        drop(state);
        self.more.notify_waiters();
    }

    /// What has been asked for of this partition is dropped; it is wanted from this offset on.
    pub(super) fn ask_from(&self, partition: i32, run: u64, next: i64) {
        let mut state = self.lock();
        let Some(partition) = state.partitions.get_mut(&partition) else { return };
        let Partition { leader, is_paused, .. } = *partition;
        *partition = Partition { is_paused, ..Partition::started(run, next, leader) };
        drop(state);
        self.more.notify_waiters();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic is its own thread's; nothing is left half done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What keeps partitions from being read, and passes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// The link to this broker ended.
    Broker(i32),
    /// This partition has no leader.
    Partition(i32),
}

impl State {
    /// Whether it is long ago that this was told. It is told now.
    pub(super) fn is_news(&mut self, trouble: Trouble) -> bool {
        let is_news = self.told.get(&trouble).is_none_or(|told| told.elapsed() >= REMINDER);
        if is_news {
            self.told.insert(trouble, Instant::now());
        }
        is_news
    }

    /// Who leads the partitions that are read, by partition. Those that nobody has led for long
    /// come back, now and then.
    pub(super) fn set_leaders(&mut self, leaders: &BTreeMap<i32, i32>) -> Vec<i32> {
        let mut long = Vec::new();
        for (id, partition) in &mut self.partitions {
            partition.leader = leaders.get(id).copied();
            match partition.leader {
                Some(_) => partition.leaderless = None,
                None => {
                    let since = partition.leaderless.get_or_insert_with(Instant::now);
                    if since.elapsed() >= REMINDER {
                        long.push(*id);
                    }
                }
            }
        }
        long.retain(|id| self.is_news(Trouble::Partition(*id)));
        long
    }

    /// Whether a partition has no leader that there is a link to.
    pub(super) fn misses_leader(&self) -> bool {
        let is_linked = |id: i32| self.links.contains_key(&id);
        self.partitions.values().any(|partition| !partition.leader.is_some_and(is_linked))
    }
}

/// Bytes that are fetched and not taken yet.
#[derive(Default)]
pub(super) struct Ahead(AtomicUsize);

impl Ahead {
    /// From here on nothing is asked for.
    const ENOUGH: usize = 12 << 20;

    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Whether that makes room for more.
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
