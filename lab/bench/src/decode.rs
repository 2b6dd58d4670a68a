//! Decoding: the plan of a writer's schema, beside the least that any decoder must do.
//!
//! ```text
//!  bodies, as `tally load` sends them ──► Plan::decode_into ──► Increment…     measured
//!                                    ├──► walk: from length to length          yardstick
//!                                    └──► apache-avro's read_deser             for comparison
//! ```

use std::hint::black_box;
use std::time::Duration;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use serde::Deserialize;
use tally_schemas::{BatchEncoder, Increment, Plan, avsc, encode};

use super::figures::{Figure, Unit};
use super::measure;
use super::rig::Rig;
use tally_load::{Distribution, Workload};

const NAME: &str = "decode";
/// Increments in all bodies together: more than a cache holds, as messages come from the network.
const INCREMENTS: u64 = 500_000;
const BATCH: u64 = 500;
const AT_MS: i64 = 1_760_000_000_000;

#[derive(Deserialize)]
#[serde(rename = "Increment")]
struct AvroIncrement {
    namespace: String,
    key: String,
    delta: i64,
    at: i64,
    id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename = "IncrementBatch")]
struct AvroBatch {
    id: Option<String>,
    increments: Vec<AvroIncrement>,
}

pub(super) fn run(rig: &Rig) -> anyhow::Result<Vec<Figure>> {
    let workload = Workload::new(1_000_000, 10, Distribution::Zipf, 1);
    let time = rig.size(Duration::from_secs(1), Duration::from_millis(200));
    let singles = bodies(&workload, 1, |body, items| encode::increment(body, &items[0]));
    let mut encoder = BatchEncoder::new();
    let batches = bodies(&workload, BATCH, |body, items| {
        items.iter().for_each(|item| encoder.push(item));
        encoder.finish(body, None);
    });
    let by_avro =
        |schema: &str,
         bodies: &[Vec<u8>],
         read: fn(&GenericDatumReader<'_>, &[u8]) -> anyhow::Result<()>| {
            let schema = Schema::parse_str(schema)?;
            let reader = GenericDatumReader::builder(&schema).build()?;
            each(time, || bodies.iter().try_for_each(|body| read(&reader, body)))
        };
    let avro = by_avro(avsc::INCREMENT, &singles, |reader, mut body| {
        let AvroIncrement { namespace, key, delta, at, id } = reader.read_deser(&mut body)?;
        black_box((namespace, key, delta, at, id));
        Ok(())
    })?;
    let single = figure("singles", time, avsc::INCREMENT, &singles, walk_single, avro)?;
    let avro = by_avro(avsc::INCREMENT_BATCH, &batches, |reader, mut body| {
        let AvroBatch { id, increments } = reader.read_deser(&mut body)?;
        black_box((id, increments.len()));
        Ok(())
    })?;
    let batch = figure("batches of 500", time, avsc::INCREMENT_BATCH, &batches, walk_batch, avro)?;
    Ok(vec![single, batch])
}

fn figure(
    case: &str,
    time: Duration,
    schema: &str,
    bodies: &[Vec<u8>],
    walk: fn(&[u8]) -> Option<i64>,
    avro: f64,
) -> anyhow::Result<Figure> {
    let plan = Plan::new(schema)?;
    let planned = each(time, || {
        let mut buffer = Vec::with_capacity(BATCH as usize);
        for body in bodies {
            buffer.clear();
            plan.decode_into(body, &mut buffer)?;
            black_box(&buffer);
        }
        Ok(())
    })?;
    let walked = each(time, || {
        let sums: Option<i64> = bodies.iter().map(|body| walk(body)).sum();
        black_box(sums).map(|_| ()).ok_or_else(|| anyhow::anyhow!("the walk left the body"))
    })?;
    Ok(Figure::new(NAME, case, planned, Unit::Nanoseconds)
        .beside("a hand-coded walk", walked)
        .detail("apache-avro's read_deser", format!("{avro:.0} ns")))
}

/// Bodies that hold [`INCREMENTS`] increments, `batch` in each.
fn bodies(
    workload: &Workload,
    batch: u64,
    mut write: impl FnMut(&mut Vec<u8>, &[Increment<'_>]),
) -> Vec<Vec<u8>> {
    let increment = |number| {
        let (namespace, key) = workload.name(workload.pick(number));
        Increment {
            namespace,
            key,
            delta: 1 + (number % 3) as i64,
            at_ms: AT_MS + number as i64 / 1000,
            id: None,
        }
    };
    let body = |first| {
        let items: Vec<_> = (first..first + batch).map(increment).collect();
        let mut body = Vec::new();
        write(&mut body, &items);
        body
    };
    (0..INCREMENTS).step_by(batch as usize).map(body).collect()
}

/// CPU for each increment, in nanoseconds: rounds over all bodies, for at least `time`, after one
/// to warm up.
fn each(time: Duration, mut round: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    round()?;
    let begun = measure::thread_cpu();
    let mut rounds = 0;
    loop {
        round()?;
        rounds += 1;
        let used = measure::thread_cpu() - begun;
        if used >= time {
            return Ok(used.as_secs_f64() * 1e9 / (rounds * INCREMENTS) as f64);
        }
    }
}

/// A body read by hand: lengths are followed, text is not looked at.
struct Walk<'a> {
    body: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn long(&mut self) -> Option<i64> {
        let (mut zigzag, mut shift) = (0u64, 0);
        loop {
            let byte = *self.body.get(self.at)?;
            self.at += 1;
            zigzag |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
            shift += 7;
        }
    }

    fn text(&mut self) -> Option<()> {
        let len = usize::try_from(self.long()?).ok()?;
        self.at = self.at.checked_add(len).filter(|at| *at <= self.body.len())?;
        Some(())
    }

    /// Something of every field, so that no reading is left out.
    fn increment(&mut self) -> Option<i64> {
        self.text()?;
        self.text()?;
        let sum = self.long()?.wrapping_add(self.long()?);
        if self.long()? == 1 {
            self.text()?;
        }
        Some(sum)
    }
}

fn walk_single(body: &[u8]) -> Option<i64> {
    Walk { body, at: 0 }.increment()
}

fn walk_batch(body: &[u8]) -> Option<i64> {
    let mut walk = Walk { body, at: 0 };
    if walk.long()? == 1 {
        walk.text()?;
    }
    let mut sum = 0i64;
    loop {
        let items = walk.long()?;
        if items == 0 {
            return Some(sum);
        }
        for _ in 0..items {
            sum = sum.wrapping_add(walk.increment()?);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_sees_what_the_plan_sees() {
        let workload = Workload::new(100, 3, Distribution::Uniform, 1);
        let mut encoder = BatchEncoder::new();
        let batches = bodies(&workload, 100_000, |body, items| {
            items.iter().for_each(|item| encoder.push(item));
            encoder.finish(body, Some("id"));
        });
        let plan = Plan::new(avsc::INCREMENT_BATCH).unwrap();
        for body in &batches {
            let mut sum = 0i64;
            plan.decode(body, |increment| {
                sum = sum.wrapping_add(increment.delta + increment.at_ms)
            })
            .unwrap();
            assert_eq!(walk_batch(body), Some(sum));
            assert_eq!(walk_batch(&body[..body.len() - 1]), None);
        }
    }
}
