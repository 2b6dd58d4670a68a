//! All links of a world.

use std::sync::Arc;

use super::address_plan::{AddressPlan, ServerPlan};
use super::{Caller, Error, NetworkLink};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Broker(usize),
    Registry,
    Store,
}

pub(crate) struct NetworkLinks {
    ends: Vec<(Caller, Peer)>,
    /// In the order of `ends`.
    links: Vec<(String, Arc<NetworkLink>)>,
}

impl NetworkLinks {
    pub(super) async fn start(plan: &AddressPlan) -> Result<NetworkLinks, Error> {
        let mut links = NetworkLinks { ends: Vec::new(), links: Vec::new() };
        for (number, broker) in plan.brokers.iter().enumerate() {
            for caller in Caller::CLIENTS.into_iter().chain([Caller::Brokers]) {
                let name = format!("{caller} to broker {number}");
                links.add(
                    caller,
                    Peer::Broker(number),
                    name,
                    NetworkLink::start(&broker.ways(caller)).await?,
                );
            }
        }
        for (peer, name, server) in
            [(Peer::Registry, "registry", &plan.registry), (Peer::Store, "store", &plan.store)]
        {
            let ServerPlan { direct, links: ways } = server;
            for &(caller, listen) in ways {
                links.add(
                    caller,
                    peer,
                    format!("{caller} to {name}"),
                    NetworkLink::start(&[(listen, *direct)]).await?,
                );
            }
        }
        Ok(links)
    }

    fn add(&mut self, caller: Caller, peer: Peer, name: String, link: NetworkLink) {
        self.ends.push((caller, peer));
        self.links.push((name, Arc::new(link)));
    }

    pub(crate) fn all(&self) -> &[(String, Arc<NetworkLink>)] {
        &self.links
    }

    pub(crate) fn to_broker(&self, caller: Caller, broker: usize) -> Arc<NetworkLink> {
        self.find(caller, Peer::Broker(broker))
            .unwrap_or_else(|| panic!("no link from {caller} to broker {broker}"))
    }

    pub(crate) fn to_registry(&self, caller: Caller) -> Arc<NetworkLink> {
        self.find(caller, Peer::Registry)
            .unwrap_or_else(|| panic!("no link from {caller} to the registry"))
    }

    pub(crate) fn to_store(&self, caller: Caller) -> Arc<NetworkLink> {
        self.find(caller, Peer::Store)
            .unwrap_or_else(|| panic!("no link from {caller} to the store"))
    }

    fn find(&self, caller: Caller, peer: Peer) -> Option<Arc<NetworkLink>> {
        let at = self.ends.iter().position(|ends| *ends == (caller, peer))?;
        Some(Arc::clone(&self.links[at].1))
    }
}
