//! Batches that another implementation encoded, read back; cut off, damaged, aborted.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::{
    Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::inflated_bytes::InflatedBytes;
use super::record_batches::{AbortedTransaction, BatchesEnd, RecordBatches, Room, end};
use super::records::Damage;
use super::shared::Shared;
use super::{DirectFetcher, FetchedRange, PartitionFetch, inflated_bytes};
use crate::Unfit;
use crate::buffer_pool::BufferPool;

const BASE: i64 = 1_000;
const EPOCH: i32 = 7;
const NO_PRODUCER: i64 = -1;

/// What a reader is to get of a record.
type Read = (i64, Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>);

fn record(offset: i64, key: Option<&[u8]>, value: Option<&[u8]>) -> Record {
    Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: EPOCH,
        producer_id: NO_PRODUCER,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset,
        sequence: i32::try_from(offset).unwrap(),
        timestamp: 1_780_000_000_000 + offset,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: [(StrBytes::from_static_str("h"), Some(Bytes::from_static(b"header")))]
            .into_iter()
            .collect(),
    }
}

/// One batch, as a transaction's message or marker where it says so.
fn encoded(records: &[Record], compression: Compression, xerial: bool) -> Bytes {
    let compress = |from: &mut BytesMut, into: &mut BytesMut, compression| {
        into.extend_from_slice(&compressed(from, compression, xerial));
        Ok(())
    };
    let mut batch = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression };
    RecordBatchEncoder::encode_with_custom_compression(
        &mut batch,
        records,
        &options,
        Some(compress),
    )
    .unwrap();
    batch.freeze()
}

fn compressed(from: &[u8], compression: Compression, xerial: bool) -> Vec<u8> {
    match compression {
        Compression::None => from.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(from).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Snappy if xerial => {
            let mut framed = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
            for block in from.chunks(100) {
                let block = snap::raw::Encoder::new().compress_vec(block).unwrap();
                framed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes());
                framed.extend_from_slice(&block);
            }
            framed
        }
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(from).unwrap(),
        Compression::Lz4 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(from).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(from, 0).unwrap(),
    }
}

/// Room for all there is.
const ROOM: Room = Room { expected: 0, at_once: usize::MAX };

fn open(records: Bytes, from: i64, aborted: &[AbortedTransaction], room: Room) -> RecordBatches {
    RecordBatches::open(records, from, aborted.to_vec(), &BufferPool::new(0), room)
}

fn read(records: &Bytes, from: i64, aborted: &[AbortedTransaction]) -> Result<Vec<Read>, Damage> {
    read_within(ROOM, records, from, aborted)
}

fn read_within(
    room: Room,
    records: &Bytes,
    from: i64,
    aborted: &[AbortedTransaction],
) -> Result<Vec<Read>, Damage> {
    let mut batches = open(records.clone(), from, aborted, room);
    let mut all = Vec::new();
    while let Some(message) = batches.next().map_err(|(_, damage)| damage)? {
        let body = batches.body();
        let part = |range: Option<std::ops::Range<usize>>| range.map(|range| body[range].to_vec());
        all.push((message.offset, message.timestamp_ms, part(message.key), part(message.value)));
    }
    Ok(all)
}

fn offsets(records: &Bytes, from: i64, aborted: &[AbortedTransaction]) -> Vec<i64> {
    read(records, from, aborted).unwrap().into_iter().map(|(offset, ..)| offset).collect()
}

fn expected(record: &Record) -> Read {
    let bytes = |part: &Option<Bytes>| part.as_ref().map(|part| part.to_vec());
    (record.offset, Some(record.timestamp), bytes(&record.key), bytes(&record.value))
}

fn any_batch() -> impl Strategy<Value = Vec<Record>> {
    let part = || option::of(vec(any::<u8>(), 0..200));
    vec((part(), part()), 1..40).prop_map(|parts| {
        let numbered = (BASE..).zip(parts);
        numbered
            .map(|(offset, (key, value))| record(offset, key.as_deref(), value.as_deref()))
            .collect()
    })
}

