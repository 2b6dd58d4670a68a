use bytes::Bytes;
use tally_counts::Fingerprint;
use tally_platform::config;
use tally_platform::health::Health;
use tally_schemas::{Delta, DeltaBatchHeader, delta_batch, wire};

use super::*;

fn inserter(deltas: i64, increments: i64) -> Inserter {
    let store = config::Store::default();
    let context = InserterContext {
        client: store::client(&store),
        batches: DeltaBatches::new(&config::Registry::default(), "deltas").unwrap(),
        endpoint: Endpoint::new(&store).unwrap(),
        topic_id: String::from("deltas"),
        metrics: Metrics::new(),
        store_health: StoreHealth::new(Health::new().condition("ClickHouse takes blocks")),
    };
    let stored = StoredOffsets { deltas, increments };
    Inserter::new(context, 3, stored, 0, CancellationToken::new())
}

fn message(offset: i64, topic_id: &str, partition: i32, (from, to): (i64, i64)) -> KeptMessage {
    let header = DeltaBatchHeader {
        topic_id,
        partition,
        from,
        to,
        counted: 1,
        duplicate: 0,
        rejected: 0,
        increments: 5,
        fingerprint: Fingerprint::of_row("web", "k", 60, 1).to_bits(),
        correction: false,
    };
    let delta = Delta { namespace: "web", key: "k", bucket_s: 60, sum: 1, events: 5 };
    let mut payload = wire::prefix(1).to_vec();
    delta_batch::encode(&mut payload, &header, [delta].into_iter());
    kept(offset, Some(payload))
}

fn kept(offset: i64, payload: Option<Vec<u8>>) -> KeptMessage {
    KeptMessage {
        partition: 3,
        offset,
        timestamp_ms: Some(1_767_225_600_000),
        payload: payload.map(Bytes::from),
    }
}

/// What is said of a message by a partition that has stored up to offset 7 of deltas, 40 of
/// increments.
fn refused(message: &KeptMessage) -> String {
    inserter(7, 40).prepare(message).map(drop).unwrap_err().to_string()
}

#[test]
fn a_batch_that_follows_is_a_block_that_follows_what_is_stored() {
    let batch = inserter(7, 40).prepare(&message(9, "a", 3, (40, 44))).unwrap();
    assert_eq!(batch.offsets, BatchOffsets { previous: 7, offset: 9, logged_at_s: 1_767_225_600 });
    assert_eq!((batch.rows, batch.increments, batch.source_to), (8, 5, 44));
}

#[test]
fn the_first_batch_of_all_sets_where_the_chain_begins() {
    let batch = inserter(0, 0).prepare(&message(0, "a", 3, (900, 944))).unwrap();
    assert_eq!((batch.offsets.previous, batch.source_to), (0, 944));
}

#[test]
fn a_batch_that_does_not_follow_is_refused_with_its_offset() {
    let hole = refused(&message(9, "a", 3, (41, 44)));
    assert!(hole.contains("offset 9") && hole.contains("hole: offsets 40..41"), "{hole}");
    let overlap = refused(&message(9, "a", 3, (39, 44)));
    assert!(overlap.contains("overlap"), "{overlap}");
    assert!(refused(&message(9, "a", 4, (40, 44))).contains("of partition 4"));
    assert!(refused(&kept(9, None)).contains("offset 9 is empty"));
    assert!(refused(&kept(9, Some(b"{}".to_vec()))).contains("wire format"));
}

#[test]
fn a_source_topic_that_was_made_again_is_noticed_though_the_offsets_go_on() {
    let mut inserter = inserter(7, 40);
    inserter.prepare(&message(9, "a", 3, (40, 44))).unwrap();
    let broken = inserter.prepare(&message(9, "b", 3, (40, 44))).map(drop).unwrap_err();
    let said = broken.to_string();
    assert!(matches!(broken, PartitionError::SourceReplaced { offset: 9, .. }), "{said}");
    assert!(said.contains("of id b and not a"), "{said}");
}

#[test]
fn waits_double_up_to_the_limit_of_their_class_and_begin_again_with_another() {
    let mut row = None;
    let classes = [
        (FailureClass::Overloaded, 500, 30_000),
        (FailureClass::Uncertain, 50, 5_000),
        (FailureClass::Unfit, 2_000, 30_000),
    ];
    for (class, first_ms, longest_ms) in classes {
        let [first, longest] = [first_ms, longest_ms].map(Duration::from_millis);
        for tries in 0..40 {
            let whole = first.saturating_mul(1 << tries.min(16)).min(longest);
            let row = FailureRow::of(&mut row, class, 3);
            let wait = row.backoff.next();
            assert_eq!(row.log.failed(Instant::now()).is_some(), tries == 0);
            assert!(
                wait >= whole.mul_f64(0.75) && wait < whole.mul_f64(1.25),
                "{class:?} {tries} {wait:?}"
            );
        }
    }
}
