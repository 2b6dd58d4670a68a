//! Looks for partitions that stand still while a run goes, and asks the members why.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::{join_all, pending};
use tally_platform::service::Service;

use crate::audit::{Endpoints, LagCheck};
use crate::history::History;
use crate::standstill::{StandstillJudge, StandstillReport};
use crate::world::World;

const LOOK: Duration = Duration::from_millis(500);
/// A member that takes longer to say whether it is ready does not answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Those whose work moves what is stored.
const ASKED: [Service; 2] = [Service::Aggregator, Service::Sink];

pub(crate) struct StandstillWatch<'a> {
    world: &'a World,
    history: &'a History,
    lag: LagCheck,
    http: reqwest::Client,
    /// None once the watch has ended.
    judge: Mutex<Option<StandstillJudge>>,
}

impl<'a> StandstillWatch<'a> {
    pub(crate) fn new(
        world: &'a World,
        history: &'a History,
        endpoints: &Endpoints,
    ) -> anyhow::Result<StandstillWatch<'a>> {
        let lag = LagCheck::new(endpoints)?;
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let judge = Mutex::new(Some(StandstillJudge::default()));
        Ok(StandstillWatch { world, history, lag, http, judge })
    }

    pub(crate) async fn run(&self) -> Infallible {
        while self.judge().is_some() {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
        pending().await
    }

    /// Ends the watch, and says what it saw.
    ///
    /// # Panics
    /// If it has ended before.
    pub(crate) fn end(&self) -> StandstillReport {
        self.judge().take().expect("the watch ends once").report()
    }

    async fn look(&self) {
        let lags = self.lag.look().await;
        let at = self.history.elapsed();
        // It may have ended meanwhile.
        let stands_still = match (&mut *self.judge(), lags) {
            (Some(judge), Ok(lags)) => judge.look(at, lags),
            (Some(judge), Err(_)) => {
                judge.skip();
                false
            }
            (None, _) => false,
        };
        if !stands_still {
            return;
        }
        let not_ready = self.not_ready().await;
        let found = match &mut *self.judge() {
            Some(judge) => judge.answered(at, &not_ready),
            None => Vec::new(),
        };
        for silent in found {
            self.history.say("silent standstill", &silent.to_string());
        }
    }

    /// Why members are not ready; none if all are. Whether a fault holds a member
    /// does not matter: one that sleeps or has ended shows itself by not answering.
    async fn not_ready(&self) -> BTreeSet<String> {
        let members = ASKED.into_iter().flat_map(|service| {
            self.world.health_urls(service).into_iter().map(move |url| (service, url))
        });
        let asked = members.map(async |(service, url)| {
            let reasons = self.reasons(&url).await;
            reasons.into_iter().map(|reason| format!("{service}: {reason}")).collect::<Vec<_>>()
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// A line for each condition that does not hold.
    async fn reasons(&self, health_url: &str) -> Vec<String> {
        let answer = async {
            let answer = self.http.get(format!("{health_url}/readyz")).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        match answer.await {
            Ok((status, _)) if status == reqwest::StatusCode::OK => Vec::new(),
            Ok((status, text)) if text.trim().is_empty() => vec![format!("answers {status}")],
            Ok((_, text)) => text.lines().map(str::to_owned).collect(),
            Err(_) => vec![String::from("does not answer")],
        }
    }

    fn judge(&self) -> MutexGuard<'_, Option<StandstillJudge>> {
        self.judge.lock().expect("no holder panics")
    }
}