fn any_compression() -> impl Strategy<Value = (Compression, bool)> {
    use Compression::{Gzip, Lz4, None, Snappy, Zstd};
    let plain = [None, Gzip, Snappy, Lz4, Zstd].map(|compression| (compression, false));
    proptest::sample::select([&plain[..], &[(Snappy, true)]].concat())
}

/// Three messages and, where it says so, a gap between their offsets, in a batch of some kilobytes
/// that is more than what one may be.
fn bomb(last: i64) -> Bytes {
    let long = vec![0; 100 << 20];
    let records = [BASE, BASE + 1, last].map(|offset| record(offset, None, Some(&long)));
    encoded(&records, Compression::Zstd, false)
}

#[test]
fn a_batch_that_is_too_large_once_it_is_decompressed_is_left_out_and_those_around_it_are_read() {
    let good = |offset| encoded(&[record(offset, None, Some(b"good"))], Compression::Lz4, false);
    let sent = Bytes::from([good(BASE - 1), bomb(BASE + 2), good(BASE + 3)].concat());
    assert!(sent.len() < 1 << 20);
    for from in [BASE - 1, BASE + 1] {
        let mut batches = open(sent.clone(), from, &[], Room { expected: 0, at_once: 1 << 20 });
        let mut all = Vec::new();
        while let Some(message) = batches.next().unwrap() {
            let is_left_out = message.unfit == Some(Unfit::BatchTooLarge);
            assert_eq!(message.value.is_none(), is_left_out);
            assert_eq!(message.key, None);
            all.push((message.offset, is_left_out));
        }
        let expected = [BASE - 1, BASE, BASE + 1, BASE + 2, BASE + 3]
            .map(|offset| (offset, (BASE..BASE + 3).contains(&offset)));
        assert_eq!(all, expected[(from - BASE + 1) as usize..]);
    }
}

#[test]
fn a_batch_that_is_too_large_and_has_gaps_is_damage() {
    let read = open(bomb(BASE + 5), BASE, &[], ROOM).next();
    assert_eq!(read, Err((BASE, Damage::Sparse(3))));
}

