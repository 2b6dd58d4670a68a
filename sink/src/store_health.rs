//! Which partitions ClickHouse takes no blocks of at the moment, and why: one condition of the
//! sink's health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tally_platform::health::Condition;

use crate::insert_failure::{FailureClass, InsertFailure};

#[derive(Clone)]
pub(crate) struct StoreHealth {
    inner: Arc<Inner>,
}

struct Inner {
    condition: Condition,
    troubled: Mutex<BTreeMap<i32, String>>,
}

impl StoreHealth {
    pub(crate) fn new(condition: Condition) -> StoreHealth {
        condition.set(true, "");
        StoreHealth { inner: Arc::new(Inner { condition, troubled: Mutex::default() }) }
    }

    /// One partition's part of the condition; the partition is well until it says otherwise.
    pub(crate) fn of(&self, partition: i32) -> PartitionHealth {
        PartitionHealth { store_health: self.clone(), partition, is_troubled: false }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<i32, String>)) {
        // What the lock guards is whole after each change, so a panic elsewhere does not spoil it.
        let mut troubled = self.inner.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut troubled);
        let reasons: Vec<String> = troubled
            .iter()
            .map(|(partition, reason)| format!("partition {partition}: {reason}"))
            .collect();
        self.inner.condition.set(reasons.is_empty(), reasons.join("; "));
    }
}

/// One partition's part of the condition. When it is dropped, the partition is not this sink's
/// trouble any more.
pub(crate) struct PartitionHealth {
    store_health: StoreHealth,
    partition: i32,
    is_troubled: bool,
}

impl PartitionHealth {
    pub(crate) fn troubled(&mut self, failure: &InsertFailure) {
        let reason = match failure.class {
            FailureClass::Overloaded => format!("ClickHouse overloaded: {failure}"),
            FailureClass::Unfit => format!("ClickHouse needs mending: {failure}"),
            FailureClass::Fence | FailureClass::Uncertain => {
                format!("no certain answer: {failure}")
            }
        };
        self.is_troubled = true;
        self.store_health.change(|troubled| drop(troubled.insert(self.partition, reason)));
    }

    pub(crate) fn well(&mut self) {
        if std::mem::take(&mut self.is_troubled) {
            self.store_health.change(|troubled| drop(troubled.remove(&self.partition)));
        }
    }
}

impl Drop for PartitionHealth {
    fn drop(&mut self) {
        self.well();
    }
}

#[cfg(test)]
mod tests {
    use tally_platform::health::Health;

    use super::*;

    #[test]
    fn the_condition_holds_once_no_partition_is_in_trouble() {
        let health = Health::new();
        let store_health = StoreHealth::new(health.condition("ClickHouse takes blocks"));
        let (mut first, mut second) = (store_health.of(1), store_health.of(2));
        assert_eq!(health.ready(), Ok(()));
        first.troubled(&InsertFailure {
            class: FailureClass::Overloaded,
            reason: String::from("too many parts"),
        });
        second.troubled(&InsertFailure {
            class: FailureClass::Unfit,
            reason: String::from("no such table"),
        });
        let reasons = health.ready().unwrap_err();
        assert_eq!(
            reasons,
            "ClickHouse takes blocks: partition 1: ClickHouse overloaded: too many parts; \
             partition 2: ClickHouse needs mending: no such table"
        );
        first.well();
        assert!(!health.ready().unwrap_err().contains("partition 1"));
        drop(second);
        assert_eq!(health.ready(), Ok(()));
    }
}
