//! One connection to one broker: requests and answers of Kafka's protocol.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, RequestHeader,
    ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, ToSocketAddrs, lookup_host};
use tokio::time::timeout;

use crate::buffer_pool::BufferPool;

/// From this version on topics are named by their ids, so that another topic of the same name is
/// never read (KIP-516).
const OLDEST: i16 = 13;
/// The newest that is understood here.
const NEWEST: i16 = 17;
const API_VERSIONS: i16 = 3;
/// How long connecting and agreeing on a version may take. A broker's addresses share it, so that
/// one that nobody answers at leaves the others their time.
const OPEN: Duration = Duration::from_secs(5);
/// What each address has of it at least, however many there are.
const LEAST_SHARE: Duration = Duration::from_secs(1);
/// How long a broker may be silent before it counts as gone. It holds a fetch back for far less
/// than that. An answer that comes slowly is no silence: thrown away, it would be asked for again,
/// and come as slowly.
const SILENCE: Duration = Duration::from_secs(10);
/// An answer may come no more slowly than this, in bytes a second: a few bytes now and then hold
/// up all partitions of the broker.
const SLOWEST: usize = 4 << 10;
/// The longest answer that is taken. A broker sends more than it was asked for only where one batch
/// alone is longer.
const MAX_ANSWER: usize = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the Kafka broker gave no answer for {:.1} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error(
        "the Kafka broker speaks versions {min} to {max} of Fetch, and {OLDEST} to {NEWEST} are \
         spoken here (Kafka 3.1 and newer): set fetch of this service to \"librdkafka\""
    )]
    Version { min: i16, max: i16 },
    #[error("the answer is not Kafka's: {0}")]
    Protocol(String),
}

pub(super) struct Connection {
    stream: TcpStream,
    client_id: StrBytes,
    version: i16,
    correlation: i32,
    buffers: BufferPool,
}

impl Connection {
    /// Connects to the first of the broker's addresses that answers, and agrees with the broker on
    /// a version.
    pub(super) async fn open(
        broker: impl ToSocketAddrs,
        client_id: &str,
        buffers: BufferPool,
    ) -> Result<Connection, Error> {
        let addresses: Vec<SocketAddr> = within(OPEN, lookup_host(broker)).await?.collect();
        let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
        let share = (OPEN / count.max(1)).max(LEAST_SHARE);
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address").into();
        for address in addresses {
            let open = Connection::open_at(address, client_id, buffers.clone());
            match within(share, open).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    tracing::debug!(%error, %address, "no Kafka broker here; trying the next");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn open_at(
        address: SocketAddr,
        client_id: &str,
        buffers: BufferPool,
    ) -> Result<Connection, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let client_id = StrBytes::from_string(client_id.to_owned());
        let mut connection =
            Connection { stream, client_id, version: NEWEST, correlation: 0, buffers };
        connection.greet().await?;
        Ok(connection)
    }

    async fn greet(&mut self) -> Result<(), Error> {
        let hello = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("tally"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        self.send(ApiKey::ApiVersions, API_VERSIONS, &hello).await?;
        let answer: ApiVersionsResponse = self.receive(ApiKey::ApiVersions, API_VERSIONS).await?;
        let fetch = answer.api_keys.iter().find(|api| api.api_key == ApiKey::Fetch as i16);
        let (min, max) = fetch.map_or((0, 0), |api| (api.min_version, api.max_version));
        if max < OLDEST || min > NEWEST {
            return Err(Error::Version { min, max });
        }
        self.version = max.min(NEWEST);
        Ok(())
    }

    /// Sends a fetch. Its answer must be taken before the next one is sent.
    pub(super) async fn fetch(&mut self, request: &FetchRequest) -> Result<(), Error> {
        within(SILENCE, self.send(ApiKey::Fetch, self.version, request)).await
    }

    pub(super) async fn answer(&mut self) -> Result<FetchResponse, Error> {
        self.receive(ApiKey::Fetch, self.version).await
    }

    async fn send(
        &mut self,
        api: ApiKey,
        version: i16,
        request: &impl Encodable,
    ) -> Result<(), Error> {
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(self.client_id.clone()));
        // The length comes first, and is known last.
        let mut frame = BytesMut::from(&[0; 4][..]);
        header.encode(&mut frame, api.request_header_version(version)).map_err(protocol_error)?;
        request.encode(&mut frame, version).map_err(protocol_error)?;
        let length = i32::try_from(frame.len() - 4).map_err(protocol_error)?;
        frame[..4].copy_from_slice(&length.to_be_bytes());
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    async fn receive<A: Decodable>(&mut self, api: ApiKey, version: i16) -> Result<A, Error> {
        let mut frame = receive_frame(&mut self.stream, &self.buffers).await?;
        let header = ResponseHeader::decode(&mut frame, api.response_header_version(version))
            .map_err(protocol_error)?;
        if header.correlation_id != self.correlation {
            return Err(Error::Protocol(format!("it answers request {}", header.correlation_id)));
        }
        A::decode(&mut frame, version).map_err(protocol_error)
    }
}

/// An answer without the length that comes before it.
async fn receive_frame(
    stream: &mut (impl AsyncRead + Unpin),
    buffers: &BufferPool,
) -> Result<Bytes, Error> {
    let length = within(SILENCE, stream.read_i32()).await?;
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_ANSWER)
        .ok_or_else(|| Error::Protocol(format!("it says that it is {length} bytes long")))?;
    let mut frame = buffers.take(length);
    let longest = SILENCE + Duration::from_secs((length / SLOWEST) as u64);
    let fill = async {
        while frame.len() < length {
            let left = length - frame.len();
            if within(SILENCE, stream.read_buf(&mut (&mut frame).limit(left))).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok::<(), Error>(())
    };
    timeout(longest, fill).await.unwrap_or_else(|_| {
        let slow = format!("an answer of {length} bytes came at less than {SLOWEST} bytes/s");
        Err(io::Error::new(io::ErrorKind::TimedOut, slow).into())
    })?;
    Ok(buffers.lend(frame))
}

/// What is done within this time; else the broker counts as silent.
async fn within<T, E: Into<Error>>(
    time: Duration,
    what: impl Future<Output = Result<T, E>>,
) -> Result<T, Error> {
    match timeout(time, what).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Error::Timeout(time)),
    }
}

fn protocol_error(error: impl std::fmt::Display) -> Error {
    Error::Protocol(error.to_string())
}

#[cfg(test)]
mod tests;
