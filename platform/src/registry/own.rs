//! The schemas that this process registered or found, by which it knows its registry again.
//!
//! A registry that lost its data, or another environment's, says of every id that it is not there,
//! or has something else under it. By its word all messages would be rejected, for good.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::{Error, Registry, is_no};

/// How long it is believed that the registry still has the schemas.
const BELIEVED_FOR: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct OwnSchemas {
    registered: Mutex<Vec<OwnSchema>>,
    /// When the registry was last asked for them all, and had them.
    seen: tokio::sync::Mutex<Option<Instant>>,
}

/// The body of the answer for a version of a subject.
#[derive(Deserialize)]
struct Version {
    id: u32,
    schema: String,
}

#[derive(Clone)]
struct OwnSchema {
    subject: String,
    id: u32,
    outline: Outline,
}

/// What a registry keeps of a schema, in whatever order and form it gives it back: the record's
/// name without its namespace, and its fields' names. What is no record is known by its whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outline(String);

impl Outline {
    fn of(schema: &str) -> Outline {
        Outline(Outline::of_record(schema).unwrap_or_else(|| schema.to_owned()))
    }

    fn of_record(schema: &str) -> Option<String> {
        let json: Value = serde_json::from_str(schema).ok()?;
        let name = |of: &Value| of["name"].as_str().map(ToOwned::to_owned);
        let fields: Option<Vec<String>> = json["fields"].as_array()?.iter().map(name).collect();
        let full = name(&json)?;
        let short = full.rsplit_once('.').map_or(full.as_str(), |(_, short)| short);
        Some(format!("{short} of {}", fields?.join(", ")))
    }
}

impl OwnSchemas {
    fn has(&self, subject: &str) -> bool {
        let registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.iter().any(|own| own.subject == subject)
    }
}

impl Registry {
    /// Notes that the registry gave this id for the schema.
    pub(super) fn note_own(&self, subject: &str, id: u32, schema: &str) {
        let own = OwnSchema { subject: subject.to_owned(), id, outline: Outline::of(schema) };
        let mut registered = self.own.registered.lock().unwrap_or_else(PoisonError::into_inner);
        registered.retain(|other| other.subject != own.subject);
        registered.push(own);
    }

    /// Notes what the registry has of these subjects, without writing anything to it: for whoever
    /// registers no schema of its own. What is noted already stays.
    pub async fn note_latest(&self, subjects: &[&str]) -> Result<(), Error> {
        for &subject in subjects {
            if self.own.has(subject) {
                continue;
            }
            let response = self.get(&["subjects", subject, "versions", "latest"]).await?;
            if is_no(response.status()) {
                let (url, subject) = (self.url.clone(), subject.to_owned());
                return Err(Error::NoSubject { url, subject });
            }
            let Version { id, schema } = self.json(response).await?;
            self.note_own(subject, id, &schema);
        }
        Ok(())
    }

    /// The error about a registry that says something else of Tally's schemas than it did.
    pub fn not_ours(&self, reason: String) -> Error {
        Error::NotOurs { url: self.url.clone(), reason }
    }

    /// Whether the registry still has each schema that this process noted, under its id;
    /// [`Error::NotOurs`] if not.
    pub async fn check_own(&self) -> Result<(), Error> {
        // Whoever comes meanwhile waits for this answer.
        let mut seen = self.own.seen.lock().await;
        if seen.is_some_and(|seen| seen.elapsed() < BELIEVED_FOR) {
            return Ok(());
        }
        let asked = Instant::now();
        let own = self.own.registered.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for OwnSchema { subject, id, outline } in own {
            let stored = self.stored(&["schemas", "ids", &id.to_string()]).await?;
            let reason = match stored.map(|stored| Outline::of(&stored.schema)) {
                Some(found) if found == outline => continue,
                None => format!("has no schema {id} any more, which is that of {subject}"),
                Some(Outline(found)) => {
                    format!("has another schema than that of {subject} under its id {id}: {found}")
                }
            };
            return Err(self.not_ours(reason));
        }
        *seen = Some(asked);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_known_again_however_it_is_written() {
        let written = r#"{"type":"record","name":"R","namespace":"n","doc":"d",
            "fields":[{"name":"a","type":"long"},{"name":"b","type":"string"}]}"#;
        let rewritten = r#"{"fields":[{"type":{"type":"long"},"name":"a"},
            {"type":"string","name":"b"}],"name":"n.R","type":"record"}"#;
        assert_eq!(Outline::of(written), Outline::of(rewritten));
        assert_ne!(Outline::of(written), Outline::of(&written.replace("\"b\"", "\"c\"")));
        assert_ne!(Outline::of(written), Outline::of("\"string\""));
        assert_ne!(Outline::of("message A {}"), Outline::of("message B {}"));
    }
}