proptest! {
    #[test]
    fn what_another_implementation_encodes_is_read(
        records in any_batch(),
        (compression, xerial) in any_compression(),
    ) {
        let batch = encoded(&records, compression, xerial);
        let all: Vec<Read> = records.iter().map(expected).collect();
        prop_assert_eq!(read(&batch, BASE, &[]), Ok(all.clone()));
        let next = BASE + records.len() as i64;
        let all_of_it =
            BatchesEnd { next, leader_epoch: EPOCH, last_batch_bytes: batch.len() };
        prop_assert_eq!(end(&batch), Ok(Some(all_of_it)));
        // From the middle of a batch on.
        let middle = records.len() / 2;
        prop_assert_eq!(read(&batch, BASE + middle as i64, &[]), Ok(all[middle..].to_vec()));
    }

    #[test]
    fn batches_that_have_no_room_at_once_are_read_one_by_one(
        parts in vec((any_batch(), any_compression()), 1..5),
        at_once in 0..20_000_usize,
        from in 0..80_i64,
    ) {
        let (mut batches, mut next) = (Vec::new(), BASE);
        for (mut records, (compression, xerial)) in parts {
            for record in &mut records {
                record.offset = next;
                record.sequence = i32::try_from(next).unwrap();
                next += 1;
            }
            batches.extend_from_slice(&encoded(&records, compression, xerial));
        }
        let (batches, from) = (Bytes::from(batches), BASE + from);
        let room = Room { expected: 0, at_once };
        prop_assert_eq!(read_within(room, &batches, from, &[]), read(&batches, from, &[]));
        let mut packed = open(batches.clone(), from, &[], room);
        let mut offsets = Vec::new();
        while let Some(message) = packed.next().unwrap() {
            offsets.push(message.offset);
            packed.pack();
            prop_assert!(packed.unpacked_bytes() == 0);
        }
        prop_assert_eq!(offsets, self::offsets(&batches, from, &[]));
        let mut at_once = open(batches, from, &[], room);
        let before = at_once.bytes();
        while at_once.next().unwrap().is_some() {}
        prop_assert_eq!(at_once.bytes(), before, "what is unread is accounted for alike");
    }

    #[test]
    fn a_batch_that_is_cut_off_is_not_there(
        records in any_batch(),
        (compression, _) in any_compression(),
        at in any::<prop::sample::Index>(),
    ) {
        let [first, second] = [(); 2].map(|()| encoded(&records, compression, false));
        let both = Bytes::from([&first[..], &second[..]].concat());
        let cut = both.slice(..at.index(both.len()));
        let whole = cut.len() / first.len() * records.len();
        prop_assert_eq!(read(&cut, BASE, &[]).map(|read| read.len()), Ok(whole));
        prop_assert_eq!(end(&cut).map(|end| end.is_some()), Ok(whole > 0));
    }

    /// Up to the checksum a batch has nothing but its offset, its length, its leader's epoch and
    /// its format.
    #[test]
    fn no_changed_bit_goes_unseen(
        records in any_batch(),
        (compression, _) in any_compression(),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let batch = encoded(&records, compression, false);
        let mut changed = batch.to_vec();
        let at = at.index(batch.len());
        changed[at] ^= 1_u8 << bit;
        let got = read(&Bytes::from(changed), BASE, &[]);
        if at >= 17 {
            prop_assert!(matches!(got, Err(Damage::Checksum { .. })), "{got:?}");
        } else if at == 16 {
            prop_assert!(matches!(got, Err(Damage::Format(_))), "{got:?}");
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..300), codec in 0_u8..8) {
        let records = [record(BASE, None, Some(&bytes))];
        let mut batch = encoded(&records, Compression::None, false).to_vec();
        // Bytes of no meaning where the records are, with a checksum that is right.
        batch.truncate(61);
        batch.extend_from_slice(&bytes);
        batch[22] = codec;
        let length = i32::try_from(batch.len() - 12).unwrap();
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        let checksum = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&checksum.to_be_bytes());
        // Whatever it says, it ends.
        let _ = read(&Bytes::from(batch), 0, &[]);
    }
}

fn transactional(producer_id: i64, offset: i64) -> Bytes {
    let record =
        Record { transactional: true, producer_id, ..record(offset, None, Some(b"value")) };
    encoded(&[record], Compression::Lz4, false)
}

fn marker(producer_id: i64, offset: i64, commits: bool) -> Bytes {
    let key = [0, 0, 0, u8::from(commits)];
    let record = Record {
        transactional: true,
        control: true,
        producer_id,
        ..record(offset, Some(&key), Some(b"\0\0"))
    };
    encoded(&[record], Compression::None, false)
}

#[test]
fn what_was_aborted_is_passed_over_up_to_its_marker() {
    let log = [
        // Of a transaction that began before what was asked for.
        transactional(1, 10),
        transactional(2, 11),
        encoded(&[record(12, None, None)], Compression::None, false),
        marker(1, 13, false),
        // The next one of the same producer is committed, the one after that not.
        transactional(1, 14),
        marker(2, 15, true),
        marker(1, 16, true),
        transactional(1, 17),
        transactional(2, 18),
        marker(1, 19, false),
        marker(2, 20, true),
        transactional(1, 21),
    ];
    let last = log.last().map_or(0, Bytes::len);
    let log = Bytes::from(log.concat());
    let aborted = [(17, 1), (4, 1)]
        .map(|(first_offset, producer_id)| AbortedTransaction { first_offset, producer_id });
    assert_eq!(offsets(&log, 10, &aborted), [11, 12, 14, 18, 21]);
    assert_eq!(offsets(&log, 10, &[]), [10, 11, 12, 14, 17, 18, 21]);
    assert_eq!(
        end(&log),
        Ok(Some(BatchesEnd { next: 22, leader_epoch: EPOCH, last_batch_bytes: last }))
    );
}

