//! A proxy before the broker that changes its answers: what was appended is told to be refused, and
//! so are the offsets that go with it.
//!
//! ```text
//!  a service ──► BrokerProxy ──► the broker
//! ```
//!
//! - Always: brokers and coordinators are said to be where the proxy is, so that every connection
//!   comes here.
//! - Once it is told to: each batch of `deltas` is answered with NOT_LEADER_OR_FOLLOWER, as by a
//!   leader that was replaced while its followers took the batch, until the next offsets of a
//!   transaction are answered with ILLEGAL_GENERATION.
//! - Once it is told to: the next batch of one topic does not get to the broker. It is answered
//!   with NOT_LEADER_OR_FOLLOWER, as by a leader that was just replaced, once the batch after it is
//!   in.
//! - As long as it is told to: fetches of a partition are answered with KAFKA_STORAGE_ERROR, as by
//!   a broker whose disk cannot be read.
//! - As long as it is told to: no answer names a broker, as that of one that has just started.
//! - As long as it is told to: requests of a kind that belong to transactions are held.
//! - Where it is started so: requests or fetched messages go through slowly, each connection by
//!   itself.
//!
//! The start of a request and of an answer, [from the protocol
//! guide](https://kafka.apache.org/protocol#protocol_messages): its length i32; then api key i16,
//! api version i16, correlation id i32, or the correlation id alone.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{ApiKey, FetchResponse, MetadataResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, StrBytes};
use tally_platform::config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::wait::until;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const END_TXN: i16 = 26;
const TXN_OFFSET_COMMIT: i16 = 28;
/// From these versions on, lengths of strings and arrays are varints.
const FLEXIBLE_PRODUCE: i16 = 9;
const FLEXIBLE_METADATA: i16 = 9;
const FLEXIBLE_TXN_OFFSET_COMMIT: i16 = 3;
const NOT_LEADER_OR_FOLLOWER: [u8; 2] = 6_i16.to_be_bytes();
const ILLEGAL_GENERATION: [u8; 2] = 22_i16.to_be_bytes();
const KAFKA_STORAGE_ERROR: [u8; 2] = 56_i16.to_be_bytes();
/// The partition that is served badly, if none is.
const NONE: i32 = -1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Honest,
    /// Each batch is refused.
    Armed,
    /// A batch was: the next offsets are refused too.
    Refused,
    Done,
}

/// A step of a transaction whose requests can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Offsets,
    End,
}

/// How fast bytes go through, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Fast,
    SlowRequests(usize),
    SlowFetches(usize),
}

pub(crate) struct BrokerProxy {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    port: u16,
    broker: SocketAddr,
    increments: String,
    deltas: String,
    link: Link,
    stage: watch::Sender<Stage>,
    held: watch::Sender<Option<Step>>,
    /// Of a batch of this topic that does not get to the broker.
    loses: std::sync::Mutex<Option<String>>,
    unreadable: AtomicI32,
    names_no_broker: AtomicBool,
}

impl BrokerProxy {
    pub(crate) async fn start(kafka: &config::Kafka) -> BrokerProxy {
        BrokerProxy::start_on(Link::Fast, kafka).await
    }

