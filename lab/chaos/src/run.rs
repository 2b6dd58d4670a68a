//! One run: world up, load on, faults by schedule, everything healed, audit, verdict.
//!
//! ```text
//!  World::start ─► members ─► load, checks ─► seven lanes of faults, side by side
//!                                                          │
//!                     could not be injected: unknown ◄─────┤
//!                                                          ▼
//!  Verdict ◄── audit, verify ◄── converge ◄─────────────── heal
//!                                   └─► not in time: failed
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::join_all;
use tally_platform::config::Config;
use tally_platform::service::Service;

use crate::audit::{self, Endpoints, Load, LoadOptions, ReadChecker, ReadReport, Record};
use crate::fault::{FaultKind, FaultLane};
use crate::faults::{Injector, REMEMBERED_BLOCKS, end};
use crate::freshness::freshness;
use crate::history::History;
use crate::report::{Report, Verdict};
use crate::schedule::Schedule;
use crate::standstill::StandstillReport;
use crate::standstill_watch::StandstillWatch;
use crate::supervisor::Supervisor;
use crate::world::{Caller, PARTITIONS, World};

/// How long each member may take to be ready at the start.
const FIRST_READY: Duration = Duration::from_secs(60);
/// Between the first increments and the first fault.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long after healing each member may take to be ready, and everything to be stored. The load's
/// last messages have a minute of it.
const CONVERGE: Duration = Duration::from_secs(240);
/// How long the load goes on once everything is healed and ready.
const CALM: Duration = Duration::from_secs(5);
/// What members log of themselves that no fault excuses.
const BUGS: [&str; 3] =
    ["panicked", "the partition stops; the others go on", "the counts are not Kafka's"];
/// In the order in which they are waited for.
const SERVICES: [Service; 5] =
    [Service::Aggregator, Service::Sink, Service::Producer, Service::Reader, Service::Watch];
const LOOK: Duration = Duration::from_millis(500);
/// How often a kind is tried again that has not struck, and what tells these tries from the first.
const TRIES: usize = 8;
const OTHER_DICE: u64 = 1 << 32;

#[derive(Clone, Debug)]
pub struct RunOptions {
    pub seed: u64,
    pub lasts: Duration,
    pub kinds: Vec<FaultKind>,
    /// Where everything is kept, made anew.
    pub dir: PathBuf,
    pub first_port: u16,
    /// The `tally` program under test.
    pub program: PathBuf,
    /// Another build of it: each time that a member starts, it is of the other one.
    pub other_program: Option<PathBuf>,
    /// Increments a second.
    pub rate: u64,
    /// Aggregators, and as many sinks.
    pub members: usize,
    /// Whether the load's messages have ids.
    pub ids: bool,
}

/// An error is the harness's own: the verdict is unknown.
pub async fn run(options: &RunOptions) -> anyhow::Result<Report> {
    let began = Instant::now();
    let world = start_world(options).await?;
    let history = History::new(&options.dir, &options.kinds)?;
    history
        .say("began", &format!("seed {}, {} kinds of faults", options.seed, options.kinds.len()));
    let supervisor = start_members(options, &world).await?;
    let load = start_load(options, &world, &supervisor).await?;
    let reads =
        ReadChecker::start(urls_of(&supervisor, Service::Reader).await, load.record().clone());
    let watch = StandstillWatch::new(&world, &history, &endpoints(&world))?;

    let injector =
        Injector { world: &world, supervisor: &supervisor, load: &load, history: &history };
    let ended = tokio::select! {
        ended = harm_and_heal(options, &injector, reads, &watch) => ended?,
        never = watch.run() => match never {},
        never = supervisor.supervise(&history) => match never {},
    };
    history.say("audit", "");
    let audit = audit::audit(&ended.record, &endpoints(&world)).await.context("audit")?;
    let verified = world.verify().await.context("verify")?;
    history.flush().context("write the history")?;
    let report = Report {
        seed: options.seed,
        took: began.elapsed(),
        faults: history.faults(),
        ended: supervisor.ended(),
        memory: supervisor.memory.report(),
        bugs: bugs(&options.dir)?,
        broken: history.broken(),
        converged: ended.converged,
        audit,
        reads: ended.reads,
        standstills: ended.standstills,
        freshness: freshness(&load.record().inclusions(), &history.windows()),
        verified,
    };
    if report.verdict() != Verdict::Passed {
        history.say("verdict", &report.to_string());
        history.flush().context("write the history")?;
    }
    world.stop().await.context("stop the stack")?;
    Ok(report)
}

