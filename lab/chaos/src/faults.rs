//! How each kind of fault is made, healed, and proven to have struck.
//!
//! ```text
//!  planned ──► choose a target ──► strike ──► … lasts … ──► heal
//!                                    │                        │
//!                                    └──── proof: the target ran, and increments were in flight
//! ```

mod surroundings;
mod wall_clock;

use std::time::{Duration, Instant};

use anyhow::Context;
use tally_platform::service::Service;
use tally_stack::sys::Signal;
use tokio::time::sleep;

use crate::audit::Load;
use crate::fault::FaultKind;
use crate::history::{History, Struck};
use crate::schedule::Planned;
use crate::supervisor::{MemberSlot, Supervisor};
use crate::world::{LinkMode, Member, World};

/// How long a broker, ClickHouse or the schema registry may take to come back, and the cluster to
/// be whole again.
const COME_BACK: Duration = Duration::from_secs(90);
/// How long traffic to ClickHouse is waited for, so that it is killed while some is under way.
/// Other faults may hold everything up for a while.
const TRAFFIC: Duration = Duration::from_secs(20);
/// How long a broker may take to come upon the end of its disk, and to end.
const FILLS_UP: Duration = Duration::from_secs(30);
/// How long a take-over may go unnoticed: until the id's next turn, and other faults come between.
const NOTICED: Duration = Duration::from_secs(20);
/// What supervisors grant a drain before they kill.
const DRAINS: Duration = Duration::from_secs(30);
/// The longest that a sink oversleeps.
const OVERSLEEP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(500);
const BUSY_LOOK: Duration = Duration::from_millis(20);
/// Blocks whose tokens ClickHouse remembers: few, so that a sink oversleeps them, but not fewer
/// than may be on their way at once.
pub(crate) const REMEMBERED_BLOCKS: u32 = 12;
/// The event clock's jumps, milliseconds: back and forth, within a day.
const CLOCK_STEPS: [i64; 4] = [-3_600_000, 3_600_000, -61_000, 7_200_000];

/// Whether a fault met its target, and what it was, for the history.
type Injected = (bool, String);

/// Makes faults happen in the world, and proves that they struck while increments were in flight.
pub(crate) struct Injector<'a> {
    pub(crate) world: &'a World,
    pub(crate) supervisor: &'a Supervisor,
    pub(crate) load: &'a Load,
    pub(crate) history: &'a History,
}

