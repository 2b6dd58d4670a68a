//! What processes use, by the operating system's own accounting: all threads, those that ended too.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};

/// A process to be watched, and what the table calls it.
#[derive(Clone, Debug)]
pub(crate) struct WatchedProcess {
    pub(crate) name: String,
    pub(crate) pid: u32,
}

/// CPU time of a process so far, in user and kernel mode.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let line = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = ticks(&line).with_context(|| format!("{path} is not understood: {line:?}"))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// Fields 14 and 15 of proc_pid_stat(5). The command's name, field 2, may hold spaces and
/// parentheses itself.
fn ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The most memory that a process ever had resident.
pub(crate) fn peak_bytes(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmHWM:")
}

/// The memory that a process has resident.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    bytes(&status, field).with_context(|| format!("{path} has no {field} in kB"))
}

fn bytes(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// CPU time of this process so far, finer than its ticks.
pub(crate) fn own_cpu() -> Duration {
    since_epoch(ClockId::ProcessCPUTime)
}

/// CPU time of this thread so far.
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

/// What one process used.
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
    fn user_and_system_time_are_found_behind_a_name_with_parentheses() {
        let line = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 0 0 0 123 45 6 7 20 0 5 0 999 0 0";
        assert_eq!(ticks(line), Some(168));
        assert_eq!(ticks("42 (x) S 1"), None);
    }

    #[test]
    fn memory_is_in_kib() {
        assert_eq!(bytes("VmPeak:\t 9 kB\nVmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 << 20));
        assert_eq!(bytes("VmPeak:\t 9 kB\n", "VmHWM:"), None);
    }

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
