//! What fetches messages: whichever it is, it gets all that was committed, and nothing else.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use flate2::write::GzEncoder;
use futures_util::future::join_all;
use rdkafka::producer::Producer;
use tally_kafka::Fetch;
use tally_platform::config::Compression;

use crate::broker_proxy::BrokerProxy;
use crate::dice::Dice;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::{Event, Model};
use crate::service::Service;
use crate::source::Source;
use crate::stack;
use crate::topics::ends;
use crate::wait::{PATIENCE, until};

const BATCHES: &str = "tally_sink_batches_total";
/// Where these begin in a record batch.
const CHECKSUM: usize = 17;
const ATTRIBUTES: usize = 21;
const RECORDS: usize = 61;
/// The partition whose log is damaged.
const VICTIM: i32 = 1;

/// Every kind of batch that a broker may hold: each compression, many messages and one, of
/// transactions that commit and that do not, side by side with such that are of none.
async fn every_kind(tally: &Installation, seed: u64) -> Model {
    let mut model = Model::default();
    let mut dice = Dice(seed);
    let plain = tally.source().await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let source =
            Source::with(&tally.config, &[("compression.type", codec), ("linger.ms", "20")]).await;
        let events = random_events(&mut dice, 600);
        source.spread(&events, 7).await;
        model.add_all(&events);

        let id = format!("{}-{codec}", tally.config.kafka.increments);
        let properties =
            [("compression.type", codec), ("linger.ms", "20"), ("transactional.id", id.as_str())];
        let source = Source::with(&tally.config, &properties).await;
        let open = source.producer().clone();
        tokio::task::spawn_blocking(move || open.init_transactions(PATIENCE))
            .await
            .expect("no panic")
            .expect("the coordinator answers");
        for commits in [false, true, false, false, true] {
            source.producer().begin_transaction().expect("none is open");
            let events = random_events(&mut dice, 100);
            source.spread(&events, 3).await;
            let between = random_events(&mut dice, 10);
            plain.spread(&between, 2).await;
            model.add_all(&between);
            let open = source.producer().clone();
            let end = move || {
                if commits {
                    open.commit_transaction(PATIENCE)
                } else {
                    open.abort_transaction(PATIENCE)
                }
            };
            tokio::task::spawn_blocking(end)
                .await
                .expect("no panic")
                .expect("the transaction ends");
            if commits {
                model.add_all(&events);
            }
        }
    }
    // No partition ends with a marker: the ledger's position is after the last message.
    for partition in 0..plain.partitions() {
        let events = random_events(&mut dice, 1);
        plain.batch(partition, &events).await;
        model.add_all(&events);
    }
    model
}

async fn counts_every_kind(name: &str, fetch: Fetch, compression: Compression, seed: u64) {
    let mut tally = Installation::new(name).await;
    tally.configure(|config| {
        config.reconciler.fetch = fetch;
        config.aggregator.fetch = fetch;
        config.sink.fetch = fetch;
        // The next one waits where it is fetched.
        config.sink.queued_batches = 1;
        // To a store on this machine blocks go as they are, unless told.
        config.store.compression = compression;
    });
    // Half of it is there before the aggregator is, half comes while it runs.
    let mut model = every_kind(&tally, seed).await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    aggregator.ready().await;
    model.merge(every_kind(&tally, seed + 1).await);
    tally.prove(&model).await;
    for service in [&mut aggregator, &mut sink] {
        service.ready().await;
        service.terminate().await;
    }
}

