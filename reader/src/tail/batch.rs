//! From a message of `deltas` to a batch that is known to be sound.

use tally_counts::BatchCheck;
use tally_platform::delta_batches::DeltaBatches;
use tally_schemas::DeltaBatch;

use crate::counter::Name;
use crate::counter_memory::Broken;
use crate::window::{Arrival, Delta, Packer};

/// Reads a batch, and checks it against its own fingerprint, so that bytes of another schema never
/// count.
pub(super) fn read(
    batches: &DeltaBatches,
    partition: i32,
    offset: i64,
    payload: Option<&[u8]>,
) -> Result<Arrival, Broken> {
    let undecodable = |reason: String| Broken::Undecodable { partition, offset, reason };
    let payload = payload.ok_or_else(|| undecodable("the message has no value".to_owned()))?;
    let body = batches.body(payload).map_err(|error| undecodable(error.to_string()))?;
    let batch = DeltaBatch::decode(&body).map_err(|error| undecodable(error.to_string()))?;
    let header = batch.header;
    if header.partition != partition {
        return Err(undecodable(format!("`partition` is {}", header.partition)));
    }
    let mut packer = Packer::with_room(batch.deltas.announced(), body.len());
    let mut check = BatchCheck::default();
    for delta in batch.deltas {
        let delta = delta.map_err(|error| undecodable(error.to_string()))?;
        check.add(&delta);
        packer.push(Delta {
            name: Name::new(delta.namespace, delta.key),
            bucket_s: delta.bucket_s,
            sum: delta.sum,
            events: delta.events,
        });
    }
    check.finish(&header).map_err(|mismatch| undecodable(mismatch.to_string()))?;
    let partition = usize::try_from(partition).expect("Kafka counts partitions from 0");
    Ok(Arrival { partition, offset, from: header.from, to: header.to, deltas: packer.finish() })
}

#[cfg(test)]
mod tests {
    use tally_counts::Fingerprint;
    use tally_platform::config;
    use tally_schemas::{DeltaBatchHeader, delta_batch, wire};

    use super::*;

    fn read_one(payload: Option<&[u8]>) -> Result<Arrival, Broken> {
        let batches = DeltaBatches::new(&config::Registry::default(), "deltas").unwrap();
        read(&batches, 3, 40, payload)
    }

    fn payload(partition: i32, fingerprint: Fingerprint) -> Vec<u8> {
        let header = DeltaBatchHeader {
            topic_id: "source",
            partition,
            from: 10,
            to: 12,
            counted: 2,
            duplicate: 0,
            rejected: 0,
            increments: 2,
            fingerprint: fingerprint.to_bits(),
            correction: false,
        };
        let delta =
            |key, sum| tally_schemas::Delta { namespace: "ns", key, bucket_s: 60, sum, events: 1 };
        let mut payload = wire::prefix(7).to_vec();
        delta_batch::encode(&mut payload, &header, [delta("a", 5), delta("b", -2)].into_iter());
        payload
    }

    fn fingerprint() -> Fingerprint {
        Fingerprint::of_row("ns", "a", 60, 5) + Fingerprint::of_row("ns", "b", 60, -2)
    }

    fn reason(read: Result<Arrival, Broken>) -> String {
        match read {
            Err(Broken::Undecodable { partition: 3, offset: 40, reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let arrival = read_one(Some(&payload(3, fingerprint()))).unwrap();
        assert_eq!((arrival.partition, arrival.offset, arrival.from, arrival.to), (3, 40, 10, 12));
        let sums: Vec<_> =
            arrival.deltas.iter().map(|delta| (delta.name.key(), delta.sum)).collect();
        assert_eq!(sums, [("a", 5), ("b", -2)]);
    }

    #[test]
    fn what_is_not_a_batch_of_its_partition_is_named() {
        assert_eq!(reason(read_one(None)), "the message has no value");
        assert!(reason(read_one(Some(b"{}"))).contains("magic byte"));
        assert_eq!(reason(read_one(Some(&payload(4, fingerprint())))), "`partition` is 4");
        let cut = payload(3, fingerprint());
        assert!(reason(read_one(Some(&cut[..cut.len() - 3]))).contains("deltas[1]"));
        assert!(reason(read_one(Some(&payload(3, Fingerprint::ZERO)))).contains("`fingerprint`"));
    }
}
