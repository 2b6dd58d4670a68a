//! How fast something catches up: samples of how far it is, and the rate between two of them.

use std::time::{Duration, Instant};

use super::measure;

const LOOK: Duration = Duration::from_millis(40);
/// Without progress for so long, it has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// How far a process was, and the CPU that it had used.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    done: u64,
    cpu: Duration,
}

/// A catching-up, looked at whenever it had come further.
pub(crate) struct Drain {
    begun: Sample,
    samples: Vec<Sample>,
}

impl Drain {
    /// Looks at `done` until it is `goal`; `pid` is whose CPU counts.
    pub(crate) async fn watch(
        pid: u32,
        goal: u64,
        mut done: impl AsyncFnMut() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Drain> {
        let begun = Sample { at: Instant::now(), done: done().await?, cpu: measure::cpu(pid)? };
        let mut samples: Vec<Sample> = Vec::new();
        loop {
            let now = done().await?;
            let last = *samples.last().unwrap_or(&begun);
            if now != last.done {
                samples.push(Sample { at: Instant::now(), done: now, cpu: measure::cpu(pid)? });
            }
            if now >= goal {
                return Ok(Drain { begun, samples });
            }
            anyhow::ensure!(
                last.at.elapsed() < PATIENCE,
                "no progress for {PATIENCE:?}: {now} of {goal}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The rate from the first progress to the last but one: before it things start, and the last
    /// step waits for a timer. With fewer samples than that takes, over all of it.
    pub(crate) fn steady(&self) -> Rate {
        let (first, last) = match &self.samples[..] {
            [first, .., last, _] => (*first, *last),
            [.., last] => (self.begun, *last),
            [] => (self.begun, self.begun),
        };
        Rate::between(first, last)
    }

    /// The rate from the first progress to the end.
    pub(crate) fn whole_but_start(&self) -> Rate {
        match &self.samples[..] {
            [first, .., last] => Rate::between(*first, *last),
            [only] => Rate::between(self.begun, *only),
            [] => Rate::between(self.begun, self.begun),
        }
    }

    /// How long the last of it took, from when this much was done.
    pub(crate) fn last_of(&self, done: u64) -> Duration {
        let reached = self.samples.iter().find(|sample| sample.done >= done);
        match (reached, self.samples.last()) {
            (Some(reached), Some(last)) => last.at - reached.at,
            _ => Duration::ZERO,
        }
    }

    /// How long it took from the start to the first progress, and to the end.
    pub(crate) fn times(&self) -> (Duration, Duration) {
        let since = |sample: Option<&Sample>| {
            sample.map_or(Duration::ZERO, |sample| sample.at - self.begun.at)
        };
        (since(self.samples.first()), since(self.samples.last()))
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    /// CPU for each, in microseconds.
    pub(crate) cpu_us: f64,
}

impl Rate {
    fn between(first: Sample, last: Sample) -> Rate {
        let done = last.done - first.done;
        Rate {
            per_second: done as f64 / (last.at - first.at).as_secs_f64().max(1e-9),
            cpu_us: (last.cpu - first.cpu).as_secs_f64() * 1e6 / done.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(samples: &[(u64, u64)]) -> Drain {
        let begun = Instant::now();
        // The process is older than the drain.
        let sample = |&(ms, done): &(u64, u64)| Sample {
            at: begun + Duration::from_millis(ms),
            done,
            cpu: Duration::from_millis(60_000 + ms / 2),
        };
        Drain { begun: sample(&(0, 0)), samples: samples.iter().map(sample).collect() }
    }

    #[test]
    fn the_start_and_the_last_step_do_not_count() {
        let steady = drain(&[(900, 1000), (1900, 2000), (2900, 3000), (9000, 3001)]).steady();
        assert!((steady.per_second - 1000.0).abs() < 1e-6);
        assert!((steady.cpu_us - 500.0).abs() < 1e-6);
    }

    #[test]
    fn with_few_samples_it_is_all_of_it() {
        let steady = drain(&[(1000, 10), (2000, 30)]).steady();
        assert!((steady.per_second - 15.0).abs() < 1e-6);
        assert!((steady.cpu_us - 1e6 / 30.0).abs() < 1e-6);
    }
}
