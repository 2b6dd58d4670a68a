//! ClickHouse's compressed blocks, as `decompress=1` and `compress=1` mean them.
//!
//! ```text
//!  ┌───────────────┬────────┬─────────────────┬────────────────┬──────────────┐
//!  │ CityHash128   │ method │ compressed size │ size of data   │ payload …    │
//!  │ of the rest   │        │ (with 9 header) │                │              │
//!  └─ 16 bytes ────┴─ 1 ────┴─ 4, LE ─────────┴─ 4, LE ────────┴──────────────┘
//! ```

use std::io::{self, Read};

use crate::exception::{Code, Exception};

const CHECKSUM_BYTES: usize = 16;
const HEADER_BYTES: usize = 9;
const LZ4: u8 = 0x82;
const NONE: u8 = 0x02;

/// Larger blocks are refused, as by ClickHouse (`DBMS_MAX_COMPRESSED_SIZE`).
const MAX_BLOCK_BYTES: usize = 1 << 30;

/// How much data goes into a block that is written here; ClickHouse's own size.
const BLOCK_BYTES: usize = 1 << 20;

/// CityHash128 v1.0.2 as it lies in the block: the low half first.
fn checksum(data: &[u8]) -> [u8; CHECKSUM_BYTES] {
    cityhash_rs::cityhash_102_128(data).rotate_right(64).to_le_bytes()
}

pub(crate) fn compress(data: &[u8]) -> Vec<u8> {
    let mut blocks = Vec::with_capacity(data.len() / 2 + CHECKSUM_BYTES + HEADER_BYTES);
    for chunk in data.chunks(BLOCK_BYTES) {
        let payload = lz4_flex::block::compress(chunk);
        let start = blocks.len();
        blocks.extend_from_slice(&[0; CHECKSUM_BYTES]);
        blocks.push(LZ4);
        blocks.extend_from_slice(&size(payload.len() + HEADER_BYTES));
        blocks.extend_from_slice(&size(chunk.len()));
        blocks.extend_from_slice(&payload);
        let (head, rest) = blocks[start..].split_at_mut(CHECKSUM_BYTES);
        head.copy_from_slice(&checksum(rest));
    }
    blocks
}

fn size(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("a block is far smaller than 4 GiB").to_le_bytes()
}

/// Reads compressed blocks as the data in them, checksums verified. Its errors carry an
/// [`Exception`].
pub(crate) struct Blocks<R> {
    compressed: R,
    /// Checksummed header and payload of the block at hand.
    block: Vec<u8>,
    data: Vec<u8>,
    at: usize,
}

impl<R: Read> Blocks<R> {
    pub(crate) fn new(compressed: R) -> Self {
        Self { compressed, block: Vec::new(), data: Vec::new(), at: 0 }
    }

    /// Decodes the next block; false at the end of the input.
    fn advance(&mut self) -> io::Result<bool> {
        let mut expected = [0; CHECKSUM_BYTES];
        let begun = self.compressed.read(&mut expected)?;
        if begun == 0 {
            return Ok(false);
        }
        self.compressed.read_exact(&mut expected[begun..]).map_err(truncated)?;
        self.block.resize(HEADER_BYTES, 0);
        self.compressed.read_exact(&mut self.block).map_err(truncated)?;
        let [method, c0, c1, c2, c3, d0, d1, d2, d3] = self.block[..] else {
            unreachable!("resized to {HEADER_BYTES} bytes")
        };
        let compressed_bytes = u32::from_le_bytes([c0, c1, c2, c3]) as usize;
        let data_bytes = u32::from_le_bytes([d0, d1, d2, d3]) as usize;
        if !(HEADER_BYTES..=MAX_BLOCK_BYTES).contains(&compressed_bytes)
            || data_bytes > MAX_BLOCK_BYTES
        {
            return Err(refused(
                Code::TOO_LARGE_SIZE_COMPRESSED,
                format_args!(
                    "A block of {compressed_bytes} bytes that holds {data_bytes} \
                     is damaged or too large"
                ),
            ));
        }
        // Grows with what really arrives, so that a forged size reserves nothing.
        let wanted = (compressed_bytes - HEADER_BYTES) as u64;
        let arrived = self.compressed.by_ref().take(wanted).read_to_end(&mut self.block)?;
        if arrived as u64 != wanted {
            return Err(truncated(io::ErrorKind::UnexpectedEof.into()));
        }
        if checksum(&self.block) != expected {
            return Err(refused(
                Code::CHECKSUM_DOESNT_MATCH,
                "Checksum of a compressed block doesn't match",
            ));
        }
        self.decode(method, data_bytes)?;
        self.at = 0;
        Ok(true)
    }

