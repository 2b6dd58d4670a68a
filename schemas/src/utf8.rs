//! Texts from bytes. Names are short and mostly ASCII, which can be checked in a few machine words;
//! the standard library checks their bytes one by one.

use crate::Reason;

/// As [`std::str::from_utf8`].
#[inline(always)]
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Reason> {
    if is_ascii(bytes) {
        // SAFETY: ASCII is UTF-8.
        return Ok(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes).map_err(|_| Reason::Utf8)
}

/// Whether all bytes are ASCII. A word from the beginning and one from the end, which may overlap,
/// cover a text of up to twice their length.
#[inline(always)]
fn is_ascii(bytes: &[u8]) -> bool {
    const NOT_ASCII: u128 = u128::from_ne_bytes([0x80; 16]);
    let is_clear = |word: Option<u128>| word.is_some_and(|word| word & NOT_ASCII == 0);
    match bytes.len() {
        0 => true,
        1..4 => {
            let [first, middle, last] = [0, bytes.len() / 2, bytes.len() - 1].map(|at| bytes[at]);
            (first | middle | last) < 0x80
        }
        4..8 => is_clear(ends(bytes, |end| u32::from_ne_bytes(end).into())),
        8..16 => is_clear(ends(bytes, |end| u64::from_ne_bytes(end).into())),
        16..=32 => is_clear(ends(bytes, u128::from_ne_bytes)),
        _ => bytes.is_ascii(),
    }
}

/// The bits of the first `N` and of the last `N` bytes; `None` where there are fewer.
#[inline(always)]
fn ends<const N: usize>(bytes: &[u8], word: fn([u8; N]) -> u128) -> Option<u128> {
    Some(word(*bytes.first_chunk()?) | word(*bytes.last_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_byte_anywhere_tells() {
        for len in 0..70 {
            let mut bytes = vec![b'a'; len];
            assert!(is_ascii(&bytes) && text(&bytes).is_ok());
            for at in 0..len {
                bytes[at] = 0x80;
                assert!(!is_ascii(&bytes), "byte {at} of {len}");
                assert_eq!(text(&bytes), Err(Reason::Utf8));
                bytes[at] = b'a';
            }
        }
    }

    proptest! {
        #[test]
        fn it_is_what_the_standard_library_says(
            bytes in prop::collection::vec(prop_oneof![0x60..0x82u8, 0xc2..0xf5u8], 0..40),
            named in ".{0,20}",
        ) {
            prop_assert_eq!(text(&bytes).ok(), std::str::from_utf8(&bytes).ok());
            prop_assert_eq!(text(named.as_bytes()), Ok(named.as_str()));
        }
    }
}
