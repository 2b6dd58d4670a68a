//! Reads while faults run, each held against what it must include and what it cannot exceed.
//!
//! ```text
//!  acknowledged and below `as_of` ≤ value ≤ attempted by the time of the answer
//!  `after` an acknowledgement ⊆ `as_of`
//! ```
//!
//! Both bounds are taken when the answer is there: what is below its position must be in it
//! whenever it was acknowledged, and nothing can be in it that was not attempted by then.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::counters::{READ_COUNTERS, READS};
use super::dice::dice;
use super::live_record::{Acknowledged, LiveRecord, ReadCounter};

/// How many read at once, and how long each rests.
const READERS: u32 = 4;
const REST: Duration = Duration::from_millis(40);
const TIMEOUT: Duration = Duration::from_secs(20);
/// One more reads without asking for anything to be included: it never waits for a partition that
/// stands still, so that the positions of the others are seen as they come.
const NEVER_WAITS: u32 = READERS;
/// How many of a hundred reads ask for what was just acknowledged.
const AFTER_PERCENT: u64 = 40;
/// Tells these dice from those that messages are made by.
const DICE: u32 = 64;
const VIOLATIONS_KEPT: usize = 20;
const ACKNOWLEDGED_SHOWN: usize = 8;

/// How long after everything has healed a counter may go unanswered.
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// Reads until it is stopped.
pub(crate) struct ReadChecker {
    reader: ReadClient,
    stop: CancellationToken,
    readers: JoinSet<anyhow::Result<()>>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ReadReport {
    /// Reads that were answered with a value.
    pub answered: u64,
    /// Of those, how many asked for an acknowledgement to be included.
    pub after: u64,
    /// Reads that were not answered, by what was told instead: no violation.
    pub unanswered: BTreeMap<String, u64>,
    /// Reads that were not answered although everything had healed.
    pub silent: u64,
    pub violated: u64,
    /// The first of both.
    pub violations: Vec<Violation>,
}

/// A read that cannot be right.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Milliseconds since the load's start.
    pub at_ms: u32,
    pub url: String,
    pub what: String,
    pub answer: String,
    /// The newest acknowledged increments below the answer's position: partition, next offset,
    /// delta.
    pub newest: Vec<(i32, i64, i64)>,
}

#[derive(Debug, Deserialize)]
struct CounterAnswer {
    value: i64,
    events: i64,
    as_of: String,
}

/// Next offsets by partition.
type Position = BTreeMap<i32, i64>;

impl ReadChecker {
    /// Reads from each of the readers whose URLs are given.
    pub(crate) fn start(urls: Vec<String>, record: Arc<LiveRecord>) -> ReadChecker {
        let (stop, report) =
            (CancellationToken::new(), Arc::new(Mutex::new(ReadReport::default())));
        let mut readers = JoinSet::new();
        let reader = ReadClient { urls, record, report };
        for number in 0..=NEVER_WAITS {
            let (reader, stop) = (reader.clone(), stop.clone());
            readers.spawn(async move {
                tokio::select! {
                    ended = reader.run(number) => ended,
                    () = stop.cancelled() => Ok(()),
                }
            });
        }
        ReadChecker { reader, stop, readers }
    }