    pub(crate) async fn start_on(link: Link, kafka: &config::Kafka) -> BrokerProxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
        let shared = Arc::new(Shared {
            port: listener.local_addr().expect("it listens").port(),
            broker: kafka.bootstrap.parse().expect("the stack's broker has an address"),
            increments: kafka.increments.clone(),
            deltas: kafka.deltas.clone(),
            link,
            stage: watch::Sender::new(Stage::Honest),
            held: watch::Sender::new(None),
            loses: std::sync::Mutex::new(None),
            unreadable: AtomicI32::new(NONE),
            names_no_broker: AtomicBool::new(false),
        });
        let task = tokio::spawn(serve(listener, Arc::clone(&shared)));
        BrokerProxy { shared, task }
    }

    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.shared.port)
    }

    /// From now on nothing of this partition can be read, of any topic.
    pub(crate) fn break_disk(&self, partition: i32) {
        self.shared.unreadable.store(partition, Ordering::Relaxed);
    }

    pub(crate) fn mend_disk(&self) {
        self.shared.unreadable.store(NONE, Ordering::Relaxed);
    }

    /// Whether answers name no broker from now on.
    pub(crate) fn name_no_broker(&self, names_none: bool) {
        self.shared.names_no_broker.store(names_none, Ordering::Relaxed);
    }

    /// From now on the requests of this step are held, and no others.
    pub(crate) fn hold(&self, step: Option<Step>) {
        self.shared.held.send_replace(step);
    }

    /// Loses the next batch of this topic, which is answered once the one after it is.
    pub(crate) fn lose_batch(&self, topic: &str) {
        *self.shared.loses.lock().expect("no holder panics") = Some(topic.to_owned());
    }

    /// Whether it was lost.
    pub(crate) fn has_lost_batch(&self) -> bool {
        self.shared.loses.lock().expect("no holder panics").is_none()
    }

    /// Refuses what the next transaction appends, and then its offsets; waits until that is done.
    pub(crate) async fn refuse(&self) {
        self.shared.stage.send_replace(Stage::Armed);
        until("a transaction that is refused", async || {
            let stage = *self.shared.stage.borrow();
            if stage == Stage::Done { Ok(()) } else { Err(format!("{stage:?}")) }
        })
        .await;
    }
}

impl Drop for BrokerProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a listener takes connections");
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let Ok(broker) = TcpStream::connect(shared.broker).await else { return };
            let ((asks, answers), (from, to)) = (client.into_split(), broker.into_split());
            let asked = Asked::default();
            // Ends when either side hangs up: that is for the other to notice.
            tokio::select! {
                _ = shared.pass_requests(asks, Arc::new(to.into()), &asked) => {}
                _ = shared.pass_answers(from, answers, &asked) => {}
            }
        });
    }
}

/// What a connection's requests were.
#[derive(Default)]
struct Asked {
    /// Api key and version of requests that were not answered yet, by correlation id.
    unanswered: Mutex<HashMap<[u8; 4], (i16, i16)>>,
    /// The correlation id of the batch that did not get to the broker, and its topic, until it is
    /// answered.
    lost: Mutex<Option<([u8; 4], String)>>,
}

impl Shared {
    async fn pass_requests(
        &self,
        mut from: OwnedReadHalf,
        to: Arc<Mutex<OwnedWriteHalf>>,
        asked: &Asked,
    ) -> Option<()> {
        loop {
            let request = frame(&mut from).await?;
            let id = request.get(8..12)?.try_into().ok()?;
            let number = |at: usize| i16::from_be_bytes([request[at], request[at + 1]]);
            let (api, version) = (number(4), number(6));
            if api == PRODUCE
                && let Some(topic) = self.loses(&request)
            {
                *asked.lost.lock().await = Some((id, topic));
                continue;
            }
            asked.unanswered.lock().await.insert(id, (api, version));
            let step = match api {
                TXN_OFFSET_COMMIT => Some(Step::Offsets),
                END_TXN => Some(Step::End),
                _ => None,
            };
            if let Some(step) = step {
                let (stage, held) = (self.stage.subscribe(), self.held.subscribe());
                tokio::spawn(pass_later(request, step, Arc::clone(&to), stage, held));
            } else {
                let rate = match self.link {
                    Link::SlowRequests(rate) => Some(rate),
                    Link::Fast | Link::SlowFetches(_) => None,
                };
                pass(&mut *to.lock().await, &request, rate).await?;
            }
        }
    }

