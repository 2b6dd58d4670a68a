//! The configuration: one TOML file, each key overridable as `TALLY_SECTION__KEY`, parsed once into
//! types.
//!
//! A key that is not known is an error, so that a typing mistake never runs with a default.

mod load;
mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use tally_counts::{BucketWidth, Horizon, IdScope, Rules};
use tally_kafka::{Cluster, Fetch};

pub use load::load;
pub use secret::Secret;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub kafka: Kafka,
    pub registry: Registry,
    pub store: Store,
    pub counts: Counts,
    pub duplicates: Duplicates,
    pub producer: Producer,
    pub aggregator: Aggregator,
    pub sink: Sink,
    pub reader: Reader,
    pub reconciler: Reconciler,
    pub telemetry: Telemetry,
}

impl Default for Config {
    fn default() -> Config {
        toml::from_str(include_str!("config/defaults.toml"))
            .expect("each key that needs one has a default")
    }
}

macro_rules! defaults {
    ($($Section:ident of $section:ident),*) => {$(
        impl Default for $Section {
            fn default() -> $Section {
                Config::default().$section
            }
        }
    )*};
}

defaults!(Kafka of kafka, Registry of registry, Store of store, Producer of producer);
defaults!(Aggregator of aggregator, Sink of sink, Reader of reader, Telemetry of telemetry);

impl Config {
    /// What decides what counts.
    pub fn rules(&self) -> Rules {
        Rules {
            width: self.counts.bucket_seconds,
            horizon: Horizon {
                offsets: self.duplicates.horizon_offsets,
                ids: self.duplicates.max_ids,
            },
            max_future_s: self.counts.max_future_seconds,
            min_event_s: u32::try_from(self.counts.min_event_time.as_second())
                .expect("the configuration was checked"),
            ids_within: self.duplicates.ids_within,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Kafka {
    /// `host:port` of one or more brokers, joined by commas.
    pub bootstrap: String,
    /// The topics' names.
    pub increments: String,
    pub deltas: String,
    pub rejected: String,
    pub checkpoints: String,
    /// What `tally init` creates topics with.
    pub partitions: i32,
    pub replication: i32,
    /// Whether `increments` and `increments.rejected` must keep every message for ever, so that
    /// every count can be verified from the beginning: `tally init` refuses topics that do not. If
    /// false, it only says so.
    pub keep_log: bool,
    /// Passed to librdkafka as they are, for every client; what exactly-once depends on cannot be
    /// set here.
    pub properties: BTreeMap<String, String>,
}

impl Kafka {
    /// How clients reach the brokers.
    pub fn cluster(&self) -> Cluster {
        Cluster { bootstrap: self.bootstrap.clone(), properties: self.properties.clone() }
    }
}

/// The schema registry, through its Confluent-compatible API.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    pub url: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
}

/// ClickHouse.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub url: String,
    pub database: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// How the sink's blocks go over the wire.
    pub compression: Compression,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are to a store on this machine, in LZ4 to any other.
    #[default]
    Auto,
    Lz4,
    None,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Length of a time bucket, in seconds; divides a day. Fixed once the table is there.
    #[serde(with = "bucket_seconds")]
    pub bucket_seconds: BucketWidth,
    /// How much later than its record's timestamp in the log an event may be, in seconds; a later
    /// one is rejected. Fixed once the table is there.
    pub max_future_seconds: u32,
    /// The earliest time an event may have, as RFC 3339 text: a whole second from 1970 on. An
    /// earlier one is refused, since it is nearly always a time in another unit. Fixed once the
    /// table is there.
    pub min_event_time: Timestamp,
}

/// How far back an id is recognised, in each partition. Fixed once the table is there.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Duplicates {
    /// In offsets: an id that occurred so many ago or fewer makes a duplicate.
    pub horizon_offsets: u32,
    /// The most ids that are remembered, those seen last; 40 bytes of the aggregator's memory each.
    #[serde(deserialize_with = "max_ids")]
    pub max_ids: NonZeroU32,
    /// Within what an increment's id counts once: `counter`, or `partition` for a table that was
    /// made by Tally 0.1.
    pub ids_within: IdScope,
}

