//! A task for each broker that leads partitions which are read. It has a connection to the broker,
//! and sends one fetch after the other for all partitions that the broker leads; the next fetch is
//! on its way while what the last one brought is decompressed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};

use super::connection::{Connection, Error};
use super::record_batches::{self, AbortedTransaction, RecordBatches, Room};
use super::shared::{Partition, Shared, Trouble};
use super::{FetchedRange, PartitionFetch};
use crate::Unreadable;

const LOST: &str = "connection to the Kafka broker lost; reconnecting";

/// The most bytes of one answer, and of one partition in it. A single batch that is longer comes
/// all the same.
const ANSWER_BYTES: usize = 4 << 20;
pub(super) const PARTITION_BYTES: i32 = 1 << 20;
/// The size that an answer should have once it is decompressed: where batches compress well, less
/// is asked for.
const INFLATED_BYTES: usize = 16 << 20;
const LEAST_BYTES: usize = 64 << 10;
/// A broker answers once it has so many bytes, or after so long: else a busy topic would be fetched
/// in many small answers.
const MIN_BYTES: i32 = 64 << 10;
const MAX_WAIT_MS: i32 = 50;
/// The protocol's isolation level of consumers that read only committed messages.
const READ_COMMITTED: i8 = 1;

pub(super) struct BrokerFetcher {
    shared: Arc<Shared>,
    broker: i32,
    /// The run and the offset that the fetch on its way asks for, by partition.
    asked: BTreeMap<i32, (u64, i64)>,
    /// The partition that comes first in the next request: an answer may have no room for the last
    /// ones.
    first: i32,
    max_bytes: usize,
    /// How many times longer the last answer was once it was decompressed.
    inflation: usize,
}

/// The bytes that came of a partition, not looked into yet.
struct ReceivedRecords {
    partition: i32,
    run: u64,
    from: i64,
    next: i64,
    records: Bytes,
    aborted: Vec<AbortedTransaction>,
}

/// Takes the fetcher off the list of fetchers, however its task ends.
struct Registration {
    shared: Arc<Shared>,
    broker: i32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.lock().fetchers.remove(&self.broker);
        self.shared.leader_missing.notify_one();
    }
}

/// Reads from one broker until it fails, or is aborted.
pub(super) async fn run(shared: Arc<Shared>, broker: i32, host: String, port: u16) {
    let _registration = Registration { shared: Arc::clone(&shared), broker };
    let opened =
        Connection::open((host.as_str(), port), &shared.client_id, shared.buffers.clone()).await;
    let mut fetcher = BrokerFetcher {
        shared: Arc::clone(&shared),
        broker,
        asked: BTreeMap::new(),
        first: 0,
        max_bytes: ANSWER_BYTES,
        inflation: 1,
    };
    let error = match opened {
        Ok(mut connection) => fetcher.fetch_on(&mut connection).await,
        Err(error) => error,
    };
    // A broker that is down is tried ten times a second.
    let mut state = shared.lock();
    let is_news = state.is_news(Trouble::Broker(broker));
    state.broker_fails(broker, &format!("Kafka broker {broker} at {host}:{port}: {error}"));
    drop(state);
    if is_news {
        tracing::warn!(%error, broker, host, port, "{LOST}");
    } else {
        tracing::debug!(%error, broker, host, port, "{LOST}");
    }
}

impl BrokerFetcher {
    async fn fetch_on(&mut self, connection: &mut Connection) -> Error {
        loop {
            if let Err(error) = self.round(connection).await {
                return error;
            }
        }
    }

    /// Takes an answer if one is due, and asks for more.
    async fn round(&mut self, connection: &mut Connection) -> Result<(), Error> {
        let mut received = Vec::new();
        if !self.asked.is_empty() {
            let answer = connection.answer().await?;
            // The broker asks to be left alone for so long.
            let throttle =
                Duration::from_millis(u64::try_from(answer.throttle_time_ms).unwrap_or(0));
            received = self.take(answer)?;
            if !throttle.is_zero() {
                self.open(std::mem::take(&mut received)).await;
                tokio::time::sleep(throttle).await;
            }
        }
        let shared = Arc::clone(&self.shared);
        let more = shared.wanted.notified();
        tokio::pin!(more);
        more.as_mut().enable();
        let is_idle = received.is_empty();
        let request = self.request();
        let asked = match &request {
            Some(request) => connection.fetch(request).await,
            None => Ok(()),
        };
        // What has come must be handed over even if asking failed: it is noted as read already.
        self.open(received).await;
        if is_idle && request.is_none() {
            more.await;
        }
        asked
    }

