//! A task for each broker that leads partitions which are read: one fetch after the other, the next
//! one on its way while what the last one brought is decompressed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::{BrokerId, FetchRequest, FetchResponse};

use super::chunk::{self, Aborted, Chunk};
use super::connection::{Connection, Error};
use super::shared::{Partition, Shared, Trouble};
use super::{Piece, Stretch};
use crate::Unreadable;

/// The most bytes of one answer, and of one partition in it; one batch that is longer comes all the
/// same.
const ANSWER_BYTES: usize = 4 << 20;
pub(super) const PARTITION_BYTES: i32 = 1 << 20;
/// What an answer is to come to once it is decompressed: where batches are short for what is in
/// them, less is asked for.
const INFLATED_BYTES: usize = 16 << 20;
const LEAST_BYTES: usize = 64 << 10;
/// A broker answers once it has so much, or after so long: else a busy topic would be fetched in
/// crumbs.
const MIN_BYTES: i32 = 64 << 10;
const MAX_WAIT_MS: i32 = 50;
/// Only what was committed.
const READ_COMMITTED: i8 = 1;

pub(super) struct Link {
    shared: Arc<Shared>,
    broker: i32,
    /// The run and the offset that were asked for, by partition.
    asked: BTreeMap<i32, (u64, i64)>,
    /// The partition that comes first in the next request: an answer may have no room for the last
    /// ones.
    first: i32,
    max_bytes: usize,
    /// How many times its size what came last was once it was decompressed.
    inflation: usize,
}

/// What came of a partition, not looked into yet.
struct Received {
    partition: i32,
    run: u64,
    from: i64,
    next: i64,
    records: Bytes,
    aborted: Vec<Aborted>,
}

/// Takes a link off the list, whatever it ends by.
struct Listed {
    shared: Arc<Shared>,
    broker: i32,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.lock().links.remove(&self.broker);
        self.shared.missing.notify_one();
    }
}

/// Reads from one broker until it fails, or is aborted.
pub(super) async fn run(shared: Arc<Shared>, broker: i32, host: String, port: u16) {
    let _listed = Listed { shared: Arc::clone(&shared), broker };
    let opened = Connection::open((&host, port), &shared.client_id, shared.buffers.clone()).await;
    let mut link = Link {
        shared: Arc::clone(&shared),
        broker,
        asked: BTreeMap::new(),
        first: 0,
        max_bytes: ANSWER_BYTES,
        inflation: 1,
    };
    let error = match opened {
        Ok(mut connection) => link.fetch_on(&mut connection).await,
        Err(error) => error,
    };
    // A broker that is down is tried ten times a second.
    let is_news = shared.lock().is_news(Trouble::Broker(broker));
    if is_news {
        tracing::warn!(%error, broker, host, port, "consume");
    } else {
        tracing::debug!(%error, broker, host, port, "consume");
    }
}

