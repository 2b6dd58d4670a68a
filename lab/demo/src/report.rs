use std::path::Path;
use std::time::{Duration, Instant};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanCount;
use tally_platform::config::Config;
use tally_stack::Stack;

use super::NAMESPACE;
use super::totals::{ReadBack, Totals};

/// How fast one part of the way was.
pub(super) struct Stage {
    name: &'static str,
    increments: u64,
    took: Duration,
}

impl Stage {
    pub(super) fn since(name: &'static str, increments: u64, started: Instant) -> Stage {
        Stage::between(name, increments, started, Instant::now())
    }

    pub(super) fn between(
        name: &'static str,
        increments: u64,
        from: Instant,
        to: Instant,
    ) -> Stage {
        Stage { name, increments, took: to - from }
    }
}

pub(super) struct DemoResult<'a> {
    pub(super) stages: &'a [Stage],
    pub(super) killed: Option<&'a str>,
    pub(super) totals: &'a Totals,
    pub(super) read: &'a ReadBack,
    pub(super) verified: &'a tally_reconciler::Report,
    pub(super) total: u64,
    pub(super) seconds: f64,
}

/// Prints everything, and says whether every count is right.
pub(super) fn print(result: &DemoResult<'_>) -> bool {
    let DemoResult { stages, killed, totals, read, verified, seconds, .. } = result;
    println!("\nThe busiest airports\n{}", airports(totals));
    println!("\nThe busiest routes\n{}", routes(totals));
    println!("\nHow fast\n{}", rates(stages));
    println!(
        "\nThe accounting of each partition: messages = counted + duplicate + rejected\n{verified}"
    );

    let checks = checks(result);
    println!();
    if let Some(killed) = killed {
        println!("  {killed}");
    }
    println!("  {} rows in the store", HumanCount(totals.rows));
    for (holds, what) in &checks {
        println!("{} {what}", if *holds { "✓" } else { "✗" });
    }
    for difference in &totals.listed {
        println!(
            "  {}: {} in {} events in the store, {} in {} in the file",
            difference.key,
            difference.value,
            difference.events,
            difference.file_value,
            difference.file_events
        );
    }
    for wrong in &read.wrong {
        println!("  {wrong}");
    }
    let good = checks.iter().all(|(holds, _)| *holds);
    let verdict =
        if good { "every increment counted exactly once" } else { "THE COUNTS ARE NOT RIGHT" };
    println!("\n{verdict}, in {seconds:.0} s");
    good
}

/// What must hold, and whether it does.
fn checks(result: &DemoResult<'_>) -> [(bool, String); 4] {
    let DemoResult { totals, read, verified, total, .. } = result;
    let counted: u64 = verified.partitions.iter().map(|p| p.increments).sum();
    [
        (
            counted == *total,
            format!(
                "{} of {} increments are in the ledger",
                HumanCount(counted),
                HumanCount(*total)
            ),
        ),
        (
            totals.different == 0,
            format!(
                "{} of {} counters are what ClickHouse's own aggregate over the file says",
                HumanCount(totals.counters - totals.different),
                HumanCount(totals.counters)
            ),
        ),
        (
            read.wrong.is_empty(),
            format!(
                "{} of {} counters asked of the reader are right",
                read.asked - read.wrong.len(),
                read.asked
            ),
        ),
        (
            verified.agrees(),
            String::from(
                "what Kafka holds, replayed, comes to the stored counts in every partition",
            ),
        ),
    ]
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn count(number: i64) -> String {
    format!("{}{}", if number < 0 { "-" } else { "" }, HumanCount(number.unsigned_abs()))
}

fn airports(totals: &Totals) -> Table {
    let rows = totals.busiest.iter().map(|airport| {
        let mean = airport.delay_minutes as f64 / airport.departures.max(1) as f64;
        let numbers = [airport.departures, airport.arrivals, airport.delay_minutes].map(count);
        let [departures, arrivals, delay] = numbers;
        [airport.code.clone(), departures, arrivals, delay, format!("{mean:.1}")]
    });
    table(["airport", "departures", "arrivals", "delay, min", "a flight"], rows)
}

fn routes(totals: &Totals) -> Table {
    let rows = totals
        .routes
        .iter()
        .map(|route| [route.route.clone(), count(route.flights), count(route.miles)]);
    table(["route", "flights", "miles"], rows)
}

fn rates(stages: &[Stage]) -> Table {
    let rows = stages.iter().map(|stage| {
        let seconds = stage.took.as_secs_f64();
        let rate = stage.increments as f64 / seconds.max(1e-9);
        [
            stage.name.to_owned(),
            HumanCount(stage.increments).to_string(),
            format!("{seconds:.1}"),
            HumanCount(rate as u64).to_string(),
        ]
    });
    table(["stage", "increments", "seconds", "a second"], rows)
}

/// For `--keep`.
pub(super) fn what_to_try(stack: &Stack, config: &Config, file: &Path, dir: &Path) {
    let (reader, producer) = (config.reader.listen, config.producer.listen);
    println!(
        "\nEverything is still running. Try:\n
  # one counter, from the reader
  curl http://{reader}/v1/counters/{NAMESPACE}/departures:ATL

  # an increment of your own, and its count
  curl http://{producer}/v1/increments \
         --json '{{\"namespace\":\"mine\",\"key\":\"likes\",\"delta\":1}}'
  curl http://{reader}/v1/counters/mine/likes

  # SQL
  curl {store} --data \"SELECT key, sum(value) FROM tally.counters \
         WHERE namespace = '{NAMESPACE}' GROUP BY key ORDER BY 2 DESC LIMIT 5\"

  # check every count against the log, at any time
  cargo run --release -- --config {file} reconciler verify

  # stop it
  cargo run --release -- local down --dir {dir}",
        store = stack.store_url(),
        file = file.display(),
        dir = dir.display(),
    );
}
