//! A lock file: one process at a time downloads an artifact, or changes a stack.

use std::{
    fs::{File, TryLockError},
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};

use super::error;

const POLL: Duration = Duration::from_millis(100);

/// Held until dropped; the kernel lets go of it when its process ends in whatever way.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file is what unlocks")] File);

impl Lock {
    /// `waiting` is called once if somebody else holds the lock.
    pub(super) async fn acquire(
        path: &Path,
        patience: Duration,
        waiting: impl FnOnce(),
    ) -> anyhow::Result<Lock> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(error::file("lock", path))?;
        let deadline = Instant::now() + patience;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(error::file("lock", path));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            ensure!(
                Instant::now() < deadline,
                "another process held {} for {patience:?}",
                path.display()
            );
            sleep(POLL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_holder_is_told_to_wait_and_gets_it_when_the_first_lets_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first =
            Lock::acquire(&path, Duration::ZERO, || panic!("nobody holds it")).await.unwrap();

        let mut told = false;
        let refused = Lock::acquire(&path, Duration::ZERO, || told = true).await;
        assert!(refused.unwrap_err().to_string().starts_with("another process held "));
        assert!(told);

        let mut first = Some(first);
        Lock::acquire(&path, Duration::from_secs(10), || drop(first.take())).await.unwrap();
    }
}
