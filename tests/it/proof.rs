//! What the sink asks of a store before it takes a partition: a real one passes, one that breaks a
//! promise is refused.

use crate::installation::Installation;
use crate::intercept::{Call, Interceptor, ProxyAction};
use crate::ports::free_port;
use crate::proxy::{Mode, Proxy};
use crate::service::Service;

const STOPPED: &str = "breaks a promise that exactly-once rests on";

/// A sink behind a proxy that changes its inserts ends, and says which promise is broken, on which
/// server.
async fn refuses(name: &str, promise: &str, change: impl Fn(&mut Call) + Send + Sync + 'static) {
    let mut tally = Installation::new(name).await;
    tally.allow(STOPPED);
    let store = Interceptor::start(&tally.config.store.url, move |call| {
        if call.is_insert() {
            change(call);
        }
        ProxyAction::Forward
    })
    .await;
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url())]);
    let status = sink.ended().await;
    assert_eq!(status.code(), Some(70), "{status}");
    let version: String = tally
        .store()
        .query("SELECT version()")
        .fetch_one()
        .await
        .expect("the store tells its version");
    sink.logs(&format!("ClickHouse {version} {STOPPED}: {promise}, but ")).await;
    assert_eq!(tally.scratch_tables().await, 0);
}

impl Installation {
    async fn scratch_tables(&self) -> u64 {
        self.store()
            .query(
                "SELECT count() FROM system.tables \
                 WHERE database = currentDatabase() AND startsWith(name, 'tally_proof_')",
            )
            .fetch_one()
            .await
            .expect("the store tells its tables")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_the_fence_is_refused() {
    refuses("fenceless", "a block that does not follow the ledger's position is refused", |call| {
        let statement = call.statement();
        let (head, fence) =
            statement.split_once(" WHERE throwIf(").expect("an insert has its fence");
        let (_, tail) = fence.split_once(" FORMAT ").expect("an insert has its format");
        call.set("query", &format!("{head} FORMAT {tail}"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ignores_tokens_is_refused() {
    refuses("tokenless", "a block whose token was there before is dropped", |call| {
        call.set("insert_deduplicate", "0");
        call.set("deduplicate_insert_select", "disable");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_splits_blocks_is_refused() {
    refuses("splitting", "one block makes one part", |call| {
        call.set("use_strict_insert_block_limits", "1");
        for limit in ["max_insert_block_size", "min_insert_block_size_rows"] {
            call.set(limit, "1000");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_at_the_start_is_waited_for_and_a_real_one_keeps_its_promises() {
    let mut tally = Installation::new("proven").await;
    tally.allow("ClickHouse cannot be asked for its promises");
    let address =
        tally.config.store.url.strip_prefix("http://").expect("a URL").parse().expect("an address");
    let store = Proxy::start(free_port(), address).await;
    store.set(Mode::Refusing);
    let mut sink = tally.start_with(Service::Sink, "a", &[("TALLY_STORE__URL", &store.url(""))]);
    sink.logs("ClickHouse cannot be asked for its promises").await;
    let reasons = sink.readiness().await.expect_err("not ready without a store");
    assert!(reasons.contains("ClickHouse keeps its promises: "), "{reasons}");
    store.set(Mode::Open);
    sink.ready().await;
    assert_eq!(tally.scratch_tables().await, 0);
    sink.terminate().await;
}
