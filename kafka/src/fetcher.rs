//! Messages of the partitions that a member of the group holds, many at a time.
//!
//! librdkafka is the group's member in any case. Where connections need no more than TCP, messages
//! come straight from the brokers ([`super::direct`]): most of what a small message costs otherwise
//! is librdkafka's own work. Where connections are encrypted or authenticated, or where the caller
//! says so, messages come out of librdkafka's queues ([`super::queues`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use tokio::runtime::Handle;

use super::direct::DirectFetcher;
use super::queues::LibrdkafkaQueues;
use super::{Cluster, Membership};
use serde::{Deserialize, Serialize};

/// A message in the fetcher's buffers, which is valid until the next one is asked for.
#[derive(Clone, Copy, Debug)]
pub struct FetchedMessage<'m> {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since the Unix epoch, if the message has one.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'m [u8]>,
    pub payload: Option<&'m [u8]>,
    /// The epoch of the leader that appended it, if the broker told.
    pub leader_epoch: Option<i32>,
    pub unfit: Option<Unfit>,
}

/// Why a message is not to be decoded, whatever its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Its batch is too large to be decompressed: key and payload are left out.
    BatchTooLarge,
    /// Its schema's GUID is in the header [`FetchedMessage::SCHEMA_HEADER`]: no schema id stands
    /// before its body, and what is there could pass for one.
    SchemaInHeader,
}

impl FetchedMessage<'_> {
    /// The most bytes that the records of one batch may come to once they are decompressed: those
    /// of a longer one are left out. A producer's batch is as long as a request at most, so more is
    /// a mistake, or malice.
    pub const MAX_BATCH_BYTES: usize = 256 << 20;

    /// The header in which newer serializers name a value's schema.
    pub const SCHEMA_HEADER: &'static str = "__value_schema_id";
    /// How long its value is: a version's byte and the schema's GUID.
    pub const SCHEMA_HEADER_BYTES: usize = 17;
}

/// A message that may be kept for as long as anybody likes.
#[derive(Clone, Debug)]
pub struct KeptMessage {
    pub partition: i32,
    pub offset: i64,
    /// In milliseconds since the Unix epoch, if the message has one.
    pub timestamp_ms: Option<i64>,
    pub payload: Option<Bytes>,
}

/// A partition that Kafka does not serve for more than ten seconds. It is asked for again and
/// again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unserved {
    pub partition: i32,
    pub since: Instant,
    /// What the broker says, or that there is none.
    pub reason: String,
}

/// Why a partition cannot be read on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub partition: i32,
    /// The offset to be read next, if the reason is that the partition does not have it.
    pub out_of_range: Option<i64>,
    pub reason: String,
}

impl Unreadable {
    pub(super) fn out_of_range(partition: i32, next: i64) -> Unreadable {
        let reason = format!("offset {next} is out of range");
        Unreadable { partition, out_of_range: Some(next), reason }
    }

    pub(super) fn damaged(partition: i32, reason: String) -> Unreadable {
        Unreadable { partition, out_of_range: None, reason }
    }
}

/// What fetches messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fetch {
    /// This crate itself, straight from the brokers, at less than half the CPU a message. But where
    /// the cluster's properties set `security.protocol` to anything but plaintext, librdkafka.
    #[default]
    Auto,
    /// librdkafka, with all its properties.
    Librdkafka,
}

/// Fetches from partitions of one topic, in turn.
pub struct Fetcher(Backend);

enum Backend {
    Direct(Box<DirectFetcher>),
    Queues(LibrdkafkaQueues),
}

impl Fetcher {
    /// For a consumer that is a member of a group of this topic; `topic_id` as Kafka prints it.
    pub fn new(
        cluster: &Cluster,
        fetch: Fetch,
        consumer: &Arc<BaseConsumer<Membership>>,
        topic: &str,
        topic_id: &str,
        client_id: &str,
        runtime: &Handle,
    ) -> Fetcher {
        Fetcher(match fetch {
            Fetch::Auto if cluster.is_plain() => Backend::Direct(Box::new(DirectFetcher::new(
                consumer, topic, topic_id, client_id, runtime,
            ))),
            Fetch::Auto | Fetch::Librdkafka => {
                Backend::Queues(LibrdkafkaQueues::new(consumer, topic))
            }
        })
    }

