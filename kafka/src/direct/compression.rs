//! Decompressing a batch's records.

use std::io::{BufRead, Cursor, Read};

use super::records::{Codec, Damage};

/// The most bytes that the records of one batch may come to. A producer's batch is as long as a
/// request at most, so more is damage, or malice.
const MAX_BYTES: usize = 256 << 20;

/// What xerial's Java library writes before its blocks, and most other clients as well; two 32-bit
/// versions come after it.
const XERIAL: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: usize = 16;

/// Decompresses `from` to the end of `into`.
pub(super) fn inflate(codec: Codec, from: &[u8], into: &mut Vec<u8>) -> Result<(), Damage> {
    let done = match codec {
        Codec::None => limited(from, into),
        Codec::Gzip => limited(flate2::read::MultiGzDecoder::new(from), into),
        Codec::Lz4 => lz4(from, into),
        Codec::Zstd => zstd::stream::read::Decoder::with_buffer(Cursor::new(from))
            .map_err(|error| error.to_string())
            .and_then(|decoder| limited(decoder, into)),
        Codec::Snappy => snappy(from, into),
    };
    done.map_err(Damage::Compressed)
}

fn limited(from: impl Read, into: &mut Vec<u8>) -> Result<(), String> {
    let limit = MAX_BYTES as u64 + 1;
    let read = from.take(limit).read_to_end(into).map_err(|error| error.to_string())?;
    within(read)
}

/// As [`limited`], without clearing the bytes that are written to.
fn lz4(from: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
    let start = into.len();
    let mut decoder = lz4_flex::frame::FrameDecoder::new(from);
    loop {
        let block = decoder.fill_buf().map_err(|error| error.to_string())?;
        if block.is_empty() {
            return Ok(());
        }
        within(into.len() - start + block.len())?;
        into.extend_from_slice(block);
        let read = block.len();
        decoder.consume(read);
    }
}

fn within(bytes: usize) -> Result<(), String> {
    if bytes <= MAX_BYTES { Ok(()) } else { Err(format!("they are more than {MAX_BYTES} bytes")) }
}

/// One block, or xerial's framing of several.
fn snappy(from: &[u8], into: &mut Vec<u8>) -> Result<(), String> {
    if !from.starts_with(XERIAL) {
        return block(from, into, into.len());
    }
    let start = into.len();
    let mut rest = from.get(XERIAL_HEADER..).ok_or("the header is cut off")?;
    while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let (one, others) = blocks.split_at_checked(length).ok_or("a block is cut off")?;
        block(one, into, start)?;
        rest = others;
    }
    if rest.is_empty() { Ok(()) } else { Err(String::from("a block's length is cut off")) }
}

/// Decompresses one block of the records that begin at `start` of `into`.
fn block(from: &[u8], into: &mut Vec<u8>, start: usize) -> Result<(), String> {
    let length = snap::raw::decompress_len(from).map_err(|error| error.to_string())?;
    let at = into.len();
    within((at - start).saturating_add(length))?;
    into.resize(at + length, 0);
    let written = snap::raw::Decoder::new().decompress(from, &mut into[at..]);
    into.truncate(at + written.map_err(|error| error.to_string())?);
    Ok(())
}
