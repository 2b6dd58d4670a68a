//! A lock file: one process at a time downloads an artifact, or changes a stack.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep};

const POLL: Duration = Duration::from_millis(100);

/// Held until dropped; the kernel lets go of it when its process ends in whatever way.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file is what unlocks")] File);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("another process held {path} for {patience:?}")]
    Busy { path: PathBuf, patience: Duration },
    #[error("lock {path}")]
    File { path: PathBuf, source: io::Error },
}

impl Lock {
    /// `waiting` is called once if somebody else holds the lock.
    pub(super) async fn acquire(
        path: &Path,
        patience: Duration,
        waiting: impl FnOnce(),
    ) -> Result<Lock, Error> {
        let fail = |source| Error::File { path: path.to_owned(), source };
        let file = File::options().create(true).append(true).open(path).map_err(fail)?;
        let deadline = Instant::now() + patience;
        let mut waiting = Some(waiting);
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock(file)),
                Err(TryLockError::Error(source)) => return Err(fail(source)),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(waiting) = waiting.take() {
                waiting();
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy { path: path.to_owned(), patience });
            }
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
        assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
        assert!(told);

        let mut first = Some(first);
        Lock::acquire(&path, Duration::from_secs(10), || drop(first.take())).await.unwrap();
    }
}
