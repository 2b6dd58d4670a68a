//! One connection through a link, from its client's connect to its end.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use rustix::net::Shutdown;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{LinkMode, Setting, Shared, late_commit, owner, pump};

type Settings = watch::Receiver<Arc<Setting>>;

/// What goes wrong on either end is for the sides to notice.
pub(super) async fn relay(client: TcpStream, target: SocketAddr, shared: &Shared) {
    let mut settings = shared.setting.subscribe();
    let setting = shared.now();
    if is_cut(&client, setting.mode).await {
        setting.strike(1);
        return reset(client);
    }
    if setting.mode == LinkMode::Stalled {
        setting.strike(1);
        changed(&mut settings).await;
        return reset(client);
    }
    let Ok(peer) = TcpStream::connect(target).await else { return reset(client) };
    if client.set_nodelay(true).and_then(|()| peer.set_nodelay(true)).is_err() {
        return reset(client);
    }
    let whole = {
        let mut talk = pin!(async {
            match setting.mode {
                LinkMode::LateCommit => late_commit::talk(&client, &peer, shared, &setting).await,
                _ => talk(&client, &peer, shared, &setting).await,
            }
        });
        // While the mode is stalled, `talk` is not polled, and so nothing moves.
        loop {
            let now = settings.borrow_and_update().clone();
            match now.mode {
                mode if is_cut(&client, mode).await => {
                    now.strike(1);
                    break false;
                }
                // Its connections live and end with it.
                mode if [mode, setting.mode].contains(&LinkMode::LateCommit)
                    && !Arc::ptr_eq(&now, &setting) =>
                {
                    break false;
                }
                LinkMode::Stalled => {
                    stalled(&client, &peer, &now, &mut settings).await;
                    break false;
                }
                _ => {
                    tokio::select! {
                        whole = &mut talk => break whole,
                        () = changed(&mut settings) => {}
                    }
                }
            }
        }
    };
    if !whole {
        reset(client);
        reset(peer);
    }
}

async fn is_cut(client: &TcpStream, mode: LinkMode) -> bool {
    match mode {
        LinkMode::Cut => true,
        LinkMode::CutOff(process) => owner::is_client_of(client, process).await,
        LinkMode::Open
        | LinkMode::Delay(_)
        | LinkMode::Slow(_)
        | LinkMode::Stalled
        | LinkMode::Late(_)
        | LinkMode::LateCommit => false,
    }
}

/// Both directions; whether both came to an orderly end.
async fn talk(client: &TcpStream, peer: &TcpStream, shared: &Shared, born: &Arc<Setting>) -> bool {
    let mut asks = pin!(async {
        let whole = pump::asks(client, peer, shared, born).await;
        // The peer may still answer.
        if let Err(error) = rustix::net::shutdown(peer, Shutdown::Write) {
            tracing::debug!(%error, "pass the end of a client on: its peer is gone");
        }
        whole
    });
    let mut answers = pin!(pump::answers(peer, client, shared));
    tokio::select! {
        asked = &mut asks => answers.await & asked,
        // A peer that has hung up needs no more requests.
        answered = &mut answers => answered,
    }
}

/// Waits until the mode changes. A connection that has something to say is struck.
async fn stalled(client: &TcpStream, peer: &TcpStream, setting: &Setting, settings: &mut Settings) {
    let mut byte = [0];
    let mut other = [0];
    tokio::select! {
        _ = client.peek(&mut byte) => setting.strike(1),
        _ = peer.peek(&mut other) => setting.strike(1),
        () = changed(settings) => return,
    }
    changed(settings).await;
}

/// The link that was dropped ends its connections itself.
async fn changed(settings: &mut Settings) {
    if settings.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn reset(stream: TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "reset a connection: it is closed instead");
    }
}
