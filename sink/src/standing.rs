//! Which partitions the store takes no blocks of at the moment, and why: one condition of the
//! sink's health.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tally_platform::health::Condition;

use crate::answer::{Class, Failure};

#[derive(Clone)]
pub(crate) struct Standing {
    inner: Arc<Inner>,
}

struct Inner {
    condition: Condition,
    troubled: Mutex<BTreeMap<i32, String>>,
}

impl Standing {
    pub(crate) fn new(condition: Condition) -> Standing {
        condition.set(true, "");
        Standing { inner: Arc::new(Inner { condition, troubled: Mutex::default() }) }
    }

    /// The part of one partition, which is well until it says otherwise.
    pub(crate) fn of(&self, partition: i32) -> PartitionStanding {
        PartitionStanding { standing: self.clone(), partition, is_troubled: false }
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

/// One partition's part; when it is dropped the partition is not this sink's trouble any more.
pub(crate) struct PartitionStanding {
    standing: Standing,
    partition: i32,
    is_troubled: bool,
}

impl PartitionStanding {
    pub(crate) fn troubled(&mut self, failure: &Failure) {
        let reason = match failure.class {
            Class::Overloaded => format!("store overloaded: {failure}"),
            Class::Unfit => format!("store needs mending: {failure}"),
            Class::Fence | Class::Uncertain => format!("no certain answer: {failure}"),
        };
        self.is_troubled = true;
        self.standing.change(|troubled| drop(troubled.insert(self.partition, reason)));
    }

    pub(crate) fn well(&mut self) {
        if std::mem::take(&mut self.is_troubled) {
            self.standing.change(|troubled| drop(troubled.remove(&self.partition)));
        }
    }
}

impl Drop for PartitionStanding {
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
        let standing = Standing::new(health.condition("store takes blocks"));
        let (mut first, mut second) = (standing.of(1), standing.of(2));
        assert_eq!(health.ready(), Ok(()));
        first.troubled(&Failure {
            class: Class::Overloaded,
            reason: String::from("too many parts"),
        });
        second.troubled(&Failure { class: Class::Unfit, reason: String::from("no such table") });
        let reasons = health.ready().unwrap_err();
        assert_eq!(
            reasons,
            "store takes blocks: partition 1: store overloaded: too many parts; \
             partition 2: store needs mending: no such table"
        );
        first.well();
        assert!(!health.ready().unwrap_err().contains("partition 1"));
        drop(second);
        assert_eq!(health.ready(), Ok(()));
    }
}
