use std::time::Duration;

use tally_platform::health::Heartbeat;
use tally_platform::retry;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// What the consumer's thread needs wherever it waits: it has to beat, and to end in time.
pub(crate) struct ConsumerThread<'c> {
    pub(crate) heartbeat: Heartbeat,
    pub(crate) stop: &'c CancellationToken,
    pub(crate) runtime: &'c Handle,
}

impl ConsumerThread<'_> {
    /// Calls until it succeeds, and beats before each call; `None` once the sink is to stop.
    pub(crate) fn until_ok<T, E, F: Future<Output = Result<T, E>>>(
        &self,
        retry: Duration,
        mut call: impl FnMut() -> F,
        mut failed: impl FnMut(E),
    ) -> Option<T> {
        let call = || {
            self.heartbeat.beat();
            call()
        };
        let backoff = retry::Backoff::constant(retry);
        self.runtime.block_on(retry::until_ok(self.stop, backoff, call, |error, _| failed(error)))
    }
}
