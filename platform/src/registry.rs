//! The schema registry, through its Confluent-compatible API.
//!
//! ```text
//!  by_id ────► what it says of a schema's id: the schema, no, or nothing (it is in trouble)
//!  subjects ─► registers Tally's schemas, and says their ids
//!  own ──────► whether it still has them: if not, what it says of other ids is not believed
//! ```

mod by_id;
mod own;
mod subjects;

use std::sync::Arc;
use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;

pub use self::by_id::Lookup;
use self::own::OwnSchemas;
use crate::causes::with_causes;
use crate::config;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the registry. Clones share what it knows.
#[derive(Clone)]
pub struct Registry {
    url: String,
    http: reqwest::Client,
    config: config::Registry,
    own: Arc<OwnSchemas>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is known about the schema: ask again later.
    #[error("the schema registry at {url} does not answer: {reason}")]
    Unavailable { url: String, reason: String },
    /// The registry said no.
    #[error("the schema registry at {url} refused {subject}: {reason}")]
    Refused { url: String, subject: String, reason: String },
    /// It is not the registry whose ids the messages have: nothing that it says is believed.
    #[error(
        "the schema registry at {url} {reason}: it lost its data, or it is another environment's. \
         Nothing is rejected by its word; point registry.url at the right one, or restore it"
    )]
    NotOurs { url: String, reason: String },
    #[error(
        "the schema registry at {url} has no subject {subject}: run `tally init`. If it had one, \
         the registry lost its data, or it is another environment's"
    )]
    NoSubject { url: String, subject: String },
}

impl Registry {
    pub fn new(config: &config::Registry) -> Result<Registry, Error> {
        let url = config.url.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|error| Error::Unavailable { url: url.clone(), reason: error.to_string() })?;
        Ok(Registry { url, http, config: config.clone(), own: Arc::default() })
    }

    fn unavailable(&self, reason: impl ToString) -> Error {
        Error::Unavailable { url: self.url.clone(), reason: reason.to_string() }
    }

    /// The error with its causes: its own message stops at "error sending request".
    fn no_answer(&self, error: reqwest::Error) -> Error {
        self.unavailable(with_causes(&error))
    }

    /// The address of something, by the parts of its path.
    fn address(&self, path: &[&str]) -> Result<Url, Error> {
        let mut url = Url::parse(&self.url).map_err(|error| self.unavailable(error))?;
        let unfit = || self.unavailable("registry.url cannot have a path");
        url.path_segments_mut().map_err(|()| unfit())?.pop_if_empty().extend(path);
        Ok(url)
    }

    async fn get(&self, path: &[&str]) -> Result<Response, Error> {
        self.send(self.http.get(self.address(path)?)).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
        let request = match &self.config.user {
            Some(user) => {
                request.basic_auth(user, self.config.password.as_ref().map(|p| p.expose()))
            }
            None => request,
        };
        request.send().await.map_err(|error| self.no_answer(error))
    }

    /// The body of an answer of success.
    async fn json<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        let status = response.status();
        if !status.is_success() {
            return Err(self.unavailable(format!("status {status}")));
        }
        response.json().await.map_err(|error| self.no_answer(error))
    }
}

/// Whether a status says no to this very request, and would say so again: all of 4xx but for those
/// about who asks, how often, or how long.
fn is_no(status: StatusCode) -> bool {
    use StatusCode as S;
    let passes = [
        S::UNAUTHORIZED,
        S::PROXY_AUTHENTICATION_REQUIRED,
        S::REQUEST_TIMEOUT,
        S::MISDIRECTED_REQUEST,
        S::LOCKED,
        S::TOO_EARLY,
        S::TOO_MANY_REQUESTS,
    ];
    status.is_client_error() && !passes.contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_no_is_told_from_trouble() {
        let is_no = |status| is_no(StatusCode::from_u16(status).unwrap());
        assert!([400, 403, 404, 405, 410, 422].into_iter().all(is_no));
        let troubles = [200, 204, 301, 401, 407, 408, 421, 423, 425, 429, 500, 502, 503, 504];
        assert!(!troubles.into_iter().any(is_no));
    }
}
