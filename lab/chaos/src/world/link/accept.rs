use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Shared, relay};

/// Before the next attempt when the system refuses to hand over a connection, as when no file
/// descriptor is left.
const PAUSE: Duration = Duration::from_millis(50);

/// Takes connections until it is dropped, and all of them with it.
pub(super) async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move { relay::relay(client, target, &shared).await });
                }
                Err(error) => {
                    tracing::warn!(%error, %target, "take a connection to a link");
                    sleep(PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => ended.expect("a connection does not panic"),
        }
    }
}
