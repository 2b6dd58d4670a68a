//! A service as a process of the real binary, with a configuration of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tally_platform::telemetry::sum_of_series;
use tally_stack::sys::Signal;

use super::Error;
use super::child_process::ChildProcess;

/// What supervisors grant a drain before they kill.
const DRAINS: Duration = Duration::from_secs(30);

/// Where a member answers; the same after each start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) health: SocketAddr,
    pub(super) listen: SocketAddr,
}

/// A service process; killed when dropped.
pub struct Member {
    addresses: Addresses,
    program: Arc<ChildProcess>,
    http: reqwest::Client,
}

impl Member {
    pub(super) fn start(
        addresses: Addresses,
        program: Arc<ChildProcess>,
        http: reqwest::Client,
    ) -> Result<Member, Error> {
        program.start()?;
        Ok(Member { addresses, program, http })
    }

    /// Starts it again under the same name, on the same ports.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.program.start()
    }

    /// SIGKILL. Whether it ran until then.
    pub fn kill(&mut self) -> Result<bool, Error> {
        self.program.kill()
    }

    /// SIGTERM, and how it ended; none if it did not run.
    pub async fn terminate(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.program.terminate(DRAINS).await
    }

    /// SIGSTOP. Whether it ran.
    pub fn pause(&mut self) -> Result<bool, Error> {
        self.program.signal(Signal::Stop)
    }

    /// SIGCONT. Whether it is still there.
    pub fn resume(&mut self) -> Result<bool, Error> {
        self.program.signal(Signal::Continue)
    }

    /// How it ended; none while it runs, asleep or not.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.program.has_ended()
    }

    /// The last line of its log.
    pub fn last_words(&self) -> Result<String, Error> {
        self.program.last_words()
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self, patience: Duration) -> Result<(), Error> {
        let url = format!("{}/readyz", self.health_url());
        let ask = async || {
            let told = |error: reqwest::Error| error.to_string();
            let answer = self.http.get(&url).send().await.map_err(told)?;
            let (status, body) = (answer.status(), answer.text().await.map_err(told)?);
            if status == reqwest::StatusCode::OK {
                Ok(())
            } else {
                Err(format!("{status}: {body}"))
            }
        };
        self.program.answers(patience, ask).await
    }

    /// The sum of a counter over all series whose labels contain `labels`; zero if it was never
    /// counted.
    pub async fn metric(&self, name: &str, labels: &str) -> Result<f64, Error> {
        let failed =
            |reason: String| Error::Metrics { name: self.program.name().to_owned(), reason };
        let told = |error: reqwest::Error| failed(error.to_string());
        let answer =
            self.http.get(format!("{}/metrics", self.health_url())).send().await.map_err(told)?;
        let text = answer.error_for_status().map_err(told)?.text().await.map_err(told)?;
        sum_of_series(&text, name, labels).map_err(failed)
    }

    /// The base of its own interface: the gateway's and the reader's.
    pub fn url(&self) -> String {
        format!("http://{}", self.addresses.listen)
    }

    /// The base of `/readyz` and `/metrics`.
    pub fn health_url(&self) -> String {
        format!("http://{}", self.addresses.health)
    }

    pub fn log(&self) -> &Path {
        self.program.log()
    }
}
