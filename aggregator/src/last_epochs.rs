//! The leader epoch of the last message that was folded, by partition. It is committed with the
//! offset after it, and tells later whether the log before that offset is still the same.

use std::collections::BTreeMap;

#[derive(Default)]
pub(crate) struct LastEpochs {
    by_partition: BTreeMap<i32, Option<i32>>,
    /// What was noted last: messages come many at a time of one partition and one epoch.
    last: Option<(i32, Option<i32>)>,
}

impl LastEpochs {
    /// A message of the partition was folded.
    #[inline]
    pub(crate) fn note(&mut self, partition: i32, leader_epoch: Option<i32>) {
        let noted = Some((partition, leader_epoch));
        if self.last != noted {
            self.last = noted;
            self.by_partition.insert(partition, leader_epoch);
        }
    }

    /// Of the partition's last message.
    pub(crate) fn of(&self, partition: i32) -> Option<i32> {
        self.by_partition.get(&partition).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_keeps_the_epoch_of_its_last_message() {
        let mut epochs = LastEpochs::default();
        assert_eq!(epochs.of(1), None);
        for (partition, epoch) in [(1, 4), (1, 4), (2, 9), (1, 5), (2, 9)] {
            epochs.note(partition, Some(epoch));
        }
        assert_eq!((epochs.of(1), epochs.of(2)), (Some(5), Some(9)));
        epochs.note(1, None);
        assert_eq!(epochs.of(1), None, "the broker did not tell");
    }
}