#[test]
fn a_message_outside_of_transactions_is_not_aborted_with_its_producers_transaction() {
    let plain = Record { producer_id: 1, ..record(11, None, None) };
    let log =
        [transactional(1, 10), encoded(&[plain], Compression::None, false), marker(1, 12, false)];
    let aborted = [AbortedTransaction { first_offset: 10, producer_id: 1 }];
    assert_eq!(offsets(&Bytes::from(log.concat()), 10, &aborted), [11]);
}

#[test]
fn times_are_the_brokers_where_the_topic_is_kept_so_and_absent_where_nobody_gave_one() {
    let mut appended =
        encoded(&[record(5, None, None), record(6, None, None)], Compression::None, false).to_vec();
    appended[22] |= 1 << 3;
    let checksum = crc32c::crc32c(&appended[21..]);
    appended[17..21].copy_from_slice(&checksum.to_be_bytes());
    let times: Vec<_> = read(&Bytes::from(appended), 0, &[])
        .unwrap()
        .into_iter()
        .map(|(_, timestamp_ms, ..)| timestamp_ms)
        .collect();
    assert_eq!(times, [Some(1_780_000_000_006); 2]);
    let untimed = Record { timestamp: -1, ..record(5, None, None) };
    assert_eq!(read(&encoded(&[untimed], Compression::None, false), 0, &[]).unwrap()[0].1, None);
}

#[test]
fn damage_is_named_and_its_batch_too() {
    let good = encoded(&[record(5, None, Some(b"value"))], Compression::None, false);
    let mut bad = encoded(&[record(6, None, Some(b"value"))], Compression::None, false).to_vec();
    *bad.last_mut().unwrap() ^= 1;
    let both = Bytes::from([&good[..], &bad[..]].concat());
    let mut batches = open(both, 5, &[], ROOM);
    // What comes before it is read.
    assert_eq!(batches.next().unwrap().unwrap().offset, 5);
    let (offset, damage) = batches.next().unwrap_err();
    assert_eq!(offset, 6);
    assert!(damage.to_string().starts_with("the batch's checksum is "), "{damage}");

    let mut old = good.to_vec();
    old[16] = 1;
    assert_eq!(read(&Bytes::from(old), 0, &[]), Err(Damage::Format(1)));
}

fn direct() -> (DirectFetcher, Sender<PartitionFetch>) {
    let (sender, partition_fetches) = channel();
    let shared = Shared::new("increments", uuid::Uuid::nil(), "test", sender.clone());
    (
        DirectFetcher {
            shared,
            partition_fetches,
            current: None,
            runs: BTreeMap::new(),
            turn: 0,
            last_run: 0,
            leaders: None,
        },
        sender,
    )
}

/// Messages of these offsets, as a broker's fetcher hands them over.
fn fetch_of(direct: &DirectFetcher, partition: i32, offsets: Range<i64>) -> PartitionFetch {
    let records: Vec<_> = offsets.clone().map(|at| record(at, None, Some(b"value"))).collect();
    let sent = encoded(&records, Compression::None, false);
    let batches = open(sent, offsets.start, &[], ROOM);
    direct.shared.unread.add(batches.bytes());
    let content = Ok(FetchedRange { from: offsets.start, next: offsets.end, batches });
    PartitionFetch { partition, run: direct.runs[&partition].run, content }
}

fn next_offset(direct: &mut DirectFetcher) -> Option<i64> {
    direct.fetch_to_keep().map(|fetched| fetched.unwrap().offset)
}

