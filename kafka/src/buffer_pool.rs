//! A pool of large buffers: a buffer is used again once nobody holds what was written into it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// A free buffer that is shorter than this is used for as few bytes as anybody wants.
const SHORT_BYTES: usize = 64 << 10;

/// Buffers are worth keeping because the system clears fresh ones page by page. Clones share one
/// pool.
#[derive(Clone, Debug)]
pub struct BufferPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    free: Mutex<FreeBuffers>,
    /// The most bytes that free buffers may take up.
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct FreeBuffers {
    /// Ordered by their capacity.
    buffers: Vec<Vec<u8>>,
    /// The sum of their capacities.
    bytes: usize,
}

impl BufferPool {
    /// A pool whose free buffers take up so many bytes at most.
    pub fn new(max_bytes: usize) -> BufferPool {
        BufferPool(Arc::new(Pool { free: Mutex::default(), max_bytes }))
    }

    /// An empty buffer with room for so many bytes: the shortest free one that has the room and is
    /// not much longer, or else a new one. A new one is up to a quarter longer, to have room for
    /// what is a little longer the next time.
    pub fn take(&self, bytes: usize) -> Vec<u8> {
        let free = self.0.free.lock().unwrap_or_else(PoisonError::into_inner).take(bytes);
        free.unwrap_or_else(|| {
            Vec::with_capacity(bytes.next_multiple_of(bytes.next_power_of_two().div_ceil(8)))
        })
    }

    /// Shares what was written into the buffer. The buffer comes back to the pool with the last one
    /// who holds it.
    pub fn lend(&self, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(LentBuffer { buffer, pool: self.clone() })
    }
}

impl FreeBuffers {
    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        let at = self.index_of(bytes);
        self.buffers.get(at).filter(|buffer| buffer.capacity() <= 2 * bytes + SHORT_BYTES)?;
        let mut buffer = self.remove(at);
        buffer.clear();
        Some(buffer)
    }

    /// Keeps the buffer, and drops the shortest ones where that would be too much.
    fn put(&mut self, buffer: &mut Vec<u8>, max_bytes: usize) {
        let bytes = buffer.capacity();
        if bytes > max_bytes {
            return;
        }
        self.bytes += bytes;
        self.buffers.insert(self.index_of(bytes), std::mem::take(buffer));
        while self.bytes > max_bytes {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) -> Vec<u8> {
        let buffer = self.buffers.remove(at);
        self.bytes -= buffer.capacity();
        buffer
    }

    /// The index of the shortest buffer with room for so many bytes.
    fn index_of(&self, bytes: usize) -> usize {
        self.buffers.partition_point(|buffer| buffer.capacity() < bytes)
    }
}

struct LentBuffer {
    buffer: Vec<u8>,
    pool: BufferPool,
}

impl AsRef<[u8]> for LentBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        let Pool { free, max_bytes } = &*self.pool.0;
        free.lock().unwrap_or_else(PoisonError::into_inner).put(&mut self.buffer, *max_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pool: &BufferPool, bytes: usize) -> Bytes {
        let mut buffer = pool.take(bytes);
        buffer.resize(bytes, 7);
        pool.lend(buffer)
    }

    #[test]
    fn a_buffer_comes_back_with_the_last_who_holds_it_within_limits() {
        let pool = BufferPool::new(100);
        let (first, second) = (write(&pool, 64), write(&pool, 64));
        let at = first.as_ptr();
        let held = first.slice(10..);
        drop(first);
        let other = pool.take(1);
        assert_ne!(other.as_ptr(), at, "it is still held");
        assert_eq!(&held[..], &[7; 54]);
        drop(held);
        drop(second);
        let again = pool.take(1);
        assert_eq!(again.capacity(), 64);
        assert_eq!(pool.take(0).capacity(), 0, "two would be more than 100 bytes");
        drop(write(&pool, 101));
        assert_eq!(pool.take(0).capacity(), 0, "none so long is kept");
    }

    #[test]
    fn the_shortest_buffer_that_has_room_is_used_and_the_shortest_ones_make_room() {
        let pool = BufferPool::new(700);
        drop([128, 320, 192].map(|bytes| write(&pool, bytes)));
        let long = write(&pool, 250);
        assert_eq!(long.len(), 250);
        let short = pool.take(150);
        assert_eq!(short.capacity(), 192);
        drop((pool.lend(short), long));
        drop(write(&pool, 385));
        let kept: Vec<usize> =
            std::iter::from_fn(|| Some(pool.take(0).capacity())).take(3).collect();
        assert_eq!(kept, [448, 0, 0], "320 were too many beside it");
    }

    #[test]
    fn a_buffer_is_not_used_for_what_is_far_shorter() {
        let pool = BufferPool::new(8 << 20);
        drop(write(&pool, 4 << 20));
        assert_eq!(pool.take(100).capacity(), 112);
        assert_eq!(pool.take(3 << 20).capacity(), 4 << 20);
    }
}