    /// Reads these partitions, which the group gave, from these offsets on, whether they were read
    /// before or not.
    pub fn start(&mut self, from: &[(i32, i64)]) -> Result<(), KafkaError> {
        match &mut self.0 {
            Backend::Direct(direct) => direct.start(from),
            Backend::Queues(queues) => queues.start(from)?,
        }
        Ok(())
    }

    /// Stops reading a partition: nothing more comes of it until it is started again.
    pub fn stop(&mut self, partition: i32) {
        match &mut self.0 {
            Backend::Direct(direct) => direct.stop(partition),
            Backend::Queues(queues) => queues.stop(partition),
        }
    }

    /// Pauses a partition that is read: nothing more comes of it until it is resumed or started
    /// again.
    pub fn pause(&mut self, partition: i32) {
        match &mut self.0 {
            Backend::Direct(direct) => direct.pause(partition),
            Backend::Queues(queues) => queues.pause(partition),
        }
    }

    /// Resumes a paused partition where it was.
    pub fn resume(&mut self, partition: i32) {
        match &mut self.0 {
            Backend::Direct(direct) => direct.resume(partition),
            Backend::Queues(queues) => queues.resume(partition),
        }
    }

    /// Says whether partitions take short turns. If so, the turn of the one that the last message
    /// was of ends here: what comes next is of others, if they have something. Otherwise a turn
    /// ends with what was fetched of the partition at a time.
    pub fn short_turns(&mut self, are_wanted: bool) {
        match &mut self.0 {
            Backend::Direct(direct) => direct.short_turns(are_wanted),
            Backend::Queues(queues) if are_wanted => queues.end_turn(),
            Backend::Queues(_) => {}
        }
    }

    /// The offset up to which there is nothing in a partition that was not handed over, beyond
    /// transaction markers too; `None` while there is, and where librdkafka fetches, which does not
    /// tell of markers.
    pub fn position(&self, partition: i32) -> Option<i64> {
        match &self.0 {
            Backend::Direct(direct) => direct.position(partition),
            Backend::Queues(_) => None,
        }
    }

    /// The next offset that each partition's log will give, as brokers last told: of those that are
    /// read, and perhaps of others that were.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        match &self.0 {
            Backend::Direct(direct) => direct.ends(),
            Backend::Queues(queues) => queues.ends(),
        }
    }

    /// The partitions that Kafka does not serve; librdkafka does not tell of any.
    pub fn unserved(&self) -> Vec<Unserved> {
        match &self.0 {
            Backend::Direct(direct) => direct.unserved(),
            Backend::Queues(_) => Vec::new(),
        }
    }

    /// The next message, if there is one; never waits.
    #[inline]
    pub fn fetch(&mut self) -> Option<Result<FetchedMessage<'_>, Unreadable>> {
        match &mut self.0 {
            Backend::Direct(direct) => direct.fetch(),
            Backend::Queues(queues) => queues.fetch(),
        }
    }

    /// As [`Fetcher::fetch`], for a message that is kept; a large one is not copied if it was
    /// fetched without librdkafka.
    pub fn fetch_to_keep(&mut self) -> Option<Result<KeptMessage, Unreadable>> {
        match &mut self.0 {
            Backend::Direct(direct) => direct.fetch_to_keep(),
            Backend::Queues(queues) => queues.fetch().map(|fetched| {
                fetched.map(
                    |FetchedMessage { partition, offset, timestamp_ms, payload, .. }| {
                        let payload = payload.map(Bytes::copy_from_slice);
                        KeptMessage { partition, offset, timestamp_ms, payload }
                    },
                )
            }),
        }
    }
}
