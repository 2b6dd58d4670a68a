//! What the members take at their peak, beside the bounds that docs/capacity.md states.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use tally_platform::service::Service;

const MIB: u64 = 1 << 20;

/// What a service may take under the load of a run, poison included.
fn bound_mib(service: Service) -> u64 {
    match service {
        Service::Aggregator => 800,
        Service::Watch => 1000,
        Service::Sink => 600,
        Service::Reader | Service::Producer => 400,
    }
}

/// Peaks by service, each over all of its processes.
#[derive(Default)]
pub(crate) struct MemoryWatch(Mutex<BTreeMap<Service, u64>>);

impl MemoryWatch {
    /// Looks at a process; one that has just ended has none.
    pub(crate) fn look(&self, service: Service, pid: u32) {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return };
        let Some(bytes) = peak_bytes(&status) else { return };
        let mut peaks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peak = peaks.entry(service).or_default();
        *peak = bytes.max(*peak);
    }

    pub(crate) fn report(&self) -> MemoryReport {
        let peaks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peak = |(&service, bytes): (&Service, &u64)| {
            let peak = MemoryPeak { mib: bytes.div_ceil(MIB), bound_mib: bound_mib(service) };
            (service.to_string(), peak)
        };
        MemoryReport(peaks.iter().map(peak).collect())
    }
}

/// The most that the system says the process ever had in memory.
fn peak_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct MemoryPeak {
    pub mib: u64,
    pub bound_mib: u64,
}

/// By service.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemoryReport(pub BTreeMap<String, MemoryPeak>);

impl MemoryReport {
    /// The services that took more than they may.
    pub(crate) fn beyond(&self) -> Vec<&str> {
        let beyond = self.0.iter().filter(|(_, peak)| peak.mib > peak.bound_mib);
        beyond.map(|(service, _)| service.as_str()).collect()
    }
}

impl fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  memory at its peak, MiB (and its bound):")?;
        for (service, MemoryPeak { mib, bound_mib }) in &self.0 {
            write!(f, " {service} {mib} ({bound_mib})")?;
        }
        match &self.beyond()[..] {
            [] => Ok(()),
            beyond => write!(f, "; BEYOND it: {}", beyond.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_the_system_says() {
        assert_eq!(peak_bytes("VmPeak:\t  99 kB\nVmHWM:\t   12 kB\n"), Some(12 << 10));
        assert_eq!(peak_bytes("Name:\tgone\n"), None);
        let memory = MemoryWatch::default();
        memory.look(Service::Sink, std::process::id());
        let report = memory.report();
        assert!(report.0["sink"].mib > 0, "{report:?}");
        assert_eq!(report.beyond(), Vec::<&str>::new());
    }

    #[test]
    fn a_service_beyond_its_bound_is_named() {
        let memory = MemoryWatch(Mutex::new(BTreeMap::from([(Service::Reader, 401 * MIB)])));
        assert_eq!(memory.report().beyond(), ["reader"]);
    }
}
