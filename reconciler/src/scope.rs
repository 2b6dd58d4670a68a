use std::collections::BTreeSet;
use std::ops::Range;

use tally_schemas::Delta;

/// Which counts are compared: all, unless it says less.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    pub partitions: Option<BTreeSet<i32>>,
    pub namespace: Option<String>,
    /// Starts of buckets, in seconds since 1970.
    pub buckets: Option<Range<u64>>,
}

impl Scope {
    pub(crate) fn includes(&self, delta: &Delta<'_>) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| namespace == delta.namespace)
            && self.buckets.as_ref().is_none_or(|range| range.contains(&u64::from(delta.bucket_s)))
    }

    pub(crate) fn has_partition(&self, partition: i32) -> bool {
        self.partitions.as_ref().is_none_or(|partitions| partitions.contains(&partition))
    }

    /// What it leaves out, for people; `None` where it is all counts of its partitions.
    pub(crate) fn told(&self) -> Option<String> {
        let namespace = self.namespace.as_ref().map(|namespace| format!("namespace {namespace:?}"));
        let buckets = self.buckets.as_ref().map(|Range { start, end }| {
            format!("buckets from {start} to before {end}, in seconds since 1970")
        });
        let told: Vec<String> = namespace.into_iter().chain(buckets).collect();
        (!told.is_empty()).then(|| told.join(", "))
    }

    /// Whether every counter of a partition is compared.
    pub(crate) fn has_all_counters(&self) -> bool {
        self.namespace.is_none() && self.buckets.is_none()
    }

    /// In ClickHouse: whether a row of counts is within the scope.
    pub(crate) fn sql(&self) -> String {
        let mut conditions = vec![String::from("1")];
        if let Some(partitions) = &self.partitions {
            let list: Vec<String> = partitions.iter().map(i32::to_string).collect();
            conditions.push(format!("partition IN ({})", list.join(", ")));
        }
        if let Some(namespace) = &self.namespace {
            // Hexadecimal needs no escapes.
            let hex: String = namespace.bytes().map(|byte| format!("{byte:02x}")).collect();
            conditions.push(format!("namespace = unhex('{hex}')"));
        }
        if let Some(Range { start, end }) = &self.buckets {
            conditions.push(format!("toUInt32(bucket) >= {start} AND toUInt32(bucket) < {end}"));
        }
        conditions.join(" AND ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_names_what_it_includes() {
        let scope = Scope {
            partitions: Some(BTreeSet::from([1, 4])),
            namespace: Some(String::from("o'k")),
            buckets: Some(60..120),
        };
        assert_eq!(
            scope.sql(),
            "1 AND partition IN (1, 4) AND namespace = unhex('6f276b') AND \
             toUInt32(bucket) >= 60 AND toUInt32(bucket) < 120"
        );
        let delta = Delta { namespace: "o'k", key: "k", bucket_s: 60, sum: 1, events: 1 };
        let told = scope.told().unwrap();
        assert_eq!(told, "namespace \"o'k\", buckets from 60 to before 120, in seconds since 1970");
        assert_eq!(Scope::default().told(), None);
        assert!(scope.includes(&delta) && scope.has_partition(4));
        assert!(!scope.includes(&Delta { bucket_s: 120, ..delta }));
        assert!(!scope.includes(&Delta { namespace: "ok", ..delta }));
        assert!(Scope::default().includes(&delta));
    }
}
