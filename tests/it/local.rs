//! The local stack by its commands, beside the stack of all other tests.

use std::path::Path;

use tally_platform::config::Config;
use tally_platform::registry::{Lookup, Registry};
use tally_platform::store;
use tally_stack::{Condition, Part, StackArgs};

use crate::model::Event;
use crate::run::{Ended, run, tally};
use crate::source::Source;
use crate::stack::{self, Claim};
use crate::{sys, topics};

async fn command(args: &StackArgs, verb: &str) -> Ended {
    run(tally(&args.dir).args(["local", verb]).args(stack::options(args))).await
}

/// The process of each part that runs.
async fn processes(args: &StackArgs) -> Vec<(Part, u32)> {
    let status = tally_stack::status(args).await.expect("the status can be told");
    let running = status.parts.iter().filter_map(|part| match part.condition {
        Condition::Running { pid } => Some((part.part, pid)),
        Condition::Stopped | Condition::NotOurs => None,
    });
    running.collect()
}

/// One message, one schema, one row.
struct LeftData {
    source: Source,
    config: Config,
}

impl LeftData {
    async fn behind(args: &StackArgs) -> LeftData {
        let stack = tally_stack::Stack::new(args).expect("the arguments agree");
        let mut config = Config::default();
        config.kafka.bootstrap = stack.bootstrap();
        config.kafka.partitions = 2;
        config.registry.url = stack.registry_url();
        config.store.url = stack.store_url();
        tally_infra::init(&config).await.expect("init");
        let source = Source::new(&config).await;
        source.single(1, &Event::new("left", "behind", 7, 1_780_000_000_000)).await;
        store::client(&config.store)
            .query("INSERT INTO counts VALUES (1, 'left', 'behind', 0, 7, 0, 1, 0)")
            .execute()
            .await
            .expect("a row is stored");
        LeftData { source, config }
    }

    async fn expect_still_there(&self) {
        let Config { kafka, registry, store, .. } = &self.config;
        assert_eq!(topics::ends(kafka, &kafka.increments).await, [0, 1]);
        assert_eq!(topics::messages(kafka, &kafka.increments).await.len(), 1);
        let id = self.source.increment_schema;
        let found = Registry::new(registry)
            .expect("a client")
            .schema(id)
            .await
            .expect("the registry answers");
        assert!(
            matches!(&found, Lookup::Found { schema, .. } if schema.contains("Increment")),
            "{found:?}"
        );
        assert_eq!(
            Source::new(&self.config).await.increment_schema,
            id,
            "the same schema has the same id"
        );
        let value: i128 = store::client(store)
            .query("SELECT sum(value) FROM counters WHERE namespace = 'left'")
            .fetch_one()
            .await
            .expect("the view can be read");
        assert_eq!(value, 7);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_stack_runs_beside_and_finds_its_data_again_whatever_ended_it() {
    stack::shared();
    let claim = Claim::new("second");
    let args = stack::args(claim.dir.clone());
    let said = command(&args, "up").await.expect_code(0).stdout;
    assert!(said.contains(&format!("broker    127.0.0.1:{}", args.broker_port)), "{said}");
    let left = LeftData::behind(&args).await;

    command(&args, "down").await.expect_code(0);
    assert_eq!(processes(&args).await, []);
    command(&args, "status").await.expect_code(69);
    command(&args, "up").await.expect_code(0);
    left.expect_still_there().await;

    let before = processes(&args).await;
    assert_eq!(before.len(), 3, "{before:?}");
    let (part, victim) = before[2];
    assert_eq!(part, Part::Store);
    sys::kill(victim).expect("the store can be killed");
    crate::wait::until("the status to notice", async || {
        if processes(&args).await.len() == 2 { Ok(()) } else { Err("it shows the store") }
    })
    .await;
    command(&args, "status").await.expect_code(69);
    command(&args, "up").await.expect_code(0);
    command(&args, "status").await.expect_code(0);
    let after = processes(&args).await;
    assert_eq!(after[..2], before[..2], "what ran was kept");
    assert_ne!(after[2], before[2]);
    left.expect_still_there().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_named_and_nothing_is_started() {
    let claim = Claim::new("taken");
    let taken = stack::shared().bootstrap();
    let (_, port) = taken.rsplit_once(':').expect("an address has a port");
    let mut args = stack::args(claim.dir.clone());
    args.broker_port = port.parse().expect("a port is a number");
    let ended = command(&args, "up").await.expect_code(69);
    assert!(ended.stderr.contains(&format!("port {port}, ")), "{ended:?}");
    assert!(ended.stderr.contains("--broker-port"), "{ended:?}");
    assert_eq!(processes(&args).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_missing_is_named_with_its_package() {
    let claim = Claim::new("lacking");
    let args = stack::args(claim.dir.clone());
    let nothing = Path::new("/nonexistent");
    let mut command = tally(&args.dir);
    command.args(["local", "up"]).args(stack::options(&args)).env("PATH", nothing);
    // An empty cache needs every program that downloads.
    command.env("TALLY_CACHE", claim.dir.join("cache"));
    let ended = run(&mut command).await.expect_code(69);
    for program in ["`java`", "`mvn`", "`npm`", "`tar`", "apt install"] {
        assert!(ended.stderr.contains(program), "{program}: {ended:?}");
    }
}
