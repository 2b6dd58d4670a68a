//! The configuration of one of several brokers, each a controller too.

use std::fmt::Write as _;

use super::address_plan::{AddressPlan, BrokerPlan};

/// What the internal topics have, each.
pub(super) const INTERNAL_PARTITIONS: i32 = 8;

/// A broker that is lost is found out in seconds, so that a run of minutes holds many faults.
const SETTINGS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("controller.listener.names", "CONTROLLERS"),
    ("inter.broker.listener.name", "BROKERS"),
    ("log.dirs", "data"),
    ("auto.create.topics.enable", "false"),
    ("unclean.leader.election.enable", "false"),
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.num.partitions", "8"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.num.partitions", "8"),
    ("transaction.state.log.replication.factor", "3"),
    ("transaction.state.log.min.isr", "2"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "3"),
    ("share.coordinator.state.topic.min.isr", "2"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "2000"),
    // Between brokers.
    ("broker.heartbeat.interval.ms", "500"),
    // One that was killed is let in again only when its last session has ended.
    ("broker.session.timeout.ms", "4000"),
    ("replica.lag.time.max.ms", "5000"),
    ("replica.fetch.backoff.ms", "200"),
    ("replica.socket.timeout.ms", "5000"),
    ("controller.quorum.election.timeout.ms", "1000"),
    ("controller.quorum.fetch.timeout.ms", "2000"),
    ("controller.quorum.request.timeout.ms", "2000"),
    ("controller.socket.timeout.ms", "5000"),
    ("controlled.shutdown.retry.backoff.ms", "500"),
    ("leader.imbalance.check.interval.seconds", "10"),
    // Three brokers share a machine, and each has eight listeners.
    ("num.network.threads", "1"),
    ("num.io.threads", "4"),
    ("background.threads", "2"),
    ("num.recovery.threads.per.data.dir", "1"),
    ("log.cleaner.dedupe.buffer.size", "16777216"),
];

/// Brokers are numbered from zero, Kafka's nodes from one.
pub(super) fn node(broker: usize) -> i32 {
    i32::try_from(broker).expect("brokers are few") + 1
}

pub(super) fn properties(plan: &AddressPlan, broker: usize) -> String {
    let BrokerPlan { direct, clients, brokers, controllers } = &plan.brokers[broker];
    let mut listeners = vec![format!("DIRECT://{direct}"), format!("BROKERS://{}", brokers.own)];
    let mut advertised = vec![format!("DIRECT://{direct}"), format!("BROKERS://{}", brokers.link)];
    for (caller, listener) in clients {
        let name = caller.to_string().to_uppercase();
        listeners.push(format!("{name}://{}", listener.own));
        advertised.push(format!("{name}://{}", listener.link));
    }
    listeners.push(format!("CONTROLLERS://{}", controllers.own));
    advertised.push(format!("CONTROLLERS://{}", controllers.link));
    let protocols: Vec<_> = listeners
        .iter()
        .map(|listener| listener.split(':').next().expect("a listener has a name"))
        .map(|name| format!("{name}:PLAINTEXT"))
        .collect();
    let voters: Vec<_> = plan
        .brokers
        .iter()
        .enumerate()
        .map(|(other, plan)| format!("{}@{}", node(other), plan.controllers.link))
        .collect();

    let mut text = format!("node.id={}\n", node(broker));
    for (key, value) in SETTINGS {
        writeln!(text, "{key}={value}").expect("a String takes everything");
    }
    for (key, values) in [
        ("listeners", listeners),
        ("advertised.listeners", advertised),
        ("listener.security.protocol.map", protocols),
        ("controller.quorum.voters", voters),
    ] {
        writeln!(text, "{key}={}", values.join(",")).expect("a String takes everything");
    }
    text
}
