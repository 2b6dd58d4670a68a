//! Who listens where, laid out before anything starts.
//!
//! A Kafka client goes where a broker's metadata says, so each side has a listener of its own at
//! each broker, and that listener is advertised at the port of its link:
//!
//! ```text
//! sinks ──► link (advertised) ──► listener SINKS ─┐
//! load  ──► link (advertised) ──► listener LOAD ──┼─ broker
//! audit ─────────────────────────► listener DIRECT ┘
//! ```

use std::net::SocketAddr;

use super::ports::Ports;
use super::{Error, Side};

/// Where something listens, and the port of the link that leads there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door {
    pub(super) link: SocketAddr,
    pub(super) own: SocketAddr,
}

impl Door {
    fn new(ports: &mut Ports) -> Result<Door, Error> {
        Ok(Door { link: ports.take()?, own: ports.take()? })
    }
}

#[derive(Clone, Debug)]
pub(super) struct BrokerPlan {
    /// For the auditor and for tools, past every link.
    pub(super) direct: SocketAddr,
    pub(super) clients: Vec<(Side, Door)>,
    pub(super) brokers: Door,
    pub(super) controllers: Door,
}

/// A server that every side reaches at the same port of its own.
#[derive(Clone, Debug)]
pub(super) struct ServerPlan {
    pub(super) direct: SocketAddr,
    pub(super) links: Vec<(Side, SocketAddr)>,
}

#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) brokers: Vec<BrokerPlan>,
    pub(super) registry: ServerPlan,
    pub(super) store: ServerPlan,
}

impl Plan {
    pub(super) fn new(brokers: usize, ports: &mut Ports) -> Result<Plan, Error> {
        Ok(Plan {
            brokers: (0..brokers).map(|_| BrokerPlan::new(ports)).collect::<Result<_, _>>()?,
            registry: ServerPlan::new(Side::asks_registry, ports)?,
            store: ServerPlan::new(Side::asks_store, ports)?,
        })
    }

    /// Kafka's `bootstrap.servers` of one side.
    pub(super) fn bootstrap(&self, side: Side) -> String {
        let doors = self.brokers.iter().map(|broker| match side {
            Side::Brokers => broker.brokers.link,
            side => broker.client(side).link,
        });
        joined(doors)
    }

    pub(super) fn direct_bootstrap(&self) -> String {
        joined(self.brokers.iter().map(|broker| broker.direct))
    }
}

fn joined(addresses: impl Iterator<Item = SocketAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",")
}

impl BrokerPlan {
    fn new(ports: &mut Ports) -> Result<BrokerPlan, Error> {
        let mut clients = Vec::new();
        for side in Side::CLIENTS {
            clients.push((side, Door::new(ports)?));
        }
        Ok(BrokerPlan {
            direct: ports.take()?,
            clients,
            brokers: Door::new(ports)?,
            controllers: Door::new(ports)?,
        })
    }

    fn client(&self, side: Side) -> Door {
        let (_, door) = self
            .clients
            .iter()
            .find(|(client, _)| *client == side)
            .expect("every client has a door");
        *door
    }

    /// Where the broker itself listens.
    pub(super) fn own(&self) -> Vec<SocketAddr> {
        let clients = self.clients.iter().map(|(_, door)| door.own);
        clients.chain([self.direct, self.brokers.own, self.controllers.own]).collect()
    }

    /// What a side's link to this broker joins: from where, to where.
    pub(super) fn ways(&self, side: Side) -> Vec<(SocketAddr, SocketAddr)> {
        let doors = match side {
            Side::Brokers => vec![self.brokers, self.controllers],
            side => vec![self.client(side)],
        };
        doors.into_iter().map(|door| (door.link, door.own)).collect()
    }
}

impl ServerPlan {
    fn new(has_link: impl Fn(Side) -> bool, ports: &mut Ports) -> Result<ServerPlan, Error> {
        let mut links = Vec::new();
        for side in Side::CLIENTS.into_iter().filter(|side| has_link(*side)) {
            links.push((side, ports.take()?));
        }
        Ok(ServerPlan { direct: ports.take()?, links })
    }

    /// Where that side finds it: past the links, if it has none.
    pub(super) fn of(&self, side: Side) -> SocketAddr {
        self.links.iter().find(|(linked, _)| *linked == side).map_or(self.direct, |(_, link)| *link)
    }
}
