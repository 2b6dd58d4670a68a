//! Replays partitions side by side, on `reconciler.parallel` threads.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tally_platform::plans::Plans;
use tally_schemas::avsc;

use super::{Begin, Part, Replayed, Rounds};
use crate::Error;
use crate::log_reader::{LogReader, Read};
use crate::rejections::Rejections;
use crate::replay::{Decoder, Replay, ReplayOptions};
use crate::report::Finding;

/// A replay holds so much of sums, in bytes: what is added to again is then still in the
/// processor's cache. Of folds of 32 MiB, single increments took a fifth more CPU.
const FOLD_BYTES: usize = 2 << 20;
/// How many partitions a thread replays side by side.
const AT_ONCE: usize = 8;
/// How many messages are replayed between two steps of the progress bar.
const STEP: u64 = 4096;

impl Rounds {
    /// Replays side by side on a few threads.
    pub(super) fn replay_all(
        &mut self,
        parts: BTreeMap<i32, Part>,
    ) -> Result<BTreeMap<i32, Replayed>, Error> {
        let threads = self.config.reconciler.parallel.clamp(1, parts.len().max(1));
        let mut shares: Vec<Vec<(i32, Part)>> = Vec::new();
        shares.resize_with(threads, Vec::new);
        for (at, part) in parts.into_iter().enumerate() {
            shares[at % threads].push(part);
        }
        let kept = Mutex::new(BTreeMap::new());
        let (this, to_keep) = (&*self, self.kept.is_some().then_some(&kept));
        let replayed = std::thread::scope(|scope| {
            let workers: Vec<_> = shares
                .into_iter()
                .map(|share| scope.spawn(move || this.replay_share(share, to_keep)))
                .collect();
            let mut replayed = BTreeMap::new();
            for worker in workers {
                let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                replayed.append(&mut done?);
            }
            Ok::<_, Error>(replayed)
        });
        if let Some(all) = &mut self.kept {
            all.append(&mut kept.into_inner().expect("no worker panicked"));
        }
        replayed
    }

    /// Replays some partitions at a time: each remembers its ids meanwhile.
    fn replay_share(
        &self,
        share: Vec<(i32, Part)>,
        to_keep: Option<&Mutex<BTreeMap<i32, Replay>>>,
    ) -> Result<BTreeMap<i32, Replayed>, Error> {
        let mut replayed = BTreeMap::new();
        let mut share = share.into_iter().peekable();
        while share.peek().is_some() {
            let (mut ranges, mut replays) = (BTreeMap::new(), BTreeMap::new());
            for (partition, Part { range, begin }) in share.by_ref().take(AT_ONCE) {
                ranges.insert(partition, range);
                replays.insert(partition, self.begun(partition, begin));
            }
            // What was replayed is kept, though the rest of it could not be.
            let unreadable = self.replay_group(&ranges, &mut replays);
            for (partition, mut replay) in replays {
                if let Ok(unreadable) = &unreadable {
                    let trouble = unreadable.get(&partition);
                    replayed.insert(partition, self.finish(&mut replay, trouble));
                }
                if let Some(kept) = to_keep {
                    kept.lock().expect("no worker panicked").insert(partition, replay);
                }
            }
            unreadable?;
        }
        Ok(replayed)
    }

    fn finish(&self, replay: &mut Replay, trouble: Option<&String>) -> Replayed {
        let (totals, mut findings) = replay.totals();
        if let Some(reason) = trouble {
            findings.add(Finding::Unreadable { reason: reason.clone() });
        }
        let key_salt = self.key_salt.as_ref().filter(|_| self.options.scope.has_all_counters());
        Replayed {
            totals,
            fingerprints: replay.fingerprints().to_vec(),
            quick: replay.quick(),
            findings,
            is_whole: trouble.is_none(),
            unsigned: key_salt.and_then(|salt| replay.checkpoint(&self.topic_id, salt)),
        }
    }

    fn begun(&self, partition: i32, begin: Begin) -> Replay {
        let all = self.rejected.by_partition.get(&partition);
        let from = |next: i64| -> Rejections {
            let rejected = all.into_iter().flat_map(|all| all.range(next..));
            rejected.map(|(offset, reason)| (*offset, *reason)).collect()
        };
        if let Begin::Kept(mut replay) = begin {
            replay.rejections = from(replay.next());
            return *replay;
        }
        let rejections = from(0);
        let options = self.replay_options(partition, FOLD_BYTES);
        match (begin, &self.key_salt) {
            (Begin::Checkpoint(checkpoint), Some(salt)) => {
                Replay::resume(&options, &checkpoint, salt, rejections)
            }
            (_, Some(salt)) if *salt != self.drawn => {
                Replay::new(&options, &[&self.drawn, salt], rejections)
            }
            _ => Replay::new(&options, &[&self.drawn], rejections),
        }
    }

    pub(crate) fn replay_options(&self, partition: i32, fold_bytes: usize) -> ReplayOptions<'_> {
        let (rules, scope) = (self.config.rules(), &self.options.scope);
        ReplayOptions { partition, rules, scope, fold_bytes }
    }

    /// Replays partitions side by side; returns why some could not be read on.
    fn replay_group(
        &self,
        ranges: &BTreeMap<i32, (i64, i64)>,
        replays: &mut BTreeMap<i32, Replay>,
    ) -> Result<BTreeMap<i32, String>, Error> {
        let mut unreadable = BTreeMap::new();
        let mut decoder = self.decoder()?;
        let mut messages = 0_u64;
        LogReader::new(&self.config, ranges, &self.runtime, &self.stop)?.read(|read| {
            match read {
                Read::Message(message) => {
                    let replay = replays.get_mut(&message.partition).expect("it is read");
                    replay.take(&mut decoder, &message)?;
                    messages += 1;
                    if messages.is_multiple_of(STEP) {
                        self.progress.inc(STEP);
                    }
                }
                Read::Unreadable(trouble) => {
                    unreadable.insert(trouble.partition, trouble.reason);
                }
            }
            Ok(())
        })?;
        self.progress.inc(messages % STEP);
        Ok(unreadable)
    }

    /// Asks the registry for Tally's own schemas first. By the word of one that lost its data no
    /// message could have been counted.
    pub(crate) fn decoder(&self) -> Result<Decoder<'_>, Error> {
        let increment = format!("{}-value", self.config.kafka.increments);
        let own = [increment.as_str(), avsc::INCREMENT_BATCH_SUBJECT];
        self.runtime.block_on(self.registry.note_latest(&own))?;
        Ok(Decoder::new(Plans::new(self.registry.clone()), &self.runtime))
    }
}
