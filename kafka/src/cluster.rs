use std::collections::BTreeMap;

/// How to reach a Kafka cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// `host:port` of one or more brokers, joined by commas.
    pub bootstrap: String,
    /// Properties that librdkafka is given as they are. [`RESERVED_PROPERTIES`] are not among them.
    pub properties: BTreeMap<String, String>,
}

/// Properties of librdkafka that decide whether counts are exact: this crate sets them, nobody
/// else. Under their canonical names.
pub const RESERVED_PROPERTIES: [&str; 14] = [
    "acks",
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "log.connection.close",
    "log.queue",
    "message.timeout.ms",
    "transactional.id",
];

/// The other names that librdkafka has for properties, each with the one that this crate uses. Of
/// two names in one client's settings, chance decides which wins.
const ALIASES: [(&str, &str); 10] = [
    ("auto.commit.enable", "enable.auto.commit"),
    ("compression.codec", "compression.type"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("max.in.flight.requests.per.connection", "max.in.flight"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("message.send.max.retries", "retries"),
    ("metadata.broker.list", "bootstrap.servers"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("request.required.acks", "acks"),
    ("sasl.mechanisms", "sasl.mechanism"),
];

/// The one name of a property of librdkafka that this crate uses.
pub fn canonical_property(name: &str) -> &str {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    alias.map_or(name, |(_, canonical)| canonical)
}

impl Cluster {
    /// Whether connections are neither encrypted nor authenticated.
    pub(crate) fn is_plain(&self) -> bool {
        let protocol = self.properties.get("security.protocol");
        protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case("plaintext"))
    }
}