    /// Call this once everything has healed and is stored: each counter is read once more from
    /// each reader, after its last acknowledgement, and must be answered.
    pub(crate) async fn stop(mut self) -> anyhow::Result<ReadReport> {
        self.stop.cancel();
        while let Some(ended) = self.readers.join_next().await {
            ended??;
        }
        self.reader.read_all().await?;
        Ok(self.reader.report.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

#[derive(Clone)]
struct ReadClient {
    urls: Vec<String>,
    record: Arc<LiveRecord>,
    report: Arc<Mutex<ReadReport>>,
}

enum ReadResult {
    Sound,
    Unanswered(String),
    /// As unanswered, though everything has healed.
    Silent(String),
    Wrong {
        answer: String,
        fault: ReadFault,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct ReadFault {
    what: String,
    /// As in [`Violation`].
    newest: Vec<(i32, i64, i64)>,
}

impl ReadFault {
    fn new(what: String) -> ReadFault {
        ReadFault { what, newest: Vec::new() }
    }
}

impl ReadClient {
    async fn run(self, number: u32) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let mut dice = dice(self.record.plan.seed(), DICE, number);
        loop {
            let counter = dice.random_range(0..READ_COUNTERS as usize);
            let base = self.urls[dice.random_range(0..self.urls.len())].trim_end_matches('/');
            let newest = self.newest(counter);
            let asks_after = number != NEVER_WAITS && dice.random_range(0..100) < AFTER_PERCENT;
            let after = newest.filter(|_| asks_after);
            let url = url_of(base, counter, after);
            let read = self.read(&http, &url, counter, after).await;
            self.report(url, after.is_some(), read);
            tokio::time::sleep(REST).await;
        }
    }

    /// The last of a counter's increments that was acknowledged.
    fn newest(&self, counter: usize) -> Option<Acknowledged> {
        self.record.with_reads(|reads| reads[counter].acknowledged.last().copied())
    }

    async fn read_all(&self) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let deadline = Instant::now() + LAST_PATIENCE;
        for base in &self.urls {
            for counter in 0..READ_COUNTERS as usize {
                let base = base.trim_end_matches('/');
                let after = self.newest(counter);
                let url = url_of(base, counter, after);
                let read = loop {
                    match self.read(&http, &url, counter, after).await {
                        ReadResult::Unanswered(_) if Instant::now() < deadline => {
                            tokio::time::sleep(REST).await
                        }
                        ReadResult::Unanswered(why) => break ReadResult::Silent(why),
                        read => break read,
                    }
                };
                self.report(url, after.is_some(), read);
            }
        }
        Ok(())
    }

    async fn read(
        &self,
        http: &reqwest::Client,
        url: &str,
        counter: usize,
        after: Option<Acknowledged>,
    ) -> ReadResult {
        let answer = async {
            let answer = http.get(url).send().await?;
            Ok((answer.status(), answer.text().await?))
        };
        let (status, text) = match answer.await {
            Ok(answer) => answer,
            Err(error) => return ReadResult::Unanswered(unanswered(&error).to_owned()),
        };
        let answered = Instant::now();
        if status.is_server_error() || status.as_u16() == 429 {
            return ReadResult::Unanswered(format!("{} {}", status.as_u16(), problem(&text)));
        }
        let checked = if status.is_success() {
            self.record.with_reads(|reads| judge(&text, &reads[counter], after))
        } else {
            Err(ReadFault::new(format!("answered {status}")))
        };
        match checked {
            Ok(as_of) => {
                self.record.included(&as_of, answered);
                ReadResult::Sound
            }
            Err(fault) => ReadResult::Wrong { answer: text, fault },
        }
    }

    fn report(&self, url: String, asked_after: bool, read: ReadResult) {
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            ReadResult::Sound => {
                report.answered += 1;
                report.after += u64::from(asked_after);
            }
            ReadResult::Unanswered(why) => *report.unanswered.entry(why).or_insert(0) += 1,
            ReadResult::Silent(answer) => {
                report.silent += 1;
                let what = String::from("not answered, though everything has healed");
                let at_ms = self.record.elapsed_ms();
                report.keep(Violation { at_ms, url, what, answer, newest: Vec::new() });
            }
            ReadResult::Wrong { answer, fault: ReadFault { what, newest } } => {
                report.violated += 1;
                let at_ms = self.record.elapsed_ms();
                report.keep(Violation { at_ms, url, what, answer, newest });
            }
        }
    }
}

fn url_of(base: &str, counter: usize, after: Option<Acknowledged>) -> String {
    let url = format!("{base}/v1/counters/{READS}/read-{counter}");
    match after {
        Some(Acknowledged { partition, next, .. }) => format!("{url}?after={partition}:{next}"),
        None => url,
    }
}

fn unanswered(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "no connection"
    } else {
        "broken off"
    }
}

/// The name of the problem that an answer is of.
fn problem(text: &str) -> String {
    #[derive(Deserialize)]
    struct Problem {
        r#type: String,
    }
    let problem = serde_json::from_str::<Problem>(text);
    problem.map_or_else(
        |_| String::from("without a problem document"),
        |problem| problem.r#type.trim_start_matches("urn:tally:problem:").to_owned(),
    )
}

/// The answer's position, if the answer is sound.
fn judge(
    text: &str,
    counter: &ReadCounter,
    after: Option<Acknowledged>,
) -> Result<Position, ReadFault> {
    let answer: CounterAnswer = serde_json::from_str(text)
        .map_err(|error| ReadFault::new(format!("not a counter: {error}")))?;
    let as_of = position(&answer.as_of)
        .ok_or_else(|| ReadFault::new(format!("{:?} is no position", answer.as_of)))?;
    check(counter, &answer, &as_of, after)?;
    Ok(as_of)
}

fn check(
    counter: &ReadCounter,
    answer: &CounterAnswer,
    as_of: &Position,
    after: Option<Acknowledged>,
) -> Result<(), ReadFault> {
    let is_included = |ack: &&Acknowledged| {
        as_of.get(&ack.partition).is_some_and(|included| ack.next <= *included)
    };
    let included = || counter.acknowledged.iter().filter(is_included);
    let (sum, events) = included()
        .fold((0i128, 0u64), |(sum, events), ack| (sum + i128::from(ack.delta), events + 1));
    let (value, seen) = (i128::from(answer.value), i128::from(answer.events));
    let what = if value < sum || seen < i128::from(events) {
        format!("less than the {sum} of {events} that are acknowledged and below its position")
    } else if value > counter.attempted || seen > i128::from(counter.attempts) {
        format!(
            "more than the {} of {} that were ever attempted",
            counter.attempted, counter.attempts
        )
    } else if after.is_some_and(|after| !is_included(&&after)) {
        String::from("its position does not include what was asked for")
    } else {
        return Ok(());
    };
    let newest = included().rev().take(ACKNOWLEDGED_SHOWN);
    Err(ReadFault {
        what,
        newest: newest.map(|ack| (ack.partition, ack.next, ack.delta)).collect(),
    })
}

fn position(text: &str) -> Option<Position> {
    if text.is_empty() {
        return Some(Position::new());
    }
    let pair = |pair: &str| {
        let (partition, next) = pair.split_once(':')?;
        Some((partition.parse().ok()?, next.parse().ok()?))
    };
    text.split(',').map(pair).collect()
}

impl ReadReport {
    pub fn is_clean(&self) -> bool {
        self.violated == 0 && self.silent == 0
    }