#[test]
fn what_was_fetched_out_of_turn_is_dropped_and_asked_for_again() {
    let (mut direct, sender) = direct();
    direct.start(&[(0, BASE)]);
    sender.send(fetch_of(&direct, 0, BASE..BASE + 2)).unwrap();
    sender.send(fetch_of(&direct, 0, BASE + 3..BASE + 4)).unwrap();
    // From the broker that was too late.
    sender.send(fetch_of(&direct, 0, BASE + 2..BASE + 3)).unwrap();
    assert_eq!([(); 3].map(|()| next_offset(&mut direct)), [Some(BASE), Some(BASE + 1), None]);
    let asked = direct.shared.lock().partitions[&0];
    assert_eq!((asked.run, asked.next), (direct.runs[&0].run, BASE + 2));
    sender.send(fetch_of(&direct, 0, BASE + 2..BASE + 4)).unwrap();
    assert_eq!([(); 3].map(|()| next_offset(&mut direct)), [Some(BASE + 2), Some(BASE + 3), None]);
}

#[test]
fn more_of_a_resumed_partition_is_asked_for_once_what_had_come_is_read() {
    let (mut direct, sender) = direct();
    direct.start(&[(0, BASE)]);
    let is_asked_for = |direct: &DirectFetcher| !direct.shared.lock().partitions[&0].is_paused;
    for at in BASE..BASE + 3 {
        sender.send(fetch_of(&direct, 0, at..at + 1)).unwrap();
    }
    assert_eq!(next_offset(&mut direct), Some(BASE));
    direct.pause(0);
    assert_eq!(next_offset(&mut direct), None);
    direct.resume(0);
    assert!(!is_asked_for(&direct));
    assert_eq!(next_offset(&mut direct), Some(BASE + 1));
    assert!(!is_asked_for(&direct));
    assert_eq!(next_offset(&mut direct), Some(BASE + 2));
    assert!(is_asked_for(&direct));
}

#[test]
fn with_short_turns_no_more_of_a_partition_is_asked_for_until_what_waits_of_it_is_read() {
    let (mut direct, sender) = direct();
    direct.start(&[(0, BASE), (1, BASE), (2, BASE)]);
    for partition in 0..2 {
        for at in [BASE, BASE + 2] {
            sender.send(fetch_of(&direct, partition, at..at + 2)).unwrap();
        }
    }
    let mut read = Vec::new();
    while let Some(message) = direct.fetch_to_keep() {
        let message = message.unwrap();
        read.push((message.partition, message.offset - BASE));
        direct.short_turns(true);
        let state = direct.shared.lock();
        for (partition, reader) in &direct.runs {
            assert_eq!(state.partitions[partition].is_paused, !reader.waiting.is_empty());
        }
    }
    let in_turn = (0..4).flat_map(|at| [(0, at), (1, at)]);
    assert_eq!(read, in_turn.collect::<Vec<_>>());
}

