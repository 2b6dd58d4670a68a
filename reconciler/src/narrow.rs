//! Names the counters that differ, once it is known in which ranges they are, and where each one's
//! way from Kafka to ClickHouse first goes wrong.
//!
//! ```text
//!  differing ranges ─► replay, their cells only ─┐
//!                      ClickHouse, the same ─────┴─► cells that differ
//!                                                      │
//!  batches in deltas, those cells ─────────────────────┴─► replay, batch by batch: the first that
//!                                                          is not what its messages come to
//! ```

use std::collections::{BTreeMap, HashMap};

use rdkafka::Message;
use tally_counts::{KeyedFingerprinter, Salt, Sums};
use tally_platform::store::{self, StoredCells};
use tally_schemas::DeltaBatch;

use crate::Error;
use crate::log_reader::{LogReader, Read};
use crate::partition_reader::PartitionReaders;
use crate::rejections::{RejectedTopic, Rejections};
use crate::replay::Replay;
use crate::report::{Finding, Parting};
use crate::round::Rounds;

/// At most so many ranges are looked into, an eighth of all counters: a lost part differs in
/// every range.
const MOST_RANGES: usize = 32;
/// At most so many counters are named.
const MOST_COUNTERS: usize = 20;
/// Sums are taken before they take more than this, in bytes.
const FOLD_BYTES: usize = 16 << 20;

/// Namespace, key and bucket.
type Cell = (String, String, u32);
/// Sum and events.
type Total = (i128, i128);

/// What is replayed: a partition up to the ledger's position in `increments`, whose batches are
/// before an offset of `deltas`.
struct Place<'a> {
    partition: i32,
    salt: &'a Salt,
    position: i64,
    batches_end: i64,
    rejections: &'a Rejections,
}

/// A batch's place, and what it says of the cells that are looked for.
struct Batch {
    offset: i64,
    from: i64,
    to: i64,
    totals: BTreeMap<Cell, Total>,
}

/// Names counters of these ranges that differ. Blocks the thread.
pub(crate) fn narrow(
    run: &Rounds,
    partition: i32,
    salt: &Salt,
    ranges: &[usize],
) -> Result<Vec<Finding>, Error> {
    let mut rejected = RejectedTopic::default();
    let kafka = &run.config.kafka;
    rejected.read_on(kafka, &mut PartitionReaders::new(kafka)?)?;
    let rejections = &rejected.by_partition.remove(&partition).unwrap_or_default();
    let ranges = &ranges[..ranges.len().min(MOST_RANGES)];
    let client = store::client(&run.config.store);
    let scope = run.options.scope.sql();
    let stored = store::stored_cells(&client, salt, partition, ranges, &scope);
    // Sinks may have gone on: the cells are compared as of their own snapshot.
    let StoredCells { position, batches_end, cells } = run.runtime.block_on(stored)?;
    let mut found: HashMap<Cell, Total> = cells
        .into_iter()
        .map(|cell| ((cell.namespace, cell.key, cell.bucket), (cell.total, cell.total_events)))
        .collect();
    let mut expected: HashMap<Cell, Total> = HashMap::new();
    let mut fingerprinter = KeyedFingerprinter::new(salt);
    let place = Place { partition, salt, position, batches_end, rejections };
    replay(run, &place, &[], |_, sums| {
        for delta in sums.iter().filter(|delta| run.options.scope.includes(delta)) {
            let (namespace, key) = (delta.namespace, delta.key);
            if ranges.contains(&fingerprinter.range(namespace, key, delta.bucket_s)) {
                let cell = (namespace.to_owned(), key.to_owned(), delta.bucket_s);
                add(expected.entry(cell).or_default(), delta.sum, delta.events);
            }
        }
    })?;
    let mut differing: BTreeMap<Cell, (Total, Total)> = BTreeMap::new();
    for (cell, total) in expected {
        let found = found.remove(&cell).unwrap_or_default();
        if found != total {
            differing.insert(cell, (total, found));
        }
    }
    // What is left is in ClickHouse alone; a row of zeros says nothing.
    let alone = found.into_iter().filter(|(_, total)| *total != (0, 0));
    differing.extend(alone.map(|(cell, total)| (cell, ((0, 0), total))));
    while differing.len() > MOST_COUNTERS {
        differing.pop_last();
    }
    let partings = partings(run, &place, &differing)?;
    let named = differing.into_iter().map(|(cell, (expected, found))| {
        let parting = partings[&cell].clone();
        let (namespace, key, bucket_s) = cell;
        Finding::Counter { namespace, key, bucket_s, expected, found, parting }
    });
    Ok(named.collect())
}

