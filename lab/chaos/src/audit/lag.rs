//! What ClickHouse lacks of `increments`: each partition's position in the ledger, held against
//! Kafka's end of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::spawn_blocking;

use super::auditor::Endpoints;
use super::store::Store;
use super::topics::{INCREMENTS, Topic, TopicExtent};

/// A look that takes longer says nothing of the moment at which it was asked.
const PROMPT: Duration = Duration::from_secs(3);

/// A partition of which ClickHouse lacks something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lag {
    pub(crate) partition: usize,
    /// The next offset by the ledger's sum and by its maximum; none if nothing is stored.
    pub(crate) stored: Option<(i64, i64)>,
    pub(crate) end: i64,
}

/// Looks again and again, by the same two clients.
pub(crate) struct LagCheck {
    store: Store,
    topic: Arc<Topic>,
}

impl LagCheck {
    pub(crate) fn new(endpoints: &Endpoints) -> anyhow::Result<LagCheck> {
        let topic = Arc::new(Topic::open(&endpoints.bootstrap, INCREMENTS)?);
        Ok(LagCheck { store: endpoints.store()?, topic })
    }

    /// An error if Kafka or ClickHouse does not answer at once. Partitions that were added
    /// meanwhile are looked at as well.
    pub(crate) async fn look(&self) -> anyhow::Result<Vec<Lag>> {
        let began = Instant::now();
        let positions = tokio::time::timeout(PROMPT, self.store.positions()).await??;
        let topic = Arc::clone(&self.topic);
        let extent = spawn_blocking(move || topic.extent()).await??;
        ensure!(began.elapsed() <= PROMPT, "it took {:?}", began.elapsed());
        Ok(lags(&positions, &extent))
    }
}

/// By partition; none of those that ClickHouse has all of.
pub(super) fn lags(positions: &[(usize, i64, i64)], extent: &TopicExtent) -> Vec<Lag> {
    let bounds = extent.begins.iter().zip(&extent.ends).enumerate();
    let lags = bounds.filter_map(|(partition, (begin, end))| {
        let stored = positions.iter().find(|(number, ..)| *number == partition);
        let stored = stored.map(|(_, sum, high)| (*sum, *high));
        let has_all = end <= begin || stored == Some((*end, *end));
        (!has_all).then_some(Lag { partition, stored, end: *end })
    });
    lags.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_lags_unless_sum_and_maximum_reach_its_end() {
        let extent = TopicExtent { begins: vec![0, 0, 0, 7, 0], ends: vec![5, 5, 5, 7, 5] };
        let positions = [(0, 5, 5), (1, 4, 5), (2, 5, 4)];
        let lags: Vec<_> =
            lags(&positions, &extent).into_iter().map(|lag| (lag.partition, lag.stored)).collect();
        assert_eq!(lags, [(1, Some((4, 5))), (2, Some((5, 4))), (4, None)]);
    }
}
