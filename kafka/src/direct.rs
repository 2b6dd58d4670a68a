//! Messages straight from the brokers that lead the partitions, many at a time.
//!
//! ```text
//!  broker ══ a link each, one fetch at a time ══► answer ─► chunk: checked, decompressed ──► channel ──► Direct: message by message
//!                                                  memory used again ◄──────────────────────────────────────┘
//! ```
//!
//! A link is a task, the search for leaders a thread. What is fetched and not taken yet is bounded
//! ([`shared::Ahead`]): from there on nothing is asked for. Of a partition that is paused nothing
//! more is asked for either; what has come of it waits.
//!
//! A partition is read as others read it who want only what was committed: brokers send nothing
//! beyond the last stable offset, and what they say was aborted is passed over. A fetch names the
//! topic by its id and the epoch that was read last (KIP-320), so neither another topic of the same
//! name nor a log that was cut off and written anew is read on as if nothing had been.

mod chunk;
mod compression;
mod connection;
mod leaders;
mod link;
mod records;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rdkafka::consumer::BaseConsumer;
use tokio::runtime::Handle;
use uuid::Uuid;

use self::chunk::{Chunk, Message};
use self::leaders::Leaders;
use self::shared::{Partition, Shared};
use super::{FetchedMessage, KeptMessage, Membership, Unreadable};

pub(super) struct Direct {
    shared: Arc<Shared>,
    pieces: Receiver<Piece>,
    /// What messages come from right now.
    current: Option<(i32, Chunk)>,
    /// Of each partition that is read.
    runs: BTreeMap<i32, Run>,
    last_run: u64,
    leaders: Option<JoinHandle<()>>,
}

struct Run {
    /// Which time the partition was started: pieces of an earlier time are dropped.
    number: u64,
    /// Where the next piece must begin.
    next: i64,
    is_paused: bool,
    /// What has come and is not read yet: more than one piece only where it was paused.
    waiting: VecDeque<Result<Chunk, Unreadable>>,
}

/// What a link has of one partition.
struct Piece {
    partition: i32,
    run: u64,
    content: Result<Stretch, Unreadable>,
}

/// What the log has of a partition between two offsets.
struct Stretch {
    from: i64,
    next: i64,
    chunk: Chunk,
}

impl Direct {
    /// Of this topic, and no other that comes to have its name; `topic_id` as librdkafka prints it.
    ///
    /// # Panics
    /// If `topic_id` is none: 16 bytes in base64, without padding.
    pub(super) fn new(
        consumer: &Arc<BaseConsumer<Membership>>,
        topic: &str,
        topic_id: &str,
        client_id: &str,
        runtime: &Handle,
    ) -> Direct {
        let topic_id =
            STANDARD_NO_PAD.decode(topic_id).expect("librdkafka prints a topic's id in base64");
        let topic_id = Uuid::from_slice(&topic_id).expect("a topic's id has 16 bytes");
        let (sender, pieces) = channel();
        let shared = Shared::new(topic_id, client_id, sender);
        let leaders = Some(Leaders::start(&shared, consumer, topic, runtime));
        Direct { shared, pieces, current: None, runs: BTreeMap::new(), last_run: 0, leaders }
    }

