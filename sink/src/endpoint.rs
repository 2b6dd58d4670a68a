//! One insert over HTTP: a statement, its settings and a block go out, and the whole answer is
//! looked at.
//!
//! ```text
//!  statement, settings ──► URL ─┐
//!  Block, perhaps LZ4 ──────────┴──► POST ──► status, exception header, body
//!                                               └──► insert_failure::judge
//! ```
//!
//! The ClickHouse client's own insert does not do: once the status is 200 it sees only such
//! exceptions in the body as end in a certain way, and in one piece.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
use reqwest::header::CONTENT_ENCODING;
use reqwest::{Body, Url};
use tally_kafka::BufferPool;
use tally_platform::causes::with_causes;
use tally_platform::config::{self, Compression};

use crate::Error;
use crate::block::Block;
use crate::insert_failure::{self, InsertFailure};
use crate::request_body::RequestBody;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a block may take from the first byte sent to the last byte of the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// A peer that is gone without a word is noticed sooner than by the call's timeout.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// ClickHouse closes idle connections after three seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// What a row of small numbers and a short key comes to once it is compressed.
const COMPRESSED_ROW_BYTES: usize = 16;

/// The most that buffers for later blocks take up.
const BUFFER_POOL_BYTES: usize = 128 << 20;

const EXCEPTION_CODE: &str = "x-clickhouse-exception-code";

/// A block as it goes over the wire.
#[derive(Debug)]
pub(crate) struct EncodedBlock {
    buffers: Vec<Bytes>,
    is_lz4: bool,
}

/// Where inserts go.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    http: reqwest::Client,
    url: Url,
    store: config::Store,
    compresses: bool,
    /// Buffers of blocks that are stored by now, for blocks to come.
    buffers: BufferPool,
}

impl Endpoint {
    pub(crate) fn new(store: &config::Store) -> Result<Endpoint, Error> {
        let invalid = |reason: String| Error::StoreUrl { url: store.url.clone(), reason };
        let url = Url::parse(&store.url).map_err(|error| invalid(error.to_string()))?;
        let http = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let compresses = match store.compression {
            Compression::Lz4 => true,
            Compression::None => false,
            Compression::Auto => !is_local(&url),
        };
        let buffers = BufferPool::new(BUFFER_POOL_BYTES);
        Ok(Endpoint { http, url, store: store.clone(), compresses, buffers })
    }

    /// Buffers for blocks that go to this endpoint.
    pub(crate) fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// Takes the rows out of the block, which is to be filled again.
    pub(crate) fn encode(&self, block: &mut Block) -> io::Result<EncodedBlock> {
        if !self.compresses {
            return Ok(EncodedBlock { buffers: block.take(&self.buffers), is_lz4: false });
        }
        let info = FrameInfo::new().block_size(BlockSize::Max256KB);
        let room = self.buffers.take(block.rows() * COMPRESSED_ROW_BYTES);
        let mut encoder = FrameEncoder::with_frame_info(info, room);
        block.write_to(&mut encoder)?;
        let compressed = encoder.finish().map_err(io::Error::from)?;
        Ok(EncodedBlock { buffers: vec![self.buffers.lend(compressed)], is_lz4: true })
    }

    pub(crate) async fn insert(
        &self,
        statement: &str,
        settings: &[(&str, &str)],
        block: &EncodedBlock,
    ) -> Result<(), InsertFailure> {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("database", &self.store.database)
            .append_pair("query", statement)
            .extend_pairs(settings);
        let mut request =
            self.http.post(url).body(Body::wrap(RequestBody::new(block.buffers.iter().cloned())));
        if block.is_lz4 {
            request = request.header(CONTENT_ENCODING, "lz4");
        }
        if let Some(user) = &self.store.user {
            request = request.header("X-ClickHouse-User", user);
        }
        if let Some(password) = &self.store.password {
            request = request.header("X-ClickHouse-Key", password.expose());
        }
        let response = request.send().await.map_err(unanswered)?;
        let status = response.status().as_u16();
        let code = response
            .headers()
            .get(EXCEPTION_CODE)
            .and_then(|code| code.to_str().ok()?.parse().ok());
        let body = response.bytes().await.map_err(unanswered)?;
        insert_failure::judge(status, code, &body)
    }
}

/// Whether the URL is of this machine, so that no network lies between.
fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The failure of a call that no whole answer came to; its reason leaves out the URL, which is
/// long.
fn unanswered(error: reqwest::Error) -> InsertFailure {
    InsertFailure::unanswered(with_causes(&error.without_url()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_compressed_unless_the_store_is_local_or_the_configuration_says_so() {
        let compresses = |url: &str, compression| {
            let store =
                config::Store { url: url.to_owned(), compression, ..config::Store::default() };
            Endpoint::new(&store).unwrap().compresses
        };
        for here in ["http://127.0.0.1:8123", "http://localhost:8123", "http://[::1]:8123"] {
            assert!(!compresses(here, Compression::Auto), "{here}");
            assert!(compresses(here, Compression::Lz4), "{here}");
        }
        for away in ["http://store:8123", "https://10.0.0.1:8443", "http://[fd00::1]:8123"] {
            assert!(compresses(away, Compression::Auto), "{away}");
            assert!(!compresses(away, Compression::None), "{away}");
        }
    }
}
