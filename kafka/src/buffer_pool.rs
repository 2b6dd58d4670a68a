//! BufferPool that is used again once nobody holds what was in it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Whatever is shorter than this may be used for as little as anybody wants.
const SHORT: usize = 64 << 10;

/// A stock of large pieces of memory: fresh ones are cleared by the system, page by page.
#[derive(Clone, Debug)]
pub struct BufferPool(Arc<Stock>);

#[derive(Debug)]
struct Stock {
    kept: Mutex<Shelf>,
    /// Bytes that are kept for later, at most.
    most: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    /// By their length.
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

impl BufferPool {
    /// Keeps so many bytes for later, at most.
    pub fn new(most: usize) -> BufferPool {
        BufferPool(Arc::new(Stock { kept: Mutex::default(), most }))
    }

    /// Empty, with room for so many bytes: the shortest piece that has it and is not much longer,
    /// or else a new one. That is up to a quarter longer, to have room for what is a little longer
    /// the next time.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
        kept.unwrap_or_else(|| {
            Vec::with_capacity(bytes.next_multiple_of(bytes.next_power_of_two().div_ceil(8)))
        })
    }

    /// What was written, to be shared; its memory comes back with the last who holds it.
    pub fn lend(&self, piece: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { piece, buffers: self.clone() })
    }
}

impl Shelf {
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let at = self.place_of(bytes);
        self.pieces.get(at).filter(|piece| piece.capacity() <= 2 * bytes + SHORT)?;
        let mut piece = self.remove(at);
        piece.clear();
        Some(piece)
    }

    /// Keeps the piece, and drops the shortest ones where that would be too much.
    fn put(&mut self, piece: &mut Vec<u8>, most: usize) {
        let bytes = piece.capacity();
        if bytes > most {
            return;
        }
        self.bytes += bytes;
        self.pieces.insert(self.place_of(bytes), std::mem::take(piece));
        while self.bytes > most {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) -> Vec<u8> {
        let piece = self.pieces.remove(at);
        self.bytes -= piece.capacity();
        piece
    }

    /// Of the shortest piece with room for so many bytes.
    fn place_of(&self, bytes: usize) -> usize {
        self.pieces.partition_point(|piece| piece.capacity() < bytes)
    }
}

struct Lent {
    piece: Vec<u8>,
    buffers: BufferPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Stock { kept, most } = &*self.buffers.0;
        kept.lock().unwrap_or_else(PoisonError::into_inner).put(&mut self.piece, *most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(memory: &BufferPool, bytes: usize) -> Bytes {
        let mut piece = memory.take(bytes);
        piece.resize(bytes, 7);
        memory.lend(piece)
    }

    #[test]
    fn memory_comes_back_with_the_last_who_holds_it_within_limits() {
        let memory = BufferPool::new(100);
        let (first, second) = (write(&memory, 64), write(&memory, 64));
        let at = first.as_ptr();
        let held = first.slice(10..);
        drop(first);
        let other = memory.take(1);
        assert_ne!(other.as_ptr(), at, "it is still held");
        assert_eq!(&held[..], &[7; 54]);
        drop(held);
        drop(second);
        let again = memory.take(1);
        assert_eq!(again.capacity(), 64);
        assert_eq!(memory.take(0).capacity(), 0, "two would be more than 100 bytes");
        drop(write(&memory, 101));
        assert_eq!(memory.take(0).capacity(), 0, "none so long is kept");
    }

    #[test]
    fn the_shortest_piece_that_has_room_is_used_and_the_shortest_ones_make_room() {
        let memory = BufferPool::new(700);
        drop([128, 320, 192].map(|bytes| write(&memory, bytes)));
        let long = write(&memory, 250);
        assert_eq!(long.len(), 250);
        let short = memory.take(150);
        assert_eq!(short.capacity(), 192);
        drop((memory.lend(short), long));
        drop(write(&memory, 385));
        let kept: Vec<usize> =
            std::iter::from_fn(|| Some(memory.take(0).capacity())).take(3).collect();
        assert_eq!(kept, [448, 0, 0], "320 were too many beside it");
    }

    #[test]
    fn a_piece_is_not_used_for_what_is_far_shorter() {
        let memory = BufferPool::new(8 << 20);
        drop(write(&memory, 4 << 20));
        assert_eq!(memory.take(100).capacity(), 112);
        assert_eq!(memory.take(3 << 20).capacity(), 4 << 20);
    }
}
