use std::fmt::Display;
use std::time::{Duration, Instant};

/// How long anything is waited for. It is no measure of speed: a wait in vain is a failed test, so
/// it is as long as a machine with other work may need, and costs nothing where all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(20);

/// Asks again until the condition holds; a test that waits in vain fails with the last reason why
/// it does not.
///
/// # Panics
/// If the condition does not hold by the deadline.
pub(crate) async fn until<T, R: Display>(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, R>,
) -> T {
    let begun = Instant::now();
    loop {
        let reason = match condition().await {
            Ok(value) => return value,
            Err(reason) => reason,
        };
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for {what}: {reason}");
        tokio::time::sleep(PAUSE).await;
    }
}
