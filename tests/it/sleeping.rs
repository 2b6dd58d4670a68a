//! A sink that sleeps through a rebalance with an insert under way, and whose insert arrives when
//! the store has long forgotten its token.
//!
//! ```text
//!  sleeper ──insert of batch n──► held on the way      ╷ SIGSTOP
//!  other   ──the group gives it the partition──► n, n + 1, … more blocks than ClickHouse
//!                                                          remembers tokens of
//!          held ──► ClickHouse: refused by the fence   ╵ SIGCONT
//! ```

use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use crate::feeder::Feeder;
use crate::installation::Installation;
use crate::intercept::{Call, Interceptor, ProxyAction};
use crate::service::Service;
use crate::wait::until;

/// Tokens that the table remembers in this test.
const WINDOW: u64 = 3;
const PARTITION: i32 = 1;
/// `throwIf` threw.
const FENCE: u32 = 395;
/// The session's timeout, and then some blocks.

#[derive(Clone, Default)]
struct HeldInsert {
    call: Arc<Mutex<Option<Call>>>,
    gate: CancellationToken,
}

impl HeldInsert {
    /// Holds the first insert of the partition that follows another.
    fn rule(&self, call: &Call) -> ProxyAction {
        let mut held = self.call.lock().expect("no holder panics");
        if held.is_some() || !call.is_block_of(PARTITION) || call.statement().contains("(0, 0)") {
            return ProxyAction::Forward;
        }
        *held = Some(call.clone());
        ProxyAction::ForwardAfter(self.gate.clone())
    }

    fn query_id(&self) -> Result<String, &'static str> {
        let held = self.call.lock().expect("no holder panics");
        let call = held.as_ref().ok_or("no insert was held yet")?;
        Ok(call.get("query_id").expect("an insert has an id").to_owned())
    }
}

impl Installation {
    /// Batches of the partition that are in the store.
    async fn blocks(&self) -> Result<u64, String> {
        let sql = format!(
            "SELECT uniqExact(key) FROM counts \
             WHERE partition = {PARTITION} AND namespace = '__tally' AND startsWith(key, 'batch:')"
        );
        self.store().query(&sql).fetch_one().await.map_err(|error| error.to_string())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_of_a_sink_that_slept_beyond_the_deduplication_window_is_refused_by_the_server() {
    let mut tally = Installation::new("sleeping").await;
    tally.allow("starting the partition again at the ledger's position");
    // The sleeper is told that its session is over.
    tally.allow("trouble with a Kafka broker; librdkafka reconnects");
    tally.allow("connection to the Kafka broker lost; reconnecting");
    tally.allow("librdkafka: ");
    let narrow =
        format!("ALTER TABLE counts MODIFY SETTING non_replicated_deduplication_window = {WINDOW}");
    tally.store().query_raw(&narrow).execute().await.expect("the window is set");

    let held = HeldInsert::default();
    let store = Interceptor::start(&tally.config.store.url, {
        let held = held.clone();
        move |call| held.rule(call)
    })
    .await;
    let mut aggregator = tally.start(Service::Aggregator, "a");
    let mut sleeper =
        tally.start_with(Service::Sink, "sleeper", &[("TALLY_STORE__URL", &store.url())]);
    sleeper.ready().await;
    let load = Feeder::start(&tally.source().await, 12);
    let query_id = until("an insert to be held", async || held.query_id()).await;
    sleeper.freeze();

    let mut other = tally.start(Service::Sink, "other");
    let before = tally.blocks().await.expect("the store answers");
    until("the other sink to store more blocks than the store remembers", async || {
        let stored = tally.blocks().await? - before;
        if stored > 2 * WINDOW { Ok(()) } else { Err(format!("{stored} blocks")) }
    })
    .await;
    let refused_before =
        other.metric("tally_sink_inserts_total", "refused").await.expect("a metric");

    held.gate.cancel();
    let answer = until("the held insert's answer", async || {
        let answered = store.answered().into_iter();
        let mut of_held =
            answered.filter(|answered| answered.call.get("query_id") == Some(&query_id));
        of_held.next().ok_or("none yet")
    })
    .await;
    assert_eq!(
        answer.exception_code,
        Some(FENCE),
        "the server took the sleeper's insert: {answer:?}"
    );
    assert_ne!(answer.status, 200);

    sleeper.thaw();
    sleeper.counts_beyond(0.0, "tally_sink_inserts_total", "refused").await;
    assert_eq!(other.metric("tally_sink_inserts_total", "refused").await, Ok(refused_before));
    tally.prove(&load.stop().await).await;
    for service in [&mut aggregator, &mut sleeper, &mut other] {
        service.terminate().await;
    }
}
