//! The log: client settings that exactly-once depends on, in one place, and what librdkafka's safe wrapper lacks.

mod direct;
mod fetcher;
mod membership;
mod queues;
mod settings;
mod standing;
mod topics;

pub use fetcher::{Fetched, Fetcher, Kept, Unreadable};
pub use membership::{Membership, Rebalance, let_go, take_on};
pub use settings::{
    REJECTED_MESSAGE_BYTES, TRANSACTION_TIMEOUT, client, consumer, producer, transactional_producer,
};
pub use standing::{Member, group_metadata};
pub use topics::{TopicError, partition_count, patiently, topic_id, topic_id_within, watermarks};
