//! The parts of the stack, and how one says that it is there.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use strum::{Display, IntoStaticStr};
use tally_platform::causes::with_causes;

use super::{artifacts::Artifact, broker, progress::Progress, registry, stack::Stack, store};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Display, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Part {
    Broker,
    Registry,
    Store,
}

impl Part {
    pub const ALL: [Part; 3] = [Part::Broker, Part::Registry, Part::Store];

    pub fn name(self) -> &'static str {
        self.into()
    }

    pub fn version(self) -> &'static str {
        match self {
            Part::Broker => broker::VERSION,
            Part::Registry => registry::VERSION,
            Part::Store => store::VERSION,
        }
    }

    /// The folder that holds its program; downloaded first unless it is there.
    pub async fn fetch(self, progress: &Progress) -> anyhow::Result<PathBuf> {
        self.artifact().fetch(&progress.task(self.name())).await
    }

    pub(super) fn artifact(self) -> Artifact {
        match self {
            Part::Broker => broker::JARS,
            Part::Registry => registry::TARBALL,
            Part::Store => store::LIBRARY,
        }
    }

    /// The name of its data folder within the stack's.
    pub(super) fn data(self) -> &'static str {
        if self == Part::Broker { "kafka" } else { self.name() }
    }

    /// Every port it listens on, with the option that chooses it. The first is the one that clients
    /// use.
    pub(super) fn ports(self, stack: &Stack) -> Vec<(SocketAddr, &'static str)> {
        match self {
            Part::Broker => {
                vec![(stack.broker, "--broker-port"), (stack.controller, "--controller-port")]
            }
            Part::Registry => vec![(stack.registry, "--registry-port")],
            Part::Store => vec![(stack.store, "--store-port")],
        }
    }

    pub(super) fn address(self, stack: &Stack) -> SocketAddr {
        self.ports(stack)[0].0
    }

    /// Asks it something that only a working part can answer.
    pub async fn probe(self, address: SocketAddr, http: &reqwest::Client) -> Result<(), NoAnswer> {
        match self {
            Part::Broker => broker::probe(address).await,
            Part::Registry => registry::probe(address, http).await,
            Part::Store => store::probe(address, http).await,
        }
    }
}

/// Why a part does not count as being there; for people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoAnswer(pub(super) String);

impl NoAnswer {
    /// The error with its causes: reqwest's own message stops at "error sending request".
    pub(super) fn because(error: &dyn std::error::Error) -> NoAnswer {
        NoAnswer(with_causes(error))
    }
}

/// A client for loopback: a proxy in the environment is not asked.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()
}

/// GET, and the body of a 200.
pub async fn get(http: &reqwest::Client, url: &str) -> Result<String, NoAnswer> {
    let response = http.get(url).send().await.map_err(|error| NoAnswer::because(&error))?;
    let status = response.status();
    let text = response.text().await.map_err(|error| NoAnswer::because(&error))?;
    if status != reqwest::StatusCode::OK {
        return Err(NoAnswer(format!("{url} answers {status}: {text}")));
    }
    Ok(text)
}