    /// Reads these partitions from these offsets on, whether they were read before or not.
    pub(super) fn start(&mut self, from: &[(i32, i64)]) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        for (partition, next) in from {
            self.drop_current(*partition);
            self.last_run += 1;
            let run = Run {
                number: self.last_run,
                next: *next,
                is_paused: false,
                waiting: VecDeque::new(),
            };
            self.runs.insert(*partition, run);
            let leader = state.partitions.get(partition).and_then(|before| before.leader);
            state.partitions.insert(*partition, Partition::started(self.last_run, *next, leader));
        }
        drop(state);
        shared.missing.notify_one();
        shared.more.notify_waiters();
    }

    /// Nothing more comes of this partition.
    pub(super) fn stop(&mut self, partition: i32) {
        self.shared.lock().partitions.remove(&partition);
        self.runs.remove(&partition);
        self.drop_current(partition);
    }

    /// Nothing more comes of this partition, which is read, until [`Direct::resume`].
    pub(super) fn pause(&mut self, partition: i32) {
        let Some(run) = self.runs.get_mut(&partition) else { return };
        run.is_paused = true;
        if let Some((_, chunk)) = self.current.take_if(|(of, _)| *of == partition) {
            run.waiting.push_front(Ok(chunk));
        }
        if let Some(partition) = self.shared.lock().partitions.get_mut(&partition) {
            partition.is_paused = true;
        }
    }

    /// It comes on where it was paused. More is asked for once what waits is read: else it might
    /// grow with each time.
    pub(super) fn resume(&mut self, partition: i32) {
        let Some(run) = self.runs.get_mut(&partition) else { return };
        run.is_paused = false;
        if run.waiting.is_empty() {
            self.shared.ask_again(partition);
        }
    }

    /// The next message, if one is there; never waits. A partition that cannot be read on says so
    /// once.
    #[inline]
    pub(super) fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Unreadable>> {
        let (partition, message) = match self.advance()? {
            Ok(next) => next,
            Err(unreadable) => return Some(Err(unreadable)),
        };
        let Message { offset, timestamp_ms, key, value } = message;
        let body = self.current().body();
        let (key, payload) = (key.map(|range| &body[range]), value.map(|range| &body[range]));
        Some(Ok(FetchedMessage { partition, offset, timestamp_ms, key, payload }))
    }

    /// As [`Direct::fetch`], to be kept.
    pub(super) fn fetch_to_keep(&mut self) -> Option<Result<KeptMessage, Unreadable>> {
        let (partition, message) = match self.advance()? {
            Ok(next) => next,
            Err(unreadable) => return Some(Err(unreadable)),
        };
        let Message { offset, timestamp_ms, value, .. } = message;
        let payload = value.map(|range| self.current().share(range));
        Some(Ok(KeptMessage { partition, offset, timestamp_ms, payload }))
    }

    /// The next message, of what is current then; a partition that cannot be read on is given up.
    #[inline]
    fn advance(&mut self) -> Option<Result<(i32, Message), Unreadable>> {
        loop {
            if let Some((partition, chunk)) = &mut self.current {
                match chunk.next() {
                    Ok(Some(message)) => return Some(Ok((*partition, message))),
                    Ok(None) => self.current = None,
                    Err((offset, damage)) => {
                        let reason = format!("the batch at offset {offset}: {damage}");
                        let unreadable = Unreadable::damaged(*partition, reason);
                        return Some(Err(self.give_up(unreadable)));
                    }
                }
            }
            match self.next_chunk()? {
                Ok(next) => self.current = Some(next),
                Err(unreadable) => return Some(Err(self.give_up(unreadable))),
            }
        }
    }

    fn current(&self) -> &Chunk {
        &self.current.as_ref().expect("the message is of it").1
    }

    /// What waited, or else what comes, of a partition that is not paused.
    fn next_chunk(&mut self) -> Option<Result<(i32, Chunk), Unreadable>> {
        loop {
            for (partition, run) in &mut self.runs {
                if !run.is_paused
                    && let Some(content) = run.waiting.pop_front()
                {
                    if run.waiting.is_empty() {
                        self.shared.ask_again(*partition);
                    }
                    return Some(content.map(|chunk| (*partition, chunk)));
                }
            }
            let Piece { partition, run, content } = self.pieces.try_recv().ok()?;
            if let Ok(stretch) = &content
                && self.shared.ahead.take(stretch.chunk.bytes())
            {
                self.shared.more.notify_waiters();
            }
            let Some(run) = self.runs.get_mut(&partition).filter(|of| of.number == run) else {
                continue;
            };
            let content = match content {
                Ok(Stretch { from, next, chunk }) if from == run.next => {
                    run.next = next;
                    Ok(chunk)
                }
                // Two links had the partition, as its leader changed, and the second was faster.
                Ok(Stretch { from, .. }) => {
                    tracing::info!(
                        partition,
                        next = run.next,
                        from,
                        "fetched out of turn: once more"
                    );
                    self.last_run += 1;
                    run.number = self.last_run;
                    self.shared.ask_from(partition, run.number, run.next);
                    continue;
                }
                Err(unreadable) => Err(unreadable),
            };
            run.waiting.push_back(content);
        }
    }

    fn drop_current(&mut self, partition: i32) {
        self.current.take_if(|(of, _)| *of == partition);
    }

    /// The partition is not read on.
    fn give_up(&mut self, unreadable: Unreadable) -> Unreadable {
        self.stop(unreadable.partition);
        unreadable
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        state.links.values().for_each(|link| link.abort());
        drop(state);
        self.shared.missing.notify_one();
        if let Some(leaders) = self.leaders.take()
            && leaders.join().is_err()
        {
            tracing::error!("the search for leaders panicked");
        }
    }
}
