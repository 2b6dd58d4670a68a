use axum::http::{HeaderMap, HeaderValue, header};
use tally_platform::http::essence;

/// Why a body is in no form that the gateway reads.
#[derive(Debug, thiserror::Error)]
#[error("Content-Type {0:?} is none of application/json, application/x-ndjson, application/avro")]
pub(crate) struct MediaTypeError(HeaderValue);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    NdJson,
    Avro,
}

impl MediaType {
    /// What the body is, by its headers; JSON where they do not say.
    pub(crate) fn of(headers: &HeaderMap) -> Result<MediaType, MediaTypeError> {
        let Some(given) = headers.get(header::CONTENT_TYPE) else {
            return Ok(MediaType::Json);
        };
        match essence(given).as_deref() {
            Some("application/json") => Ok(MediaType::Json),
            Some(
                "application/x-ndjson"
                | "application/ndjson"
                | "application/jsonl"
                | "application/x-jsonlines",
            ) => Ok(MediaType::NdJson),
            Some("application/avro") => Ok(MediaType::Avro),
            _ => Err(MediaTypeError(given.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Code, Problem};

    fn of(value: &'static str) -> Result<MediaType, Code> {
        let given = HeaderValue::from_static(value);
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, given)]);
        MediaType::of(&headers).map_err(|error| Problem::from(error).code)
    }

    #[test]
    fn the_media_type_decides_whatever_its_parameters() {
        for (value, expected) in [
            ("application/json", MediaType::Json),
            ("Application/JSON; charset=utf-8", MediaType::Json),
            ("application/x-ndjson", MediaType::NdJson),
            ("application/x-ndjson; charset=utf-8", MediaType::NdJson),
            ("application/ndjson", MediaType::NdJson),
            ("application/jsonl;charset=UTF-8", MediaType::NdJson),
            ("application/x-jsonlines", MediaType::NdJson),
            ("application/avro;v=1", MediaType::Avro),
        ] {
            assert_eq!(of(value), Ok(expected), "{value}");
        }
        assert_eq!(MediaType::of(&HeaderMap::new()).unwrap(), MediaType::Json);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for value in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "",
            "application/jsonx",
            "application/json/",
        ] {
            assert_eq!(of(value), Err(Code::UnsupportedMediaType), "{value}");
        }
    }
}
