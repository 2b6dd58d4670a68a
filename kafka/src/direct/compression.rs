//! Decompressing a batch's records.

use std::io::{BufRead, Cursor, Read};

use super::records::{Codec, Damage};

/// What xerial's Java library writes before its blocks, and most other clients as well; two 32-bit
/// versions come after it.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// Why records are not decompressed.
enum Obstacle {
    TooMany,
    Broken(String),
}

impl<E: std::error::Error> From<E> for Obstacle {
    fn from(error: E) -> Obstacle {
        Obstacle::Broken(error.to_string())
    }
}

/// Decompresses `from` to the end of `into`; `false`, with nothing added, if that would be more
/// than `limit` bytes.
pub(super) fn inflate(
    codec: Codec,
    from: &[u8],
    into: &mut Vec<u8>,
    limit: usize,
) -> Result<bool, Damage> {
    let start = into.len();
    let done = match codec {
        Codec::None => read_all(from, into, limit),
        Codec::Gzip => read_all(flate2::read::MultiGzDecoder::new(from), into, limit),
        Codec::Lz4 => lz4(from, into, limit),
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(Cursor::new(from))
            .map_err(Obstacle::from)
            .and_then(|decoder| read_all(decoder, into, limit)),
        Codec::Snappy => snappy(from, into, limit),
    };
    match done {
        Ok(()) => Ok(true),
        Err(Obstacle::TooMany) => {
            into.truncate(start);
            Ok(false)
        }
        Err(Obstacle::Broken(reason)) => Err(Damage::Compressed(reason)),
    }
}

fn read_all(from: impl Read, into: &mut Vec<u8>, limit: usize) -> Result<(), Obstacle> {
    let read = from.take(limit as u64 + 1).read_to_end(into)?;
    within(read, limit)
}

/// As [`read_all`], without clearing the bytes that are written to.
fn lz4(from: &[u8], into: &mut Vec<u8>, limit: usize) -> Result<(), Obstacle> {
    let start = into.len();
    let mut decoder = lz4_flex::frame::FrameDecoder::new(from);
    loop {
        let block = decoder.fill_buf()?;
        if block.is_empty() {
            return Ok(());
        }
        within(into.len() - start + block.len(), limit)?;
        into.extend_from_slice(block);
        let read = block.len();
        decoder.consume(read);
    }
}

fn within(bytes: usize, limit: usize) -> Result<(), Obstacle> {
    if bytes <= limit { Ok(()) } else { Err(Obstacle::TooMany) }
}

/// One block, or xerial's framing of several.
fn snappy(from: &[u8], into: &mut Vec<u8>, limit: usize) -> Result<(), Obstacle> {
    let cut_off = |what: &str| Obstacle::Broken(format!("{what} is cut off"));
    if !from.starts_with(XERIAL) {
        return block(from, into, limit);
    }
    let end = into.len() + limit;
    let mut rest = from.get(XERIAL_HEADER..).ok_or_else(|| cut_off("the header"))?;
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (one, others) = blocks.split_at_checked(length).ok_or_else(|| cut_off("a block"))?;
        block(one, into, end - into.len())?;
        rest = others;
    }
    if rest.is_empty() { Ok(()) } else { Err(cut_off("a block's length")) }
}

/// Decompresses one block, to `limit` bytes at most.
fn block(from: &[u8], into: &mut Vec<u8>, limit: usize) -> Result<(), Obstacle> {
    let length = snap::raw::decompress_len(from)?;
    within(length, limit)?;
    let at = into.len();
    into.resize(at + length, 0);
    let written = snap::raw::Decoder::new().decompress(from, &mut into[at..])?;
    into.truncate(at + written);
    Ok(())
}
