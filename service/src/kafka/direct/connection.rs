//! One connection to one broker, over which one fetch after the other is made. Only opening it waits.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, FetchRequest, FetchResponse, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

/// From this version on topics are named by their ids, so that another topic of the same name is never read (KIP-516).
const OLDEST: i16 = 13;
/// The newest that is understood here.
const NEWEST: i16 = 17;
const API_VERSIONS: i16 = 3;
/// To connect, and for each step of the greeting.
const OPEN: Duration = Duration::from_secs(2);
/// A broker that does not answer for so long is gone. It holds a fetch back far shorter.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest answer; a broker sends more than it was asked for only where one batch alone is longer.
const MAX_ANSWER: usize = 128 << 20;
/// Memory that is kept for further answers, and the longest piece of it.
const KEPT: usize = 4;
const MAX_KEPT: usize = 8 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    #[error(
        "the broker speaks versions {min} to {max} of Kafka's Fetch, and {OLDEST} to {NEWEST} are spoken here (Kafka 3.1 and newer): \
         set aggregator.fetch to \"librdkafka\""
    )]
    Version { min: i16, max: i16 },
    #[error("the answer is not Kafka's: {0}")]
    Strange(String),
}

pub(super) struct Connection {
    stream: TcpStream,
    client_id: StrBytes,
    version: i16,
    correlation: i32,
    /// What the system has not taken yet of the last request.
    unsent: BytesMut,
    /// Since when an answer is awaited.
    waiting: Option<Instant>,
    incoming: Incoming,
}

impl Connection {
    /// Connects, and agrees with the broker on a version. Blocks.
    pub(super) fn open(host: &str, port: u16, client_id: &str, memory: &Memory) -> Result<Connection, Error> {
        let stream = connect(host, port)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(OPEN))?;
        stream.set_write_timeout(Some(OPEN))?;
        let mut connection = Connection {
            stream,
            client_id: StrBytes::from_string(client_id.to_owned()),
            version: NEWEST,
            correlation: 0,
            unsent: BytesMut::new(),
            waiting: None,
            incoming: Incoming::new(memory.clone()),
        };
        connection.greet()?;
        connection.stream.set_nonblocking(true)?;
        Ok(connection)
    }

    fn greet(&mut self) -> Result<(), Error> {
        let hello = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("tally"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        self.send(ApiKey::ApiVersions, API_VERSIONS, &hello)?;
        let mut answer = self.receive()?.ok_or(Error::Silent(OPEN))?;
        self.open_answer(ApiKey::ApiVersions, API_VERSIONS, &mut answer)?;
        let answer = ApiVersionsResponse::decode(&mut answer, API_VERSIONS).map_err(strange)?;
        let fetch = answer.api_keys.iter().find(|api| api.api_key == ApiKey::Fetch as i16);
        let (min, max) = fetch.map_or((0, 0), |api| (api.min_version, api.max_version));
        if max < OLDEST || min > NEWEST {
            return Err(Error::Version { min, max });
        }
        self.version = max.min(NEWEST);
        Ok(())
    }

    /// Whether the last request is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_none()
    }

    /// Sends a request, to be answered before the next one.
    pub(super) fn fetch(&mut self, request: &FetchRequest) -> Result<(), Error> {
        self.send(ApiKey::Fetch, self.version, request)
    }

    /// The answer, once all of it is here.
    pub(super) fn answer(&mut self) -> Result<Option<FetchResponse>, Error> {
        self.push()?;
        let Some(mut answer) = self.receive()? else {
            let is_silent = self.waiting.is_some_and(|since| since.elapsed() > ANSWER);
            return if is_silent { Err(Error::Silent(ANSWER)) } else { Ok(None) };
        };
        self.open_answer(ApiKey::Fetch, self.version, &mut answer)?;
        FetchResponse::decode(&mut answer, self.version).map(Some).map_err(strange)
    }

    fn send(&mut self, api: ApiKey, version: i16, request: &impl Encodable) -> Result<(), Error> {
        self.correlation = self.correlation.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(api as i16)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(self.client_id.clone()));
        let mut body = BytesMut::new();
        header.encode(&mut body, api.request_header_version(version)).map_err(strange)?;
        request.encode(&mut body, version).map_err(strange)?;
        let length = i32::try_from(body.len()).map_err(|_| Error::Strange("a request too long".into()))?;
        self.unsent.extend_from_slice(&length.to_be_bytes());
        self.unsent.extend_from_slice(&body);
        self.waiting = Some(Instant::now());
        self.push()
    }

    fn push(&mut self) -> Result<(), Error> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(written) => drop(self.unsent.split_to(written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Option<Bytes>, Error> {
        let answer = self.incoming.read(&mut self.stream)?;
        if answer.is_some() {
            self.waiting = None;
        }
        Ok(answer)
    }

    fn open_answer(&self, api: ApiKey, version: i16, answer: &mut Bytes) -> Result<(), Error> {
        let header = ResponseHeader::decode(answer, api.response_header_version(version)).map_err(strange)?;
        match header.correlation_id == self.correlation {
            true => Ok(()),
            false => Err(Error::Strange(format!("it answers request {}", header.correlation_id))),
        }
    }
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, OPEN) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn strange(error: impl std::fmt::Display) -> Error {
    Error::Strange(error.to_string())
}

/// An answer that is read piece by piece, after its length.
struct Incoming {
    memory: Memory,
    prefix: [u8; 4],
    /// As long as the answer, once its length is known.
    buffer: Option<Vec<u8>>,
    length: usize,
    filled: usize,
}

impl Incoming {
    fn new(memory: Memory) -> Incoming {
        Incoming { memory, prefix: [0; 4], buffer: None, length: 0, filled: 0 }
    }

    /// Takes what is there; an answer, if it is whole with that.
    fn read(&mut self, stream: &mut TcpStream) -> Result<Option<Bytes>, Error> {
        loop {
            let room = match &mut self.buffer {
                None => &mut self.prefix[self.filled..],
                Some(buffer) => &mut buffer[self.filled..self.length],
            };
            match stream.read(room) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(read) => self.filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            match self.buffer.take() {
                None if self.filled == self.prefix.len() => {
                    let length = i32::from_be_bytes(self.prefix);
                    self.length = usize::try_from(length).ok().filter(|l| (1..=MAX_ANSWER).contains(l)).ok_or_else(
                        || Error::Strange(format!("it says that it is {length} bytes long")),
                    )?;
                    self.buffer = Some(self.memory.take(self.length));
                    self.filled = 0;
                }
                Some(buffer) if self.filled == self.length => {
                    self.filled = 0;
                    return Ok(Some(self.memory.lend(buffer, self.length)));
                }
                buffer => self.buffer = buffer,
            }
        }
    }
}

/// Memory of answers, used again once nothing of an answer is held any more.
#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Vec<Vec<u8>>>>);

struct Lent {
    buffer: Vec<u8>,
    length: usize,
    memory: Memory,
}

impl Memory {
    /// So many bytes or more.
    fn take(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        buffer
    }

    fn lend(&self, buffer: Vec<u8>, length: usize) -> Bytes {
        Bytes::from_owner(Lent { buffer, length, memory: self.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && self.buffer.len() <= MAX_KEPT {
            kept.push(std::mem::take(&mut self.buffer));
        }
    }
}