    /// A request for all partitions that this broker leads; `None` if it leads none, or if there is
    /// enough to read.
    fn request(&mut self) -> Option<FetchRequest> {
        if self.shared.unread.is_enough() {
            return None;
        }
        let state = self.shared.lock();
        let turn = state.partitions.range(self.first..).chain(state.partitions.range(..self.first));
        let led = turn
            .filter(|(_, partition)| partition.leader == Some(self.broker) && !partition.is_paused);
        let mut partitions = Vec::new();
        for (id, Partition { run, next, leader_epoch, max_bytes, .. }) in led {
            self.asked.insert(*id, (*run, *next));
            let partition = FetchPartition::default()
                .with_partition(*id)
                .with_fetch_offset(*next)
                .with_last_fetched_epoch(*leader_epoch)
                .with_partition_max_bytes(*max_bytes);
            partitions.push(partition);
        }
        drop(state);
        self.first = partitions.first()?.partition + 1;
        let topic =
            FetchTopic::default().with_topic_id(self.shared.topic_id).with_partitions(partitions);
        Some(
            FetchRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_max_wait_ms(MAX_WAIT_MS)
                .with_min_bytes(MIN_BYTES)
                .with_max_bytes(i32::try_from(self.max_bytes).expect("a few MiB"))
                .with_isolation_level(READ_COMMITTED)
                .with_topics(vec![topic]),
        )
    }

    /// Notes where each partition goes on, and what came of it.
    fn take(&mut self, answer: FetchResponse) -> Result<Vec<ReceivedRecords>, Error> {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(Error::Protocol(error.to_string()));
        }
        let asked = std::mem::take(&mut self.asked);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut received = Vec::new();
        for data in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
            let id = data.partition_index;
            let Some((run, from)) = asked.get(&id).copied() else { continue };
            // Where the leader changed, the fetcher of another broker may have been faster.
            let is_next =
                |partition: &&mut Partition| partition.run == run && partition.next == from;
            if state.partitions.contains_key(&id) && data.high_watermark >= 0 {
                state.ends.insert(id, data.high_watermark);
            }
            let Some(partition) = state.partitions.get_mut(&id).filter(is_next) else { continue };
            match take_partition(partition, data, from) {
                Ok(Taken::Nothing) => state.served(id),
                Ok(Taken::Refused(error)) => {
                    let broker = self.broker;
                    state.not_served(id, &format!("Kafka broker {broker} refuses it: {error}"));
                }
                Ok(Taken::Held { at, end }) => state.not_served(
                    id,
                    &format!(
                        "a transaction that a client has left open holds it at offset {at}, and \
                         it goes up to {end}; Kafka aborts the transaction once it times out"
                    ),
                ),
                Ok(Taken::Records(records, aborted)) => {
                    self.shared.unread.add(records.len());
                    let next = partition.next;
                    state.served(id);
                    if self.shared.one_at_a_time.load(Ordering::Relaxed) {
                        state.pause(id);
                    }
                    received.push(ReceivedRecords {
                        partition: id,
                        run,
                        from,
                        next,
                        records,
                        aborted,
                    });
                }
                Err(unreadable) => {
                    state.remove(id);
                    self.send(PartitionFetch { partition: id, run, content: Err(unreadable) });
                }
            }
        }
        if state.misses_leader() {
            shared.leader_missing.notify_one();
        }
        Ok(received)
    }

    /// Decompresses what came, and hands it over.
    async fn open(&mut self, received: Vec<ReceivedRecords>) {
        let (mut sent, mut opened) = (0, 0);
        for ReceivedRecords { partition, run, from, next, records, aborted } in received {
            let bytes = records.len();
            let room =
                Room { expected: bytes * self.inflation, at_once: self.shared.inflated.room() };
            let mut batches =
                RecordBatches::open(records, from, aborted, &self.shared.buffers, room);
            batches.hold(&self.shared.inflated);
            self.shared.unread.add(batches.bytes());
            if self.shared.unread.take(bytes) {
                self.shared.wanted.notify_waiters();
            }
            (sent, opened) = (sent + bytes, opened + batches.inflated_bytes());
            self.send(PartitionFetch {
                partition,
                run,
                content: Ok(FetchedRange { from, next, batches }),
            });
            tokio::task::yield_now().await;
        }
        // An answer of transaction markers alone says nothing about how well messages compress.
        if opened > 0 {
            self.inflation = opened.div_ceil(sent);
            self.max_bytes = (INFLATED_BYTES / self.inflation).clamp(LEAST_BYTES, ANSWER_BYTES);
        }
    }

    fn send(&self, fetch: PartitionFetch) {
        // Sending fails only once the DirectFetcher is gone, and then this task is aborted.
        let _ = self.shared.partition_fetches.send(fetch);
    }
}