fn add(total: &mut Total, sum: i64, events: i64) {
    total.0 += i128::from(sum);
    total.1 += i128::from(events);
}

/// Replays what is stored of the partition; `each` gets the sums of what is between two of `stops`,
/// and the number of the stop. A flush in between has the number of the next stop.
fn replay(
    run: &Rounds,
    place: &Place<'_>,
    stops: &[i64],
    mut each: impl FnMut(usize, &Sums),
) -> Result<(), Error> {
    let Place { partition, salt, position, rejections, .. } = *place;
    let options = run.replay_options(partition, usize::MAX);
    let mut replay = Replay::new(&options, &[salt], rejections.clone());
    let mut decoder = run.decoder()?;
    let mut stop = 0;
    let ranges = BTreeMap::from([(partition, (0, position))]);
    LogReader::new(&run.config, &ranges, &run.runtime, &run.stop)?.read(|read| {
        let message = match read {
            Read::Message(message) => message,
            Read::Unreadable(unreadable) => return Err(Error::Unreadable(unreadable.reason)),
        };
        while stops.get(stop).is_some_and(|to| message.offset >= *to) {
            each(stop, &replay.take_flush().sums);
            stop += 1;
        }
        replay.take(&mut decoder, &message)?;
        if replay.sums().encoded_bytes() > FOLD_BYTES {
            each(stop, &replay.take_flush().sums);
        }
        Ok(())
    })?;
    each(stop, &replay.take_flush().sums);
    Ok(())
}

/// Where each of these cells first goes wrong.
fn partings(
    run: &Rounds,
    place: &Place<'_>,
    cells: &BTreeMap<Cell, (Total, Total)>,
) -> Result<BTreeMap<Cell, Parting>, Error> {
    let (begins, batches) = read_batches(run, place, cells)?;
    let stops: Vec<i64> = batches.iter().map(|batch| batch.to).collect();
    let first = batches.first().map_or(0, |batch| batch.from);
    let mut replayed: Vec<BTreeMap<Cell, Total>> = vec![BTreeMap::new(); batches.len() + 1];
    // Whatever is before the first batch goes into a stop of its own.
    let lead = usize::from(first > 0);
    let stops: Vec<i64> = (lead > 0).then_some(first).into_iter().chain(stops).collect();
    replay(run, place, &stops, |stop, sums| {
        let Some(batch) = stop.checked_sub(lead) else { return };
        for delta in sums.iter() {
            let cell = (delta.namespace.to_owned(), delta.key.to_owned(), delta.bucket_s);
            if cells.contains_key(&cell) {
                add(replayed[batch].entry(cell).or_default(), delta.sum, delta.events);
            }
        }
    })?;
    let of = |cell: &Cell| {
        let wrong = batches.iter().zip(&replayed).find(|(batch, replayed)| {
            batch.totals.get(cell).copied().unwrap_or_default()
                != replayed.get(cell).copied().unwrap_or_default()
        });
        match wrong {
            Some((Batch { offset, from, to, .. }, _)) => {
                Parting::Batch { offset: *offset, from: *from, to: *to }
            }
            None if begins > 0 => Parting::GoneBatches { begins },
            None => Parting::Store,
        }
    };
    Ok(cells.keys().map(|cell| (cell.clone(), of(cell))).collect())
}

/// The batches of `deltas` that are stored, and the first offset that `deltas` still has.
fn read_batches(
    run: &Rounds,
    place: &Place<'_>,
    cells: &BTreeMap<Cell, (Total, Total)>,
) -> Result<(i64, Vec<Batch>), Error> {
    let kafka = &run.config.kafka;
    let partition = place.partition;
    let mut readers = PartitionReaders::new(kafka)?;
    let mut reader = readers.read_from_the_first(&kafka.deltas, partition)?;
    let mut batches = Vec::new();
    while let Some(message) = reader.next()? {
        let offset = message.offset();
        if offset >= place.batches_end {
            break;
        }
        let payload = message.payload().unwrap_or_default();
        // What is not sound was never stored: the sink stops there.
        let Ok(body) = run.batches.sound_body(&run.runtime, payload)? else { continue };
        let Ok(batch) = DeltaBatch::decode(&body) else { continue };
        let mut totals: BTreeMap<Cell, Total> = BTreeMap::new();
        for delta in batch.deltas.map_while(Result::ok) {
            let cell = (delta.namespace.to_owned(), delta.key.to_owned(), delta.bucket_s);
            if cells.contains_key(&cell) {
                add(totals.entry(cell).or_default(), delta.sum, delta.events);
            }
        }
        batches.push(Batch { offset, from: batch.header.from, to: batch.header.to, totals });
    }
    Ok((reader.begins(), batches))
}