    fn keep(&mut self, violation: Violation) {
        if self.violations.len() < VIOLATIONS_KEPT {
            self.violations.push(violation);
        }
    }
}

impl fmt::Display for ReadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unanswered: Vec<String> =
            self.unanswered.iter().map(|(why, times)| format!("{times} {why}")).collect();
        write!(
            f,
            "  reads: {} answered, {} of them after an acknowledgement; not answered: {}; \
             {} wrong, {} not answered at the end",
            self.answered,
            self.after,
            if unanswered.is_empty() { String::from("none") } else { unanswered.join(", ") },
            self.violated,
            self.silent
        )?;
        for Violation { at_ms, url, what, answer, newest } in &self.violations {
            write!(
                f,
                "\n  read at {at_ms} ms, {url}: {what}: {answer}; the newest below it: {newest:?}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> ReadCounter {
        let acknowledged = [(0, 11, 100), (1, 5, 20), (0, 31, 3)];
        let acknowledged = acknowledged
            .map(|(partition, next, delta)| Acknowledged { partition, next, delta })
            .to_vec();
        ReadCounter { attempted: 1_123, attempts: 4, acknowledged }
    }

    fn told(value: i64, events: i64, as_of: &str, after: Option<(i32, i64)>) -> Result<(), String> {
        let after = after.map(|(partition, next)| Acknowledged { partition, next, delta: 0 });
        let text = format!(r#"{{"value": {value}, "events": {events}, "as_of": "{as_of}"}}"#);
        judge(&text, &counter(), after).map(drop).map_err(|fault| fault.what)
    }

    #[test]
    fn a_read_includes_what_is_acknowledged_below_it_and_not_more_than_was_attempted() {
        assert_eq!(told(120, 2, "0:11,1:5", None), Ok(()));
        assert_eq!(told(100, 1, "0:30,1:4", None), Ok(()));
        assert_eq!(told(1_120, 3, "0:12,1:5", None), Ok(()), "an unacknowledged one may be in it");
        assert!(told(119, 2, "0:11,1:5", None).unwrap_err().starts_with("less"));
        assert!(told(120, 1, "0:11,1:5", None).unwrap_err().starts_with("less"));
        assert!(told(100, 1, "0:31", None).unwrap_err().starts_with("less"));
        assert!(told(1_124, 4, "0:31,1:5", None).unwrap_err().starts_with("more"));
        assert!(told(1_123, 5, "0:31,1:5", None).unwrap_err().starts_with("more"));
    }

    #[test]
    fn a_read_after_an_acknowledgement_includes_it() {
        assert_eq!(told(120, 2, "0:11,1:5", Some((1, 5))), Ok(()));
        assert!(told(120, 2, "0:11,1:5", Some((1, 6))).unwrap_err().contains("asked for"));
        assert!(told(120, 2, "0:11,1:5", Some((2, 1))).unwrap_err().contains("asked for"));
    }

    #[test]
    fn a_refusal_is_told_by_its_problem() {
        assert_eq!(
            problem(r#"{"type": "urn:tally:problem:log_broken", "status": 503}"#),
            "log_broken"
        );
        assert_eq!(problem("Bad Gateway"), "without a problem document");
    }

    #[test]
    fn positions_read_as_the_reader_writes_them() {
        assert_eq!(position("0:12,3:55"), Some(Position::from([(0, 12), (3, 55)])));
        assert_eq!(position(""), Some(Position::new()));
        assert_eq!(position("0:12,3"), None);
    }
}