/// A record batch that takes much more memory than network is counted, and verify can read it too.
async fn inflates_a_hundredfold(name: &str, fetch: Fetch) {
    const MESSAGES: usize = 140;
    let mut tally = Installation::new(name).await;
    tally.configure(|config| {
        config.aggregator.fetch = fetch;
        config.reconciler.fetch = fetch;
    });
    let properties = [
        ("compression.type", "zstd"),
        ("linger.ms", "5000"),
        ("batch.size", "200000000"),
        ("message.max.bytes", "200000000"),
        ("batch.num.messages", "140"),
    ];
    let source = Source::with(&tally.config, &properties).await;
    let event = Event::new("inflates", &"x".repeat(60), 1, 1_780_000_000_000);
    let events = vec![event; 7_000];
    let message = source.encode_batch(&events);
    assert!(message.len() * MESSAGES > 70 << 20, "{} bytes each", message.len());
    join_all((0..MESSAGES).map(|_| source.send(0, Some(&message)))).await;
    let mut model = Model::default();
    (0..MESSAGES).for_each(|_| model.add_all(&events));
    let mut services = [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    tally.prove(&model).await;
    for service in &mut services {
        service.terminate().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_inflates_a_hundredfold_is_counted_and_verified() {
    inflates_a_hundredfold("inflates", Fetch::Auto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn librdkafka_takes_a_batch_that_inflates_a_hundredfold_too() {
    inflates_a_hundredfold("inflates_there", Fetch::Librdkafka).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn straight_from_the_brokers_every_kind_of_batch_is_counted() {
    counts_every_kind("direct", Fetch::Auto, Compression::Auto, 81).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_librdkafka_every_kind_of_batch_is_counted() {
    counts_every_kind("librdkafka", Fetch::Librdkafka, Compression::Lz4, 83).await;
}

/// The last batch of messages in a partition's log, on the broker's disk.
pub(crate) struct Damage {
    log: PathBuf,
    start: u64,
    /// What is in the log, and what a flip puts there: as many bytes.
    now: Vec<u8>,
    other: Vec<u8>,
}

impl Damage {
    /// Another byte in the partition of this topic. Where batches are not compressed, it is the
    /// last one of a message without headers: nothing but the checksum tells.
    pub(crate) fn new(topic: &str, partition: i32) -> Damage {
        Damage::with(topic, partition, another_byte)
    }

    /// The batch as `change` leaves it, which may not make it longer or shorter.
    fn with(topic: &str, partition: i32, change: impl FnOnce(&mut [u8])) -> Damage {
        let folder = stack::shared().dir().join("kafka/data").join(format!("{topic}-{partition}"));
        let log = folder.join("00000000000000000000.log");
        let bytes = fs::read(&log).expect("the broker keeps its log here");
        let (mut start, mut last) = (0, None);
        while let Some(header) = bytes.get(start..start + RECORDS) {
            let is_control = header[ATTRIBUTES + 1] & 1 << 5 != 0;
            let length = u32::from_be_bytes(header[8..12].try_into().expect("four bytes"));
            let end = start + 12 + length as usize;
            if !is_control {
                last = Some(start..end);
            }
            start = end;
        }
        let batch = last.expect("a batch of messages");
        let now = bytes[batch.clone()].to_vec();
        let mut other = now.clone();
        change(&mut other);
        Damage { log, start: batch.start as u64, now, other }
    }

    /// Changes the log; once more, and it is as it was.
    pub(crate) fn flip(&mut self) {
        let log = OpenOptions::new().write(true).open(&self.log).expect("the log is a file");
        log.write_all_at(&self.other, self.start).expect("the log is writable");
        std::mem::swap(&mut self.now, &mut self.other);
    }
}

/// Says that the records are compressed, and puts these in their place: what is left of the place
/// stays filled. The checksum is right.
fn compress_badly(batch: &mut [u8], codec: u8, records: &[u8]) {
    batch[ATTRIBUTES + 1] |= codec;
    let (begin, rest) = batch[RECORDS..]
        .split_at_mut_checked(records.len())
        .expect("the records are no longer than those that are replaced");
    begin.copy_from_slice(records);
    rest.fill(b'-');
    let checksum = crc32c::crc32c(&batch[ATTRIBUTES..]);
    batch[CHECKSUM..ATTRIBUTES].copy_from_slice(&checksum.to_be_bytes());
}

/// A gzip member, and behind it what is none.
fn gzip_with_bytes_behind_it(batch: &mut [u8]) {
    let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&batch[RECORDS..]).expect("a Vec takes everything");
    let member = gzip.finish().expect("a Vec takes everything");
    assert!(RECORDS + member.len() < batch.len(), "something is behind it");
    compress_badly(batch, 1, &member);
}

/// What two calls of a compressor write that has no end: its header stands in the middle once more.
fn snappy_with_two_headers(batch: &mut [u8]) {
    const HEADER: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
    // Four bytes as they are: the length of all, then the number of literals less one, shifted.
    let block = [&[4, 3 << 2][..], b"data"].concat();
    let length = u32::try_from(block.len()).expect("few").to_be_bytes();
    let once = [HEADER, &length, &block].concat();
    compress_badly(batch, 2, &once.repeat(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_deltas_that_is_damaged_on_the_brokers_disk_stops_its_partition_alone() {
    let mut tally = Installation::new("damaged").await;
    tally.allow("the partition stops; the others go on");
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let (source, mut model, mut dice) = (tally.source().await, Model::default(), Dice(87));
    let mut feed = async || {
        let events = random_events(&mut dice, 60);
        source.spread(&events, 20).await;
        model.add_all(&events);
    };
    feed().await;
    aggregator.ready().await;
    sink.ready().await;
    tally.caught_up().await;
    sink.terminate().await;
    let kafka = tally.config.kafka.clone();
    let end = ends(&kafka, &kafka.deltas).await[VICTIM as usize];
    feed().await;
    until("another batch", async || match ends(&kafka, &kafka.deltas).await[VICTIM as usize] {
        now if now > end => Ok(()),
        now => Err(format!("{now} is the end")),
    })
    .await;
    let mut damage = Damage::new(&kafka.deltas, VICTIM);
    damage.flip();

    sink.start_again();
    sink.logs("the batch's checksum is").await;
    let reasons = sink.readiness().await.expect_err("not ready with a broken partition");
    assert!(reasons.contains(&format!("partitions {{{VICTIM}}} stopped")), "{reasons}");
    let stored = sink.metric(BATCHES, "").await.expect("a metric");
    feed().await;
    sink.counts_beyond(stored + 1.0, BATCHES, "").await;

    // Somebody looks, and mends it.
    sink.terminate().await;
    damage.flip();
    sink.start_again();
    tally.prove(&model).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

/// What damages a batch.
type Change = fn(&mut [u8]);

/// The aggregator with one damaged batch in one partition: that one stops, and says so.
async fn damaged_increments_stop_their_partition_alone(
    name: &str,
    fetch: Fetch,
    damages: &[(Change, &str)],
) {
    let mut tally = Installation::new(name).await;
    tally.allow("the partition stops; the others go on");
    tally.configure(|config| config.aggregator.fetch = fetch);
    let [mut aggregator, mut sink] =
        [Service::Aggregator, Service::Sink].map(|kind| tally.start(kind, "a"));
    let source = Source::with(&tally.config, &[("compression.type", "none")]).await;
    let (mut model, mut dice) = (Model::default(), Dice(88));
    let alike = vec![Event::new("damaged", "alike", 1, 1_780_000_000_000); 100];
    let mut feed = async || {
        let events = random_events(&mut dice, 60);
        source.spread(&events, 20).await;
        model.add_all(&events);
    };
    feed().await;
    tally.caught_up().await;
    for (change, why) in damages {
        aggregator.terminate().await;
        if fetch == Fetch::Auto {
            // A broker that is asked for a batch of another format by itself finds none.
            feed().await;
        }
        source.batch(VICTIM, &alike).await;
        let mut damage = Damage::with(&tally.config.kafka.increments, VICTIM, change);
        damage.flip();

        aggregator.start_again();
        aggregator.logs(why).await;
        let label = format!("partition=\"{VICTIM}\"");
        let stopped = aggregator.metric("tally_aggregator_partition_stands_still", &label).await;
        assert_eq!(stopped, Ok(1.0), "{why}");
        let reasons = aggregator.readiness().await.expect_err("not ready with a broken partition");
        assert!(reasons.contains(&format!("partition {VICTIM}: ")), "{reasons}");
        let stored = sink.metric(BATCHES, "").await.expect("a metric");
        feed().await;
        sink.counts_beyond(stored + 1.0, BATCHES, "").await;

        // Somebody looks, and mends it.
        aggregator.terminate().await;
        damage.flip();
        aggregator.start_again();
        tally.caught_up().await;
    }
    damages.iter().for_each(|_| model.add_all(&alike));
    tally.prove(&model).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

fn another_byte(batch: &mut [u8]) {
    let at = batch.len() - 2;
    batch[at] = !batch[at];
}

fn message_format_1(batch: &mut [u8]) {
    batch[CHECKSUM - 1] = 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_that_are_damaged_on_the_brokers_disk_stop_their_partition_alone() {
    let damages: [(Change, &str); 4] = [
        (another_byte, "the batch's checksum is"),
        (gzip_with_bytes_behind_it, "its records cannot be decompressed: invalid gzip header"),
        (snappy_with_two_headers, "its records cannot be decompressed: a block is cut off"),
        (message_format_1, "message format 1, which brokers have not written"),
    ];
    damaged_increments_stop_their_partition_alone("damaged_here", Fetch::Auto, &damages).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn increments_that_librdkafka_finds_damaged_stop_their_partition_alone() {
    let damages: [(Change, &str); 1] = [(another_byte, "BadMessage (Local: Bad message format)")];
    let fetch = Fetch::Librdkafka;
    damaged_increments_stop_their_partition_alone("damaged_there", fetch, &damages).await;
}

/// A broker whose disk cannot be read for one partition serves the others, and its answer for that
/// one sounds as if it passed by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_a_broker_cannot_serve_is_told_of_and_the_others_go_on() {
    let mut tally = Installation::new("disk").await;
    tally.allow("Kafka does not serve the partition");
    let broker = BrokerProxy::start(&tally.config.kafka).await;
    let bootstrap = broker.bootstrap();
    let through = [("TALLY_KAFKA__BOOTSTRAP", bootstrap.as_str())];
    let mut aggregator = tally.start_with(Service::Aggregator, "a", &through);
    let mut sink = tally.start_with(Service::Sink, "a", &through);
    let load = Feeder::start(&tally.source().await, 21);
    sink.counts_beyond(30.0, BATCHES, "").await;

    broker.break_disk(VICTIM);
    for service in [&aggregator, &sink] {
        until("readiness to tell of the partition", async || {
            let Err(why) = service.readiness().await else { return Err(String::from("ready")) };
            let is_told = why.contains(&format!("partition {VICTIM}: Kafka broker 1"))
                && why.contains("KafkaStorageError")
                && !why.contains("partition 0");
            if is_told { Ok(()) } else { Err(why) }
        })
        .await;
        service.logs("Kafka does not serve the partition").await;
    }
    for (service, metric) in [
        (&aggregator, "tally_aggregator_partition_unserved"),
        (&sink, "tally_sink_partition_unserved"),
    ] {
        let unserved = |partition| format!("partition=\"{partition}\"");
        assert_eq!(service.metric(metric, &unserved(VICTIM)).await, Ok(1.0));
        assert_eq!(service.metric(metric, &unserved(0)).await, Ok(0.0));
    }
    let stored = sink.metric(BATCHES, "").await.expect("a metric");
    sink.counts_beyond(stored + 30.0, BATCHES, "").await;

    broker.mend_disk();
    for service in [&mut aggregator, &mut sink] {
        service.ready().await;
        service.logs("Kafka serves the partition again").await;
    }
    tally.prove(&load.stop().await).await;
    aggregator.terminate().await;
    sink.terminate().await;
}

/// Nobody who reads what is committed gets beyond a transaction that is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_a_transaction_holds_is_told_of_and_the_others_go_on() {
    let mut tally = Installation::new("held").await;
    tally.allow("Kafka does not serve the partition");
    let id = format!("{}-open", tally.config.kafka.increments);
    let properties = [("transactional.id", id.as_str()), ("transaction.timeout.ms", "600000")];
    let (plain, source) = (tally.source().await, Source::with(&tally.config, &properties).await);
    let aggregator = tally.start(Service::Aggregator, "a");
    let mut sink = tally.start(Service::Sink, "a");
    let open = source.producer().clone();
    let init = move || open.init_transactions(PATIENCE).expect("the coordinator answers");
    tokio::task::spawn_blocking(init).await.expect("no panic");

    source.producer().begin_transaction().expect("none is open");
    let aborted = random_events(&mut Dice(3), 10);
    let begins_at = source.batch(VICTIM, &aborted).await;
    let events = random_events(&mut Dice(4), 100);
    let mut model = Model::default();
    for partition in 0..plain.partitions() {
        plain.batch(partition, &events).await;
        model.add_all(&events);
    }
    until("readiness to tell of the transaction", async || {
        let Err(why) = aggregator.readiness().await else { return Err(String::from("ready")) };
        let told = format!("partition {VICTIM}: a transaction that a client has left open");
        let at = format!("at offset {begins_at}, and it goes up to {}", begins_at + 2);
        if why.contains(&told) && why.contains(&at) { Ok(()) } else { Err(why) }
    })
    .await;
    // The other two are there.
    sink.counts_beyond(1.0, BATCHES, "").await;

    let open = source.producer().clone();
    let abort = move || open.abort_transaction(PATIENCE).expect("the transaction ends");
    tokio::task::spawn_blocking(abort).await.expect("no panic");
    until("the aggregator to be ready", async || aggregator.readiness().await).await;
    sink.counts_beyond(2.0, BATCHES, "").await;
    // The partition must not end with a marker: the ledger's position is after the last message.
    plain.batch(VICTIM, &events).await;
    model.add_all(&events);
    tally.prove(&model).await;
    sink.terminate().await;
}
