//! Requests to the gateways, as a client sends them that must not lose an increment and must not
//! count one twice: whatever is not certainly refused is sent again, the same, until it is
//! acknowledged.
//!
//! ```text
//!  Plan ─► Pace ─► request ─► one gateway, then the next ─► 200: settled; now and then sent again all the same
//!                     ▲                │
//!                     └── back-off ◄───┴─ no answer, 408, 429, 5xx
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::direct::wait_until;
use super::pace::Pace;
use crate::audit::book::{Book, Outcome};
use crate::audit::codec::Increment;
use crate::audit::content::{Content, Counts, Way};
use crate::audit::error::Error;

/// Requests in progress at once.
const REQUESTS: usize = 48;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Some clients hang up before any answer can have come.
const IMPATIENT: Duration = Duration::from_millis(15);
const IMPATIENT_PERCENT: u64 = 4;
/// Of a hundred requests, so many are sent again although they were acknowledged.
const AGAIN_PERCENT: u64 = 4;
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// After the load's end, unacknowledged requests are tried for so long.
const LAST_TRIES: Duration = Duration::from_secs(60);

pub(super) struct Lane {
    pub(super) per_second: f64,
    pub(super) gateways: Vec<String>,
    pub(super) book: Arc<Book>,
}

#[derive(Deserialize)]
struct Accepted {
    accepted: usize,
    position: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    outcome: String,
    #[serde(default)]
    detail: String,
}

/// What one try came to.
enum Try {
    Accepted(Option<(i32, i64)>),
    /// It may be stored.
    Unknown(Option<Duration>),
    /// It is not stored, and may be sent again after that.
    NotApplied(Option<Duration>),
    /// What the client must not be told.
    Odd(String),
}

impl Lane {
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let http = reqwest::Client::builder().no_proxy().build().map_err(Error::Http)?;
        let lane = Arc::new(self);
        let room = Arc::new(Semaphore::new(REQUESTS));
        let mut requests = JoinSet::new();
        let mut pace = Pace::new(lane.per_second, Instant::now());
        for number in 0.. {
            while let Some(ended) = requests.try_join_next() {
                settled(ended)?;
            }
            let clock_ms = lane.book.clock_ms();
            let content = lane.book.plan.content(Way::Request, number, clock_ms);
            if !wait_until(pace.take(content.batch.increments.len(), Instant::now()), &stop).await {
                break;
            }
            let permit = tokio::select! {
                permit = Arc::clone(&room).acquire_owned() => permit.expect("the semaphore is never closed"),
                () = stop.cancelled() => break,
            };
            let (lane, http, stop) = (Arc::clone(&lane), http.clone(), stop.clone());
            requests.spawn(async move {
                lane.request(&http, number, clock_ms, &content, &stop).await;
                drop(permit);
            });
        }
        while let Some(ended) = requests.join_next().await {
            settled(ended)?;
        }
        Ok(())
    }

    /// Sends one request until it is settled.
    async fn request(
        &self,
        http: &reqwest::Client,
        number: u32,
        clock_ms: i64,
        content: &Content,
        stop: &CancellationToken,
    ) {
        let body = body(content);
        let mut fate = self.book.plan.fate(Way::Request, number);
        let mark = self.book.attempt(Way::Request, number, clock_ms, Some(content));
        let mut timeout =
            if fate.below(100) < IMPATIENT_PERCENT { IMPATIENT } else { ANSWER_TIMEOUT };
        let mut back_off = FIRST_BACK_OFF;
        let mut may_be_stored = false;
        let mut stopped_at = None;
        for attempt in 0.. {
            let gateway = &self.gateways[(number as usize + attempt) % self.gateways.len()];
            let pause = match self.attempt(http, gateway, content, &body, timeout).await {
                Try::Accepted(place) => {
                    self.book.settle(mark, Outcome::Acknowledged(place));
                    if content.counts != Counts::EachTime && fate.below(100) < AGAIN_PERCENT {
                        self.again(http, content, &body, number).await;
                    }
                    return;
                }
                Try::Unknown(pause) => {
                    may_be_stored = true;
                    if content.counts == Counts::EachTime {
                        return self.book.settle(mark, Outcome::Unknown);
                    }
                    pause
                }
                Try::NotApplied(pause) => pause,
                Try::Odd(what) => {
                    self.book.odd(format!("request {number} to {gateway}: {what}"));
                    return self.book.settle(mark, Outcome::Unknown);
                }
            };
            timeout = ANSWER_TIMEOUT;
            tokio::time::sleep(pause.unwrap_or(back_off).min(LONGEST_BACK_OFF)).await;
            back_off = (back_off * 2).min(LONGEST_BACK_OFF);
            if stop.is_cancelled()
                && stopped_at.get_or_insert_with(Instant::now).elapsed() > LAST_TRIES
            {
                break;
            }
        }
        let outcome = if may_be_stored { Outcome::Unknown } else { Outcome::NotApplied };
        self.book.settle(mark, outcome);
    }

    /// Sends what was acknowledged once more, as a client that lost the answer would.
    async fn again(&self, http: &reqwest::Client, content: &Content, body: &Value, number: u32) {
        let gateway = &self.gateways[(number as usize + 1) % self.gateways.len()];
        if let Try::Odd(what) = self.attempt(http, gateway, content, body, ANSWER_TIMEOUT).await {
            self.book.odd(format!("request {number} again to {gateway}: {what}"));
        }
    }

    async fn attempt(
        &self,
        http: &reqwest::Client,
        gateway: &str,
        content: &Content,
        body: &Value,
        timeout: Duration,
    ) -> Try {
        let url = format!("{}/v1/increments", gateway.trim_end_matches('/'));
        let mut request = http.post(url).timeout(timeout).json(body);
        if let Some(id) = &content.batch.id {
            request = request.header("idempotency-key", id);
        }
        match request.send().await {
            Ok(response) => judge(response, content.batch.increments.len()).await,
            Err(error) if error.is_connect() => Try::NotApplied(None),
            Err(_) => Try::Unknown(None),
        }
    }
}

