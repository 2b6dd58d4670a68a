//! Adding up: the fold of one partition, beside an ordinary hash map.
//!
//! Each case runs in a process of its own, so that its memory is its own: once with the allocator
//! as it is, for the time, and once with one that gives back what is freed at once, for the memory.

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use tally_counts::{Envelope, Fold, Rules};
use tally_schemas::Increment;

use super::figures::{Figure, Unit};
use super::measure;
use super::rig::Rig;
use tally_load::{Distribution, Workload};

const NAME: &str = "sum";
/// Increments in a message. Their names are copied into a buffer first, as they would come from
/// one.
const BATCH: u64 = 500;
const AT_MS: i64 = 1_760_000_000_000;
/// Freed memory goes back to the system at once.
const GIVE_BACK: &str = "dirty_decay_ms:0,muzzy_decay_ms:0";

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SumTable {
    Fold,
    Map,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SumArgs {
    #[arg(long)]
    keys: u32,
    #[arg(long, value_enum)]
    distribution: Distribution,
    #[arg(long)]
    increments: u64,
    #[arg(long, value_enum)]
    into: SumTable,
    /// Flushes, each of all increments.
    #[arg(long)]
    rounds: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summed {
    /// CPU for each increment, in nanoseconds, round by round.
    ns: Vec<f64>,
    /// Different counters.
    entries: usize,
    /// Memory that the sums keep resident at the end of a round, for each counter, its names' own
    /// bytes left out.
    bytes_each: f64,
    peak_bytes: u64,
}

pub(super) async fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let sizes: &[(u32, &str, u64)] = rig.size(
        &[
            (10_000, "10 thousand keys", 20_000_000),
            (1_000_000, "1 million keys", 20_000_000),
            (10_000_000, "10 million keys", 40_000_000),
        ],
        &[(10_000, "10 thousand keys", 2_000_000), (1_000_000, "1 million keys", 3_000_000)],
    );
    let mut figures = Vec::new();
    for &(keys, name, increments) in sizes {
        for distribution in [Distribution::Zipf, Distribution::Uniform] {
            let args = format!(
                "bench-child sum --keys {keys} --distribution {distribution} \
                 --increments {increments}"
            );
            let timed = async |into| {
                let args = format!("{args} --into {into} --rounds 2");
                rig.start_child::<Summed>(&args, &[])?.finish().await
            };
            let weighed = async |into| {
                let args = format!("{args} --into {into} --rounds 1");
                rig.start_child::<Summed>(&args, &[("MALLOC_CONF", GIVE_BACK)])?.finish().await
            };
            let (fold, map) = (timed("fold").await?, timed("map").await?);
            let (fold_memory, map_memory) = (weighed("fold").await?, weighed("map").await?);
            let (bytes, map_bytes) = (fold_memory.bytes_each, map_memory.bytes_each);
            figures.push(
                Figure::new(NAME, format!("{name}, {distribution}"), fold.ns[1], Unit::Nanoseconds)
                    .beside("hashbrown, foldhash", map.ns[1])
                    .peak_bytes(fold.peak_bytes)
                    .detail("beside a key's bytes", format!("{bytes:.0} B (map: {map_bytes:.0} B)"))
                    .detail(
                        "first flush",
                        format!("{:.1} ns (map: {:.1} ns)", fold.ns[0], map.ns[0]),
                    )
                    .detail("different keys", fold.entries.to_string())
                    .sound(fold.entries == map.entries),
            );
        }
    }
    Ok(figures)
}

pub(super) fn child(args: &SumArgs) -> anyhow::Result<Summed> {
    let workload = Workload::new(args.keys, 10, args.distribution, 1);
    match args.into {
        SumTable::Fold => {
            let mut fold = Fold::new(Rules::default(), 0);
            let mut offset = 0;
            measured(args, &workload, |message| match message {
                Some(increments) => {
                    let envelope =
                        Envelope { offset, timestamp_ms: Some(AT_MS), schema: 1, batch_id: None };
                    fold.count(&envelope, increments)
                        .map_err(|reason| anyhow::anyhow!("not counted: {reason}"))?;
                    offset += 1;
                    Ok(fold.sums().len())
                }
                None => Ok(fold.take().sums.len()),
            })
        }
        SumTable::Map => {
            let mut map = Map::default();
            let mut name = Vec::new();
            measured(args, &workload, |message| match message {
                Some(increments) => {
                    increments.iter().for_each(|increment| add(&mut map, &mut name, increment));
                    Ok(map.len())
                }
                None => {
                    let entries = map.len();
                    map.clear();
                    Ok(entries)
                }
            })
        }
    }
}

/// (sum, events) by the bytes of bucket, namespace and key, one after the other.
type Map = HashMap<Box<[u8]>, (i64, i64), RandomState>;

fn add(map: &mut Map, name: &mut Vec<u8>, increment: &Increment<'_>) {
    name.clear();
    name.extend_from_slice(&(increment.at_ms / 60_000).to_le_bytes());
    name.extend_from_slice(increment.namespace.as_bytes());
    name.push(0);
    name.extend_from_slice(increment.key.as_bytes());
    match map.get_mut(&name[..]) {
        Some((sum, events)) => {
            *sum += increment.delta;
            *events += 1;
        }
        None => {
            map.insert(name.as_slice().into(), (increment.delta, 1));
        }
    }
}

/// Feeds everything to `table`, round by round, with a flush (`None`) after each; it says how many
/// entries it has.
fn measured(
    args: &SumArgs,
    workload: &Workload,
    mut table: impl FnMut(Option<&[Increment<'_>]>) -> anyhow::Result<usize>,
) -> anyhow::Result<Summed> {
    let pid = std::process::id();
    let before = measure::resident_bytes(pid)?;
    let mut ns = Vec::new();
    let (mut entries, mut resident) = (0, before);
    for _ in 0..args.rounds {
        ns.push(feed(args.increments, workload, &mut table)?);
        resident = measure::resident_bytes(pid)?;
        entries = table(None)?;
    }
    let (namespace, key) = workload.name(0);
    let names = (entries * (namespace.len() + key.len())) as f64;
    let bytes_each = (resident as f64 - before as f64 - names) / entries.max(1) as f64;
    Ok(Summed { ns, entries, bytes_each, peak_bytes: measure::peak_bytes(pid)? })
}

/// CPU for each increment, in nanoseconds; making the increments does not count.
fn feed(
    increments: u64,
    workload: &Workload,
    table: &mut impl FnMut(Option<&[Increment<'_>]>) -> anyhow::Result<usize>,
) -> anyhow::Result<f64> {
    let mut used = Duration::ZERO;
    for first in (0..increments).step_by(BATCH as usize) {
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(BATCH as usize));
        for number in first..(first + BATCH).min(increments) {
            let (namespace, key) = workload.name(workload.pick(number));
            text.push_str(namespace);
            let middle = text.len();
            text.push_str(key);
            ends.push((number, middle, text.len()));
        }
        let mut from = 0;
        let message: Vec<_> = ends
            .iter()
            .map(|&(number, middle, to)| {
                let (namespace, key) = (&text[from..middle], &text[middle..to]);
                from = to;
                Increment { namespace, key, delta: 1 + (number % 3) as i64, at_ms: AT_MS, id: None }
            })
            .collect();
        let begun = measure::thread_cpu();
        table(Some(&message))?;
        used += measure::thread_cpu() - begun;
    }
    Ok(used.as_secs_f64() * 1e9 / increments.max(1) as f64)
}
