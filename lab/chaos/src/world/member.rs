//! A service as a process of the real binary, with a configuration of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tally_platform::telemetry::sum_of_series;

use super::child_process::ChildProcess;

/// Where a member answers; the same after each start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) health: SocketAddr,
    pub(super) listen: SocketAddr,
}

impl Addresses {
    /// The base of `/readyz` and `/metrics`.
    pub(super) fn health_url(&self) -> String {
        format!("http://{}", self.health)
    }
}

/// A service process, started again under the same name, on the same ports; killed when dropped.
pub(crate) struct Member {
    addresses: Addresses,
    pub(crate) program: Arc<ChildProcess>,
    http: reqwest::Client,
}

impl Member {
    pub(super) fn start(
        addresses: Addresses,
        program: Arc<ChildProcess>,
        http: reqwest::Client,
    ) -> anyhow::Result<Member> {
        program.start()?;
        Ok(Member { addresses, program, http })
    }

    pub(crate) async fn ready(&self, patience: Duration) -> anyhow::Result<()> {
        let url = format!("{}/readyz", self.addresses.health_url());
        let ask = async || tally_stack::get(&self.http, &url).await.map(drop);
        self.program.answers(patience, ask).await
    }

    /// The sum of a counter over all series whose labels contain `labels`; zero if it was never
    /// counted.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> anyhow::Result<f64> {
        let text =
            tally_stack::get(&self.http, &format!("{}/metrics", self.addresses.health_url())).await;
        let sum = sum_of_series(&text?, name, labels).map_err(anyhow::Error::msg);
        sum.with_context(|| format!("metrics of {}", self.program.name()))
    }

    /// The base of its own interface: the gateway's and the reader's.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addresses.listen)
    }
}