    fn decode(&mut self, method: u8, data_bytes: usize) -> io::Result<()> {
        let payload = &self.block[HEADER_BYTES..];
        self.data.resize(data_bytes, 0);
        let decoded = match method {
            LZ4 => lz4_flex::block::decompress_into(payload, &mut self.data).map_err(|error| {
                refused(Code::CANNOT_DECOMPRESS, format_args!("Cannot decompress: {error}"))
            })?,
            NONE if payload.len() == data_bytes => {
                self.data.copy_from_slice(payload);
                data_bytes
            }
            NONE => payload.len(),
            _ => {
                return Err(refused(
                    Code::UNKNOWN_COMPRESSION_METHOD,
                    format_args!(
                        "Compression method {method:#04x} is not supported here: LZ4 and NONE are"
                    ),
                ));
            }
        };
        if decoded != data_bytes {
            return Err(refused(
                Code::CANNOT_DECOMPRESS,
                format_args!("A block holds {decoded} bytes where {data_bytes} were announced"),
            ));
        }
        Ok(())
    }
}

impl<R: Read> Read for Blocks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.data.len() {
            if !self.advance()? {
                return Ok(0);
            }
        }
        let length = buffer.len().min(self.data.len() - self.at);
        buffer[..length].copy_from_slice(&self.data[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn refused(code: Code, message: impl std::fmt::Display) -> io::Error {
    io::Error::other(Exception::new(code, message))
}

fn truncated(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            refused(Code::CANNOT_READ_ALL_DATA, "The body ends within a compressed block")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decompress(blocks: &[u8]) -> Result<Vec<u8>, u32> {
        let mut data = Vec::new();
        match Blocks::new(blocks).read_to_end(&mut data) {
            Ok(_) => Ok(data),
            Err(error) => Err(error.downcast::<Exception>().expect("an exception").code()),
        }
    }

    fn uncompressed_block(data: &[u8]) -> Vec<u8> {
        let mut rest = vec![NONE];
        rest.extend_from_slice(&size(data.len() + HEADER_BYTES));
        rest.extend_from_slice(&size(data.len()));
        rest.extend_from_slice(data);
        [checksum(&rest).as_slice(), &rest].concat()
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        for length in [0, 1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17] {
            let data: Vec<u8> = (0..length).map(|i| (i * i / 7) as u8).collect();
            assert_eq!(decompress(&compress(&data)).as_ref(), Ok(&data), "{length} bytes");
        }
        let mixed = [uncompressed_block(b"ab"), compress(b"cd"), uncompressed_block(b"")].concat();
        assert_eq!(decompress(&mixed), Ok(b"abcd".to_vec()));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let block = compress(b"the quick brown fox jumps over the lazy dog");
        for bit in 0..block.len() * 8 {
            let mut damaged = block.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decompress(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_block_is_refused_at_every_length() {
        let block = compress(b"data");
        for length in 1..block.len() {
            assert_eq!(decompress(&block[..length]), Err(33), "{length} bytes");
        }
    }

    #[test]
    fn other_methods_are_named() {
        let mut block = uncompressed_block(b"x");
        block[CHECKSUM_BYTES] = 0x90;
        let sum = checksum(&block[CHECKSUM_BYTES..]);
        block[..CHECKSUM_BYTES].copy_from_slice(&sum);
        assert_eq!(decompress(&block), Err(89));
    }
}
