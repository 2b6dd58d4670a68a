//! What processes use, by the operating system's own accounting: all threads, those that ended too.

use std::time::Duration;

use anyhow::Context;
use procfs::process::Process;
use rustix::time::{ClockId, clock_gettime};

/// A process to be watched, and what the table calls it.
#[derive(Clone, Debug)]
pub(crate) struct WatchedProcess {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

/// CPU time of a process so far, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = process(pid)?.stat()?;
    let ticks = stat.utime + stat.stime;
    Ok(Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64))
}

/// The most memory that a process ever had resident.
pub(crate) fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    let kib = process(pid)?.status()?.vmhwm;
    Ok(kib.context("the process has no memory any more")? << 10)
}

pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let kib = process(pid)?.status()?.vmrss;
    Ok(kib.context("the process has no memory any more")? << 10)
}

fn process(pid: u32) -> anyhow::Result<Process> {
    Process::new(pid.cast_signed()).with_context(|| format!("look at process {pid}"))
}

/// CPU time of this process so far, finer than its ticks.
pub(crate) fn own_cpu() -> Duration {
    since_epoch(ClockId::ProcessCPUTime)
}

pub(crate) fn thread_cpu() -> Duration {
    since_epoch(ClockId::ThreadCPUTime)
}

fn since_epoch(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).expect("below a second"))
}

/// What processes use between two moments.
pub(crate) struct Meter {
    watched: Vec<(WatchedProcess, Duration)>,
}

impl Meter {
    pub(crate) fn start(
        watched: impl IntoIterator<Item = WatchedProcess>,
    ) -> anyhow::Result<Meter> {
        let before = |watched: WatchedProcess| cpu(watched.pid).map(|cpu| (watched, cpu));
        let watched = watched.into_iter().map(before).collect::<Result<_, _>>()?;
        Ok(Meter { watched })
    }

    /// What was used since the start, each process's for itself.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Usage>> {
        let used = |(watched, before): &(WatchedProcess, Duration)| {
            Ok(Usage {
                name: watched.name.clone(),
                cpu: cpu(watched.pid)?.saturating_sub(*before),
                peak_bytes: peak_bytes(watched.pid)?,
            })
        };
        self.watched.iter().map(used).collect()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pub(crate) name: String,
    pub(crate) cpu: Duration,
    pub(crate) peak_bytes: u64,
}

impl Usage {
    /// CPU for each of `count`, in microseconds.
    pub(crate) fn micros_each(&self, count: u64) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count.max(1) as f64
    }
}

/// CPU of several processes for each of `count`, as `name 0.12 µs, …`; what is next to nothing is
/// left out.
pub(crate) fn shares(used: &[Usage], count: u64) -> String {
    let one = |used: &Usage| format!("{} {:.2} µs", used.name, used.micros_each(count));
    used.iter()
        .filter(|used| used.micros_each(count) >= 0.005)
        .map(one)
        .collect::<Vec<_>>()
        .join(", ")
}

/// The same processes' uses of several times together.
pub(crate) fn total<'u>(uses: impl IntoIterator<Item = &'u [Usage]>) -> Vec<Usage> {
    let mut total: Vec<Usage> = Vec::new();
    for used in uses.into_iter().flatten() {
        match total.iter_mut().find(|total| total.name == used.name) {
            Some(total) => {
                total.cpu += used.cpu;
                total.peak_bytes = total.peak_bytes.max(used.peak_bytes);
            }
            None => total.push(used.clone()),
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time_that_both_clocks_see() {
        let pid = std::process::id();
        let (own, ticks) = (own_cpu(), cpu(pid).unwrap());
        while own_cpu() - own < Duration::from_millis(200) {
            std::hint::black_box(own_cpu());
        }
        assert!(cpu(pid).unwrap() - ticks >= Duration::from_millis(150));
    }
}
