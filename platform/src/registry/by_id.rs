//! What the registry says of a schema's id.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Error, Registry, is_no};

/// The most schemas that one may refer to, also through others.
const MAX_REFERENCES: usize = 100;

/// What the registry says about a schema id.
#[derive(Debug)]
pub enum Lookup {
    Found {
        schema: String,
        /// The schemas whose names it uses. Each uses names of itself and of those before it only.
        references: Vec<String>,
    },
    /// The registry answered that it has no such id, or that nobody gets it.
    Unknown,
    /// The id is there, but not as an Avro schema that can be read.
    NotAvro { reason: String },
}

/// The body of the answer for an id, and for a version of a subject.
#[derive(Deserialize)]
pub(super) struct Stored {
    pub(super) schema: String,
    #[serde(rename = "schemaType")]
    schema_type: Option<String>,
    #[serde(default)]
    references: Vec<Reference>,
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Reference {
    subject: String,
    version: u32,
}

impl Registry {
    /// Asks for the schema with this id.
    ///
    /// The answer is [`Lookup::Unknown`] only if the registry says so itself, and still has the
    /// schemas that this process noted as its own; everything else that goes wrong is an error, so
    /// that a registry in trouble never causes good messages to be rejected. (The converter crate's
    /// call gives one error for both, which is why this one is made here.)
    pub async fn schema(&self, id: u32) -> Result<Lookup, Error> {
        match self.stored(&["schemas", "ids", &id.to_string()]).await? {
            None => {
                self.check_own().await?;
                Ok(Lookup::Unknown)
            }
            Some(Stored { schema_type: Some(kind), .. }) if kind != "AVRO" => {
                Ok(Lookup::NotAvro { reason: format!("the schema is not Avro but {kind}") })
            }
            Some(Stored { schema, references, .. }) => {
                self.with_references(schema, references).await
            }
        }
    }

    /// What is stored under a path; `None` if the registry says no to it.
    pub(super) async fn stored(&self, path: &[&str]) -> Result<Option<Stored>, Error> {
        let response = self.get(path).await?;
        if is_no(response.status()) {
            return Ok(None);
        }
        self.json(response).await.map(Some)
    }

    async fn with_references(
        &self,
        schema: String,
        direct: Vec<Reference>,
    ) -> Result<Lookup, Error> {
        let mut references = References::default();
        match self.collect(direct, &mut references).await? {
            Collected::All => Ok(Lookup::Found { schema, references: references.texts }),
            Collected::Missing => {
                self.check_own().await?;
                Ok(Lookup::Unknown)
            }
            Collected::TooMany => Ok(Lookup::NotAvro {
                reason: format!("the schema refers to more than {MAX_REFERENCES} others"),
            }),
        }
    }

    /// Asks for schemas that are referred to, and first for those that they refer to themselves.
    async fn collect(
        &self,
        direct: Vec<Reference>,
        references: &mut References,
    ) -> Result<Collected, Error> {
        for reference in direct {
            let version = reference.version.to_string();
            let path = ["subjects", &reference.subject, "versions", &version];
            if references.seen.contains(&reference) {
                continue;
            } else if references.seen.len() == MAX_REFERENCES {
                return Ok(Collected::TooMany);
            }
            let Some(stored) = self.stored(&path).await? else { return Ok(Collected::Missing) };
            references.seen.insert(reference);
            match Box::pin(self.collect(stored.references, references)).await? {
                Collected::All => references.texts.push(stored.schema),
                stopped => return Ok(stopped),
            }
        }
        Ok(Collected::All)
    }
}

/// What was found of the schemas that one refers to.
#[derive(Default)]
struct References {
    seen: BTreeSet<Reference>,
    texts: Vec<String>,
}

enum Collected {
    All,
    /// The registry does not have one of them.
    Missing,
    TooMany,
}
