//! The schema registry, through its Confluent-compatible API.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;

use crate::causes::with_causes;
use crate::config;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a call that collides with another one is tried, and the pause between.
const CONFLICT_ATTEMPTS: usize = 10;
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);

/// The API's own media type.
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// The API's code for a schema id that is not there.
const SCHEMA_NOT_FOUND: u32 = 40403;

#[derive(Clone)]
pub struct Registry {
    url: String,
    http: reqwest::Client,
    config: config::Registry,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is known about the schema: ask again later.
    #[error("the schema registry at {url} does not answer: {reason}")]
    Unavailable { url: String, reason: String },
    /// The registry said no.
    #[error("the schema registry at {url} refused {subject}: {reason}")]
    Refused { url: String, subject: String, reason: String },
}

/// What the registry says about a schema id.
#[derive(Debug)]
pub enum Lookup {
    Found {
        schema: String,
    },
    /// The registry answered that it has no such id.
    Unknown,
    /// The id is there, but not as a self-contained Avro schema.
    NotAvro {
        reason: &'static str,
    },
}

#[derive(Deserialize)]
struct ById {
    schema: String,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Registered {
    id: u32,
}

#[derive(Deserialize)]
struct ApiError {
    error_code: u32,
}

impl Registry {
    pub fn new(config: &config::Registry) -> Result<Registry, Error> {
        let url = config.url.trim_end_matches('/').to_owned();
        let http = reqwest::Client::builder()
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|error| Error::Unavailable { url: url.clone(), reason: error.to_string() })?;
        Ok(Registry { url, http, config: config.clone() })
    }

    fn unavailable(&self, reason: impl ToString) -> Error {
        Error::Unavailable { url: self.url.clone(), reason: reason.to_string() }
    }

    fn refused(&self, subject: &str, reason: String) -> Error {
        Error::Refused { url: self.url.clone(), subject: subject.to_owned(), reason }
    }

    /// The error with its causes: its own message stops at "error sending request".
    fn no_answer(&self, error: reqwest::Error) -> Error {
        self.unavailable(with_causes(&error))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.config.user {
            Some(user) => {
                request.basic_auth(user, self.config.password.as_ref().map(|p| p.expose()))
            }
            None => request,
        }
    }

    /// Asks for the schema with this id.
    ///
    /// Only if the registry itself says that the id is not there, the answer is
    /// [`Lookup::Unknown`]; everything else that goes wrong is [`Error::Unavailable`], so that a
    /// registry in trouble never causes good messages to be rejected.
    pub async fn schema(&self, id: u32) -> Result<Lookup, Error> {
        let request = self.authorized(self.http.get(format!("{}/schemas/ids/{id}", self.url)));
        let response = request.send().await.map_err(|error| self.no_answer(error))?;
        let status = response.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            let body: ApiError = response.json().await.map_err(|error| self.unavailable(error))?;
            return match body.error_code {
                SCHEMA_NOT_FOUND => Ok(Lookup::Unknown),
                code => Err(self.unavailable(format!("status 404, error code {code}"))),
            };
        }
        if !status.is_success() {
            return Err(self.unavailable(format!("status {status}")));
        }
        let found: ById = response.json().await.map_err(|error| self.unavailable(error))?;
        Ok(match found {
            ById { schema_type: Some(kind), .. } if kind != "AVRO" => {
                Lookup::NotAvro { reason: "the schema is not Avro" }
            }
            ById { references, .. } if !references.is_empty() => {
                Lookup::NotAvro { reason: "the schema refers to other subjects" }
            }
            ById { schema, .. } => Lookup::Found { schema },
        })
    }

    /// Registers `schema` under `subject`, and returns its id; the same schema again has the same
    /// id.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let url = format!("{}/subjects/{subject}/versions", self.url);
        let body = serde_json::json!({ "schema": schema, "schemaType": "AVRO" });
        let request = self.authorized(self.http.post(&url)).header(CONTENT_TYPE, MEDIA_TYPE);
        let request = request.json(&body);
        let response = request.send().await.map_err(|error| self.no_answer(error))?;
        let status = response.status();
        if status.is_success() {
            let registered: Registered =
                response.json().await.map_err(|error| self.unavailable(error))?;
            return Ok(registered.id);
        }
        let said = response.text().await.map_err(|error| self.no_answer(error))?;
        let reason = format!("status {status}: {said}");
        match status.as_u16() {
            408 | 429 | 500.. => Err(self.unavailable(reason)),
            _ => Err(self.refused(subject, reason)),
        }
    }

    /// Sets a subject's compatibility level.
    pub async fn set_compatibility(&self, subject: &str, level: &str) -> Result<(), Error> {
        let url = format!("{}/config/{subject}", self.url);
        let mut attempts = 0;
        loop {
            let body = serde_json::json!({ "compatibility": level });
            let request = self.authorized(self.http.put(&url)).json(&body);
            let status = request.send().await.map_err(|error| self.no_answer(error))?.status();
            attempts += 1;
            match status {
                _ if status.is_success() => return Ok(()),
                // Somebody else sets it at this moment.
                reqwest::StatusCode::CONFLICT if attempts < CONFLICT_ATTEMPTS => {
                    tokio::time::sleep(CONFLICT_PAUSE).await;
                }
                _ => {
                    let reason = format!("compatibility {level}: status {status}");
                    return Err(self.refused(subject, reason));
                }
            }
        }
    }
}