/// The HTTP gateway.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Producer {
    pub listen: SocketAddr,
    pub health: SocketAddr,
    /// Connections at once; on others, requests are answered 503.
    pub max_connections: usize,
    /// The longest request body, in bytes, also once it is decompressed; a longer one is answered
    /// 413.
    pub body_limit_bytes: usize,
    /// Requests at once whose increments are on their way to the log; more are answered 503.
    pub max_in_flight: usize,
    /// The bodies of all requests, those that are still arriving and those in flight, in bytes;
    /// more are answered 503.
    pub max_bytes_in_flight: usize,
    /// Increments per second that this gateway accepts; more are answered 429. No limit when
    /// absent.
    pub max_increments_per_second: Option<NonZeroU32>,
    /// How long a request waits for the log before it is answered 503 or 504, in milliseconds.
    pub delivery_timeout_ms: u64,
    /// How long requests are still taken after SIGTERM, in milliseconds. Readiness says no from the
    /// signal on, so that a balancer sends no more.
    pub shutdown_grace_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Aggregator {
    pub group: String,
    /// Tells this process from the others of its group, across restarts: its transactional ids are
    /// made from it. The host's name when absent.
    pub instance: Option<String>,
    /// Workers in this process, each a member of the group.
    pub workers: usize,
    pub health: SocketAddr,
    /// A flush at least this often, in milliseconds.
    pub flush_interval_ms: u64,
    /// A batch of one partition is cut when it is as long as this, in bytes, and the next one
    /// begins.
    pub flush_batch_bytes: usize,
    /// A flush before all sums of a worker would take more than this, in bytes of their encoded
    /// size.
    pub flush_total_bytes: usize,
    /// How long a member may be silent before its partitions go to others, in milliseconds.
    pub session_timeout_ms: u64,
    /// How long a restarted aggregator waits for a schema that the registry does not have any more,
    /// before it gives up the ids of messages that were counted by it, in milliseconds.
    pub schema_gone_after_ms: u64,
    pub fetch: Fetch,
}

impl Aggregator {
    pub fn schema_gone_after(&self) -> Duration {
        Duration::from_millis(self.schema_gone_after_ms)
    }

    pub fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms)
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    pub group: String,
    pub health: SocketAddr,
    /// How long a member may be silent before its partitions go to others, in milliseconds.
    pub session_timeout_ms: u64,
    /// Batches of one partition that wait in memory for the one being inserted.
    pub queued_batches: usize,
    pub fetch: Fetch,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reader {
    pub listen: SocketAddr,
    pub health: SocketAddr,
    /// Connections at once; on others, requests are answered 503.
    pub max_connections: usize,
    /// Counters kept in memory.
    pub cached_counters: usize,
    /// What these counters may take, their names included, in bytes. An eighth of both bounds is
    /// for counters that were asked for and do not exist.
    pub cached_bytes: usize,
    /// Deltas that are in the log but not yet in the store, kept in memory, in bytes. A partition
    /// that would take more than its share falls behind the log instead, and no other with it.
    pub unstored_bytes: usize,
    /// The longest that a read with `after` waits, in milliseconds.
    pub max_wait_ms: u64,
    /// How long reads are still taken after SIGTERM, in milliseconds. Readiness says no from the
    /// signal on, so that a balancer sends no more.
    pub shutdown_grace_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reconciler {
    /// Threads that replay, each some of the partitions.
    pub parallel: usize,
    /// What fetches messages.
    pub fetch: Fetch,
    /// The Ed25519 key that signs checkpoints, in PEM (PKCS#8); `tally init` makes one where there
    /// is none. Nothing is signed, and no checkpoint believed, when absent.
    pub key_file: Option<PathBuf>,
    /// Where `watch` serves health and metrics.
    pub health: SocketAddr,
    /// How often `watch` begins a round, in milliseconds; after one that takes longer, the next
    /// begins a quarter of that time later.
    pub watch_interval_ms: u64,
    /// How often `watch` reads all of a partition's counts, one partition after the other, and
    /// signs its checkpoint, in milliseconds; between, it reads only what is new there.
    pub checkpoint_interval_ms: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// What to log: a level, or directives such as `info,tally_sink=debug`.
    pub log: String,
    pub log_format: LogFormat,
    /// Where traces, metrics and logs go over OTLP (HTTP, protobuf); nowhere when absent.
    pub otlp_endpoint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

fn max_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU32, D::Error> {
    let ids = NonZeroU32::deserialize(deserializer)?;
    match Horizon::MAX_IDS {
        most if ids.get() > most => {
            Err(D::Error::custom(format!("max_ids is {ids}, but at most {most}")))
        }
        _ => Ok(ids),
    }
}

mod bucket_seconds {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use tally_counts::BucketWidth;

    pub(super) fn serialize<S: Serializer>(
        width: &BucketWidth,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(width.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BucketWidth, D::Error> {
        BucketWidth::from_secs(u32::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
