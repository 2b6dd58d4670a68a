use std::fmt;

use indicatif::HumanCount;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    pub increments: u64,
    pub messages: u64,
    /// Bytes of their bodies and prefixes, before compression.
    pub bytes: u64,
    /// Increments in messages that Kafka acknowledged, and in those that it did not take.
    pub acknowledged: u64,
    pub failed: u64,
    /// The time from the first send to the last, and to the last acknowledgement.
    pub sending_seconds: f64,
    pub seconds: f64,
    /// The sum of all increments' deltas.
    pub total: i64,
    /// The fingerprint of everything that was sent, in hexadecimal: what the stored fingerprints
    /// come to, added up.
    pub checksum: String,
    /// Increments sent to each partition.
    pub partitions: Vec<u64>,
}

impl Summary {
    /// Increments acknowledged a second.
    pub fn per_second(&self) -> f64 {
        self.acknowledged as f64 / self.seconds.max(1e-9)
    }

    /// Increments sent a second, without the wait for the last acknowledgements.
    pub fn sent_per_second(&self) -> f64 {
        self.increments as f64 / self.sending_seconds.max(1e-9)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.partitions.iter().map(|count| HumanCount(*count).to_string());
        writeln!(
            f,
            "sent          {} increments in {} messages, {} bytes",
            HumanCount(self.increments),
            HumanCount(self.messages),
            HumanCount(self.bytes)
        )?;
        writeln!(f, "acknowledged  {}", HumanCount(self.acknowledged))?;
        if self.failed > 0 {
            writeln!(f, "NOT TAKEN     {}", HumanCount(self.failed))?;
        }
        writeln!(
            f,
            "rate          {} a second, {:.1} s",
            HumanCount(self.per_second() as u64),
            self.seconds
        )?;
        writeln!(f, "partitions    {}", each.collect::<Vec<_>>().join(" "))?;
        writeln!(f, "total         {}", self.total)?;
        write!(f, "checksum      {}", self.checksum)
    }
}
