//! A store that comes back without its newest blocks: what it lacks is in the log, and goes in
//! again.

use std::path::PathBuf;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};
use tally_kafka::Fetch;

use crate::dice::Dice;
use crate::engine::Engine;
use crate::feeder::{Feeder, random_events};
use crate::installation::Installation;
use crate::model::Model;
use crate::service::{Service, ServiceProcess};
use crate::wait::until;

const BATCHES: &str = "tally_sink_batches_total";
const REWINDS: &str = "tally_sink_rewinds_total";
/// The partition that loses blocks.
const VICTIM: i32 = 1;
const BLOCKS: usize = 4;
/// The ledger is checked every ten seconds.
const REWOUND: &str = "starting the partition again at the ledger's position";
const LOST: &str = "ClickHouse has lost blocks that it had";
const BROKEN: &str = "the partition stops; the others go on";

/// An installation whose victim has several blocks, each a part, and its services.
struct FilledInstallation {
    tally: Installation,
    model: Model,
    aggregator: ServiceProcess,
    sink: ServiceProcess,
}

impl FilledInstallation {
    async fn new(mut tally: Installation) -> FilledInstallation {
        tally.allow(REWOUND);
        tally.execute("SYSTEM STOP MERGES counts").await;
        let mut aggregator = tally.start(Service::Aggregator, "a");
        let mut sink = tally.start(Service::Sink, "a");
        aggregator.ready().await;
        sink.ready().await;
        let (source, mut model) = (tally.source().await, Model::default());
        for seed in 0..BLOCKS as u64 {
            let events = random_events(&mut Dice(seed), 60);
            source.spread(&events, 20).await;
            model.add_all(&events);
            // One by one, so that each is a block of its own.
            tally.caught_up().await;
        }
        let filled = FilledInstallation { tally, model, aggregator, sink };
        assert!(filled.tally.parts().await.len() >= BLOCKS);
        filled
    }

    async fn more(&mut self) {
        let events = random_events(&mut Dice(99), 60);
        self.tally.source().await.spread(&events, 20).await;
        self.model.add_all(&events);
    }

    async fn rewound(&self) {
        self.sink.counts_beyond(0.0, REWINDS, "").await;
    }

    async fn prove(mut self) {
        self.tally.prove(&self.model).await;
        self.aggregator.terminate().await;
        self.sink.terminate().await;
    }
}

