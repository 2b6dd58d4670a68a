//! A TCP proxy before a part of the stack, so that one test can cut it off while the others use it.
//!
//! ```text
//! a service ──► Proxy ──► the part
//!                 │ Open: as if it were not there
//!                 │ Refusing: connections are cut, new ones hung up on
//!                 │ Deaf: requests reach the part, but the connection is cut when it answers
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    Refusing,
    Deaf,
}

pub(crate) struct Proxy {
    port: u16,
    mode: Arc<watch::Sender<Mode>>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a port that nothing listened on before.
    pub(crate) async fn start(port: u16, target: SocketAddr) -> Proxy {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("the port is free");
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let task = tokio::spawn(serve(listener, target, Arc::clone(&mode)));
        Proxy { port, mode, task }
    }

    /// An address under the proxy's port.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, mode: Arc<watch::Sender<Mode>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a listener takes connections");
                connections.spawn(connection(client, target, mode.subscribe()));
            }
            Some(ended) = connections.join_next() => ended.expect("a connection does not panic"),
        }
    }
}

/// Ends when either side hangs up, or when the mode changes. What goes wrong on either side is for
/// the sides to notice.
async fn connection(mut client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow_and_update();
    let talk = async {
        let mut part = match now {
            Mode::Refusing => return,
            Mode::Open | Mode::Deaf => match TcpStream::connect(target).await {
                Ok(part) => part,
                Err(_) => return,
            },
        };
        match now {
            Mode::Open => drop(copy_bidirectional(&mut client, &mut part).await),
            _ => forward_until_answered(&mut client, &mut part).await,
        }
    };
    tokio::select! { () = talk => {}, _ = mode.changed() => {} }
}

async fn forward_until_answered(client: &mut TcpStream, part: &mut TcpStream) {
    let mut bytes = vec![0; 64 << 10];
    let mut answer = [0];
    loop {
        tokio::select! {
            read = client.read(&mut bytes) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => if part.write_all(&bytes[..count]).await.is_err() { return },
            },
            _ = part.read(&mut answer) => return,
        }
    }
}
