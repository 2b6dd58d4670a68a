//! One direction of a connection: read, hold as long as the mode says, write, in order.
//!
//! ```text
//! from ──► read ──(bytes, due)──► queue, bounded by bytes ──► wait until due ──► write ──► to
//! ```

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

use super::{LinkMode, Setting, Shared};

const READ_BYTES: usize = 32 << 10;
/// What one direction of one connection holds at most: beyond it the sender is made to wait, as by
/// a full network.
const HELD_BYTES: usize = 4 << 20;
const HELD_READS: usize = 4096;

struct Chunk {
    bytes: Bytes,
    due: Instant,
    _held: OwnedSemaphorePermit,
}

/// Passes on what the client sends to the peer; says whether the client ended in order.
///
/// `born` is the setting that the connection began under.
pub(super) async fn asks(
    client: &TcpStream,
    peer: &TcpStream,
    shared: &Shared,
    born: &Arc<Setting>,
) -> bool {
    let delay = |setting: &Arc<Setting>| match setting.mode {
        LinkMode::Delay(by) => by,
        LinkMode::Late(by) if !Arc::ptr_eq(setting, born) => by,
        _ => Duration::ZERO,
    };
    pass(client, peer, shared, delay).await
}

/// Passes on what the peer sends to the client; says whether the peer ended in order.
pub(super) async fn answers(peer: &TcpStream, client: &TcpStream, shared: &Shared) -> bool {
    let delay = |setting: &Arc<Setting>| match setting.mode {
        LinkMode::Delay(by) => by,
        _ => Duration::ZERO,
    };
    pass(peer, client, shared, delay).await
}

/// What was read is delivered, whatever became of the reading end meanwhile. Where nobody takes it
/// any more, it is thrown away: the other direction may still have something to deliver.
async fn pass(
    from: &TcpStream,
    to: &TcpStream,
    shared: &Shared,
    delay: impl Fn(&Arc<Setting>) -> Duration,
) -> bool {
    let (held, mut queue) = channel(HELD_READS);
    let deliver = async {
        let mut taken = true;
        while let Some(bytes) = next(&mut queue).await {
            taken = taken && write(to, &bytes, shared).await;
        }
    };
    tokio::join!(read(from, held, shared, delay), deliver).0
}

/// Reads until `from` ends; says whether that was in order.
async fn read(
    from: &TcpStream,
    held: Sender<Chunk>,
    shared: &Shared,
    delay: impl Fn(&Arc<Setting>) -> Duration,
) -> bool {
    let room = Arc::new(Semaphore::new(HELD_BYTES));
    let mut buffer = vec![0; READ_BYTES];
    let mut last_due = Instant::now();
    loop {
        let count = match readable(from, &mut buffer).await {
            Ok(0) => return true,
            Ok(count) => count,
            Err(_) => return false,
        };
        let setting = shared.now();
        let delay = delay(&setting);
        if !delay.is_zero() {
            setting.strike(count as u64);
        }
        if let LinkMode::Slow(bytes_per_second) = setting.mode {
            setting.strike(count as u64);
            sleep(Duration::from_secs_f64(count as f64 / f64::from(bytes_per_second))).await;
        }
        // Never before what came earlier, also when the delay has just become shorter.
        last_due = last_due.max(Instant::now() + delay);
        let permits = u32::try_from(count).expect("a read is small");
        let held_bytes = Arc::clone(&room).acquire_many_owned(permits).await;
        let _held = held_bytes.expect("nobody closes the semaphore");
        let bytes = Bytes::copy_from_slice(&buffer[..count]);
        if held.send(Chunk { bytes, due: last_due, _held }).await.is_err() {
            return false;
        }
    }
}

async fn next(queue: &mut Receiver<Chunk>) -> Option<Bytes> {
    let chunk = queue.recv().await?;
    if chunk.due > Instant::now() {
        sleep_until(chunk.due).await;
    }
    Some(chunk.bytes)
}

pub(super) async fn readable(from: &TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}

/// Writes all of it; says whether it was taken.
pub(super) async fn write(to: &TcpStream, mut bytes: &[u8], shared: &Shared) -> bool {
    while !bytes.is_empty() {
        let written = match to.writable().await {
            Ok(()) => to.try_write(bytes),
            Err(error) => Err(error),
        };
        match written {
            Ok(count) => {
                shared.traffic.fetch_add(count as u64, Ordering::Relaxed);
                bytes = &bytes[count..];
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
    true
}
