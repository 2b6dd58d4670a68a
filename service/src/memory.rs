//! Memory that is used again once nobody holds what was in it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// A stock of large pieces of memory: fresh ones are cleared by the system, page by page.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Stock>);

#[derive(Debug)]
struct Stock {
    pieces: Mutex<Vec<Vec<u8>>>,
    /// The most pieces, and the longest piece in bytes, that are kept for later.
    most: usize,
    longest: usize,
}

impl Memory {
    /// Keeps so many pieces of so many bytes each for later, at most.
    pub fn new(most: usize, longest: usize) -> Memory {
        Memory(Arc::new(Stock { pieces: Mutex::default(), most, longest }))
    }

    /// Empty, with room for so many bytes or more.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let mut piece =
            self.0.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        piece.clear();
        piece.reserve(bytes);
        piece
    }

    /// What was written, to be shared; its memory comes back with the last who holds it.
    pub fn lend(&self, piece: Vec<u8>) -> Bytes {
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
        let Stock { pieces, most, longest } = &*self.memory.0;
        let mut kept = pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < *most && self.piece.capacity() <= *longest {
            kept.push(std::mem::take(&mut self.piece));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_the_last_who_holds_it_within_limits() {
        let memory = Memory::new(1, 100);
        let write = |bytes: usize| {
            let mut piece = memory.take(bytes);
            piece.resize(bytes, 7);
            memory.lend(piece)
        };
        let (first, second) = (write(60), write(60));
        let at = first.as_ptr();
        let held = first.slice(10..);
        drop(first);
        let other = memory.take(1);
        assert_ne!(other.as_ptr(), at, "it is still held");
        assert_eq!(&held[..], &[7; 50]);
        drop(held);
        drop(second);
        let again = memory.take(1);
        assert_eq!(again.as_ptr(), at);
        assert_eq!(memory.take(0).capacity(), 0, "one is kept");
        drop(write(101));
        assert_eq!(memory.take(0).capacity(), 0, "none so long is kept");
    }
}
