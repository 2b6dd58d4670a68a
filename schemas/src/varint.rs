//! Avro's `int` and `long`: zigzag, then seven bits a byte, the lowest first.

use crate::Reason;

/// The most bytes that 64 bits take.
const MAX_BYTES: usize = 10;

/// The value at the start of `bytes`, and the bytes after it.
#[inline(always)]
pub(crate) fn read(bytes: &[u8]) -> Result<(i64, &[u8]), Reason> {
    match bytes {
        [first, rest @ ..] if *first < 0x80 => Ok((unzigzag(u64::from(*first)), rest)),
        _ => read_long(bytes),
    }
}

/// Reads a value of two bytes or more. Where eight bytes are left, it reads them at once: a time or
/// a sum takes about so many.
#[inline]
fn read_long(bytes: &[u8]) -> Result<(i64, &[u8]), Reason> {
    if let Some(word) = bytes.first_chunk() {
        let word = u64::from_le_bytes(*word);
        let ends = !word & 0x8080_8080_8080_8080;
        if ends != 0 {
            let len = ends.trailing_zeros() as usize / 8 + 1;
            return Ok((unzigzag(gather(word & (ends ^ ends.wrapping_sub(1)))), &bytes[len..]));
        }
    }
    read_bytewise(bytes)
}

/// The lower seven bits of each byte, side by side.
#[inline(always)]
fn gather(word: u64) -> u64 {
    let word = word & 0x7f7f_7f7f_7f7f_7f7f;
    let word = (word & 0x007f_007f_007f_007f) | (word & 0x7f00_7f00_7f00_7f00) >> 1;
    let word = (word & 0x0000_3fff_0000_3fff) | (word & 0x3fff_0000_3fff_0000) >> 2;
    (word & 0x0fff_ffff) | (word & 0x0fff_ffff_0000_0000) >> 4
}

fn read_bytewise(bytes: &[u8]) -> Result<(i64, &[u8]), Reason> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(MAX_BYTES).enumerate() {
        let bits = u64::from(byte & 0x7f);
        // Nine bytes hold 63 bits: the tenth may add only one.
        if i == MAX_BYTES - 1 && byte > 1 {
            return Err(Reason::Varint);
        }
        value |= bits << (7 * i);
        if byte < 0x80 {
            return Ok((unzigzag(value), &bytes[i + 1..]));
        }
    }
    Err(Reason::End)
}

#[inline(always)]
pub(crate) fn write(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let mut bytes = [0; MAX_BYTES];
    let mut len = 0;
    while rest >= 0x80 {
        bytes[len] = rest as u8 | 0x80;
        rest >>= 7;
        len += 1;
    }
    bytes[len] = rest as u8;
    out.extend_from_slice(&bytes[..=len]);
}

/// How many bytes [`write`] takes for `value`.
#[inline]
pub(crate) fn len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

#[inline(always)]
fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline(always)]
fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(value: i64) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, value);
        out
    }

    #[test]
    fn values_are_written_as_the_specification_shows() {
        for (value, bytes) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (-2, &[0x03]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        ] {
            assert_eq!(written(value), bytes, "{value}");
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let mut bytes = written(i64::MIN);
        bytes[9] = 0x02;
        assert_eq!(read(&bytes), Err(Reason::Varint));
        assert_eq!(read(&[0x80; 11]), Err(Reason::Varint));
        assert_eq!(read(&[0x80; 9]), Err(Reason::End));
        assert_eq!(read(&[]), Err(Reason::End));
    }

    proptest! {
        #[test]
        fn a_value_reads_back_and_leaves_what_follows(
            bits: i64,
            shift in 0..64_u32,
            follows: Vec<u8>,
        ) {
            let value = bits >> shift;
            let mut bytes = written(value);
            prop_assert_eq!(bytes.len(), len(value));
            for cut in 0..bytes.len() {
                prop_assert_eq!(read(&bytes[..cut]), Err(Reason::End));
            }
            bytes.extend_from_slice(&follows);
            prop_assert_eq!(read(&bytes), Ok((value, follows.as_slice())));
        }
    }
}
