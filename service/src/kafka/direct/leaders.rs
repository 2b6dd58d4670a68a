//! Which broker leads a partition, and a connection to it: found out on a thread of its own, since both wait for brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};

use super::connection::{Connection, Memory};
use crate::kafka::Membership;

/// A call for metadata.
const CALL: Duration = Duration::from_secs(2);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Leaders {
    /// Questions: brokers that are connected to already. `None` only while this is dropped.
    questions: Option<Sender<BTreeSet<i32>>>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
    is_asked: bool,
    not_before: Instant,
}

/// The leader of each partition that has one, and connections to those leaders that had none.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) leaders: BTreeMap<i32, i32>,
    pub(super) connections: Vec<(i32, Connection)>,
}

struct Search {
    consumer: Arc<BaseConsumer<Membership>>,
    topic: String,
    client_id: String,
    memory: Memory,
}

impl Leaders {
    pub(super) fn start(consumer: &Arc<BaseConsumer<Membership>>, topic: &str, client_id: &str) -> Leaders {
        let (questions, asked) = channel::<BTreeSet<i32>>();
        let (answer, answers) = channel();
        let search = Search {
            consumer: Arc::clone(consumer),
            topic: topic.to_owned(),
            client_id: client_id.to_owned(),
            memory: Memory::default(),
        };
        let run = move || {
            while let Ok(connected) = asked.recv() {
                if answer.send(search.look(&connected)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name(String::from("leaders"))
            .spawn(run)
            .expect("the system starts a thread");
        Leaders {
            questions: Some(questions),
            answers,
            thread: Some(thread),
            is_asked: false,
            not_before: Instant::now(),
        }
    }

    /// Asks for the leaders, unless that was done a moment ago.
    pub(super) fn ask(&mut self, connected: BTreeSet<i32>, now: Instant) {
        if self.is_asked || now < self.not_before {
            return;
        }
        let questions = self.questions.as_ref().expect("it is there until the end");
        questions.send(connected).expect("the thread of leaders runs until the end");
        self.is_asked = true;
    }

    pub(super) fn answer(&mut self, now: Instant) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.is_asked = false;
        self.not_before = now + PAUSE;
        Some(answer)
    }
}

impl Drop for Leaders {
    fn drop(&mut self) {
        self.questions = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the search for leaders panicked");
        }
    }
}

impl Search {
    /// What does not work out is not in the answer, and asked for again.
    fn look(&self, connected: &BTreeSet<i32>) -> Answer {
        let mut answer = Answer::default();
        let metadata = match self.consumer.client().fetch_metadata(Some(&self.topic), CALL) {
            Ok(metadata) => metadata,
            Err(error) => {
                tracing::debug!(%error, "look for the partitions' leaders");
                return answer;
            }
        };
        for topic in metadata.topics().iter().filter(|topic| topic.name() == self.topic) {
            for partition in topic.partitions().iter().filter(|partition| partition.leader() >= 0) {
                answer.leaders.insert(partition.id(), partition.leader());
            }
        }
        let leaders: BTreeSet<i32> = answer.leaders.values().copied().collect();
        for broker in metadata.brokers().iter().filter(|broker| leaders.contains(&broker.id())) {
            if connected.contains(&broker.id()) {
                continue;
            }
            let (host, port) = (broker.host(), broker.port());
            let opened = u16::try_from(port).map(|port| Connection::open(host, port, &self.client_id, &self.memory));
            match opened {
                Ok(Ok(connection)) => answer.connections.push((broker.id(), connection)),
                Ok(Err(error)) => tracing::warn!(%error, broker = broker.id(), host, port, "consume"),
                Err(_) => tracing::warn!(broker = broker.id(), host, port, "consume: a broker without a port"),
            }
        }
        answer
    }
}
