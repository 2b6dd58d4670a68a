//! A connection as the server sees it: what has come of the request that is on it, and what it may
//! not do for too long.
//!
//! ```text
//!  accepted ─► head ─► body, answer ─► idle ─► head …     closed by the time limit of each
//!                │         │
//!                └─────────┴──► answered early: lingers until the client has sent the rest
//! ```
//!
//! A socket that is closed while bytes from the client are unread is reset, and a client that is
//! still sending then loses the answer that says why. So such a connection ends its own side, reads
//! on and discards for a while.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// The most that is read and discarded of a request that is answered already.
const LINGER_BYTES: usize = 256 << 20;

/// How long each thing may take on a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// A request's line and headers, from their first byte on or, for the first request, from the
    /// beginning of the connection.
    pub(super) head: Duration,
    /// From one request's answer to the next request.
    pub(super) idle: Duration,
    /// Until the client has taken an answer, from when it no longer fits the socket's buffers.
    pub(super) write: Duration,
    /// Until a client that was answered early has sent the rest of its request.
    pub(super) linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            head: Duration::from_secs(10),
            // Longer than load balancers keep idle connections, so that they close first and never
            // send on a connection that is being closed.
            idle: Duration::from_secs(75),
            write: Duration::from_secs(60),
            linger: Duration::from_secs(10),
        }
    }
}

/// How far the request is that is on a connection. The service and the request's body tell it, and
/// the socket goes by it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The service was given a request since the socket asked last.
    has_new_head: AtomicBool,
    /// The service has a request and has not answered it.
    is_handled: AtomicBool,
    /// A request has begun to come, and its last byte was not read.
    is_unread: AtomicBool,
}

impl Progress {
    /// The service is given a request, of which more is to come if it has a body.
    pub(super) fn begin(&self, body: &Incoming) {
        self.is_unread.store(!body.is_end_stream(), Ordering::Relaxed);
        self.is_handled.store(true, Ordering::Relaxed);
        self.has_new_head.store(true, Ordering::Relaxed);
    }

    pub(super) fn answered(&self) {
        self.is_handled.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Relaxed)
    }

    fn is_handled(&self) -> bool {
        self.is_handled.load(Ordering::Relaxed)
    }
}

/// A request's body, which tells when all of it was read.
pub(super) struct RequestBody {
    pub(super) body: Incoming,
    pub(super) progress: Arc<Progress>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.is_unread.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket with time limits, which lingers when it is shut down too early.
pub(super) struct Connection<S> {
    socket: S,
    progress: Arc<Progress>,
    timeouts: Timeouts,
    /// Until when a request's head has to be there, while one is awaited.
    head: Option<Pin<Box<Sleep>>>,
    /// Until when the answer has to be taken, once some of it had to wait for the client.
    write: Option<Pin<Box<Sleep>>>,
    closing: Closing,
}

/// How far the closing of a socket is.
enum Closing {
    Open,
    /// The client knows that nothing more comes; so many bytes of it may still be discarded.
    Lingering {
        until: Pin<Box<Sleep>>,
        left_bytes: usize,
    },
    Closed,
}

impl<S> Connection<S> {
    pub(super) fn new(socket: S, progress: Arc<Progress>, timeouts: Timeouts) -> Connection<S> {
        let head = Some(Box::pin(sleep(timeouts.head)));
        Connection { socket, progress, timeouts, head, write: None, closing: Closing::Open }
    }

    /// Passes on what came of a write, unless the client takes too long. Some progress is not
    /// enough: a byte now and then would keep the answer in memory.
    fn written<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            return written;
        }
        let limit = self.timeouts.write;
        let until = self.write.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(until.as_mut().poll(context));
        Poll::Ready(Err(timed_out("the client does not take its answer")))
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled = buffer.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(context, buffer);
        if this.progress.has_new_head.swap(false, Ordering::Relaxed) {
            this.head = None;
        }
        if !this.progress.is_handled() && buffer.filled().len() > filled {
            this.progress.is_unread.store(true, Ordering::Relaxed);
            let limit = this.timeouts.head;
            this.head.get_or_insert_with(|| Box::pin(sleep(limit)));
        }
        if read.is_pending()
            && let Some(until) = &mut this.head
        {
            ready!(until.as_mut().poll(context));
            return Poll::Ready(Err(timed_out("the request's head did not arrive")));
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(context, slices);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        if flushed.is_ready() {
            // The server flushes once it has written all that it has.
            self.write = None;
        }
        self.written(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::Open => {
                    ready!(Pin::new(&mut this.socket).poll_shutdown(context))?;
                    this.closing = if this.progress.is_unread() {
                        let until = Box::pin(sleep(this.timeouts.linger));
                        Closing::Lingering { until, left_bytes: LINGER_BYTES }
                    } else {
                        Closing::Closed
                    };
                }
                Closing::Lingering { until, left_bytes } => {
                    let mut discarded = [0; 16 << 10];
                    let mut buffer = ReadBuf::new(&mut discarded);
                    let read = match Pin::new(&mut this.socket).poll_read(context, &mut buffer) {
                        Poll::Ready(Ok(())) => buffer.filled().len(),
                        Poll::Ready(Err(_)) => 0,
                        Poll::Pending => {
                            ready!(until.as_mut().poll(context));
                            0
                        }
                    };
                    *left_bytes = left_bytes.saturating_sub(read);
                    if read == 0 || *left_bytes == 0 {
                        this.closing = Closing::Closed;
                    }
                }
                Closing::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}
