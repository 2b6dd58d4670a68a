//! The schema ids that the registry said it does not have. Each is kept for a few seconds, and only
//! a limited number of them: a client that makes ids up has 2³² of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// How long the registry's answer is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// The most ids that are kept. Beyond that the oldest is dropped, and asked for again.
const MAX_IDS: usize = 1024;

#[derive(Default)]
pub(super) struct UnknownIds {
    since: BTreeMap<u32, Instant>,
    /// Every answer, the oldest first, also of an id that was answered again or learned since.
    answers: VecDeque<(u32, Instant)>,
}

impl UnknownIds {
    pub(super) fn add(&mut self, id: u32, now: Instant) {
        self.since.insert(id, now);
        self.answers.push_back((id, now));
        while let Some(&(oldest, since)) = self.answers.front()
            && (self.answers.len() > MAX_IDS || is_over(since, now))
        {
            self.answers.pop_front();
            if self.since.get(&oldest) == Some(&since) {
                self.since.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.since.remove(&id);
    }

    pub(super) fn contains(&self, id: u32, now: Instant) -> bool {
        self.since.get(&id).is_some_and(|since| !is_over(*since, now))
    }
}

fn is_over(since: Instant, now: Instant) -> bool {
    now.duration_since(since) >= BELIEVED_FOR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registrys_word_is_believed_for_a_while() {
        let (mut unknown, now) = (UnknownIds::default(), Instant::now());
        unknown.add(7, now);
        unknown.add(8, now);
        unknown.remove(8);
        let later = now + BELIEVED_FOR;
        assert!(unknown.contains(7, later - Duration::from_millis(1)));
        assert!(
            !unknown.contains(7, later) && !unknown.contains(8, now) && !unknown.contains(9, now)
        );
        unknown.add(9, later);
        assert_eq!((unknown.since.len(), unknown.answers.len()), (1, 1));
    }

    #[test]
    fn made_up_ids_push_out_the_oldest_and_take_no_more_room() {
        let (mut unknown, now) = (UnknownIds::default(), Instant::now());
        unknown.add(0, now);
        for id in 0..10 * MAX_IDS as u32 {
            unknown.add(1, now + Duration::from_micros(u64::from(id)));
            unknown.add(id, now + Duration::from_micros(u64::from(id)));
        }
        assert!(unknown.since.len() <= MAX_IDS && unknown.answers.len() <= MAX_IDS);
        let now = now + Duration::from_micros(10 * MAX_IDS as u64);
        assert!(unknown.contains(1, now), "asked for again just now");
        assert!(unknown.contains(10 * MAX_IDS as u32 - 1, now) && !unknown.contains(2, now));
    }
}
