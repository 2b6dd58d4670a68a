//! The wall clock of one process is stepped, as an operator or NTP steps a machine's.

use std::sync::Arc;

use anyhow::Context;
use tokio::time::sleep;

use super::{CLOCK_STEPS, Injected, Injector};
use crate::schedule::Planned;
use crate::world::ChildProcess;

const NANOSECONDS_A_MILLISECOND: i64 = 1_000_000;

impl Injector<'_> {
    /// Steps the clock of a member, a broker, the registry or the store.
    pub(super) async fn step_machine_clock(&self, planned: &Planned) -> anyhow::Result<Injected> {
        let world = self.world;
        let mut servers = world.brokers.programs().collect::<Vec<_>>();
        servers.extend([world.registry.program(), world.store.program()]);
        let members = self.supervisor.all();
        let number = planned.pick as usize % (members.len() + servers.len());
        match members.get(number) {
            Some(slot) => {
                // Let go of at once: one that ends meanwhile comes back to the same clock.
                let program = Arc::clone(&slot.hold().await.program);
                self.step_clock_of(planned, &program).await
            }
            None => self.step_clock_of(planned, servers[number - members.len()]).await,
        }
    }

    /// Proven where the process has looked at the clock meanwhile.
    async fn step_clock_of(
        &self,
        planned: &Planned,
        program: &ChildProcess,
    ) -> anyhow::Result<Injected> {
        let step = CLOCK_STEPS[(planned.pick >> 8) as usize % CLOCK_STEPS.len()];
        let detail = format!("{} by {} s", program.name(), step / 1000);
        self.history.began(planned.kind, &detail);
        let clock = program.clock().context("this process has the machine's clock")?;
        let before = clock.reads()?;
        clock.set_ahead(step * NANOSECONDS_A_MILLISECOND)?;
        sleep(planned.lasts).await;
        clock.set_ahead(0)?;
        Ok((clock.reads()? > before, detail))
    }
}
