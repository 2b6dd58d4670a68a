//! A Kafka client: the settings that exactly-once depends on, in one place, and what librdkafka's
//! safe wrapper lacks. It knows nothing of counters, nor of the configuration file.

mod buffer_pool;
mod cluster;
mod delivery;
mod direct;
mod errors_by_poll;
mod fetcher;
mod groups;
mod large_buffers;
mod leader_epochs;
mod lost_brokers;
mod member;
mod membership;
mod queues;
mod settings;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod timed_wait;
mod topics;

pub use buffer_pool::BufferPool;
pub use cluster::{Cluster, RESERVED_PROPERTIES, canonical_property};
pub use delivery::appended_at;
pub use errors_by_poll::ErrorsByPoll;
pub use fetcher::{Fetch, FetchedMessage, Fetcher, KeptMessage, Unfit, Unreadable, Unserved};
pub use groups::{GroupMember, group_members};
pub use large_buffers::give_large_buffers_back;
pub use leader_epochs::{leader_epoch, message_leader_epoch, set_leader_epoch};
pub use member::{Member, group_metadata};
pub use membership::{LeftOut, Membership, Rebalance, let_go, take_on};
pub use settings::{
    MAX_TRANSACTION_MESSAGE_BYTES, TRANSACTION_TIMEOUT, client, consumer, producer,
    transactional_producer,
};
pub use topics::{TopicError, known_end, partition_count, topic_id, topic_id_within, watermarks};
