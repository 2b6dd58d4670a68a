//! A connection of a Kafka client under [`super::LinkMode::LateCommit`]: its requests are told
//! apart.
//!
//! ```text
//! EndTxn, none kept ──► kept, connection reset
//! EndTxn, one kept ───► passed on: the client's second try
//! AddOffsetsToTxn, one kept ──► passed on ──► the kept EndTxn, over a connection of its own
//!                                              └──► answers go on
//! ```
//!
//! The start of a request, [from the protocol
//! guide](https://kafka.apache.org/protocol#protocol_messages): its length i32, api key i16, api
//! version i16, correlation id i32, client id as i16 length and bytes.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::{Setting, Shared, pump};

const ADD_OFFSETS_TO_TXN: i16 = 25;
const END_TXN: i16 = 26;
/// Bytes. More than any broker here takes: what says that it is longer is not Kafka's protocol.
const LONGEST: usize = 64 << 20;
/// How long the broker gets to act on a request that was passed on, before the next one.
const SOON: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(2);

/// The commits that were kept under one setting, by client id.
#[derive(Default)]
pub(super) struct KeptCommits(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

/// Passes both directions on until either end closes or fails, or a commit is kept.
pub(super) async fn talk(
    client: &TcpStream,
    peer: &TcpStream,
    shared: &Shared,
    setting: &Setting,
) -> bool {
    // Held while a kept commit is on its way, so that the client does not go on meanwhile.
    let answering = Mutex::new(());
    tokio::select! {
        asked = asks(client, peer, shared, setting, &answering) => asked.is_ok(),
        answered = answers(peer, client, shared, &answering) => answered.is_ok(),
    }
}

async fn asks(
    client: &TcpStream,
    peer: &TcpStream,
    shared: &Shared,
    setting: &Setting,
    answering: &Mutex<()>,
) -> io::Result<()> {
    loop {
        let request = frame(client).await?;
        match Head::of(&request) {
            Some(Head { api: END_TXN, client: id }) => {
                let mut kept = setting.kept.0.lock().await;
                if !kept.contains_key(id) {
                    kept.insert(id.to_vec(), request);
                    return Err(ErrorKind::ConnectionReset.into());
                }
            }
            Some(Head { api: ADD_OFFSETS_TO_TXN, client: id }) => {
                let late = setting.kept.0.lock().await.remove(id);
                if let Some(late) = late {
                    let _answering = answering.lock().await;
                    write(peer, &request, shared).await?;
                    sleep(SOON).await;
                    match timeout(ANSWER, arrive(peer.peer_addr()?, &late)).await {
                        Ok(Ok(())) => setting.strike(1),
                        Ok(Err(error)) => tracing::debug!(%error, "deliver a late commit"),
                        Err(_) => tracing::debug!("a late commit was not answered"),
                    }
                    continue;
                }
            }
            _ => {}
        }
        write(peer, &request, shared).await?;
    }
}

async fn answers(
    peer: &TcpStream,
    client: &TcpStream,
    shared: &Shared,
    answering: &Mutex<()>,
) -> io::Result<()> {
    loop {
        let answer = frame(peer).await?;
        let _answering = answering.lock().await;
        write(client, &answer, shared).await?;
    }
}

/// Sends a request over a connection of its own, and waits for the answer.
async fn arrive(broker: SocketAddr, request: &[u8]) -> io::Result<()> {
    let mut connection = TcpStream::connect(broker).await?;
    connection.write_all(request).await?;
    frame(&connection).await?;
    Ok(())
}

/// What a request begins with.
struct Head<'r> {
    api: i16,
    client: &'r [u8],
}

impl Head<'_> {
    /// `None` if there is no client id.
    fn of(request: &[u8]) -> Option<Head<'_>> {
        let short = |at: usize| {
            request.get(at..at + 2).map(|bytes| i16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let (api, length) = (short(4)?, short(12)?);
        let client = request.get(14..14 + usize::try_from(length).ok()?)?;
        Some(Head { api, client })
    }
}

/// A request or an answer, its length before it.
async fn frame(from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    fill(from, &mut frame).await?;
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    frame.resize(4 + length, 0);
    fill(from, &mut frame[4..]).await?;
    Ok(frame)
}

async fn fill(from: &TcpStream, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match pump::readable(from, buffer).await? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => buffer = &mut buffer[count..],
        }
    }
    Ok(())
}

async fn write(to: &TcpStream, bytes: &[u8], shared: &Shared) -> io::Result<()> {
    if pump::write(to, bytes, shared).await { Ok(()) } else { Err(ErrorKind::BrokenPipe.into()) }
}