    async fn pass_answers(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        asked: &Asked,
    ) -> Option<()> {
        loop {
            let mut answer = frame(&mut from).await?;
            let id = answer.get(4..8)?;
            let (api, version) = asked.unanswered.lock().await.remove(id)?;
            match api {
                PRODUCE => {
                    let is_flexible = version >= FLEXIBLE_PRODUCE;
                    if let Some(refusal) = asked.refusal_of_lost(&answer, is_flexible).await {
                        pass(&mut to, &refusal, None).await?;
                    }
                    self.refuse_batch(&mut answer, is_flexible);
                }
                TXN_OFFSET_COMMIT => {
                    self.refuse_offsets(&mut answer, version >= FLEXIBLE_TXN_OFFSET_COMMIT)
                }
                FETCH => self.refuse_fetch(&mut answer, version),
                METADATA if self.names_no_broker.load(Ordering::Relaxed) => {
                    // librdkafka gives its bootstrap up where the connection goes before it has
                    // looked at the answer.
                    pass(&mut to, &without_brokers(&answer, version), None).await?;
                    return None;
                }
                _ => self.stand_in(&mut answer),
            }
            let rate = match self.link {
                Link::SlowFetches(rate) if api == FETCH => Some(rate),
                _ => None,
            };
            pass(&mut to, &answer, rate).await?;
        }
    }

    /// Wherever an answer names the broker's address, the proxy's takes its place.
    fn stand_in(&self, answer: &mut [u8]) {
        let address = |port: u16| {
            [self.broker.ip().to_string().as_bytes(), &i32::from(port).to_be_bytes()].concat()
        };
        let (broker, proxy) = (address(self.broker.port()), address(self.port));
        for at in 0..answer.len().saturating_sub(broker.len() - 1) {
            let found = &mut answer[at..at + broker.len()];
            if found == broker {
                found.copy_from_slice(&proxy);
            }
        }
    }

    fn refuse_fetch(&self, answer: &mut [u8], version: i16) {
        let partition = self.unreadable.load(Ordering::Relaxed);
        if partition == NONE {
            return;
        }
        let mut body = &answer[4..];
        let header = ApiKey::Fetch.response_header_version(version);
        ResponseHeader::decode(&mut body, header).expect("a broker's answer has a header");
        let fetched = FetchResponse::decode(&mut body, version).expect("a broker's answer");
        let all = fetched.responses.iter().flat_map(|topic| &topic.partitions);
        for data in all.filter(|data| data.partition_index == partition) {
            // These fields stand side by side, and have the same lengths in all versions.
            let number = partition.to_be_bytes();
            let offsets = [data.high_watermark, data.last_stable_offset, data.log_start_offset];
            let offsets = offsets.map(i64::to_be_bytes).concat();
            let found = [&number[..], &data.error_code.to_be_bytes(), &offsets].concat();
            let changed = [&number[..], &KAFKA_STORAGE_ERROR, &offsets].concat();
            let at = answer.windows(found.len()).position(|window| window == found);
            let at = at.expect("an answer has what was read from it");
            answer[at..at + changed.len()].copy_from_slice(&changed);
        }
    }

    /// The topic of the batch, if it is the one that is lost.
    fn loses(&self, request: &[u8]) -> Option<String> {
        let mut loses = self.loses.lock().expect("no holder panics");
        loses.take_if(|topic| request.windows(topic.len()).any(|part| part == topic.as_bytes()))
    }

    fn refuse_batch(&self, answer: &mut [u8], is_flexible: bool) {
        let stage = *self.stage.borrow();
        if let (Stage::Armed | Stage::Refused, Some(code)) =
            (stage, first_code(answer, &self.deltas, is_flexible))
        {
            code.copy_from_slice(&NOT_LEADER_OR_FOLLOWER);
            self.stage.send_replace(Stage::Refused);
        }
    }

    fn refuse_offsets(&self, answer: &mut [u8], is_flexible: bool) {
        let stage = *self.stage.borrow();
        if let (Stage::Refused, Some(code)) =
            (stage, first_code(answer, &self.increments, is_flexible))
        {
            code.copy_from_slice(&ILLEGAL_GENERATION);
            self.stage.send_replace(Stage::Done);
        }
    }
}

