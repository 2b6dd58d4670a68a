//! Rows of partitions that Kafka does not have. No sink wrote them, so nothing of the log explains
//! them: somebody inserted them by hand, or the topic was made again with fewer partitions.

use clickhouse::Client;
use clickhouse::error::Error;

use super::COUNTS;
use super::ledger::within;

/// So many are named, those with the lowest numbers.
const MOST: usize = 100;

/// The partitions in the table whose numbers Kafka, which has so many, does not have. They are as
/// ClickHouse numbers them, in 32 bits; Kafka has 31.
pub async fn unknown_partitions(client: &Client, partitions: i32) -> Result<Vec<u32>, Error> {
    // The condition is on the table's own partitions, so no row of the known ones is read.
    let sql = format!(
        "SELECT DISTINCT partition FROM {COUNTS} WHERE partition >= {partitions} \
         ORDER BY partition LIMIT {MOST}"
    );
    within(client.query(&sql).fetch_all()).await
}

/// Says which of them there are, once and whenever they change.
#[derive(Debug, Default)]
pub struct UnknownPartitions {
    told: Vec<u32>,
}

impl UnknownPartitions {
    /// Whether this is not what was told last. Before it is told, Kafka should be asked again for
    /// its partitions: they may have been added in between.
    pub fn is_news(&self, found: &[u32]) -> bool {
        self.told != found
    }

    /// Tells those of `found` that Kafka does not have, now that it has so many partitions.
    pub fn tell(&mut self, mut found: Vec<u32>, partitions: i32) {
        found.retain(|partition| i64::from(*partition) >= i64::from(partitions));
        if !self.is_news(&found) {
            return;
        }
        if found.is_empty() {
            tracing::info!(
                "ClickHouse has no rows any more of partitions that Kafka does not have"
            );
        } else {
            tracing::warn!(
                ?found,
                partitions,
                "ClickHouse has rows of partitions that Kafka does not have: no sink wrote them, \
                 and Tally passes over them, but the view counters adds them up. `tally \
                 reconciler verify` names them too. If they are of no use, drop each: ALTER TABLE \
                 counts DROP PARTITION <number>"
            );
        }
        self.told = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_news_once_and_partitions_that_were_added_are_none() {
        let mut unknown = UnknownPartitions::default();
        assert!(!unknown.is_news(&[]));
        let found = vec![4, 9, u32::MAX];
        assert!(unknown.is_news(&found));
        unknown.tell(found, 6);
        assert_eq!(unknown.told, [9, u32::MAX]);
        assert!(!unknown.is_news(&[9, u32::MAX]));
        assert!(unknown.is_news(&[]));
    }
}
