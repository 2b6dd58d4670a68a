//! Confluent's wire format, which stands before every Avro body on a topic:
//!
//! ```text
//!  ┌───┬──────────────────────┬──────┐
//!  │ 0 │ schema id, 4 bytes BE │ body │
//!  └───┴──────────────────────┴──────┘
//! ```

/// The bytes before the body.
pub const PREFIX_BYTES: usize = 5;

const MAGIC: u8 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "a payload of {bytes} bytes has no room for the magic byte and the schema id \
         ({PREFIX_BYTES} bytes)"
    )]
    TooShort { bytes: usize },
    #[error("the payload begins with byte {found:#04x}, not with the magic byte 0x00")]
    Magic { found: u8 },
}

/// The id of the writer's schema, and the body.
pub fn split(payload: &[u8]) -> Result<(u32, &[u8]), Error> {
    match *payload {
        [MAGIC, a, b, c, d, ref body @ ..] => Ok((u32::from_be_bytes([a, b, c, d]), body)),
        [found, ..] if found != MAGIC => Err(Error::Magic { found }),
        _ => Err(Error::TooShort { bytes: payload.len() }),
    }
}

/// What stands before a body that was written by the schema `schema_id`.
pub fn prefix(schema_id: u32) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d] = schema_id.to_be_bytes();
    [MAGIC, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_splits_into_what_it_was_made_of() {
        let payload = [prefix(0x0102_0304).as_slice(), b"body"].concat();
        assert_eq!(payload, b"\0\x01\x02\x03\x04body");
        assert_eq!(split(&payload), Ok((0x0102_0304, b"body".as_slice())));
        assert_eq!(split(&prefix(u32::MAX)), Ok((u32::MAX, b"".as_slice())));
    }

    #[test]
    fn a_payload_without_the_prefix_is_refused() {
        assert_eq!(split(b""), Err(Error::TooShort { bytes: 0 }));
        assert_eq!(split(b"\0\0\0\x01"), Err(Error::TooShort { bytes: 4 }));
        assert_eq!(split(b"{\"ns\":1}"), Err(Error::Magic { found: b'{' }));
        assert_eq!(split(b"{"), Err(Error::Magic { found: b'{' }));
    }
}
