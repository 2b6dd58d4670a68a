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
/// else.
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
    "request.required.acks",
    "transactional.id",
];

impl Cluster {
    /// Whether connections are neither encrypted nor authenticated.
    pub(crate) fn is_plain(&self) -> bool {
        let protocol = self.properties.get("security.protocol");
        protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case("plaintext"))
    }
}
