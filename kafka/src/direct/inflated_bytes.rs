//! What was decompressed and is not read yet, of all partitions together: the more there is, the
//! less is decompressed ahead.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most that is decompressed ahead, since what was made to compress well would take all memory
/// else. Answers that several brokers give at the same moment may come beyond it, each by as much.
pub(super) const MOST: usize = 64 << 20;

#[derive(Clone, Debug, Default)]
pub(super) struct InflatedBytes(Arc<AtomicUsize>);

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(super) struct HeldBytes {
    all: InflatedBytes,
    bytes: usize,
}

impl InflatedBytes {
    pub(super) fn hold(&self, bytes: usize) -> HeldBytes {
        self.0.fetch_add(bytes, Ordering::AcqRel);
        HeldBytes { all: self.clone(), bytes }
    }

    /// How many more may be decompressed ahead.
    pub(super) fn room(&self) -> usize {
        MOST.saturating_sub(self.0.load(Ordering::Acquire))
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