fn settled(ended: Result<(), tokio::task::JoinError>) -> Result<(), Error> {
    ended.map_err(|error| Error::Task { task: "load", reason: error.to_string() })
}

async fn judge(response: Response, sent: usize) -> Try {
    let status = response.status();
    let retry_after = response.headers().get(reqwest::header::RETRY_AFTER);
    let pause =
        retry_after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    // An answer that breaks off says nothing.
    let Ok(body) = response.bytes().await else { return Try::Unknown(pause) };
    if status == StatusCode::OK {
        return accepted(&body, sent);
    }
    let refused = serde_json::from_slice::<Refused>(&body);
    let may_try_again = matches!(status.as_u16(), 408 | 429) || status.is_server_error();
    match refused {
        Ok(refused) if !may_try_again => Try::Odd(format!("{status}, {}", refused.detail)),
        Err(error) if !may_try_again => Try::Odd(format!("{status}, {error}")),
        Ok(refused) if refused.outcome == "not_applied" => Try::NotApplied(pause),
        Ok(_) | Err(_) => Try::Unknown(pause),
    }
}

fn accepted(body: &[u8], sent: usize) -> Try {
    let answer: Accepted = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return Try::Odd(format!("200, but {error}")),
    };
    if answer.accepted != sent {
        return Try::Odd(format!("{sent} increments were sent, {} accepted", answer.accepted));
    }
    let Some(position) = answer.position else { return Try::Accepted(None) };
    let place = position.split_once(':').and_then(|(partition, next)| {
        Some((partition.parse::<i32>().ok()?, next.parse::<i64>().ok()?.checked_sub(1)?))
    });
    match place {
        Some(place) => Try::Accepted(Some(place)),
        None => Try::Odd(format!("its position is {position:?}")),
    }
}

fn body(content: &Content) -> Value {
    let item = |increment: &Increment| {
        let mut item = json!({
            "namespace": increment.namespace,
            "key": increment.key,
            "delta": increment.delta,
            "at": increment.at,
        });
        if let Some(id) = &increment.id {
            item["id"] = json!(id);
        }
        item
    };
    match (&content.batch.increments[..], content.is_single) {
        ([increment], true) => item(increment),
        (increments, _) => Value::Array(increments.iter().map(item).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_taken_at_its_word() {
        let answer = |body: &str| accepted(body.as_bytes(), 3);
        assert!(matches!(
            answer(r#"{"accepted": 3, "position": "2:41"}"#),
            Try::Accepted(Some((2, 40)))
        ));
        assert!(matches!(answer(r#"{"accepted": 3}"#), Try::Accepted(None)));
        assert!(matches!(answer(r#"{"accepted": 2, "position": "2:41"}"#), Try::Odd(_)));
        assert!(matches!(answer(r#"{"accepted": 3, "position": "2"}"#), Try::Odd(_)));
        assert!(matches!(answer("{"), Try::Odd(_)));
    }
}
