//! Faults of what the services use: brokers, ClickHouse, the schema registry, and the links to
//! them.

use std::time::{Duration, Instant};

use anyhow::Context;
use tally_platform::service::Service;
use tally_stack::sys::Signal;
use tokio::time::sleep;

use super::{COME_BACK, FILLS_UP, Injected, Injector, LOOK, TRAFFIC};
use crate::fault::FaultKind;
use crate::schedule::Planned;
use crate::world::{Caller, LinkMode, PARTITIONS, Peer, Way};

const REGISTRYS_CLIENTS: [Caller; 3] = [Caller::Aggregators, Caller::Gateways, Caller::Load];
const CONSTRAINT: &str = "chaos";
/// Bytes that a full disk still takes, the most.
const MOST_ROOM: u64 = 64 << 10;
/// Bytes a second of a slow link, the least and the most.
const SLOW: (u32, u32) = (8 << 10, 64 << 10);

impl Injector<'_> {
    /// Harms the aggregators' link to the broker that coordinates one of their transactional.ids.
    pub(super) async fn commits(
        &self,
        planned: &Planned,
        mode: LinkMode,
    ) -> anyhow::Result<Injected> {
        let id = self.transactional_id(planned.pick);
        let broker = self.world.coordinator_of_transactions(&id).await?;
        let way = self.world.links.to(Caller::Aggregators, Peer::Broker(broker));
        self.on_link(planned, way, mode).await
    }

    pub(super) async fn kill_broker(
        &self,
        planned: &Planned,
        broker: usize,
    ) -> anyhow::Result<Injected> {
        let which = format!("broker {broker}");
        self.history.began(planned.kind, &which);
        self.world.brokers.kill(broker).await?;
        sleep(planned.lasts).await;
        self.world.brokers.start_again(broker).await?;
        self.until_replicated(&which).await?;
        Ok((true, which))
    }

    pub(super) async fn sleep_broker(
        &self,
        broker: usize,
        lasts: Duration,
    ) -> anyhow::Result<Injected> {
        let which = format!("broker {broker}");
        let met = self.leads(broker).await;
        let detail = format!("{which} for {:.1} s", lasts.as_secs_f64());
        self.history.began(FaultKind::SleepBroker, &detail);
        self.world.brokers.signal(broker, Signal::Stop)?;
        sleep(lasts).await;
        self.world.brokers.signal(broker, Signal::Continue)?;
        self.until_replicated(&which).await?;
        Ok((met, which))
    }

    /// No file of a broker can grow beyond a little more than its fullest log, so that a batch is
    /// cut off in the middle, as on a full disk. Proven by the broker, which ends.
    pub(super) async fn full_disk(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let broker = planned.pick as usize % self.world.brokers.len();
        let which = format!("broker {broker}");
        let leads = self.leads(broker).await;
        let room = u64::from(planned.pick >> 8) % MOST_ROOM;
        let topic = self.world.direct_config().kafka.increments;
        let most = self.world.brokers.fullest_log(broker, &topic)? + room;
        self.history.began(planned.kind, &format!("{which}, files of at most {most} bytes"));
        self.world.brokers.limit_files(broker, Some(most))?;
        let deadline = Instant::now() + FILLS_UP;
        while !self.world.brokers.has_ended(broker)? && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let ended = self.world.brokers.has_ended(broker)?;
        if ended {
            sleep(planned.lasts).await;
            self.world.brokers.start_again(broker).await?;
        } else {
            self.world.brokers.limit_files(broker, None)?;
        }
        self.until_replicated(&which).await?;
        Ok((leads && ended, which))
    }

    /// Whether the broker leads a partition that the load writes to.
    pub(super) async fn leads(&self, broker: usize) -> bool {
        let topic = self.world.direct_config().kafka.increments;
        for partition in 0..PARTITIONS {
            // One that nobody leads just now is no proof.
            let leader = self.world.brokers.leader(&topic, partition).await;
            if leader.is_ok_and(|leader| leader == broker) {
                return true;
            }
        }
        false
    }

    /// Waits until every replica is in sync, so that the next broker may go.
    async fn until_replicated(&self, which: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + COME_BACK;
        loop {
            match self.world.brokers.under_replicated().await {
                Ok(0) => return Ok(()),
                Ok(_) | Err(_) if Instant::now() < deadline => sleep(LOOK).await,
                Ok(count) => anyhow::bail!(
                    "{count} partitions are not in sync {COME_BACK:?} after {which} came back"
                ),
                Err(error) => return Err(error).context("ask which replicas are in sync"),
            }
        }
    }

    /// Waits for bytes of the sinks on their way to the store; whether some came.
    async fn traffic_to_store(&self) -> bool {
        let link = &self.world.links.to(Caller::Sinks, Peer::Store).link;
        let before = link.traffic();
        let deadline = Instant::now() + TRAFFIC;
        while link.traffic() == before && Instant::now() < deadline {
            sleep(Duration::from_millis(1)).await;
        }
        link.traffic() != before
    }

    pub(super) async fn kill_store(&self, lasts: Duration) -> anyhow::Result<Injected> {
        let met = self.traffic_to_store().await;
        self.history.began(FaultKind::KillStore, if met { "mid insert" } else { "idle" });
        self.world.store.kill().await?;
        sleep(lasts).await;
        self.world.store.start().await?;
        Ok((met, String::new()))
    }

    /// Kills the registry. Services ask it now and then only, so whether one did is counted on its
    /// links, which are cut meanwhile.
    pub(super) async fn kill_registry(&self, lasts: Duration) -> anyhow::Result<Injected> {
        self.history.began(FaultKind::KillRegistry, "");
        let links =
            REGISTRYS_CLIENTS.map(|caller| &self.world.links.to(caller, Peer::Registry).link);
        links.iter().for_each(|link| link.set(LinkMode::Cut));
        self.world.registry.kill().await?;
        sleep(lasts).await;
        self.world.registry.start().await?;
        let struck: u64 = links.iter().map(|link| link.struck()).sum();
        links.iter().for_each(|link| link.set(LinkMode::Open));
        Ok((struck > 0, format!("struck {struck}")))
    }

    /// What was asked of the registry, by anybody.
    fn asked_of_registry(&self) -> u64 {
        let links = REGISTRYS_CLIENTS.map(|caller| self.world.links.to(caller, Peer::Registry));
        links.iter().map(|way| way.link.traffic()).sum()
    }

    pub(super) async fn sleep_registry(&self, lasts: Duration) -> anyhow::Result<Injected> {
        let detail = format!("for {:.1} s", lasts.as_secs_f64());
        self.history.began(FaultKind::SleepRegistry, &detail);
        let before = self.asked_of_registry();
        self.world.registry.signal(Signal::Stop)?;
        sleep(lasts).await;
        let asked = self.asked_of_registry() - before;
        self.world.registry.signal(Signal::Continue)?;
        Ok((asked > 0, format!("asked with {asked} bytes")))
    }

    pub(super) async fn empty_registry(&self, lasts: Duration) -> anyhow::Result<Injected> {
        self.history.began(FaultKind::EmptyRegistry, "");
        self.world.registry.lose_data().await?;
        let before = self.asked_of_registry();
        sleep(lasts).await;
        let asked = self.asked_of_registry() - before;
        self.world.registry.get_data_back().await?;
        Ok((asked > 0, format!("asked, {asked} bytes both ways")))
    }

    /// Proven by a sink, which says in its log that ClickHouse refuses its block.
    pub(super) async fn refuse_partition(
        &self,
        pick: u32,
        lasts: Duration,
    ) -> anyhow::Result<Injected> {
        let partition = (pick % PARTITIONS.cast_unsigned()).cast_signed();
        let detail = format!("partition {partition} for {:.1} s", lasts.as_secs_f64());
        self.history.began_on([partition], FaultKind::RefusePartition, &detail);
        let before = self.refusals().await?;
        let refuse = format!("ADD CONSTRAINT {CONSTRAINT} CHECK partition != {partition}");
        self.world.sql(&format!("ALTER TABLE tally.counts {refuse}")).await?;
        sleep(lasts).await;
        self.world.sql(&format!("ALTER TABLE tally.counts DROP CONSTRAINT {CONSTRAINT}")).await?;
        let refusals = self.refusals().await? - before;
        Ok((refusals > 0, format!("partition {partition}: logged {refusals} times")))
    }

    /// How often sinks have said that ClickHouse refuses a block.
    async fn refusals(&self) -> anyhow::Result<usize> {
        let mut refusals = 0;
        for slot in self.supervisor.of(Service::Sink) {
            let log = slot.hold().await.program.log().to_owned();
            let text = tokio::fs::read(&log).await?;
            let name = format!("Constraint `{CONSTRAINT}`");
            refusals += String::from_utf8_lossy(&text).matches(&name).count();
        }
        Ok(refusals)
    }

    /// Proven by its acknowledgement: whoever has the partition must come by it.
    pub(super) async fn poison_batch(
        &self,
        pick: u32,
        lasts: Duration,
    ) -> anyhow::Result<Injected> {
        let partition = (pick >> 16).cast_signed() % PARTITIONS;
        let which = format!("partition {partition}");
        self.history.began_on([partition], FaultKind::PoisonBatch, &which);
        let is_in_log = self.load.poison(pick, partition, TRAFFIC).await?;
        sleep(lasts).await;
        Ok((is_in_log, which))
    }

    /// Proven by the load, which has something acknowledged there.
    pub(super) async fn add_partition(&self, lasts: Duration) -> anyhow::Result<Injected> {
        self.history.began(FaultKind::AddPartition, "");
        let record = self.load.record();
        record.grow();
        let partition = self.world.add_partition(COME_BACK).await?;
        let deadline = Instant::now() + TRAFFIC;
        while !record.has_reached(partition) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        sleep(lasts).await;
        Ok((record.has_reached(partition), format!("partition {partition}")))
    }

    pub(super) async fn slow_link(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let broker = planned.pick as usize % self.world.brokers.len();
        let callers = Caller::CLIENTS;
        let caller = callers[(planned.pick >> 8) as usize % callers.len()];
        let way = self.world.links.to(caller, Peer::Broker(broker));
        let bytes_per_second = SLOW.0 + (planned.pick >> 16) % (SLOW.1 - SLOW.0);
        self.on_link(planned, way, LinkMode::Slow(bytes_per_second)).await
    }

    /// Its links to the brokers and, for a sink, to the store: as the last fault of this lane is
    /// healed, they are open.
    pub(super) async fn cut_off_member(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let Planned { kind, lasts, pick, .. } = planned;
        let members =
            [Service::Aggregator, Service::Sink].map(|service| self.supervisor.of(service));
        let members = members.concat();
        let slot = members[*pick as usize % members.len()];
        let (service, name) = (slot.service, &slot.name);
        // Held, so that it is not replaced by a process that has its network.
        let member = slot.hold().await;
        let process = member.program.pid().context("it was never started")?;
        let caller = Caller::of(service);
        let store = (service == Service::Sink).then_some(Peer::Store);
        let peers = (0..self.world.brokers.len()).map(Peer::Broker).chain(store);
        let links: Vec<_> = peers.map(|peer| &self.world.links.to(caller, peer).link).collect();
        self.history.began(*kind, &format!("{service} {name} for {:.1} s", lasts.as_secs_f64()));
        links.iter().for_each(|link| link.set(LinkMode::CutOff(process)));
        sleep(*lasts).await;
        let struck: u64 = links.iter().map(|link| link.struck()).sum();
        links.iter().for_each(|link| link.set(LinkMode::Open));
        Ok((struck > 0, format!("{service} {name}: struck {struck}")))
    }

    pub(super) async fn any_link(
        &self,
        planned: &Planned,
        mode: LinkMode,
    ) -> anyhow::Result<Injected> {
        let links = self.world.links.all();
        self.on_link(planned, &links[planned.pick as usize % links.len()], mode).await
    }

    async fn on_link(
        &self,
        planned: &Planned,
        Way { name, link, .. }: &Way,
        mode: LinkMode,
    ) -> anyhow::Result<Injected> {
        let Planned { kind, lasts, .. } = planned;
        self.history.began(*kind, &format!("{name}, {mode:?} for {:.1} s", lasts.as_secs_f64()));
        link.set(mode);
        sleep(*lasts).await;
        let struck = link.struck();
        link.set(LinkMode::Open);
        Ok((struck > 0, format!("{name}: struck {struck}")))
    }
}
