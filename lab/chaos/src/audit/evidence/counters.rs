//! ClickHouse's counters beside what `increments` comes to.

use super::cells::{self, Cell, CellTotal};
use super::partition::Fate;
use super::{Evidence, kafka};
use crate::audit::content::Route;
use crate::audit::verdict::FindingKind;

/// For how many wrong counters the message is looked for: each look makes the partition's messages
/// again.
const LOOKED_FOR: usize = 4;

impl Evidence<'_> {
    pub(super) fn judge_counters(&mut self, number: usize) {
        let partition = &self.partitions[number];
        self.audit.logged.counters += partition.log.len() as u64;
        self.audit.behind += partition.behind;
        let of = |cells: &cells::CellTotals, cell: &Cell| cells.get(cell).copied();
        let nothing = CellTotal { sum: 0, events: 0 };
        let extra = partition.store.keys().filter(|cell| !partition.log.contains_key(*cell));
        let mut wrong: Vec<Cell> = partition.log.keys().chain(extra).copied().collect();
        wrong.retain(|cell| {
            of(&partition.log, cell).unwrap_or(nothing)
                != of(&partition.store, cell).unwrap_or(nothing)
        });
        wrong.sort_by_key(|(name, bucket)| (self.names.name(*name), *bucket));
        self.audit.wrong_counters += wrong.len() as u64;
        for (index, cell) in wrong.iter().enumerate() {
            let (log, store) = (of(&partition.log, cell), of(&partition.store, cell));
            let gap = log.unwrap_or(nothing).events - store.unwrap_or(nothing).events;
            let total = if gap > 0 { &mut self.audit.lost } else { &mut self.audit.doubled };
            *total += gap.unsigned_abs();
            let at = (index < LOOKED_FOR).then(|| self.culprit(number, *cell)).flatten();
            let show = |cell: Option<CellTotal>| match cell {
                Some(CellTotal { sum, events }) => format!("{sum} of {events}"),
                None => String::from("nothing"),
            };
            let (namespace, key) = self.names.name(cell.0);
            let deltas = of(&partition.deltas, cell);
            let at = at.map(|offset| (kafka(number), offset));
            self.audit.findings.add(
                FindingKind::Counter,
                at,
                format_args!(
                    "partition {number}, {namespace:?} {key:?}, bucket {}: \
                     ClickHouse has {}, deltas {}, increments {}",
                    cell.1,
                    show(store),
                    show(deltas),
                    show(log)
                ),
            );
        }
    }

    /// The message whose loss or doubling would explain a wrong counter; else the first that it is
    /// of.
    fn culprit(&self, number: usize, (name, bucket): Cell) -> Option<i64> {
        let partition = &self.partitions[number];
        let sum = |cells: &cells::CellTotals| cells.get(&(name, bucket)).map_or(0, |cell| cell.sum);
        let gap = (sum(&partition.log) - sum(&partition.store)).abs();
        let mut first = None;
        for seen in partition.seen.iter().filter(|seen| seen.fate == Fate::Counted) {
            let Some(entry) = seen.mark.map(|mark| &self.record.entries[mark as usize]) else {
                continue;
            };
            if entry.way == Route::Bad {
                continue;
            }
            for increment in self.record.content(entry).batch.increments {
                if self.names.name(name) == (&increment.namespace, &increment.key)
                    && cells::bucket(increment.at) == bucket
                {
                    if i128::from(increment.delta).abs() == gap {
                        return Some(seen.offset);
                    }
                    first = first.or(Some(seen.offset));
                }
            }
        }
        first
    }
}
