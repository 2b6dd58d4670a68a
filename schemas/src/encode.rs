//! Writes the bodies of `tally.Increment` and `tally.IncrementBatch`, by the schemas in
//! [`crate::avsc`].
//!
//! ```text
//!  Increment ──► BatchEncoder::push ──► items, one after the other ──► finish(id) ──► body
//!  Increment ──► increment ──► body
//! ```

use crate::{Increment, varint};

/// Appends the body of one `tally.Increment`.
#[inline]
pub fn increment(out: &mut Vec<u8>, increment: &Increment<'_>) {
    text(out, increment.namespace);
    text(out, increment.key);
    varint::write(out, increment.delta);
    varint::write(out, increment.at_ms);
    optional_text(out, increment.id);
}

/// Gathers increments and writes them as one `tally.IncrementBatch`. It keeps its buffer from batch
/// to batch.
#[derive(Debug, Default)]
pub struct BatchEncoder {
    items: Vec<u8>,
    count: usize,
}

impl BatchEncoder {
    pub fn new() -> BatchEncoder {
        BatchEncoder::default()
    }

    #[inline]
    pub fn push(&mut self, item: &Increment<'_>) {
        increment(&mut self.items, item);
        self.count += 1;
    }

    /// Increments gathered since the last batch.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What the gathered increments take in the body, in bytes.
    pub fn bytes(&self) -> usize {
        self.items.len()
    }

    /// Appends the batch's body to `out` and starts the next batch.
    pub fn finish(&mut self, out: &mut Vec<u8>, id: Option<&str>) {
        out.reserve(self.items.len() + id.map_or(0, str::len) + 16);
        optional_text(out, id);
        if self.count > 0 {
            varint::write(out, self.count as i64);
            out.extend_from_slice(&self.items);
        }
        varint::write(out, 0);
        self.items.clear();
        self.count = 0;
    }
}

#[inline]
pub(crate) fn text(out: &mut Vec<u8>, text: &str) {
    varint::write(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

#[inline]
fn optional_text(out: &mut Vec<u8>, optional: Option<&str>) {
    match optional {
        None => out.push(0),
        Some(given) => {
            // Branch 1 of ["null", "string"].
            out.push(2);
            text(out, given);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Message, Plan, avsc};

    fn hit(key: &str) -> Increment<'_> {
        Increment { namespace: "web", key, delta: 1, at_ms: 1_700_000_000_000, id: None }
    }

    #[test]
    fn an_encoder_starts_afresh_after_each_batch() {
        let plan = Plan::new(avsc::INCREMENT_BATCH).unwrap();
        let mut encoder = BatchEncoder::new();
        for (keys, id) in [(&["a", "b"][..], Some("first")), (&[], None), (&["c"], None)] {
            for key in keys {
                encoder.push(&hit(key));
            }
            assert_eq!(encoder.count(), keys.len());
            let mut body = Vec::new();
            encoder.finish(&mut body, id);

            let mut seen = Vec::new();
            let message = plan.decode_into(&body, &mut seen).unwrap();
            assert_eq!(message, Message { id, increments: keys.len() as u64 });
            assert_eq!(seen, keys.iter().map(|key| hit(key)).collect::<Vec<_>>());
        }
    }
}
