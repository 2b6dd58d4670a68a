//! Request bodies, received whole within limits: bytes of one, time, and bytes of all together.
//!
//! ```text
//!  frames ──► room for each ──► the whole ──► decompressed ──► ReceivedBody, with its room
//!               │ no: 503         │ 408, 413      │ 400, 413
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Refusal;
use super::content_encoding::ContentEncoding;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What bounds the bodies of a service's requests.
#[derive(Debug)]
pub struct BodyLimits {
    limit_bytes: usize,
    room_bytes: usize,
    room: Arc<Semaphore>,
    timeout: Duration,
}

/// A body that is there as a whole.
#[derive(Debug)]
pub struct ReceivedBody {
    pub bytes: Vec<u8>,
    pub room: BodyRoom,
}

/// The room in memory that a body takes, until this is dropped.
#[derive(Debug)]
pub struct BodyRoom(OwnedSemaphorePermit);

impl BodyRoom {
    /// The body of an answer, which takes the room until the client has it.
    pub fn hold(self, answer: Vec<u8>) -> Body {
        Body::from(Bytes::from_owner(Held { bytes: answer, _room: self }))
    }
}

struct Held {
    bytes: Vec<u8>,
    _room: BodyRoom,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl BodyLimits {
    /// One body has at most `limit_bytes`, compressed and not. All together, with those that are
    /// still arriving, take at most `room_bytes`: at least twice as much, as a compressed body is
    /// in memory beside what it comes to.
    pub fn new(limit_bytes: usize, room_bytes: usize) -> BodyLimits {
        let room_bytes = room_bytes.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(room_bytes));
        BodyLimits { limit_bytes, room_bytes, room, timeout: BODY_TIMEOUT }
    }

    /// With another time to arrive in than [`BODY_TIMEOUT`].
    #[cfg(test)]
    pub(super) fn with_timeout(self, timeout: Duration) -> BodyLimits {
        BodyLimits { timeout, ..self }
    }

    /// The room that is taken at present, in bytes.
    pub fn taken_bytes(&self) -> usize {
        self.room_bytes - self.room.available_permits()
    }

    /// The request's body, decompressed, or why it is not taken.
    pub async fn receive(&self, request: Request) -> Result<ReceivedBody, Refusal> {
        let encoding = ContentEncoding::of(request.headers())?;
        let body = request.into_body();
        // What says that it is too large need not arrive.
        if body.size_hint().lower() > self.limit_bytes as u64 {
            return Err(self.too_large());
        }
        let arrived = tokio::time::timeout(self.timeout, self.arrive(body)).await;
        let arrived = arrived.unwrap_or(Err(Refusal::BodyTimeout { after: self.timeout }))?;
        if encoding == ContentEncoding::Identity {
            return Ok(arrived);
        }
        let mut room = self.take(self.limit_bytes)?;
        let bytes = encoding.decompress(&arrived.bytes, self.limit_bytes)?;
        drop(room.0.split(self.limit_bytes - bytes.len()));
        Ok(ReceivedBody { bytes, room })
    }

    /// The room grows with what is there, not with what the client says that it will send.
    async fn arrive(&self, mut body: Body) -> Result<ReceivedBody, Refusal> {
        let mut room = self.take(0)?;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::UnreadBody { reason: error.to_string() })?;
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > self.limit_bytes {
                return Err(self.too_large());
            }
            if length > bytes.capacity() {
                let capacity = length.max(2 * bytes.capacity()).min(self.limit_bytes);
                room.0.merge(self.take(capacity - bytes.capacity())?.0);
                bytes.reserve_exact(capacity - bytes.len());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(ReceivedBody { bytes, room })
    }