/// Else each partition that waits could hold as much as the largest batch.
#[test]
fn while_others_are_read_nothing_is_kept_that_was_decompressed_by_itself() {
    const NO_ROOM: Room = Room { expected: 0, at_once: 0 };
    for pauses in [false, true] {
        let (mut direct, sender) = direct();
        direct.start(&[(0, BASE), (1, BASE)]);
        for partition in 0..2 {
            let records: Vec<_> =
                [BASE, BASE + 1].map(|at| record(at, None, Some(b"value"))).into();
            let sent = encoded(&records, Compression::Lz4, false);
            let mut fetch = fetch_of(&direct, partition, BASE..BASE + 2);
            let batches = open(sent, BASE, &[], NO_ROOM);
            fetch.content = Ok(FetchedRange { from: BASE, next: BASE + 2, batches });
            sender.send(fetch).unwrap();
        }
        let mut read = Vec::new();
        while let Some(message) = direct.fetch_to_keep() {
            let message = message.unwrap();
            read.push((message.partition, message.offset - BASE));
            if pauses {
                direct.pause(message.partition);
                direct.resume(message.partition);
            } else {
                direct.short_turns(true);
            }
            assert!(direct.current.is_none());
            for batches in direct.runs.values().flat_map(|reader| &reader.waiting) {
                assert_eq!(batches.as_ref().unwrap().unpacked_bytes(), 0);
            }
        }
        read.sort_unstable();
        assert_eq!(read, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }
}

#[test]
fn the_more_is_decompressed_and_not_read_the_less_is_decompressed_ahead() {
    let inflated = InflatedBytes::default();
    let long = vec![0; 25 << 20];
    let sent = encoded(&[record(BASE, None, Some(&long))], Compression::Lz4, false);
    let mut waiting = Vec::new();
    for number in 0..4 {
        let room = Room { expected: 0, at_once: inflated.room() };
        let mut batches = open(sent.clone(), BASE, &[], room);
        batches.hold(&inflated);
        let is_ahead = batches.inflated_bytes() > 0;
        assert_eq!(is_ahead, number < 2, "number {number}: there is room for two");
        waiting.push(batches);
    }
    for batches in &mut waiting {
        assert_eq!(batches.next().unwrap().unwrap().value.unwrap().len(), long.len());
    }
    waiting.clear();
    assert_eq!(inflated.room(), inflated_bytes::MOST);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many messages of a partition come.
    Come(i32, u8),
    Pause(i32),
    Resume(i32),
    /// It is read again from where its reader is.
    Start(i32),
    Fetch,
    EndTurn,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3, 1..5_u8).prop_map(|(partition, messages)| Step::Come(partition, messages)),
        (0..3).prop_map(Step::Pause),
        (0..3).prop_map(Step::Resume),
        (0..3).prop_map(Step::Start),
        Just(Step::EndTurn),
        Just(Step::Fetch),
        Just(Step::Fetch),
        Just(Step::Fetch),
    ]
}

/// Where the reader of a partition is, and where what comes of it begins.
#[derive(Clone, Copy, Debug)]
struct Reader {
    next: i64,
    coming: i64,
    is_paused: bool,
}

proptest! {
    #[test]
    fn each_partition_comes_in_order_and_not_while_it_is_paused(steps in vec(any_step(), 0..200)) {
        let (mut direct, sender) = direct();
        let mut runs = [Reader { next: BASE, coming: BASE, is_paused: false }; 3];
        direct.start(&[(0, BASE), (1, BASE), (2, BASE)]);
        let resumes = (0..3).map(Step::Resume);
        for step in steps.into_iter().chain(resumes).chain([Step::Fetch; 1000]) {
            match step {
                Step::Come(partition, messages) => {
                    let reader = &mut runs[partition as usize];
                    let from = reader.coming;
                    reader.coming += i64::from(messages);
                    sender.send(fetch_of(&direct, partition, from..reader.coming)).unwrap();
                }
                Step::Pause(partition) => {
                    direct.pause(partition);
                    runs[partition as usize].is_paused = true;
                }
                Step::Resume(partition) => {
                    direct.resume(partition);
                    runs[partition as usize].is_paused = false;
                }
                Step::Start(partition) => {
                    let reader = &mut runs[partition as usize];
                    direct.start(&[(partition, reader.next)]);
                    (reader.coming, reader.is_paused) = (reader.next, false);
                }
                Step::EndTurn => direct.short_turns(true),
                Step::Fetch => {
                    let Some(fetched) = direct.fetch_to_keep() else { continue };
                    let fetched = fetched.unwrap();
                    let reader = &mut runs[fetched.partition as usize];
                    prop_assert!(!reader.is_paused);
                    prop_assert_eq!(fetched.offset, reader.next);
                    prop_assert_eq!(fetched.payload.as_deref(), Some(&b"value"[..]));
                    reader.next += 1;
                }
            }
        }
        for reader in runs {
            prop_assert_eq!(reader.next, reader.coming, "nothing is left behind");
        }
        prop_assert!(direct.shared.unread.is_empty());
    }
}
