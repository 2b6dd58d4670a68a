//! Memory that is used again once nobody holds what was in it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Pieces that are kept for later, and the longest of them.
const KEPT: usize = 32;
const MAX_KEPT: usize = 8 << 20;

#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<Vec<Vec<u8>>>>);

impl Memory {
    /// Empty, with room for so many bytes or more.
    pub(super) fn take(&self, bytes: usize) -> Vec<u8> {
        let mut piece = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        piece.clear();
        piece.reserve(bytes);
        piece
    }

    /// What was written, to be shared; its memory comes back with the last who holds it.
    pub(super) fn lend(&self, piece: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { piece, memory: self.clone() })
    }
}

struct Lent {
    piece: Vec<u8>,
    memory: Memory,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut kept = self.memory.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT && self.piece.capacity() <= MAX_KEPT {
            kept.push(std::mem::take(&mut self.piece));
        }
    }
}
