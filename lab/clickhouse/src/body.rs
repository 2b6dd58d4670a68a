//! A request's body: received whole, within a limit, then read through its compressions.
//!
//! ```text
//!  HTTP frames ──receive──► Body ──► Content-Encoding: lz4 ──► decompress=1 blocks
//!                                                                └──► at most the limit ──► Read
//! ```
//!
//! The frames are kept as they came; they are put together only where they are used.

use std::{
    collections::VecDeque,
    io::{self, Read},
    time::Duration,
};

use axum::{
    extract::{FromRequest, Multipart, Request},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use futures_util::StreamExt;
use lz4_flex::frame::FrameDecoder;

use crate::{
    compression::Blocks,
    exception::{Exception, exception},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Identity,
    Lz4,
}

#[derive(Debug, Default)]
pub(crate) struct Body {
    frames: VecDeque<Bytes>,
}

/// Receives a body of at most `limit` bytes whose sender never pauses for longer than `patience`.
pub(crate) async fn receive(
    body: axum::body::Body,
    limit: usize,
    patience: Duration,
) -> Result<Body, Exception> {
    let mut stream = body.into_data_stream();
    let mut frames = VecDeque::new();
    let mut received = 0_usize;
    while let Some(frame) = tokio::time::timeout(patience, stream.next())
        .await
        .map_err(|_| exception!(SOCKET_TIMEOUT, "No data of the body came for {patience:?}"))?
    {
        let frame =
            frame.map_err(|error| exception!(NETWORK_ERROR, "Receive the body: {error}"))?;
        received += frame.len();
        if received > limit {
            return Err(too_large(limit));
        }
        frames.push_back(frame);
    }
    Ok(Body { frames })
}

impl Body {
    /// Reads a multipart form as pairs. A part that is a file would be an external table.
    pub(crate) async fn form(
        self,
        headers: &HeaderMap,
    ) -> Result<Vec<(String, String)>, Exception> {
        let mut request = Request::new(axum::body::Body::from_stream(futures_util::stream::iter(
            self.frames.into_iter().map(Ok::<_, std::convert::Infallible>),
        )));
        *request.headers_mut() = headers.clone();
        let bad = |error: &dyn std::fmt::Display| {
            exception!(BAD_ARGUMENTS, "Read the multipart form: {error}")
        };
        let mut form = Multipart::from_request(request, &()).await.map_err(|error| bad(&error))?;
        let mut pairs = Vec::new();
        while let Some(field) = form.next_field().await.map_err(|error| bad(&error))? {
            let name = field.name().unwrap_or("").to_owned();
            if field.file_name().is_some() {
                return Err(exception!(
                    NOT_IMPLEMENTED,
                    "External tables are not supported here: part {name} of the form is a file"
                ));
            }
            pairs.push((name, field.text().await.map_err(|error| bad(&error))?));
        }
        Ok(pairs)
    }

    /// The data in the body, `limit` bytes at most. The reader's errors may carry an [`Exception`]:
    /// see [`exception`].
    pub(crate) fn reader(
        self,
        encoding: Encoding,
        blocks: bool,
        limit: usize,
    ) -> Box<dyn Read + Send> {
        let reader: Box<dyn Read + Send> = match encoding {
            Encoding::Identity => Box::new(self),
            Encoding::Lz4 => Box::new(FrameDecoder::new(self)),
        };
        match (encoding, blocks) {
            (Encoding::Identity, false) => reader,
            (_, false) => Box::new(Limited { reader, left: limit, limit }),
            (_, true) => Box::new(Limited { reader: Blocks::new(reader), left: limit, limit }),
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(frame) = self.frames.front_mut() {
            if frame.is_empty() {
                self.frames.pop_front();
                continue;
            }
            let length = buffer.len().min(frame.len());
            buffer[..length].copy_from_slice(&frame.split_to(length));
            return Ok(length);
        }
        Ok(0)
    }
}

/// Fails once more than a limit was read: a small body can hold very much data.
struct Limited<R> {
    reader: R,
    left: usize,
    limit: usize,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.left =
            self.left.checked_sub(length).ok_or_else(|| io::Error::other(too_large(self.limit)))?;
        Ok(length)
    }
}

/// The exception in a reader's error. An error without one comes from the LZ4 frame decoder.
pub(crate) fn exception(error: io::Error) -> Exception {
    error.downcast::<Exception>().unwrap_or_else(|error| {
        exception!(CANNOT_DECOMPRESS, "Cannot decompress the body: {error}")
    })
}

pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    content_type.is_some_and(|value| value.starts_with(b"multipart/form-data"))
}

fn too_large(limit: usize) -> Exception {
    exception!(QUERY_IS_TOO_LARGE, "The body holds more than {limit} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::compress;

    fn body(frames: &[&[u8]]) -> Body {
        Body { frames: frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect() }
    }

    fn read(mut reader: impl Read) -> Result<Vec<u8>, u32> {
        let mut data = Vec::new();
        reader.read_to_end(&mut data).map_err(|error| exception(error).code())?;
        Ok(data)
    }

    #[test]
    fn frames_are_read_one_after_the_other() {
        let body = body(&[b"ab", b"", b"c", b""]);
        assert_eq!(read(body.reader(Encoding::Identity, false, 3)), Ok(b"abc".to_vec()));
    }

    #[test]
    fn blocks_may_be_cut_anywhere_and_lie_in_an_lz4_frame() {
        let blocks = compress(b"hello");
        let (head, tail) = blocks.split_at(20);
        assert_eq!(
            read(body(&[head, tail]).reader(Encoding::Identity, true, 5)),
            Ok(b"hello".to_vec())
        );

        let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
        io::Write::write_all(&mut frame, &blocks).unwrap();
        let frame = frame.finish().unwrap();
        assert_eq!(read(body(&[&frame]).reader(Encoding::Lz4, true, 5)), Ok(b"hello".to_vec()));
    }

    #[test]
    fn more_data_than_the_limit_is_refused_after_decompression_too() {
        let blocks = compress(&vec![0; 1 << 22]);
        assert!(blocks.len() < 1 << 16, "{} bytes", blocks.len());
        assert_eq!(read(body(&[&blocks]).reader(Encoding::Identity, true, 1 << 16)), Err(229));
    }

    #[test]
    fn what_is_no_lz4_frame_cannot_be_decompressed() {
        assert_eq!(read(body(&[b"plain text"]).reader(Encoding::Lz4, false, 100)), Err(271));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_sender_is_not_waited_for() {
        let silent =
            axum::body::Body::from_stream(futures_util::stream::pending::<io::Result<Bytes>>());
        let error = receive(silent, 10, Duration::from_secs(30)).await.unwrap_err();
        assert_eq!(error.code(), 209);
    }
}
