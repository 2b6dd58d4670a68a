//! What ClickHouse is asked. Where replays are kept, they go on meanwhile.
//!
//! ```text
//!  the ledger ─► how far it is ─┬─► replay up to there (watch) ─┐
//!                               └─► all counts, of one snapshot ┴─► replay what is left, compare
//! ```

use std::collections::{BTreeMap, BTreeSet};

use clickhouse::Client;
use tally_counts::Salt;
use tally_platform::store::{self, Ledger, PartCounts, StoredCounts};
use tokio_util::task::AbortOnDropHandle;

use super::Rounds;
use crate::partition_reader::PartitionReaders;
use crate::{Error, PartitionReport};

impl Rounds {
    /// Asks with the salt that each partition is compared under; where parts are kept, for all rows
    /// of some partitions only.
    pub(super) fn ask(
        &mut self,
        whole: Option<&BTreeSet<i32>>,
        readers: &mut PartitionReaders,
    ) -> Result<BTreeMap<i32, StoredCounts>, Error> {
        let client = store::client(&self.config.store);
        let mut ledgers = BTreeMap::new();
        if self.parts.is_some() || !self.checkpoints.newest.is_empty() {
            ledgers = self.runtime.block_on(store::ledgers(&client))?;
            self.forget_checkpoints_ahead(&ledgers);
        }
        match self.parts.take() {
            Some(parts) => self.ask_and_replay(parts, client, whole, &ledgers, readers),
            None => self.ask_at_once(&client),
        }
    }

    /// A store that was restored from before is behind its checkpoints: they say nothing of it.
    fn forget_checkpoints_ahead(&mut self, ledgers: &BTreeMap<i32, Ledger>) {
        self.checkpoints.newest.retain(|partition, checkpoint| {
            ledgers
                .get(partition)
                .is_some_and(|ledger| ledger.increments.high >= checkpoint.position)
        });
    }

    fn ask_and_replay(
        &mut self,
        mut parts: PartCounts,
        client: Client,
        whole: Option<&BTreeSet<i32>>,
        ledgers: &BTreeMap<i32, Ledger>,
        readers: &mut PartitionReaders,
    ) -> Result<BTreeMap<i32, StoredCounts>, Error> {
        let whole = whole.cloned();
        let asking = AbortOnDropHandle::new(self.runtime.spawn(async move {
            let stored = parts.read(&client, whole.as_ref()).await;
            (parts, stored)
        }));
        self.replay_up_to(ledgers, readers)?;
        let asked = self.runtime.block_on(asking);
        let (parts, stored) = asked.map_err(|ended| match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Error::Stopped,
        })?;
        self.parts = Some(parts);
        Ok(stored?)
    }

    /// Replays what the ledger says is stored. What hinders that hinders the comparison too, and is
    /// told there.
    fn replay_up_to(
        &mut self,
        ledgers: &BTreeMap<i32, Ledger>,
        readers: &mut PartitionReaders,
    ) -> Result<(), Error> {
        let kafka = &self.config.kafka.clone();
        let count = readers.partition_count(&kafka.increments)?;
        self.rejected.read_on(kafka, readers)?;
        let mut parts = BTreeMap::new();
        for (partition, ledger) in ledgers.range(..count) {
            if let Ok(watermarks) = readers.watermarks(&kafka.increments, *partition)
                && let Ok(part) = self.begin(*partition, ledger.increments.high, watermarks)
            {
                parts.insert(*partition, part);
            }
        }
        self.replay_all(parts).map(|_| ())
    }

    /// The partitions in scope that ClickHouse has rows of, and Kafka, which had so many, has not.
    pub(super) fn unknown_partitions(
        &self,
        partitions: i32,
        readers: &PartitionReaders,
    ) -> Result<Vec<PartitionReport>, Error> {
        let client = store::client(&self.config.store);
        let found = self.runtime.block_on(store::unknown_partitions(&client, partitions))?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        // Partitions that were added meanwhile are the next round's.
        let partitions = readers.partition_count(&self.config.kafka.increments)?;
        let scope = &self.options.scope.partitions;
        let is_in_scope = |found: u32| {
            let listed =
                |listed: &BTreeSet<i32>| listed.iter().any(|p| i64::from(*p) == i64::from(found));
            scope.as_ref().is_none_or(listed)
        };
        Ok(found
            .into_iter()
            .filter(|found| i64::from(*found) >= i64::from(partitions) && is_in_scope(*found))
            .map(|found| PartitionReport::unknown(found, partitions))
            .collect())
    }

    fn ask_at_once(&self, client: &Client) -> Result<BTreeMap<i32, StoredCounts>, Error> {
        let scope = self.options.scope.sql();
        let of = |salt: &Salt, condition: &str| {
            self.runtime.block_on(store::stored_counts(client, salt, condition))
        };
        let (Some(key_salt), false) = (&self.key_salt, self.checkpoints.newest.is_empty()) else {
            return Ok(of(&self.drawn, &scope)?);
        };
        let listed: Vec<String> = self.checkpoints.newest.keys().map(ToString::to_string).collect();
        let listed = format!("partition IN ({})", listed.join(", "));
        let mut stored = of(&self.drawn, &format!("{scope} AND NOT {listed}"))?;
        let mut by_key = of(key_salt, &format!("{scope} AND {listed}"))?;
        for partition in self.checkpoints.newest.keys() {
            stored.insert(*partition, by_key.remove(partition).unwrap_or_default());
        }
        Ok(stored)
    }
}