    /// Room for so many bytes.
    pub fn take(&self, bytes: usize) -> Result<BodyRoom, Refusal> {
        let taken = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| Arc::clone(&self.room).try_acquire_many_owned(bytes).ok());
        taken.map(BodyRoom).ok_or(Refusal::NoRoom { room_bytes: self.room_bytes })
    }

    fn too_large(&self) -> Refusal {
        Refusal::BodyTooLarge { max_bytes: self.limit_bytes }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::http::header;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    /// A request whose body arrives as it is sent here.
    fn arriving() -> (mpsc::UnboundedSender<Bytes>, Request) {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Bytes>();
        let frames = futures_util::stream::poll_fn(move |context| {
            receiver.poll_recv(context).map(|bytes| bytes.map(Frame::data).map(Ok::<_, Infallible>))
        });
        (sender, Request::new(Body::new(StreamBody::new(frames))))
    }

    fn whole(bytes: &[u8]) -> Request {
        Request::new(Body::from(bytes.to_vec()))
    }

    #[tokio::test]
    async fn a_body_holds_room_for_what_has_arrived_until_it_is_let_go() {
        let limits = BodyLimits::new(100, 200);
        let free = || limits.room.available_permits();
        let (sender, request) = arriving();
        let receiving = limits.receive(request);
        tokio::pin!(receiving);
        assert!(futures_util::poll!(&mut receiving).is_pending());
        assert_eq!(free(), 200, "a client that sends nothing holds nothing");
        sender.send(Bytes::from_static(&[b'x'; 60])).unwrap();
        assert!(futures_util::poll!(&mut receiving).is_pending());
        assert_eq!(free(), 140);
        sender.send(Bytes::from_static(b"y")).unwrap();
        drop(sender);
        let received = receiving.await.unwrap();
        assert_eq!((received.bytes.len(), free()), (61, 100));
        drop(received);
        assert_eq!(free(), 200);
    }

    #[tokio::test]
    async fn what_has_no_room_is_refused_and_leaves_none_taken() {
        let limits = BodyLimits::new(100, 200);
        let held = [limits.receive(whole(&[b'x'; 100])).await, limits.receive(whole(b"y")).await];
        let refused = limits.receive(whole(&[b'x'; 100])).await.map(|received| received.bytes);
        assert_eq!(refused, Err(Refusal::NoRoom { room_bytes: 200 }));
        drop(held);
        assert_eq!(limits.room.available_permits(), 200);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_said_or_not() {
        let limits = BodyLimits::new(100, 200);
        let (sender, request) = arriving();
        sender.send(Bytes::from_static(&[b'x'; 101])).unwrap();
        for request in [request, whole(&[b'x'; 101])] {
            let refused = limits.receive(request).await.map(|received| received.bytes);
            assert_eq!(refused, Err(Refusal::BodyTooLarge { max_bytes: 100 }));
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_arrive_is_refused_after_its_time() {
        let after = Duration::from_millis(50);
        let limits = BodyLimits::new(100, 200).with_timeout(after);
        let (sender, request) = arriving();
        sender.send(Bytes::from_static(b"x")).unwrap();
        let refused = limits.receive(request).await.map(|received| received.bytes);
        assert_eq!(refused, Err(Refusal::BodyTimeout { after }));
        assert_eq!(limits.room.available_permits(), 200);
    }

    #[tokio::test]
    async fn an_answer_holds_its_room_until_it_is_sent() {
        let limits = BodyLimits::new(100, 200);
        let mut answer = limits.take(150).unwrap().hold(vec![b'x'; 150]);
        assert!(limits.take(51).is_err());
        let frame = answer.frame().await.unwrap().unwrap();
        drop(answer);
        assert_eq!(limits.taken_bytes(), 150, "the server has not written it yet");
        drop(frame);
        assert_eq!(limits.taken_bytes(), 0);
    }

    #[tokio::test]
    async fn a_compressed_body_holds_room_for_what_it_comes_to() {
        let limits = BodyLimits::new(1000, 2000);
        let zstd = |plain: &[u8]| {
            let mut request = whole(&zstd::encode_all(plain, 0).unwrap());
            let headers = request.headers_mut();
            headers.insert(header::CONTENT_ENCODING, "zstd".parse().unwrap());
            request
        };
        let received = limits.receive(zstd(&[b'x'; 700])).await.unwrap();
        assert_eq!(received.bytes, [b'x'; 700]);
        assert_eq!(limits.room.available_permits(), 1300);
        let bomb = limits.receive(zstd(&[b'x'; 1001])).await.map(|received| received.bytes);
        assert_eq!(bomb, Err(Refusal::BodyTooLarge { max_bytes: 1000 }));
    }
}
