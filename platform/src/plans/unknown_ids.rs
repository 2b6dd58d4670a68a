//! The schema ids that the registry said it does not have.
//!
//! A client that makes ids up has 2³¹ of them, so only a limited number is kept. A replica of the
//! registry may lag behind, so it has to say the same again after a while.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// An id is believed to be unknown once the registry said so at least twice, so long apart.
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// How long the last answer is believed.
const BELIEVED_FOR: Duration = Duration::from_secs(5);
/// How long an answer is kept: if the id comes again meanwhile, one more answer is enough.
const KEPT_FOR: Duration = Duration::from_secs(60);
/// The most ids that are kept, in some 2 MiB. Beyond that the oldest is dropped.
const MAX_IDS: usize = 1 << 15;

#[derive(Default)]
pub(super) struct UnknownIds {
    by_id: HashMap<u32, Answers>,
    /// Every answer, the oldest first, also of an id that was answered again or learned since.
    order: VecDeque<(u32, Instant)>,
}

struct Answers {
    first: Instant,
    last: Instant,
}

impl UnknownIds {
    pub(super) fn add(&mut self, id: u32, now: Instant) {
        self.by_id.entry(id).or_insert(Answers { first: now, last: now }).last = now;
        self.order.push_back((id, now));
        while let Some(&(oldest, at)) = self.order.front()
            && (self.order.len() > MAX_IDS || now.duration_since(at) >= KEPT_FOR)
        {
            self.order.pop_front();
            if self.by_id.get(&oldest).is_some_and(|answers| answers.last == at) {
                self.by_id.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.by_id.remove(&id);
    }

    /// Whether the registry has said for long enough that the id is not there.
    pub(super) fn is_believed(&self, id: u32, now: Instant) -> bool {
        self.by_id.get(&id).is_some_and(|answers| {
            answers.last.duration_since(answers.first) >= UNKNOWN_FOR
                && now.duration_since(answers.last) < BELIEVED_FOR
        })
    }

    /// How long to wait before the registry is asked for the id, so that its answer may be
    /// believed.
    pub(super) fn pause(&self, id: u32, now: Instant) -> Duration {
        match self.by_id.get(&id) {
            Some(Answers { first, .. }) => {
                UNKNOWN_FOR.saturating_sub(now.saturating_duration_since(*first))
            }
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn the_registrys_word_is_believed_once_it_is_repeated_and_for_a_while() {
        let (mut unknown, begin) = (UnknownIds::default(), Instant::now());
        assert_eq!(unknown.pause(7, begin), Duration::ZERO);
        unknown.add(7, begin);
        assert!(!unknown.is_believed(7, begin), "a replica may lag");
        assert_eq!(unknown.pause(7, begin + MOMENT), UNKNOWN_FOR - MOMENT);
        unknown.add(7, begin + UNKNOWN_FOR - MOMENT);
        assert!(!unknown.is_believed(7, begin + UNKNOWN_FOR));
        let said = begin + UNKNOWN_FOR;
        unknown.add(7, said);
        assert!(unknown.is_believed(7, said + BELIEVED_FOR - MOMENT));
        assert!(!unknown.is_believed(7, said + BELIEVED_FOR));
        // One more answer is enough then, until the id was not met for long.
        unknown.add(7, said + BELIEVED_FOR);
        assert!(unknown.is_believed(7, said + BELIEVED_FOR));
        unknown.add(8, said + BELIEVED_FOR + KEPT_FOR);
        assert_eq!((unknown.by_id.len(), unknown.order.len()), (1, 1));
        unknown.remove(8);
        assert!(unknown.by_id.is_empty());
    }

    #[test]
    fn made_up_ids_push_out_the_oldest_and_take_no_more_room() {
        let (mut unknown, begin) = (UnknownIds::default(), Instant::now());
        let at = |id: u32| begin + Duration::from_micros(u64::from(id));
        for id in 0..10 * MAX_IDS as u32 {
            unknown.add(1, at(id));
            unknown.add(id, at(id));
        }
        assert!(unknown.by_id.len() <= MAX_IDS && unknown.order.len() <= MAX_IDS);
        let last = 10 * MAX_IDS as u32 - 1;
        assert!([1, last].iter().all(|id| unknown.by_id.contains_key(id)));
        assert!(!unknown.by_id.contains_key(&2));
    }
}
