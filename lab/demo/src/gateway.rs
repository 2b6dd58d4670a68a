//! The last flights: JSON over HTTP.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clickhouse::query::RowCursor;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use tally_platform::config::Config;
use tokio::task::JoinSet;

use super::NAMESPACE;
use super::flights::{self, Flight};
use super::report::Stage;

/// Flights in a request, and requests at once.
const FLIGHTS: usize = 100;
const REQUESTS: usize = 8;

#[derive(Serialize)]
struct IncrementItem {
    namespace: &'static str,
    key: String,
    delta: i64,
    at: i64,
}

#[derive(Deserialize)]
struct Accepted {
    accepted: u64,
}

/// Sends the flights that are left, `count` of them, and returns once the gateway has acknowledged
/// them all.
pub(super) async fn run(
    config: &Config,
    left: &mut RowCursor<Flight>,
    count: u64,
    progress: &ProgressBar,
) -> anyhow::Result<Stage> {
    let started = Instant::now();
    let url: Arc<str> = format!("http://{}/v1/increments", config.producer.listen).into();
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut requests = JoinSet::new();
    let (mut items, mut key, mut accepted) = (Vec::new(), String::new(), 0);
    loop {
        let flight = left.next().await?;
        if let Some(flight) = &flight {
            flight.increments(&mut key, |key, delta| {
                items.push(IncrementItem {
                    namespace: NAMESPACE,
                    key: key.to_owned(),
                    delta,
                    at: flight.at_ms,
                });
            });
        }
        let full = items.len() >= FLIGHTS * flights::INCREMENTS as usize;
        if !items.is_empty() && (full || flight.is_none()) {
            if requests.len() >= REQUESTS {
                accepted += next(&mut requests, progress).await?;
            }
            requests.spawn(post(http.clone(), url.clone(), std::mem::take(&mut items)));
        }
        if flight.is_none() {
            break;
        }
    }
    while !requests.is_empty() {
        accepted += next(&mut requests, progress).await?;
    }
    let expected = count * flights::INCREMENTS;
    anyhow::ensure!(
        accepted == expected,
        "the gateway accepted {accepted} of {expected} increments"
    );
    Ok(Stage::since("sent through the HTTP gateway as JSON", accepted, started))
}

async fn next(
    requests: &mut JoinSet<anyhow::Result<u64>>,
    progress: &ProgressBar,
) -> anyhow::Result<u64> {
    let accepted = requests.join_next().await.context("no request is under way")???;
    progress.inc(accepted);
    Ok(accepted)
}

async fn post(
    http: reqwest::Client,
    url: Arc<str>,
    items: Vec<IncrementItem>,
) -> anyhow::Result<u64> {
    let request = http.post(&*url).json(&items);
    let Accepted { accepted } = tally_load::answer("the gateway", request).await?;
    anyhow::ensure!(accepted == items.len() as u64, "accepted {accepted} of {}", items.len());
    Ok(accepted)
}
