//! The schema registry, through its Confluent-compatible API.

use std::time::Duration;

use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SuppliedSchema};
use serde::Deserialize;

use crate::causes::with_causes;
use crate::config;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a call that collides with another one is tried, and the pause between.
const CONFLICT_ATTEMPTS: usize = 10;
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);

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
struct SubjectLevel {
    #[serde(rename = "compatibilityLevel")]
    compatibility: String,
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
    /// registry in trouble never causes good messages to be rejected. (The converter crate's call
    /// gives one error for both, which is why this one is made here.)
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
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        match post_schema(&self.settings()?, subject.to_owned(), supplied).await {
            Ok(registered) => Ok(registered.id),
            Err(error) if is_refusal(&error) => Err(Error::Refused {
                url: self.url.clone(),
                subject: subject.to_owned(),
                reason: error.to_string(),
            }),
            Err(error) => Err(self.unavailable(error)),
        }
    }

    /// A subject's own compatibility level; `None` where none was set.
    pub async fn compatibility(&self, subject: &str) -> Result<Option<String>, Error> {
        let request = self.authorized(self.http.get(format!("{}/config/{subject}", self.url)));
        let response = request.send().await.map_err(|error| self.no_answer(error))?;
        let status = response.status();
        if status == reqwest::StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.unavailable(format!("status {status}")));
        }
        let level: SubjectLevel = response.json().await.map_err(|error| self.unavailable(error))?;
        Ok(Some(level.compatibility))
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
                    return Err(Error::Refused {
                        url: self.url.clone(),
                        subject: subject.to_owned(),
                        reason: format!("compatibility {level}: status {status}"),
                    });
                }
            }
        }
    }

    fn settings(&self) -> Result<SrSettings, Error> {
        let mut builder = SrSettings::new_builder(self.url.clone());
        builder.set_timeout(CALL_TIMEOUT);
        if let Some(user) = &self.config.user {
            builder
                .set_basic_authorization(user, self.config.password.as_ref().map(|p| p.expose()));
        }
        builder.build().map_err(|error| self.unavailable(error))
    }
}

/// Whether the registry itself says that the request is wrong. What the converter does not repeat
/// includes its troubles of its own.
fn is_refusal(error: &SRCError) -> bool {
    let answer =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<RawError>());
    // A status, or a status with two digits more.
    let status = |code: u32| if code < 1000 { code } else { code / 100 };
    answer.is_some_and(|answer| {
        let status = status(answer.error_code);
        (400..500).contains(&status) && !matches!(status, 408 | 429)
    })
}
