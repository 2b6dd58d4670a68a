//! Tally's own subjects: their schemas, and which changes of them the registry takes.

use std::time::Duration;

use reqwest::StatusCode;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, post_schema};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, SchemaType, SuppliedSchema};
use serde::Deserialize;

use super::{CALL_TIMEOUT, Error, Registry, is_no};

/// How often a call that collides with another one is tried, and the pause between.
const CONFLICT_ATTEMPTS: usize = 10;
const CONFLICT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
struct SubjectLevel {
    #[serde(rename = "compatibilityLevel")]
    compatibility: String,
}

impl Registry {
    /// As [`Registry::register`], but only under a subject that is there: one that is not says that
    /// nobody has set this registry up, or that it lost its data.
    pub async fn register_next(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        if !self.has_subject(subject).await? {
            let (url, subject) = (self.url.clone(), subject.to_owned());
            return Err(Error::NoSubject { url, subject });
        }
        self.register(subject, schema).await
    }

    /// Whether the subject has a schema.
    pub async fn has_subject(&self, subject: &str) -> Result<bool, Error> {
        let response = self.get(&["subjects", subject, "versions"]).await?;
        if is_no(response.status()) {
            return Ok(false);
        }
        let versions: Vec<u32> = self.json(response).await?;
        Ok(!versions.is_empty())
    }

    /// Registers `schema` under `subject`, and returns its id; the same schema again has the same
    /// id.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, Error> {
        let supplied = SuppliedSchema::new(None, SchemaType::Avro, schema.to_owned());
        match post_schema(&self.settings()?, subject.to_owned(), supplied).await {
            Ok(registered) => {
                self.note_own(subject, registered.id, schema);
                Ok(registered.id)
            }
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
        let response = self.get(&["config", subject]).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let level: SubjectLevel = self.json(response).await?;
        Ok(Some(level.compatibility))
    }

    /// Sets a subject's compatibility level.
    pub async fn set_compatibility(&self, subject: &str, level: &str) -> Result<(), Error> {
        let url = self.address(&["config", subject])?;
        let mut attempts = 0;
        loop {
            let body = serde_json::json!({ "compatibility": level });
            let status = self.send(self.http.put(url.clone()).json(&body)).await?.status();
            attempts += 1;
            match status {
                _ if status.is_success() => return Ok(()),
                // Somebody else sets it at this moment.
                StatusCode::CONFLICT if attempts < CONFLICT_ATTEMPTS => {
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
