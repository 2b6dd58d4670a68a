//! What goes wrong, and when: a function of the seed and the kinds.

use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::fault::{FaultKind, FaultLane};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Planned {
    pub(crate) lane: FaultLane,
    /// Its number within the lane.
    pub(crate) number: usize,
    pub(crate) kind: FaultKind,
    /// After the one before it has healed.
    pub(crate) gap: Duration,
    pub(crate) lasts: Duration,
    /// Chooses among what is there: which member, which link, how much.
    pub(crate) pick: u32,
}

/// The faults of one lane, without an end: a run takes as many as it has time for.
///
/// The kinds come in shuffled rounds, so that each has its turn before any has a second one.
pub(crate) struct Schedule {
    lane: FaultLane,
    kinds: Vec<FaultKind>,
    round: Vec<FaultKind>,
    number: usize,
    dice: ChaCha8Rng,
}

impl Schedule {
    /// `None` if no kind is of this lane.
    pub(crate) fn new(seed: u64, lane: FaultLane, kinds: &[FaultKind]) -> Option<Schedule> {
        let mut kinds: Vec<FaultKind> =
            kinds.iter().copied().filter(|kind| kind.lane() == lane).collect();
        kinds.sort();
        kinds.dedup();
        if kinds.is_empty() {
            return None;
        }
        let mut dice = ChaCha8Rng::seed_from_u64(seed);
        dice.set_stream(lane as u64);
        Some(Schedule { lane, kinds, round: Vec::new(), number: 0, dice })
    }
}

impl Iterator for Schedule {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        if self.round.is_empty() {
            self.round = self.kinds.clone();
            self.round.shuffle(&mut self.dice);
        }
        let kind = self.round.pop()?;
        let seconds = |dice: &mut ChaCha8Rng, (least, most): (f64, f64)| {
            Duration::from_secs_f64(dice.random_range(least..=most))
        };
        let gap = seconds(&mut self.dice, self.lane.gap());
        let lasts = seconds(&mut self.dice, kind.seconds());
        let planned = Planned {
            lane: self.lane,
            number: self.number,
            kind,
            gap,
            lasts,
            pick: self.dice.random(),
        };
        self.number += 1;
        Some(planned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(seed: u64, lane: FaultLane) -> Vec<Planned> {
        Schedule::new(seed, lane, FaultKind::all()).unwrap().take(40).collect()
    }

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        for lane in FaultLane::ALL {
            assert_eq!(first(7, lane), first(7, lane));
            assert_ne!(first(7, lane), first(8, lane));
        }
    }

    #[test]
    fn every_kind_has_its_turn_before_any_has_a_second_one() {
        let mut seen = Vec::new();
        for lane in FaultLane::ALL {
            let of_lane = FaultKind::all().iter().filter(|kind| kind.lane() == lane).count();
            let mut round: Vec<FaultKind> =
                first(3, lane).iter().take(of_lane).map(|planned| planned.kind).collect();
            seen.append(&mut round);
        }
        seen.sort();
        assert_eq!(seen, FaultKind::all());
    }

    #[test]
    fn a_lane_without_kinds_has_no_schedule() {
        assert!(Schedule::new(1, FaultLane::Links, &[FaultKind::KillSink]).is_none());
        let only: Vec<FaultKind> = Schedule::new(1, FaultLane::Sinks, &[FaultKind::KillSink])
            .unwrap()
            .take(3)
            .map(|planned| planned.kind)
            .collect();
        assert_eq!(only, [FaultKind::KillSink; 3]);
    }
}