impl Link {
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
            // The broker wants to be left alone for so long.
            let throttle =
                Duration::from_millis(u64::try_from(answer.throttle_time_ms).unwrap_or(0));
            received = self.take(answer)?;
            if !throttle.is_zero() {
                self.open(std::mem::take(&mut received)).await;
                tokio::time::sleep(throttle).await;
            }
        }
        let shared = Arc::clone(&self.shared);
        let more = shared.more.notified();
        tokio::pin!(more);
        more.as_mut().enable();
        let is_idle = received.is_empty();
        let request = self.request();
        let asked = match &request {
            Some(request) => connection.fetch(request).await,
            None => Ok(()),
        };
        // Whatever comes of asking: what has come is noted as read.
        self.open(received).await;
        if is_idle && request.is_none() {
            more.await;
        }
        asked
    }

    /// For all that this broker leads; `None` if that is nothing, or if there is enough to read.
    fn request(&mut self) -> Option<FetchRequest> {
        if self.shared.ahead.is_enough() {
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
    fn take(&mut self, answer: FetchResponse) -> Result<Vec<Received>, Error> {
        if let Some(error) = ResponseError::try_from_code(answer.error_code) {
            return Err(Error::Strange(error.to_string()));
        }
        let asked = std::mem::take(&mut self.asked);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let mut received = Vec::new();
        for data in answer.responses.into_iter().flat_map(|topic| topic.partitions) {
            let id = data.partition_index;
            let Some((run, from)) = asked.get(&id).copied() else { continue };
            // Another link may have been faster, where the leader changed.
            let is_next =
                |partition: &&mut Partition| partition.run == run && partition.next == from;
            let Some(partition) = state.partitions.get_mut(&id).filter(is_next) else { continue };
            match take_partition(partition, data, from) {
                Ok(None) => {}
                Ok(Some((records, aborted))) => {
                    self.shared.ahead.add(records.len());
                    let next = partition.next;
                    received.push(Received { partition: id, run, from, next, records, aborted });
                }
                Err(unreadable) => {
                    state.partitions.remove(&id);
                    self.send(Piece { partition: id, run, content: Err(unreadable) });
                }
            }
        }
        if state.misses_leader() {
            shared.missing.notify_one();
        }
        Ok(received)
    }

    /// Decompresses what came, and hands it over.
    async fn open(&mut self, received: Vec<Received>) {
        let (mut sent, mut opened) = (0, 0);
        for Received { partition, run, from, next, records, aborted } in received {
            let bytes = records.len();
            let chunk =
                Chunk::open(records, from, aborted, &self.shared.buffers, bytes * self.inflation);
            self.shared.ahead.add(chunk.bytes());
            if self.shared.ahead.take(bytes) {
                self.shared.more.notify_waiters();
            }
            (sent, opened) = (sent + bytes, opened + chunk.inflated_bytes());
            self.send(Piece { partition, run, content: Ok(Stretch { from, next, chunk }) });
            tokio::task::yield_now().await;
        }
        // Markers of transactions say nothing about messages.
        if opened > 0 {
            self.inflation = opened.div_ceil(sent);
            self.max_bytes = (INFLATED_BYTES / self.inflation).clamp(LEAST_BYTES, ANSWER_BYTES);
        }
    }

    fn send(&self, piece: Piece) {
        // Who read is gone when nobody takes it; this task is aborted then.
        let _ = self.shared.pieces.send(piece);
    }
}

type Records = (Bytes, Vec<Aborted>);

fn take_partition(
    partition: &mut Partition,
    data: PartitionData,
    from: i64,
) -> Result<Option<Records>, Unreadable> {
    let id = data.partition_index;
    match ResponseError::try_from_code(data.error_code) {
        None => {}
        Some(ResponseError::OffsetOutOfRange) => return Err(Unreadable::out_of_range(id, from)),
        // It passes, once the brokers agree on who leads the partition. Whether the topic is still
        // the same is looked at by others.
        Some(error) if passes(error) => {
            tracing::debug!(%error, partition = id, "fetch");
            partition.leader = None;
            return Ok(None);
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
    let Some(records) = data.records.filter(|records| !records.is_empty()) else { return Ok(None) };
    let end = chunk::end(&records).map_err(|damage| {
        Unreadable::damaged(id, format!("batches from offset {from} on: {damage}"))
    })?;
    // One that is cut off is asked for again, and comes whole when it is the first of an answer.
    let Some(end) = end else { return Ok(None) };
    partition.next = end.next;
    partition.leader_epoch = end.leader_epoch;
    // What follows a batch that is longer is as long as that and comes whole anyway, or is its
    // transaction's marker: then what comes after the marker is cut off, for nothing.
    partition.max_bytes =
        if end.size > PARTITION_BYTES as usize { LEAST_BYTES as i32 } else { PARTITION_BYTES };
    // The protocol's null here means that none was aborted.
    let aborted = data.aborted_transactions.unwrap_or_default().into_iter().map(|aborted| {
        Aborted { first_offset: aborted.first_offset, producer_id: aborted.producer_id.0 }
    });
    Ok(Some((records, aborted.collect())))
}

fn passes(error: ResponseError) -> bool {
    match error {
        ResponseError::UnknownServerError => true,
        // What is on the broker's disk is so.
        ResponseError::CorruptMessage => false,
        error => error.is_retriable(),
    }
}
