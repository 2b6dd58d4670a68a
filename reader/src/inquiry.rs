//! What the tail asks others to find out, so that no partition waits for another's answer.
//!
//! ```text
//!  tail ──a look is wanted──► ledger of ClickHouse, then Kafka's offsets ──News::Looked──► tail
//!   └────a schema is wanted─► schema registry ─────────────────────────────News::Asked───►
//! ```

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::BaseConsumer;
use tally_kafka::{ErrorsByPoll, TopicError};
use tally_platform::config;
use tally_platform::delta_batches::DeltaBatches;
use tally_platform::quiet_log::QuietLog;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::run::tell;
use crate::starting_point::{bounds, partitions};
use crate::store::{Store, StoreError};
use crate::tail::{News, Place, SchemaAsk};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Inquiry<'a> {
    pub(crate) kafka: &'a config::Kafka,
    pub(crate) consumer: &'a Arc<BaseConsumer<ErrorsByPoll>>,
    pub(crate) store: &'a Store,
    pub(crate) batches: &'a DeltaBatches,
    pub(crate) news: &'a mpsc::Sender<News>,
    pub(crate) stop: &'a CancellationToken,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] TopicError),
}

impl Inquiry<'_> {
    /// Looks where ClickHouse and Kafka are whenever another look is wanted.
    pub(crate) async fn look(&self, mut wanted: watch::Receiver<u64>) {
        let mut log = QuietLog::once();
        let looking = async {
            while wanted.changed().await.is_ok() {
                loop {
                    let look = *wanted.borrow_and_update();
                    let looked = self.places().await;
                    tell(&mut log, "Kafka or ClickHouse", looked.as_ref().err().map(|e| e as _));
                    if let Ok(places) = looked {
                        // A tail that has ended wants no news.
                        self.news.send(News::Looked { look, places }).await.ok();
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        self.stop.run_until_cancelled(looking).await;
    }

    async fn places(&self) -> Result<Vec<Option<Place>>, LookError> {
        let deltas = &self.kafka.deltas;
        let partitions = partitions(self.consumer, deltas).await?;
        // The store first: the log can only be further.
        let mut stored = self.store.places(partitions).await?.into_iter();
        let bounds = bounds(self.consumer, deltas, 0..partitions).await;
        let places = bounds.into_iter().map(|bounds| {
            let stored = stored.next().map_or(Some(Default::default()), Result::ok);
            Some(Place { stored, bounds: bounds.ok()? })
        });
        Ok(places.collect())
    }

    /// Asks the registry for schemas.
    pub(crate) async fn ask_for_schemas(&self, mut asks: mpsc::Receiver<SchemaAsk>) {
        let asking = async {
            while let Some(SchemaAsk { partition, prefix }) = asks.recv().await {
                let learned = self.batches.learn(&prefix).await;
                let learned = learned.map_err(|error| error.to_string());
                // A tail that has ended wants no news.
                self.news.send(News::Asked { partition, learned }).await.ok();
            }
        };
        self.stop.run_until_cancelled(asking).await;
    }
}