/// What an answer has of a partition.
enum Taken {
    Nothing,
    /// The broker does not serve it now. Whether the topic is still the same is for the caller to
    /// look at.
    Refused(ResponseError),
    /// Nothing that is committed: a transaction is open from the offset `at` on.
    Held {
        at: i64,
        end: i64,
    },
    Records(Bytes, Vec<AbortedTransaction>),
}

fn take_partition(
    partition: &mut Partition,
    data: PartitionData,
    from: i64,
) -> Result<Taken, Unreadable> {
    let id = data.partition_index;
    match ResponseError::try_from_code(data.error_code) {
        None => {}
        Some(ResponseError::OffsetOutOfRange) => return Err(Unreadable::out_of_range(id, from)),
        // Most often it passes once the brokers agree on who leads the partition.
        Some(error) if passes(error) => {
            partition.leader = None;
            return Ok(Taken::Refused(error));
        }
        Some(error) => return Err(Unreadable::damaged(id, error.to_string())),
    }
    if data.diverging_epoch.epoch >= 0 {
        let end = data.diverging_epoch.end_offset;
        let reason = format!(
            "offset {from} is to be read next, but its log was cut off at {end} and written anew"
        );
        return Err(Unreadable::damaged(id, reason));
    }
    let Some(records) = data.records.filter(|records| !records.is_empty()) else {
        let (at, end) = (data.last_stable_offset, data.high_watermark);
        return Ok(if at < end && at <= from { Taken::Held { at, end } } else { Taken::Nothing });
    };
    let end = record_batches::end(&records).map_err(|damage| {
        Unreadable::damaged(id, format!("batches from offset {from} on: {damage}"))
    })?;
    // A batch that is cut off is asked for again, and comes whole when it is the first of an
    // answer.
    let Some(end) = end else { return Ok(Taken::Nothing) };
    partition.next = end.next;
    partition.leader_epoch = end.leader_epoch;
    // After a batch that is longer than what is asked for, one of two things follows. Another batch
    // as long as that: it comes whole, however little is asked for. Or the transaction's marker,
    // which is short: then a long batch after it would be sent, cut off, and sent again. So less is
    // asked for.
    partition.max_bytes = if end.last_batch_bytes > PARTITION_BYTES as usize {
        LEAST_BYTES as i32
    } else {
        PARTITION_BYTES
    };
    // The protocol's null here means that none was aborted.
    let aborted = data.aborted_transactions.unwrap_or_default().into_iter().map(|aborted| {
        AbortedTransaction {
            first_offset: aborted.first_offset,
            producer_id: aborted.producer_id.0,
        }
    });
    Ok(Taken::Records(records, aborted.collect()))
}

fn passes(error: ResponseError) -> bool {
    match error {
        ResponseError::UnknownServerError => true,
        // What is damaged on the broker's disk stays damaged.
        ResponseError::CorruptMessage => false,
        error => error.is_retriable(),
    }
}