impl Injector<'_> {
    /// Makes one fault happen, and heals it. An error means that it could not be made or healed.
    pub(crate) async fn inject(&self, planned: &Planned) -> anyhow::Result<()> {
        let before = self.load.record().progress();
        let (met, detail) = self.strike(planned).await?;
        // Whatever was sent since had its way through the fault.
        let in_flight =
            before.in_flight() > 0 || self.load.record().progress().attempted > before.attempted;
        let struck = if met && in_flight { Struck::Yes } else { Struck::Unproven };
        self.history.healed(planned.kind, struck, &detail);
        Ok(())
    }

    /// Makes the fault, lets it last, and heals it.
    async fn strike(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let &Planned { kind, lasts, pick, .. } = planned;
        let member = |service| self.supervisor.pick(service, pick);
        match kind {
            FaultKind::KillAggregator => self.kill(planned, member(Service::Aggregator)).await,
            FaultKind::KillGateway => self.kill(planned, member(Service::Producer)).await,
            FaultKind::KillReader => self.kill(planned, member(Service::Reader)).await,
            FaultKind::KillSink | FaultKind::SleepSink => {
                let (slot, busy) = self.busy_sink(pick).await;
                let (met, how) = if kind == FaultKind::KillSink {
                    self.kill(planned, slot).await?
                } else {
                    self.sleep(planned, slot).await?
                };
                Ok((met && busy, how))
            }
            FaultKind::StopAggregator => self.stop(planned, member(Service::Aggregator)).await,
            FaultKind::StopSink => self.stop(planned, member(Service::Sink)).await,
            FaultKind::SleepAggregator => self.sleep(planned, member(Service::Aggregator)).await,
            FaultKind::OversleepSink => self.oversleep(pick, lasts).await,
            FaultKind::AddAggregator => self.add(planned, Service::Aggregator).await,
            FaultKind::AddSink => self.add(planned, Service::Sink).await,
            FaultKind::RollAggregators => self.roll(kind, Service::Aggregator).await,
            FaultKind::RollSinks => self.roll(kind, Service::Sink).await,
            FaultKind::TakeOver => self.take_over(pick).await,
            FaultKind::KillBroker => {
                let broker = pick as usize % self.world.brokers.len();
                let leads = self.leads(broker).await;
                let (_, how) = self.kill_broker(planned, broker).await?;
                Ok((leads, how))
            }
            FaultKind::KillGroupCoordinator => {
                let group = self.world.direct_config().aggregator.group;
                let broker = self.world.coordinator_of_group(&group).await?;
                self.kill_broker(planned, broker).await
            }
            FaultKind::KillTransactionCoordinator => {
                let id = self.transactional_id(pick);
                let broker = self.world.coordinator_of_transactions(&id).await?;
                self.kill_broker(planned, broker).await
            }
            FaultKind::SleepBroker => {
                self.sleep_broker(pick as usize % self.world.brokers.len(), lasts).await
            }
            FaultKind::FullDisk => self.full_disk(planned).await,
            FaultKind::KillStore => self.kill_store(lasts).await,
            FaultKind::KillRegistry => self.kill_registry(lasts).await,
            FaultKind::SleepRegistry => self.sleep_registry(lasts).await,
            FaultKind::EmptyRegistry => self.empty_registry(lasts).await,
            FaultKind::RefusePartition => self.refuse_partition(pick, lasts).await,
            FaultKind::PoisonBatch => self.poison_batch(pick, lasts).await,
            FaultKind::AddPartition => self.add_partition(lasts).await,
            FaultKind::StepClock => {
                let step = CLOCK_STEPS[pick as usize % CLOCK_STEPS.len()];
                self.history.began(kind, &format!("by {} s", step / 1000));
                self.load.record().step_clock(step);
                sleep(lasts).await;
                self.load.record().step_clock(-step);
                Ok((true, String::new()))
            }
            FaultKind::StepMachineClock => self.step_machine_clock(planned).await,
            FaultKind::CutLink => self.any_link(planned, LinkMode::Cut).await,
            FaultKind::CutOffMember => self.cut_off_member(planned).await,
            FaultKind::StallLink => self.any_link(planned, LinkMode::Stalled).await,
            FaultKind::DelayLink => {
                let delay = Duration::from_millis(20 + u64::from(pick >> 8) % 600);
                self.any_link(planned, LinkMode::Delay(delay)).await
            }
            FaultKind::SlowLink => self.slow_link(planned).await,
            FaultKind::LateRequests => {
                self.commits(planned, LinkMode::Late(lasts.mul_f64(0.8))).await
            }
            FaultKind::LateCommit => self.commits(planned, LinkMode::LateCommit).await,
        }
    }

    async fn kill(&self, planned: &Planned, slot: &MemberSlot) -> anyhow::Result<Injected> {
        let member = slot.hold().await;
        self.history.began(planned.kind, &slot.name);
        let met = member.program.kill()?;
        sleep(planned.lasts).await;
        member.program.start()?;
        Ok((met, slot.name.clone()))
    }

    async fn stop(&self, planned: &Planned, slot: &MemberSlot) -> anyhow::Result<Injected> {
        let member = slot.hold().await;
        self.history.began(planned.kind, &slot.name);
        let (met, how) = end(&member).await?;
        sleep(planned.lasts).await;
        member.program.start()?;
        Ok((met, format!("{} {how}", slot.name)))
    }

    /// SIGSTOP. When it wakes, it does not know that it slept.
    async fn sleep(&self, planned: &Planned, slot: &MemberSlot) -> anyhow::Result<Injected> {
        let Planned { kind, lasts, .. } = planned;
        let member = slot.hold().await;
        self.history.began(*kind, &format!("{} for {:.1} s", slot.name, lasts.as_secs_f64()));
        let met = member.program.signal(Signal::Stop)?;
        sleep(*lasts).await;
        member.program.signal(Signal::Continue)?;
        Ok((met, slot.name.clone()))
    }

    /// A sink that has stored a block just now, and whether there was one: the others' bytes on the
    /// link tell nothing of it.
    async fn busy_sink(&self, pick: u32) -> (&MemberSlot, bool) {
        let sinks = self.supervisor.of(Service::Sink);
        let deadline = Instant::now() + TRAFFIC;
        let mut before = vec![None; sinks.len()];
        loop {
            for offset in 0..sinks.len() {
                let number = (pick as usize + offset) % sinks.len();
                // One that does not answer has none.
                let sink = sinks[number].hold().await;
                let stored = sink.metric("tally_sink_inserts_total", "stored").await.ok();
                let grew = before[number].is_some() && stored > before[number];
                before[number] = stored;
                if grew {
                    return (sinks[number], true);
                }
            }
            if Instant::now() >= deadline {
                return (self.supervisor.pick(Service::Sink, pick), false);
            }
            sleep(BUSY_LOOK).await;
        }
    }

    /// SIGSTOP as blocks pass to ClickHouse, until it took so many others that it has forgotten
    /// the tokens of those.
    async fn oversleep(&self, pick: u32, lasts: Duration) -> anyhow::Result<Injected> {
        let (slot, busy) = self.busy_sink(pick).await;
        let member = slot.hold().await;
        let detail = format!("{} for {:.1} s at least", slot.name, lasts.as_secs_f64());
        self.history.began(FaultKind::OversleepSink, &detail);
        let met = member.program.signal(Signal::Stop)?;
        let slept = Instant::now();
        let before = self.stored_blocks(slept + OVERSLEEP).await;
        sleep(lasts).await;
        let mut passed = 0;
        while passed <= u64::from(REMEMBERED_BLOCKS) && slept.elapsed() < OVERSLEEP {
            sleep(LOOK).await;
            passed = match (before, self.stored_blocks(slept + OVERSLEEP).await) {
                (Some(before), Some(now)) => now.saturating_sub(before),
                _ => 0,
            };
        }
        member.program.signal(Signal::Continue)?;
        let overslept = passed > u64::from(REMEMBERED_BLOCKS);
        let (name, seconds) = (&slot.name, slept.elapsed().as_secs_f64());
        let how = format!("{name}: {passed} blocks were stored in {seconds:.1} s");
        Ok((met && busy && overslept, how))
    }

    /// How many blocks were ever stored; `None` if ClickHouse does not say until the deadline.
    async fn stored_blocks(&self, deadline: Instant) -> Option<u64> {
        loop {
            match self.world.stored_blocks().await {
                Ok(blocks) => return Some(blocks),
                // It may be killed just now.
                Err(_) if Instant::now() < deadline => sleep(LOOK).await,
                Err(_) => return None,
            }
        }
    }

    async fn add(&self, planned: &Planned, service: Service) -> anyhow::Result<Injected> {
        self.history.began(planned.kind, "");
        let member = self.world.start_member(service, "added")?;
        let ready = member.ready(COME_BACK).await;
        sleep(planned.lasts).await;
        let (_, how) = end(&member).await?;
        Ok((ready.is_ok(), format!("joined, then {how}")))
    }

    async fn roll(&self, kind: FaultKind, service: Service) -> anyhow::Result<Injected> {
        self.history.began(kind, "");
        let mut met = true;
        for slot in self.supervisor.of(service) {
            let member = slot.hold().await;
            met &= end(&member).await?.0;
            member.program.start()?;
            // A roll goes on once the new process is there; under other faults that may take longer
            // than is waited for.
            met &= member.ready(COME_BACK).await.is_ok();
        }
        Ok((met, String::new()))
    }

    /// An aggregator's transactional.id, of one of its producers in rotation.
    fn transactional_id(&self, pick: u32) -> String {
        let slot = self.supervisor.pick(Service::Aggregator, pick);
        let config = self.world.direct_config();
        let (group, topic) = (&config.aggregator.group, &config.kafka.increments);
        format!("{group}-{topic}-{}-0-{}", slot.name, (pick >> 16) % 4)
    }

    /// Proven by the owner, who says in its log that it was fenced.
    async fn take_over(&self, pick: u32) -> anyhow::Result<Injected> {
        let id = self.transactional_id(pick);
        self.history.began(FaultKind::TakeOver, &id);
        let slot = self.supervisor.pick(Service::Aggregator, pick);
        let log = slot.hold().await.program.log().to_owned();
        let read = tokio::fs::read(&log).await?.len();
        crate::takeover::take_over(&self.world.direct_config().kafka.bootstrap, &id).await?;
        let deadline = Instant::now() + NOTICED;
        loop {
            let text = tokio::fs::read(&log).await?;
            let since = text.get(read..).context("an aggregator's log has become shorter")?;
            let since = String::from_utf8_lossy(since);
            let noticed = since.contains("fenced by a newer instance");
            if noticed || Instant::now() >= deadline {
                return Ok((noticed, id));
            }
            sleep(LOOK).await;
        }
    }
}

/// SIGTERM, and SIGKILL for one that does not drain in time, as supervisors do. Whether it ran, and
/// how it ended.
pub(crate) async fn end(member: &Member) -> anyhow::Result<Injected> {
    if !member.program.signal(Signal::Terminate)? {
        return Ok((false, String::from("had ended")));
    }
    match member.program.ended(DRAINS).await? {
        Some(status) => Ok((true, format!("ended, {status}"))),
        None => Ok((member.program.kill()?, String::from("did not drain in time: killed"))),
    }
}