impl Installation {
    async fn execute(&self, sql: &str) {
        self.store()
            .query_raw(sql)
            .execute()
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The victim's parts, the oldest first, and where they are on disk.
    async fn parts(&self) -> Vec<(String, PathBuf)> {
        let sql = format!(
            "SELECT name, path FROM system.parts \
             WHERE database = currentDatabase() AND table = 'counts' \
             AND partition = '{VICTIM}' AND active ORDER BY min_block_number"
        );
        let parts: Vec<(String, String)> =
            self.store().query(&sql).fetch_all().await.expect("the store tells its parts");
        parts.into_iter().map(|(name, path)| (name, PathBuf::from(path))).collect()
    }

    /// The store loses some of the victim's blocks, and their tokens with them.
    async fn detach(&self, parts: impl IntoIterator<Item = (String, PathBuf)>) {
        for (part, _) in parts {
            self.execute(&format!("ALTER TABLE counts DETACH PART '{part}'")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_the_store_lost_go_in_again_with_the_next_batch() {
    let mut filled = FilledInstallation::new(Installation::new("back_busy").await).await;
    filled.tally.allow(LOST);
    let parts = filled.tally.parts().await;
    filled.tally.detach(parts.into_iter().skip(2)).await;
    filled.more().await;
    filled.rewound().await;
    filled.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_that_the_store_lost_go_in_again_though_no_batch_comes() {
    let mut filled = FilledInstallation::new(Installation::new("back_idle").await).await;
    filled.tally.allow(LOST);
    let parts = filled.tally.parts().await;
    filled.tally.detach(parts).await;
    filled.sink.logs(LOST).await;
    filled.rewound().await;
    filled.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_killed_and_lost_its_newest_parts_but_not_their_tokens_is_filled_again() {
    let mut engine = Engine::start().await;
    let mut tally = Installation::bare("back_killed");
    let url = engine.url();
    tally.configure(|config| config.store.url = url);
    for away in [
        "ClickHouse may have stored the block or not; sending it again",
        "the ledger in ClickHouse cannot be read",
        "ClickHouse cannot be asked for its promises",
        "the ledger in ClickHouse cannot be checked",
    ] {
        tally.allow(away);
    }
    tally.tally(&["init"]).await.expect_code(0);
    let mut filled = FilledInstallation::new(tally).await;
    // A process that knows of no attempt before its own: its first token of each lost block is one
    // that the store remembers. It is to see that at once, and not only when it checks the ledger,
    // which this test takes for a failure.
    filled.sink.terminate().await;
    let parts = filled.tally.parts().await;
    engine.kill();
    for (_, folder) in &parts[2..] {
        std::fs::remove_dir_all(engine.file(folder)).expect("a dead store's part can be removed");
    }
    engine.start_again().await;
    assert_eq!(filled.tally.parts().await.len(), 2);

    filled.sink.start_again();
    filled.rewound().await;
    filled.tally.prove(&filled.model).await;
    filled.more().await;
    filled.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_that_is_missing_in_the_middle_stops_its_partition_alone() {
    let mut filled = FilledInstallation::new(Installation::new("hole").await).await;
    filled.tally.allow(LOST);
    filled.tally.allow(BROKEN);
    let parts = filled.tally.parts().await;
    let hole = parts[1].clone();
    filled.tally.detach([hole.clone()]).await;
    filled.sink.logs("a batch is missing").await;
    let reasons = filled.sink.readiness().await.expect_err("not ready with a broken partition");
    assert!(reasons.contains(&format!("partitions {{{VICTIM}}} stopped")), "{reasons}");

    let load = Feeder::start(&filled.tally.source().await, 5);
    let stored = filled.sink.metric(BATCHES, "").await.expect("a metric");
    filled.sink.counts_beyond(stored + 3.0, BATCHES, "").await;
    let fed = load.stop().await;
    filled.model.merge(fed);

    // Somebody looks, and brings the part back.
    filled.sink.terminate().await;
    filled.tally.execute(&format!("ALTER TABLE counts ATTACH PART '{}'", hole.0)).await;
    filled.sink.start_again();
    filled.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_block_that_the_log_has_not_either_stops_its_partition_and_says_which_offsets_there_are()
 {
    stops_where_the_log_has_not_what_was_lost("gone", Fetch::Auto).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn librdkafka_says_too_which_offsets_there_are() {
    stops_where_the_log_has_not_what_was_lost("gone_rd", Fetch::Librdkafka).await;
}

async fn stops_where_the_log_has_not_what_was_lost(name: &str, fetch: Fetch) {
    let mut tally = Installation::new(name).await;
    tally.configure(|config| config.sink.fetch = fetch);
    let mut filled = FilledInstallation::new(tally).await;
    filled.tally.allow(LOST);
    filled.tally.allow(BROKEN);
    // librdkafka's own word on it.
    filled.tally.allow("librdkafka: ");
    let kafka = filled.tally.config.kafka.clone();
    let end = crate::topics::ends(&kafka, &kafka.deltas).await[1];
    let admin: AdminClient<DefaultClientContext> =
        tally_kafka::client(&kafka.cluster(), "tally-it").create().expect("a client is made");
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&kafka.deltas, VICTIM, Offset::Offset(end))
        .expect("an offset is valid");
    admin.delete_records(&before, &AdminOptions::new()).await.expect("records are deleted");

    let parts = filled.tally.parts().await;
    filled.tally.detach(parts.into_iter().skip(2)).await;
    filled.sink.logs(&format!("but Kafka has offsets {end}..{end} only")).await;
    let reasons = filled.sink.readiness().await.expect_err("not ready with a broken partition");
    assert!(reasons.contains(&format!("partitions {{{VICTIM}}} stopped")), "{reasons}");

    let stored = filled.sink.metric(BATCHES, "").await.expect("a metric");
    filled.more().await;
    filled.sink.counts_beyond(stored + 1.0, BATCHES, "").await;
    until("the ledger to stay where it is", async || {
        let parts = filled.tally.parts().await.len();
        if parts == 2 { Ok(()) } else { Err(format!("{parts} parts")) }
    })
    .await;
    filled.aggregator.terminate().await;
    filled.sink.terminate().await;
}
