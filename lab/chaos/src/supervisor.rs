//! The services' processes, each in a slot, and the supervisor that starts again whatever ended by
//! itself.
//!
//! ```text
//!  a fault ──holds──► MemberSlot (Member) ◄──looks after── supervisor
//!                                                             └─► one that has ended, and that
//!                                                                 nobody holds, is started again
//! ```

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use tally_platform::service::Service;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};

use crate::history::History;
use crate::memory::MemoryWatch;
use crate::without_numbers::without_numbers;
use crate::world::{ChildProcess, Member, World};

const LOOK: Duration = Duration::from_millis(300);

pub(crate) struct MemberSlot {
    pub(crate) service: Service,
    pub(crate) name: String,
    member: AsyncMutex<Member>,
}

impl MemberSlot {
    /// Holds the member: the supervisor leaves it alone meanwhile.
    pub(crate) async fn hold(&self) -> MutexGuard<'_, Member> {
        self.member.lock().await
    }
}

pub(crate) struct Supervisor {
    slots: Vec<MemberSlot>,
    /// How often members ended by themselves, by the service and the reason that they gave.
    ended: Mutex<BTreeMap<String, u64>>,
    pub(crate) memory: MemoryWatch,
}

impl Supervisor {
    pub(crate) fn start(world: &World, members: &[(Service, usize)]) -> anyhow::Result<Supervisor> {
        let mut slots = Vec::new();
        for &(service, count) in members {
            for number in 0..count {
                let name = format!("m{number}");
                let member = world.start_member(service, &name)?;
                slots.push(MemberSlot { service, name, member: AsyncMutex::new(member) });
            }
        }
        Ok(Supervisor { slots, ended: Mutex::default(), memory: MemoryWatch::default() })
    }

    pub(crate) fn all(&self) -> &[MemberSlot] {
        &self.slots
    }

    pub(crate) fn of(&self, service: Service) -> Vec<&MemberSlot> {
        self.slots.iter().filter(|slot| slot.service == service).collect()
    }

    pub(crate) fn pick(&self, service: Service, pick: u32) -> &MemberSlot {
        let slots = self.of(service);
        slots[pick as usize % slots.len()]
    }

    pub(crate) fn ended(&self) -> BTreeMap<String, u64> {
        self.ended.lock().expect("no holder panics").clone()
    }

    /// Starts again what ended by itself, as a supervisor in production does.
    pub(crate) async fn supervise(&self, history: &History) -> Infallible {
        loop {
            tokio::time::sleep(LOOK).await;
            for slot in &self.slots {
                let Ok(member) = slot.member.try_lock() else { continue };
                if let Err(error) = self.look_at(slot, &member.program, history) {
                    history.broke(&format!("look after {} {}", slot.service, slot.name), &error);
                }
            }
        }
    }

    fn look_at(
        &self,
        slot: &MemberSlot,
        program: &ChildProcess,
        history: &History,
    ) -> anyhow::Result<()> {
        if let Some(pid) = program.pid() {
            self.memory.look(slot.service, pid);
        }
        let Some(status) = program.has_ended()? else { return Ok(()) };
        let said = program.last_words()?;
        history
            .say("ended by itself", &format!("{} {}: {status}: {said}", slot.service, slot.name));
        let reason = format!("{}: {}", slot.service, without_numbers(&said));
        *self.ended.lock().expect("no holder panics").entry(reason).or_default() += 1;
        program.start()
    }
}
