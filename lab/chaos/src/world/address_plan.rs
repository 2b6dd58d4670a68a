//! Who listens where, laid out before anything starts.
//!
//! A Kafka client goes where a broker's metadata says, so each caller has a listener of its own at
//! each broker, and that listener is advertised at the port of its link:
//!
//! ```text
//! sinks ──► link (advertised) ──► listener SINKS ─┐
//! load  ──► link (advertised) ──► listener LOAD ──┼─ broker
//! audit ─────────────────────────► listener DIRECT ┘
//! ```

use std::net::SocketAddr;

use super::Caller;
use super::ports::Ports;

/// Where something listens, and the port of the link that leads there.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkedListener {
    pub(super) link: SocketAddr,
    pub(super) own: SocketAddr,
}

impl LinkedListener {
    fn new(ports: &mut Ports) -> anyhow::Result<LinkedListener> {
        Ok(LinkedListener { link: ports.take()?, own: ports.take()? })
    }
}

#[derive(Clone, Debug)]
pub(super) struct BrokerPlan {
    /// Where the auditor and tools reach it, past every link.
    pub(super) direct: SocketAddr,
    pub(super) clients: Vec<(Caller, LinkedListener)>,
    pub(super) brokers: LinkedListener,
    pub(super) controllers: LinkedListener,
}

/// A server that every caller reaches at the same port of its own.
#[derive(Clone, Debug)]
pub(super) struct ServerPlan {
    pub(super) direct: SocketAddr,
    pub(super) links: Vec<(Caller, SocketAddr)>,
}

#[derive(Clone, Debug)]
pub(super) struct AddressPlan {
    pub(super) brokers: Vec<BrokerPlan>,
    pub(super) registry: ServerPlan,
    pub(super) store: ServerPlan,
}

impl AddressPlan {
    pub(super) fn new(brokers: usize, ports: &mut Ports) -> anyhow::Result<AddressPlan> {
        Ok(AddressPlan {
            brokers: (0..brokers).map(|_| BrokerPlan::new(ports)).collect::<Result<_, _>>()?,
            registry: ServerPlan::new(&Caller::OF_REGISTRY, ports)?,
            store: ServerPlan::new(&Caller::OF_STORE, ports)?,
        })
    }

    /// Kafka's `bootstrap.servers` of one caller.
    pub(super) fn bootstrap(&self, caller: Caller) -> String {
        let listener = self.brokers.iter().map(|broker| match caller {
            Caller::Brokers => broker.brokers.link,
            caller => broker.client(caller).link,
        });
        joined(listener)
    }

    pub(super) fn direct_bootstrap(&self) -> String {
        joined(self.brokers.iter().map(|broker| broker.direct))
    }
}

fn joined(addresses: impl Iterator<Item = SocketAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(",")
}

impl BrokerPlan {
    fn new(ports: &mut Ports) -> anyhow::Result<BrokerPlan> {
        let clients = Caller::CLIENTS.map(|caller| Ok((caller, LinkedListener::new(ports)?)));
        Ok(BrokerPlan {
            direct: ports.take()?,
            clients: clients.into_iter().collect::<anyhow::Result<_>>()?,
            brokers: LinkedListener::new(ports)?,
            controllers: LinkedListener::new(ports)?,
        })
    }

    fn client(&self, caller: Caller) -> LinkedListener {
        let (_, listener) = self
            .clients
            .iter()
            .find(|(client, _)| *client == caller)
            .expect("every client has a listener");
        *listener
    }

    /// Where the broker itself listens.
    pub(super) fn own(&self) -> Vec<SocketAddr> {
        let clients = self.clients.iter().map(|(_, listener)| listener.own);
        clients.chain([self.direct, self.brokers.own, self.controllers.own]).collect()
    }

    /// What a caller's link to this broker joins: from where, to where.
    pub(super) fn ways(&self, caller: Caller) -> Vec<(SocketAddr, SocketAddr)> {
        let listener = match caller {
            Caller::Brokers => vec![self.brokers, self.controllers],
            caller => vec![self.client(caller)],
        };
        listener.into_iter().map(|listener| (listener.link, listener.own)).collect()
    }
}

impl ServerPlan {
    fn new(callers: &[Caller], ports: &mut Ports) -> anyhow::Result<ServerPlan> {
        let links = callers.iter().map(|caller| Ok((*caller, ports.take()?)));
        let links = links.collect::<anyhow::Result<_>>()?;
        Ok(ServerPlan { direct: ports.take()?, links })
    }

    /// Where that caller finds it: past the links, if it has none.
    pub(super) fn of(&self, caller: Caller) -> SocketAddr {
        self.links
            .iter()
            .find(|(linked, _)| *linked == caller)
            .map_or(self.direct, |(_, link)| *link)
    }
}