async fn start_world(options: &RunOptions) -> anyhow::Result<World> {
    let other = options.other_program.as_deref();
    let steps_clocks = options.kinds.contains(&FaultKind::StepMachineClock);
    let (dir, port) = (&options.dir, options.first_port);
    let world = World::start(dir, port, &options.program, other, steps_clocks);
    let world = world.await.context("start the stack")?;
    let shorter = format!(
        "ALTER TABLE tally.counts \
         MODIFY SETTING non_replicated_deduplication_window = {REMEMBERED_BLOCKS}"
    );
    world.sql(&shorter).await.context("shorten ClickHouse's memory of tokens")?;
    Ok(world)
}

/// Returns once every member is ready.
async fn start_members(options: &RunOptions, world: &World) -> anyhow::Result<Supervisor> {
    let members = [
        (Service::Aggregator, options.members),
        (Service::Sink, options.members),
        (Service::Producer, 2),
        (Service::Reader, 1),
        (Service::Watch, 1),
    ];
    let supervisor = Supervisor::start(world, &members)?;
    for service in SERVICES {
        for slot in supervisor.of(service) {
            let member = slot.hold().await;
            member.ready(FIRST_READY).await.with_context(|| format!("start {service}"))?;
        }
    }
    Ok(supervisor)
}

async fn start_load(
    options: &RunOptions,
    world: &World,
    supervisor: &Supervisor,
) -> anyhow::Result<Load> {
    let config = world.config(Caller::Load);
    let load = Load::start(LoadOptions {
        seed: options.seed,
        rate: options.rate,
        bootstrap: config.kafka.bootstrap,
        registry: config.registry.url,
        partitions: PARTITIONS,
        ids: options.ids,
        gateways: urls_of(supervisor, Service::Producer).await,
    });
    load.await.context("start the load")
}

/// What a run came to before the audit.
struct Ended {
    record: Record,
    reads: ReadReport,
    standstills: StandstillReport,
    /// How long after the last fault ClickHouse held everything, or what it lacked.
    converged: Result<Duration, String>,
}

/// Faults in every lane until the time is up, then none: load, gateways and read checks end, and
/// the rest catches up.
async fn harm_and_heal(
    options: &RunOptions,
    injector: &Injector<'_>,
    reads: ReadChecker,
    watch: &StandstillWatch<'_>,
) -> anyhow::Result<Ended> {
    let &Injector { world, supervisor, load, history } = injector;
    tokio::time::sleep(WARM_UP).await;
    let deadline = Instant::now() + options.lasts;
    let lanes = FaultLane::ALL
        .into_iter()
        .filter_map(|lane| Schedule::new(options.seed, lane, &options.kinds));
    join_all(lanes.map(|schedule| inject_by(schedule, injector, deadline))).await;
    strike_the_rest(options, injector).await;
    history.say("healing", "no more faults");
    let healed = Instant::now();
    let ready = all_ready(supervisor, healed).await;
    tokio::time::sleep(CALM).await;
    let record = load.stop().await?;
    let standstills = watch.end();
    // What their clients gave up may still be in their queues. They are held, so that the
    // supervisor does not start them again.
    let mut gateways = Vec::new();
    for slot in supervisor.of(Service::Producer) {
        let gateway = slot.hold().await;
        end(&gateway).await?;
        gateways.push(gateway);
    }
    let converged = match ready {
        Ok(()) => converge(world, history, healed).await,
        Err(late) => Err(late),
    };
    Ok(Ended { record, reads: reads.stop().await?, standstills, converged })
}

