//! All links of a world.

use std::sync::Arc;

use super::plan::{Plan, ServerPlan};
use super::{Error, Link, Side};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Peer {
    Broker(usize),
    Registry,
    Store,
}

pub(super) struct Links {
    ends: Vec<(Side, Peer)>,
    /// In the order of `ends`.
    links: Vec<(String, Arc<Link>)>,
}

impl Links {
    pub(super) async fn start(plan: &Plan) -> Result<Links, Error> {
        let mut links = Links { ends: Vec::new(), links: Vec::new() };
        for (number, broker) in plan.brokers.iter().enumerate() {
            for side in Side::CLIENTS.into_iter().chain([Side::Brokers]) {
                let name = format!("{side} to broker {number}");
                links.add(side, Peer::Broker(number), name, Link::start(&broker.ways(side)).await?);
            }
        }
        for (peer, name, server) in
            [(Peer::Registry, "registry", &plan.registry), (Peer::Store, "store", &plan.store)]
        {
            let ServerPlan { direct, links: ways } = server;
            for &(side, listen) in ways {
                links.add(
                    side,
                    peer,
                    format!("{side} to {name}"),
                    Link::start(&[(listen, *direct)]).await?,
                );
            }
        }
        Ok(links)
    }

    fn add(&mut self, side: Side, peer: Peer, name: String, link: Link) {
        self.ends.push((side, peer));
        self.links.push((name, Arc::new(link)));
    }

    pub(super) fn all(&self) -> &[(String, Arc<Link>)] {
        &self.links
    }

    pub(super) fn to_broker(&self, side: Side, broker: usize) -> Arc<Link> {
        self.find(side, Peer::Broker(broker))
            .unwrap_or_else(|| panic!("no link from {side} to broker {broker}"))
    }

    pub(super) fn to_registry(&self, side: Side) -> Arc<Link> {
        self.find(side, Peer::Registry)
            .unwrap_or_else(|| panic!("no link from {side} to the registry"))
    }

    pub(super) fn to_store(&self, side: Side) -> Arc<Link> {
        self.find(side, Peer::Store).unwrap_or_else(|| panic!("no link from {side} to the store"))
    }

    fn find(&self, side: Side, peer: Peer) -> Option<Arc<Link>> {
        let at = self.ends.iter().position(|ends| *ends == (side, peer))?;
        Some(Arc::clone(&self.links[at].1))
    }
}
