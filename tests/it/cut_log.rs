//! A partition's log that loses its end while no aggregator reads it, and goes on with other
//! messages: a broker died before its replicas had all of it. What was counted is not there any
//! more, and what is there in its place was not counted; only a person can say what is right.

use std::fs::{self, OpenOptions};
use std::path::Path;

use crate::dice::Dice;
use crate::feeder::random_events;
use crate::installation::Installation;
use crate::own_broker::OwnBroker;
use crate::service::Service;
use crate::topics;
use crate::wait::until;

/// The partition that loses messages.
const VICTIM: i32 = 1;
/// Each is a batch of Kafka's of its own.
const MESSAGES: i64 = 5;
const LEFT: usize = 3;

/// Cuts a log off behind its first batches.
fn cut(partition: &Path, batches: usize) {
    let path = partition.join("00000000000000000000.log");
    let log = fs::read(&path).expect("the broker keeps its log here");
    let mut end = 0;
    for _ in 0..batches {
        let length = log[end + 8..end + 12].try_into().expect("four bytes");
        end += 12 + usize::try_from(i32::from_be_bytes(length)).expect("a length");
    }
    assert!(end < log.len(), "there is something to lose");
    let file = OpenOptions::new().write(true).open(&path).expect("the log is a file");
    file.set_len(end as u64).expect("it can be cut");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_cut_off_and_written_anew_is_not_read_on() {
    for fetch in ["auto", "librdkafka"] {
        let mut broker = OwnBroker::start("cut_log", &[]).await;
        let mut tally = Installation::bare("cut_log");
        tally.configure(|config| config.kafka.bootstrap = broker.address.to_string());
        tally.tally(&["init"]).await.expect_code(0);
        tally.allow("the partition stops; the others go on");
        tally.allow("Kafka");
        let overrides = [("TALLY_AGGREGATOR__FETCH", fetch)];
        let mut aggregator = tally.start_with(Service::Aggregator, "a", &overrides);
        let source = tally.source().await;
        for partition in 0..source.partitions() {
            for seed in 0..MESSAGES {
                source.batch(partition, &random_events(&mut Dice(seed as u64), 10)).await;
            }
        }
        let kafka = &tally.config.kafka;
        let committed = async |partition: i32| {
            let group = &tally.config.aggregator.group;
            let all = topics::committed(kafka, group, &kafka.increments).await;
            all[usize::try_from(partition).expect("a partition")]
        };
        until("all to be counted", async || {
            let ends = topics::ends(kafka, &kafka.increments).await;
            let group = &tally.config.aggregator.group;
            let counted = topics::committed(kafka, group, &kafka.increments).await;
            if counted == ends { Ok(()) } else { Err(format!("{counted:?} of {ends:?}")) }
        })
        .await;
        aggregator.terminate().await;

        broker.kill();
        cut(&broker.log(&kafka.increments, VICTIM), LEFT);
        broker.start_again().await;
        let source = tally.source().await;
        for seed in 0..MESSAGES {
            source.batch(VICTIM, &random_events(&mut Dice(100 + seed as u64), 10)).await;
        }
        source.batch(0, &random_events(&mut Dice(200), 10)).await;
        aggregator.start_again();
        until("readiness to say that the log is another", async || {
            let why = format!(
                "the log was cut off and written anew: the message at offset {}",
                MESSAGES - 1
            );
            match aggregator.readiness().await {
                Err(reasons) if reasons.contains(&why) => Ok(()),
                answer => Err(format!("{answer:?}")),
            }
        })
        .await;
        until("the other partition to go on", async || match committed(0).await {
            offset if offset == MESSAGES + 1 => Ok(()),
            offset => Err(format!("it is at {offset}")),
        })
        .await;
        assert_eq!(committed(VICTIM).await, MESSAGES, "nothing of it was counted");
        aggregator.terminate().await;
    }
}