/// Injects the faults of one lane, one after the other; ends at the first that cannot be injected.
async fn inject_by(schedule: Schedule, injector: &Injector<'_>, deadline: Instant) {
    for planned in schedule {
        let strikes_at = Instant::now() + planned.gap;
        if strikes_at >= deadline {
            return;
        }
        tokio::time::sleep(planned.gap).await;
        if let Err(error) = injector.inject(&planned).await {
            injector
                .history
                .broke(&format!("{} number {} of its lane", planned.kind, planned.number), &error);
            return;
        }
    }
}

/// Tries the kinds again that have not struck once, one after the other: without them the run would
/// show nothing of them.
async fn strike_the_rest(options: &RunOptions, injector: &Injector<'_>) {
    let has_struck = |kind: FaultKind| injector.history.faults()[&kind].struck > 0;
    for kind in &options.kinds {
        let again = Schedule::new(options.seed ^ OTHER_DICE, kind.lane(), &[*kind]);
        for planned in again.into_iter().flatten().take(TRIES) {
            if has_struck(*kind) || !injector.history.broken().is_empty() {
                break;
            }
            tokio::time::sleep(planned.gap).await;
            if let Err(error) = injector.inject(&planned).await {
                injector.history.broke(&format!("{kind}, tried again"), &error);
            }
        }
    }
}

fn endpoints(world: &World) -> Endpoints {
    let Config { kafka, registry, store, .. } = world.direct_config();
    Endpoints {
        bootstrap: kafka.bootstrap,
        registry: registry.url,
        store_url: store.url,
        database: store.database,
    }
}

async fn urls_of(supervisor: &Supervisor, service: Service) -> Vec<String> {
    let mut urls = Vec::new();
    for slot in supervisor.of(service) {
        urls.push(slot.hold().await.url());
    }
    urls
}

/// Waits until every member is ready; else says which is not.
async fn all_ready(supervisor: &Supervisor, healed: Instant) -> Result<(), String> {
    for service in SERVICES {
        for slot in supervisor.of(service) {
            loop {
                let ready = slot.hold().await.ready(LOOK).await;
                match ready {
                    Ok(()) => break,
                    // Let go of meanwhile, so that it is started again if it has ended.
                    Err(_) if healed.elapsed() < CONVERGE => tokio::time::sleep(LOOK).await,
                    Err(error) => {
                        return Err(format!("{service} {} is not ready: {error:#}", slot.name));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Lines of the members' logs that are bugs, whatever the counts.
fn bugs(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut bugs = Vec::new();
    for service in SERVICES {
        for entry in std::fs::read_dir(dir.join("logs"))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with(service.name()) {
                continue;
            }
            let text = String::from_utf8_lossy(&std::fs::read(entry.path())?).into_owned();
            let lines = text.lines().filter(|line| BUGS.iter().any(|bug| line.contains(bug)));
            bugs.extend(lines.map(|line| format!("{name}: {line}")));
        }
    }
    Ok(bugs)
}

/// Waits until ClickHouse holds all of `increments`; else says what is missing.
async fn converge(world: &World, history: &History, healed: Instant) -> Result<Duration, String> {
    loop {
        let behind = audit::behind(&endpoints(world)).await;
        match behind {
            Ok(behind) if behind.is_empty() => {
                history.say(
                    "converged",
                    &format!("{:.1} s after the last fault", healed.elapsed().as_secs_f64()),
                );
                return Ok(healed.elapsed());
            }
            _ if healed.elapsed() < CONVERGE => tokio::time::sleep(LOOK).await,
            Ok(behind) => return Err(behind.join("; ")),
            Err(error) => return Err(format!("{error:#}")),
        }
    }
}
