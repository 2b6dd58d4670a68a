//! The wall clock of one process is stepped, as an operator or NTP steps a machine's.

use std::sync::Arc;

use anyhow::Context;
use tokio::time::sleep;

use super::{Injected, Injector};
use crate::schedule::Planned;
use crate::world::ChildProcess;

/// How far the clock of a member, the registry or ClickHouse is stepped, seconds.
const STEPS: &[i64] = &[-3600, 3600, -61, 7200];
/// The same of a broker. It connects to others again after a pause by the wall clock, so that one
/// that is set back by hours connects to nobody for hours, until it is started again
/// (`ClusterConnectionStates.canConnect`, Kafka 4.3).
const STEPS_OF_KAFKA: &[i64] = &[-61, 61];
const NANOSECONDS_A_SECOND: i64 = 1_000_000_000;

impl Injector<'_> {
    /// Steps the clock of a member, a broker, the registry or the store.
    pub(super) async fn step_machine_clock(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let world = self.world;
        let mut servers: Vec<_> =
            world.brokers.programs().map(|broker| (broker, STEPS_OF_KAFKA)).collect();
        servers.push((world.registry.program(), STEPS));
        servers.push((world.store.program(), STEPS));
        let members = self.supervisor.all();
        let number = planned.pick as usize % (members.len() + servers.len());
        match members.get(number) {
            Some(slot) => {
                // Let go of at once: one that ends meanwhile comes back to the same clock.
                let program = Arc::clone(&slot.hold().await.program);
                self.step_clock_of(planned, &program, STEPS).await
            }
            None => {
                let (program, steps) = servers[number - members.len()];
                self.step_clock_of(planned, program, steps).await
            }
        }
    }

    /// Proven where the process has looked at the clock meanwhile.
    async fn step_clock_of(
        &self,
        planned: &Planned,
        program: &ChildProcess,
        steps: &[i64],
    ) -> anyhow::Result<Injected> {
        let step = steps[(planned.pick >> 8) as usize % steps.len()];
        let detail = format!("{} by {} s", program.name(), step);
        self.history.began(planned.kind, &detail);
        let clock = program.clock().context("this process has the machine's clock")?;
        let before = clock.reads()?;
        clock.set_ahead(step * NANOSECONDS_A_SECOND)?;
        sleep(planned.lasts).await;
        clock.set_ahead(0)?;
        Ok((clock.reads()? > before, detail))
    }
}
