//! A way from one side to one peer that can be harmed.
//!
//! ```text
//! client ──► port of the link ──► relay (a connection) ──► the peer's own port
//!                                   ▲
//!                       Setting ────┘  the mode, and how much it has struck
//! ```
//!
//! A mode holds for connections that are there as for those that come.

mod accept;
mod late_commit;
mod owner;
mod pump;
mod relay;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use late_commit::KeptCommits;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkMode {
    /// Everything passes as if the link were not there.
    Open,
    /// Connections are reset, new ones too.
    Cut,
    /// Connections whose client is that process are reset, new ones too; all others pass.
    CutOff(u32),
    /// Each direction comes so much later, in order.
    Delay(Duration),
    /// Each direction of a connection passes so many bytes a second.
    Slow(u32),
    /// Half-open: connections stay and new ones are taken, but no byte passes. They are reset when
    /// this mode ends: what a peer missed cannot be made up for.
    Stalled,
    /// What clients send over connections that are there already comes so much later, and comes
    /// even if the client has hung up by then. Answers are not held, nor new connections: what a
    /// client sends again over one comes before the first copy.
    Late(Duration),
    /// The network sends on a commit that it had lost: the first `EndTxn` of each client is kept
    /// and its connection reset. The client sends it again. The copy arrives in the middle of that
    /// client's next transaction, after `AddOffsetsToTxn`. Connections that are there when this
    /// mode begins are reset, so that each is seen from its first request on, and so are those that
    /// are there when it ends.
    LateCommit,
}

/// One mode, from its beginning to the next one's.
struct Setting {
    mode: LinkMode,
    struck: AtomicU64,
    kept: KeptCommits,
}

impl Setting {
    fn new(mode: LinkMode) -> Arc<Setting> {
        Arc::new(Setting { mode, struck: AtomicU64::new(0), kept: KeptCommits::default() })
    }

    fn strike(&self, count: u64) {
        self.struck.fetch_add(count, Ordering::Relaxed);
    }
}

/// What the connections of a link share.
struct Shared {
    setting: watch::Sender<Arc<Setting>>,
    traffic: AtomicU64,
}

impl Shared {
    fn now(&self) -> Arc<Setting> {
        Arc::clone(&self.setting.borrow())
    }
}

pub(crate) struct NetworkLink {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<()>>,
}

impl NetworkLink {
    /// Listens on the first address of each pair and connects to the second. Several pairs are
    /// harmed as one.
    pub(crate) async fn start(ways: &[(SocketAddr, SocketAddr)]) -> anyhow::Result<NetworkLink> {
        let shared = Arc::new(Shared {
            setting: watch::Sender::new(Setting::new(LinkMode::Open)),
            traffic: AtomicU64::new(0),
        });
        let mut link = NetworkLink { shared, listeners: Vec::new() };
        for &(listen, target) in ways {
            let listener = TcpListener::bind(listen).await;
            let listener = listener.with_context(|| format!("listen on {listen}"))?;
            let accepting = accept::accept(listener, target, Arc::clone(&link.shared));
            link.listeners.push(tokio::spawn(accepting));
        }
        Ok(link)
    }

    pub(crate) fn set(&self, mode: LinkMode) {
        self.shared.setting.send_replace(Setting::new(mode));
    }

    /// Bytes that have passed so far, both ways.
    pub(crate) fn traffic(&self) -> u64 {
        self.shared.traffic.load(Ordering::Relaxed)
    }

    /// What the present mode has affected since it was set: connections for [`LinkMode::Cut`] and
    /// [`LinkMode::CutOff`], connections that had something to say for [`LinkMode::Stalled`],
    /// commits that came late and were answered for [`LinkMode::LateCommit`], bytes for the others.
    pub(crate) fn struck(&self) -> u64 {
        self.shared.now().struck.load(Ordering::Relaxed)
    }
}

impl Drop for NetworkLink {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}
