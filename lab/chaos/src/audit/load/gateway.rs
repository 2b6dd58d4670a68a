//! Requests to the gateways, as a client sends them that must not lose an increment and must not
//! count one twice: whatever is not certainly refused is sent again, the same, until it is
//! acknowledged.
//!
//! ```text
//!  LoadPlan ─► Pace ─► request ─► one gateway, then the next ─► 200: settled, and now and then
//!                         ▲                │                         sent again all the same
//!                         └── back-off ◄───┴─ no answer, 408, 429, 5xx
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::direct::wait_until;
use super::pace::Pace;
use crate::audit::codec::Increment;
use crate::audit::content::{Content, Counts, Route};
use crate::audit::live_record::LiveRecord;
use crate::audit::record::State;

/// Requests in progress at once.
const REQUESTS: usize = 48;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Some clients hang up before any answer can have come.
const IMPATIENT: Duration = Duration::from_millis(15);
const IMPATIENT_PERCENT: u64 = 4;
/// How many of a hundred requests are sent again although they were acknowledged.
const AGAIN_PERCENT: u64 = 4;
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// After the load's end, unacknowledged requests are tried for so long.
const LAST_TRIES: Duration = Duration::from_secs(60);

pub(super) struct GatewayWriter {
    pub(super) per_second: f64,
    pub(super) gateways: Vec<String>,
    pub(super) record: Arc<LiveRecord>,
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

enum GatewayAnswer {
    /// Where it is.
    Accepted((i32, i64)),
    /// It may be stored.
    Unknown(Option<Duration>),
    /// It is not stored, and may be sent again after that.
    NotApplied(Option<Duration>),
    /// What the client must not be told.
    Odd(String),
}

impl GatewayWriter {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let writer = Arc::new(self);
        let room = Arc::new(Semaphore::new(REQUESTS));
        let mut requests = JoinSet::new();
        let mut pace = Pace::new(writer.per_second, Instant::now());
        for number in 0.. {
            while let Some(ended) = requests.try_join_next() {
                ended?;
            }
            let clock_ms = writer.record.clock_ms();
            let content = writer.record.plan.content(Route::Request, number, clock_ms);
            if !wait_until(pace.take(content.batch.increments.len(), Instant::now()), &stop).await {
                break;
            }
            let permit = tokio::select! {
                permit = Arc::clone(&room).acquire_owned() => {
                    permit.expect("the semaphore is never closed")
                }
                () = stop.cancelled() => break,
            };
            let (writer, http, stop) = (Arc::clone(&writer), http.clone(), stop.clone());
            requests.spawn(async move {
                writer.request(&http, number, clock_ms, &content, &stop).await;
                drop(permit);
            });
        }
        while let Some(ended) = requests.join_next().await {
            ended?;
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
        let mut fate = self.record.plan.fate(Route::Request, number);
        let mark = self.record.attempt(Route::Request, number, clock_ms, Some(content));
        let mut timeout =
            if fate.random_range(0..100) < IMPATIENT_PERCENT { IMPATIENT } else { ANSWER_TIMEOUT };
        let mut back_off = FIRST_BACK_OFF;
        let mut may_be_stored = false;
        let mut stopped_at = None;
        for attempt in 0.. {
            if attempt > 0 {
                self.record.attempt_again(mark, content);
            }
            let gateway = &self.gateways[(number as usize + attempt) % self.gateways.len()];
            let pause = match self.attempt(http, gateway, content, &body, timeout).await {
                GatewayAnswer::Accepted(place) => {
                    self.record.settle(mark, State::Acknowledged, Some(place));
                    if content.counts != Counts::EachTime
                        && fate.random_range(0..100) < AGAIN_PERCENT
                    {
                        self.record.attempt_again(mark, content);
                        self.again(http, content, &body, number).await;
                    }
                    return;
                }
                GatewayAnswer::Unknown(pause) => {
                    may_be_stored = true;
                    if content.counts == Counts::EachTime {
                        return self.record.settle(mark, State::Unknown, None);
                    }
                    pause
                }
                GatewayAnswer::NotApplied(pause) => pause,
                GatewayAnswer::Odd(what) => {
                    self.record.odd(format!("request {number} to {gateway}: {what}"));
                    return self.record.settle(mark, State::Unknown, None);
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
        let state = if may_be_stored { State::Unknown } else { State::NotApplied };
        self.record.settle(mark, state, None);
    }

    /// Sends what was acknowledged once more, as a client that lost the answer would.
    async fn again(&self, http: &reqwest::Client, content: &Content, body: &Value, number: u32) {
        let gateway = &self.gateways[(number as usize + 1) % self.gateways.len()];
        if let GatewayAnswer::Odd(what) =
            self.attempt(http, gateway, content, body, ANSWER_TIMEOUT).await
        {
            self.record.odd(format!("request {number} again to {gateway}: {what}"));
        }
    }

    async fn attempt(
        &self,
        http: &reqwest::Client,
        gateway: &str,
        content: &Content,
        body: &Value,
        timeout: Duration,
    ) -> GatewayAnswer {
        let url = format!("{}/v1/increments", gateway.trim_end_matches('/'));
        let mut request = http.post(url).timeout(timeout).json(body);
        if let Some(id) = &content.batch.id {
            request = request.header("idempotency-key", id);
        }
        match request.send().await {
            Ok(response) => judge(response, content.batch.increments.len()).await,
            Err(error) if error.is_connect() => GatewayAnswer::NotApplied(None),
            Err(_) => GatewayAnswer::Unknown(None),
        }
    }
}

async fn judge(response: Response, sent: usize) -> GatewayAnswer {
    let status = response.status();
    let retry_after = response.headers().get(reqwest::header::RETRY_AFTER);
    let pause =
        retry_after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    // An answer that breaks off says nothing.
    let Ok(body) = response.bytes().await else { return GatewayAnswer::Unknown(pause) };
    if status == StatusCode::OK {
        return accepted(&body, sent);
    }
    let refused = serde_json::from_slice::<Refused>(&body);
    let may_try_again = matches!(status.as_u16(), 408 | 429) || status.is_server_error();
    match refused {
        Ok(refused) if !may_try_again => {
            GatewayAnswer::Odd(format!("{status}, {}", refused.detail))
        }
        Err(error) if !may_try_again => GatewayAnswer::Odd(format!("{status}, {error}")),
        Ok(refused) if refused.outcome == "not_applied" => GatewayAnswer::NotApplied(pause),
        Ok(_) | Err(_) => GatewayAnswer::Unknown(pause),
    }
}

fn accepted(body: &[u8], sent: usize) -> GatewayAnswer {
    let answer: Accepted = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => return GatewayAnswer::Odd(format!("200, but {error}")),
    };
    if answer.accepted != sent {
        return GatewayAnswer::Odd(format!(
            "{sent} increments were sent, {} accepted",
            answer.accepted
        ));
    }
    let Some(position) = answer.position else {
        return GatewayAnswer::Odd(String::from("200, but without a position"));
    };
    let place = position.split_once(':').and_then(|(partition, next)| {
        Some((partition.parse::<i32>().ok()?, next.parse::<i64>().ok()?.checked_sub(1)?))
    });
    match place {
        Some(place) => GatewayAnswer::Accepted(place),
        None => GatewayAnswer::Odd(format!("its position is {position:?}")),
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
            GatewayAnswer::Accepted((2, 40))
        ));
        assert!(matches!(answer(r#"{"accepted": 3}"#), GatewayAnswer::Odd(_)));
        assert!(matches!(answer(r#"{"accepted": 2, "position": "2:41"}"#), GatewayAnswer::Odd(_)));
        assert!(matches!(answer(r#"{"accepted": 3, "position": "2"}"#), GatewayAnswer::Odd(_)));
        assert!(matches!(answer("{"), GatewayAnswer::Odd(_)));
    }
}
