use tally_schemas::{Delta, DeltaBatchHeader};

use crate::{Fingerprint, FingerprintSum};

/// Checks that the deltas of a batch are those that its header was written for: damage, and writers
/// that do not count, are found before a batch goes any further.
#[derive(Default)]
pub struct BatchCheck {
    fingerprint: FingerprintSum,
    events: i128,
}

/// The header of a batch says something else than its deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchMismatch {
    #[error("`fingerprint` is {said}, but the deltas' is {found}")]
    Fingerprint { said: Fingerprint, found: Fingerprint },
    #[error("`increments` is {said}, but the deltas' events come to {found}")]
    Events { said: u64, found: i128 },
}

impl BatchCheck {
    #[inline]
    pub fn add(&mut self, delta: &Delta<'_>) {
        let Delta { namespace, key, bucket_s, sum, events } = *delta;
        self.fingerprint.add(namespace, key, bucket_s, sum);
        self.events += i128::from(events);
    }

    /// Compares all that were added with the header, and begins anew.
    pub fn finish(&mut self, header: &DeltaBatchHeader<'_>) -> Result<(), BatchMismatch> {
        let (found, events) = (self.fingerprint.take(), std::mem::take(&mut self.events));
        if found.to_bits() != header.fingerprint {
            let said = Fingerprint::from_bits(header.fingerprint);
            return Err(BatchMismatch::Fingerprint { said, found });
        }
        if events != i128::from(header.increments) {
            return Err(BatchMismatch::Events { said: header.increments, found: events });
        }
        Ok(())
    }
}
