//! The log: client settings that exactly-once depends on, in one place, and what librdkafka's safe wrapper lacks.

mod fetcher;
mod membership;
mod settings;
mod topics;

pub use fetcher::{Fetched, Fetcher};
pub use membership::{Membership, Rebalance};
pub use settings::{client, consumer, producer, transactional_producer};
pub use topics::{TopicError, partition_count, topic_id, watermarks};
