//! Request bodies that clients compress, decompressed to a limit.

use std::io::Read;

use axum::http::{HeaderMap, HeaderValue, header};
use zstd::zstd_safe::{self, zstd_sys::ZSTD_ErrorCode};

use super::Refusal;

/// How a request's body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentEncoding {
    Identity,
    Gzip,
    Zstd,
}

impl ContentEncoding {
    /// What the headers say; identity where they say nothing. Codings one on top of the other are
    /// refused.
    pub(super) fn of(headers: &HeaderMap) -> Result<ContentEncoding, Refusal> {
        let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(encoding) = given.next() else { return Ok(ContentEncoding::Identity) };
        let is = |name: &str| encoding.as_bytes().eq_ignore_ascii_case(name.as_bytes());
        match given.next() {
            None if is("identity") => Ok(ContentEncoding::Identity),
            None if is("gzip") || is("x-gzip") => Ok(ContentEncoding::Gzip),
            None if is("zstd") => Ok(ContentEncoding::Zstd),
            another => Err(unsupported(another.unwrap_or(encoding))),
        }
    }

    /// The body as it was before it was compressed. Where that is more than `max_bytes`, no more
    /// than these are ever in memory.
    pub(super) fn decompress(self, body: &[u8], max_bytes: usize) -> Result<Vec<u8>, Refusal> {
        let too_large = Refusal::BodyTooLarge { max_bytes };
        match self {
            ContentEncoding::Identity if body.len() > max_bytes => Err(too_large),
            ContentEncoding::Identity => Ok(body.to_vec()),
            ContentEncoding::Gzip => {
                let mut whole = vec![0; max_bytes];
                let mut decoder = flate2::read::MultiGzDecoder::new(body);
                let mut length = 0;
                loop {
                    let read = match whole.get_mut(length..) {
                        // Whether there is more shows in a byte that has no room.
                        None | Some([]) => decoder.read(&mut [0]),
                        Some(rest) => decoder.read(rest),
                    };
                    match read {
                        Ok(0) => break,
                        Ok(_) if length == max_bytes => return Err(too_large),
                        Ok(bytes) => length += bytes,
                        Err(error) => return Err(broken("gzip", &error.to_string())),
                    }
                }
                whole.truncate(length);
                whole.shrink_to_fit();
                Ok(whole)
            }
            // At once and not as a stream: a stream needs a window, whose size the client says.
            ContentEncoding::Zstd => {
                let mut whole = Vec::with_capacity(max_bytes);
                match zstd_safe::DCtx::create().decompress(&mut whole, body) {
                    Ok(_) => {}
                    Err(code) if code == DESTINATION_TOO_SMALL => return Err(too_large),
                    Err(code) => return Err(broken("zstd", zstd_safe::get_error_name(code))),
                }
                whole.shrink_to_fit();
                Ok(whole)
            }
        }
    }
}

/// How zstd says that there is more than there is room for: its errors are negative numbers.
const DESTINATION_TOO_SMALL: zstd_safe::ErrorCode =
    (ZSTD_ErrorCode::ZSTD_error_dstSize_tooSmall as usize).wrapping_neg();

fn unsupported(given: &HeaderValue) -> Refusal {
    Refusal::UnsupportedEncoding { given: given.clone() }
}

fn broken(encoding: &str, reason: &str) -> Refusal {
    Refusal::UnreadBody { reason: format!("it is not the {encoding} that it is sent as: {reason}") }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const ENCODINGS: [ContentEncoding; 3] =
        [ContentEncoding::Identity, ContentEncoding::Gzip, ContentEncoding::Zstd];

    fn compressed(encoding: ContentEncoding, plain: &[u8]) -> Vec<u8> {
        match encoding {
            ContentEncoding::Identity => plain.to_vec(),
            ContentEncoding::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
            ContentEncoding::Zstd => zstd::encode_all(plain, 0).unwrap(),
        }
    }

    fn of(values: &[&'static str]) -> Result<ContentEncoding, Refusal> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        ContentEncoding::of(&headers)
    }

    #[test]
    fn the_header_says_how_the_body_is_compressed() {
        assert_eq!(of(&[]), Ok(ContentEncoding::Identity));
        assert_eq!(of(&["identity"]), Ok(ContentEncoding::Identity));
        assert_eq!(of(&["gzip"]), Ok(ContentEncoding::Gzip));
        assert_eq!(of(&["X-GZIP"]), Ok(ContentEncoding::Gzip));
        assert_eq!(of(&["zstd"]), Ok(ContentEncoding::Zstd));
        for given in [&["br"][..], &[""], &["gzip, zstd"], &["gzip", "zstd"]] {
            assert!(matches!(of(given), Err(Refusal::UnsupportedEncoding { .. })), "{given:?}");
        }
    }

    #[test]
    fn what_fits_is_read_whole_and_a_byte_more_is_too_large() {
        let noise: Vec<u8> = (0..70_000u32).map(|n| n.wrapping_mul(n).to_le_bytes()[1]).collect();
        for encoding in ENCODINGS {
            for plain in [&b""[..], b"{}", &noise, &vec![b' '; 300_000]] {
                let body = compressed(encoding, plain);
                let read = encoding.decompress(&body, plain.len()).unwrap();
                assert_eq!((read == plain, read.capacity()), (true, plain.len()), "{encoding:?}");
                if let Some(max_bytes) = plain.len().checked_sub(1) {
                    let refused = Err(Refusal::BodyTooLarge { max_bytes });
                    assert_eq!(encoding.decompress(&body, max_bytes), refused, "{encoding:?}");
                }
            }
        }
    }

    #[test]
    fn members_one_after_the_other_are_one_body() {
        for encoding in ENCODINGS {
            let body = [compressed(encoding, b"{\"a\":"), compressed(encoding, b"1}")].concat();
            assert_eq!(encoding.decompress(&body, 100).unwrap(), b"{\"a\":1}", "{encoding:?}");
        }
    }

    #[test]
    fn what_is_not_compressed_as_it_says_is_unread() {
        for encoding in [ContentEncoding::Gzip, ContentEncoding::Zstd] {
            let sound = compressed(encoding, &[b'x'; 1000]);
            let flipped: Vec<u8> = sound.iter().map(|byte| byte ^ 1).collect();
            for body in [b"{}", &sound[..sound.len() - 1], &[&sound[..], b"x"].concat(), &flipped] {
                let refused = encoding.decompress(body, 2000);
                assert!(matches!(refused, Err(Refusal::UnreadBody { .. })), "{refused:?}");
            }
        }
    }

    /// Some kilobytes that come to 64 MiB, by frames that say how much it is and by one that does
    /// not.
    #[test]
    fn a_bomb_is_too_large() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut zstd = zstd::Encoder::new(Vec::new(), 0).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..64 {
            gzip.write_all(&zeros).unwrap();
            zstd.write_all(&zeros).unwrap();
        }
        let said = zstd::encode_all(&zeros[..], 0).unwrap().repeat(64);
        for (encoding, body) in [
            (ContentEncoding::Gzip, gzip.finish().unwrap()),
            (ContentEncoding::Zstd, zstd.finish().unwrap()),
            (ContentEncoding::Zstd, said),
        ] {
            let refused = encoding.decompress(&body, 1 << 20);
            assert_eq!(refused, Err(Refusal::BodyTooLarge { max_bytes: 1 << 20 }));
        }
    }
}
