//! Reads the batches of `deltas`, by the schema of whichever version of Tally wrote them.
//!
//! ```text
//!  payload ─► schema id ─► learned: its plan ─┐
//!                     └──► else: our schema ──┴─► DeltaBatch ─► sound: counted
//!                                                           └─► not: learn, then once more
//! ```
//!
//! Nearly every batch is by our own schema, and a batch proves itself: its fingerprint is that of
//! its deltas. So the schema registry is asked only about a batch that our schema does not read,
//! and a registry that is away stops nobody else.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tally_counts::{BatchCheck, BatchMismatch};
use tally_schemas::{DecodeError, DeltaBatch, DeltaBatchPlan, wire};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::quiet_log::QuietLog;
use crate::registry::{Error, Lookup, Registry};
use crate::retry::{Backoff, until_ok};

/// Between two questions to a registry that does not answer, and between two log lines about it.
const REGISTRY_RETRY: Duration = Duration::from_secs(1);
const REMINDER: Duration = Duration::from_secs(30);

/// Why a message is no sound batch of deltas.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unsound {
    #[error("it is not in the wire format: {0}")]
    Framing(#[from] wire::Error),
    #[error("it does not decode: {0}")]
    Decode(#[from] DecodeError),
    #[error("its header says something else than its deltas: {0}")]
    Mismatch(#[from] BatchMismatch),
    #[error("it is by schema {id}: {reason}")]
    Schema { id: u32, reason: String },
}

/// What the registry's schema of an id came to, or why it is of no use.
type Learned = Result<Arc<DeltaBatchPlan>, String>;

/// Reads batches. Clones share what they learned.
#[derive(Clone)]
pub struct DeltaBatches {
    registry: Registry,
    /// What the registry is known by, which else would be believed though it lost its data.
    subject: Arc<str>,
    /// By the ids that were asked about.
    learned: Arc<RwLock<BTreeMap<u32, Learned>>>,
}

impl DeltaBatches {
    /// Of this topic.
    pub fn new(registry: &config::Registry, deltas: &str) -> Result<DeltaBatches, Error> {
        Ok(DeltaBatches {
            registry: Registry::new(registry)?,
            subject: format!("{deltas}-value").into(),
            learned: Arc::default(),
        })
    }

    /// The body of a message's batch by our schema, for [`DeltaBatch::decode`].
    ///
    /// Where the batch then turns out not to be sound, its schema may be another one that was not
    /// asked about yet: see [`DeltaBatches::learn`].
    pub fn body<'a>(&self, payload: &'a [u8]) -> Result<Cow<'a, [u8]>, Unsound> {
        let (id, body) = wire::split(payload)?;
        let learned = self.learned.read().unwrap_or_else(PoisonError::into_inner);
        match learned.get(&id) {
            None => Ok(Cow::Borrowed(body)),
            Some(Ok(plan)) => Ok(plan.to_ours(body)?),
            Some(Err(reason)) => Err(Unsound::Schema { id, reason: reason.clone() }),
        }
    }

    /// Asks the registry for the schema of a message. Whether that says anything new, so that the
    /// message should be read again.
    pub async fn learn(&self, payload: &[u8]) -> Result<bool, Error> {
        let Ok((id, _)) = wire::split(payload) else { return Ok(false) };
        if self.learned.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id) {
            return Ok(false);
        }
        self.registry.note_latest(&[&self.subject]).await?;
        let plan = match self.registry.schema(id).await? {
            // The registry may learn of it yet.
            Lookup::Unknown => return Ok(false),
            Lookup::NotAvro { reason } => Err(reason),
            Lookup::Found { schema, .. } => {
                DeltaBatchPlan::new(&schema).map(Arc::new).map_err(|error| error.to_string())
            }
        };
        self.learned.write().unwrap_or_else(PoisonError::into_inner).insert(id, plan);
        Ok(true)
    }

    /// As [`DeltaBatches::learn`], but waits for a registry that does not answer; `None` once
    /// `stop` is cancelled. `waiting` is called before each wait.
    pub async fn learn_patiently(
        &self,
        (partition, offset): (i32, i64),
        payload: &[u8],
        stop: &CancellationToken,
        waiting: impl Fn(),
    ) -> Option<bool> {
        let mut log = QuietLog::every(REMINDER);
        let backoff = Backoff::constant(REGISTRY_RETRY);
        until_ok(stop, backoff, || self.learn(payload), |error, _| {
            waiting();
            if log.failed(Instant::now()).is_some() {
                tracing::warn!(
                    %error,
                    partition,
                    offset,
                    "a batch of deltas is not by this version's schema, and the schema registry \
                     does not say by which; the partition waits, and the registry is asked again"
                );
            }
        })
        .await
    }

    /// The body of a message's batch by our schema, once the whole of it is known to be sound. Asks
    /// the registry where it must, which blocks the thread.
    pub fn sound_body<'a>(
        &self,
        runtime: &Handle,
        payload: &'a [u8],
    ) -> Result<Result<Cow<'a, [u8]>, Unsound>, Error> {
        loop {
            match self.body(payload).and_then(|body| check(&body).map(|()| body)) {
                Ok(body) => return Ok(Ok(body)),
                Err(unsound) if !runtime.block_on(self.learn(payload))? => return Ok(Err(unsound)),
                Err(_) => {}
            }
        }
    }
}

/// Whether a batch's header is that of its deltas.
fn check(body: &[u8]) -> Result<(), Unsound> {
    let DeltaBatch { header, deltas } = DeltaBatch::decode(body)?;
    let mut check = BatchCheck::default();
    for delta in deltas {
        check.add(&delta?);
    }
    Ok(check.finish(&header)?)
}
