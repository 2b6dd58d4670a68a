//! All links of a world.

use std::sync::Arc;

use super::address_plan::AddressPlan;
use super::{Caller, NetworkLink};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Broker(usize),
    Registry,
    Store,
}

pub(crate) struct Way {
    caller: Caller,
    peer: Peer,
    pub(crate) name: String,
    pub(crate) link: Arc<NetworkLink>,
}

pub(crate) struct NetworkLinks(Vec<Way>);

impl NetworkLinks {
    pub(super) async fn start(plan: &AddressPlan) -> anyhow::Result<NetworkLinks> {
        let mut links = Vec::new();
        for (number, broker) in plan.brokers.iter().enumerate() {
            for caller in Caller::CLIENTS.into_iter().chain([Caller::Brokers]) {
                let name = format!("{caller} to broker {number}");
                let link = Arc::new(NetworkLink::start(&broker.ways(caller)).await?);
                links.push(Way { caller, peer: Peer::Broker(number), name, link });
            }
        }
        let servers =
            [(Peer::Registry, "registry", &plan.registry), (Peer::Store, "store", &plan.store)];
        for (peer, name, server) in servers {
            for &(caller, listen) in &server.links {
                let name = format!("{caller} to {name}");
                let link = Arc::new(NetworkLink::start(&[(listen, server.direct)]).await?);
                links.push(Way { caller, peer, name, link });
            }
        }
        Ok(NetworkLinks(links))
    }

    pub(crate) fn all(&self) -> &[Way] {
        &self.0
    }

    /// # Panics
    /// If the caller does not use that peer.
    pub(crate) fn to(&self, caller: Caller, peer: Peer) -> &Way {
        let way = self.0.iter().find(|way| (way.caller, way.peer) == (caller, peer));
        way.unwrap_or_else(|| panic!("no link from {caller} to {peer:?}"))
    }
}