impl Asked {
    /// What is said of the lost batch as the next one of the topic is answered.
    async fn refusal_of_lost(&self, answer: &[u8], is_flexible: bool) -> Option<Vec<u8>> {
        let mut lost = self.lost.lock().await;
        let mut refusal = answer.to_vec();
        let (id, topic) = lost.as_ref()?;
        first_code(&mut refusal, topic, is_flexible)?.copy_from_slice(&NOT_LEADER_OR_FOLLOWER);
        refusal[4..8].copy_from_slice(id);
        *lost = None;
        Some(refusal)
    }
}

/// Before the brokers come the answer's length, its correlation id, no tags, and the time that it
/// was throttled.
fn without_brokers(answer: &[u8], version: i16) -> Vec<u8> {
    const BEGIN: usize = 4 + 4 + 1 + 4;
    assert!(version >= FLEXIBLE_METADATA, "the client asks by an older version: {version}");
    let metadata = MetadataResponse::decode(&mut &answer[9..], version).expect("a broker's answer");
    let bytes = |text: &StrBytes| 1 + text.len();
    let broker = |broker: &MetadataResponseBroker| {
        4 + bytes(&broker.host) + 4 + broker.rack.as_ref().map_or(1, bytes) + 1
    };
    let end = BEGIN + 1 + metadata.brokers.iter().map(broker).sum::<usize>();
    // One more than there are.
    let mut changed = [&answer[..BEGIN], &[1], &answer[end..]].concat();
    let length = u32::try_from(changed.len() - 4).expect("an answer is short");
    changed[..4].copy_from_slice(&length.to_be_bytes());
    changed
}

/// Passes a step on once it is not held. A batch may come after the offsets that it goes with, over
/// the same connection: they wait for its refusal.
async fn pass_later(
    request: Vec<u8>,
    step: Step,
    to: Arc<Mutex<OwnedWriteHalf>>,
    mut stage: watch::Receiver<Stage>,
    mut held: watch::Receiver<Option<Step>>,
) {
    let is_past = |stage: &Stage| step == Step::End || *stage != Stage::Armed;
    let is_free = |held: &Option<Step>| *held != Some(step);
    // What is waited for is not kept beyond the wait.
    if stage.wait_for(is_past).await.map(drop).is_ok()
        && held.wait_for(is_free).await.map(drop).is_ok()
    {
        // Who sent it notices if this does not arrive.
        drop(to.lock().await.write_all(&request).await);
    }
}

/// The error code of the first partition of this topic: after the topic's name come the number of
/// its partitions, the first one's number, and its code.
fn first_code<'a>(answer: &'a mut [u8], topic: &str, is_flexible: bool) -> Option<&'a mut [u8]> {
    let name = answer.windows(topic.len()).position(|window| window == topic.as_bytes())?;
    let code = name + topic.len() + if is_flexible { 1 } else { 4 } + 4;
    answer.get_mut(code..code + 2)
}

/// Passes a message on, at this rate if there is one; `None` at an error.
async fn pass(to: &mut OwnedWriteHalf, message: &[u8], rate: Option<usize>) -> Option<()> {
    /// A second's bytes go out in so many pieces.
    const PIECES: u32 = 10;
    let Some(rate) = rate else { return to.write_all(message).await.ok() };
    for piece in message.chunks(rate / PIECES as usize) {
        to.write_all(piece).await.ok()?;
        // A short message, as most are, takes no time worth a wait.
        if piece.len() == rate / PIECES as usize {
            sleep(Duration::from_secs(1) / PIECES).await;
        }
    }
    Some(())
}

/// A message with its length, or `None` at an end or an error.
async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let mut message = length.to_vec();
    message.resize(4 + usize::try_from(i32::from_be_bytes(length)).ok()?, 0);
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}
