use std::time::Duration;

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};

const CALL: Duration = Duration::from_secs(15);
const TRIES: usize = 4;

/// Takes a transactional.id over, as a second process with the same name would: the owner's next
/// transaction is refused, and what it has open is aborted.
pub(crate) async fn take_over(bootstrap: &str, transactional_id: &str) -> anyhow::Result<()> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("transactional.id", transactional_id);
    let task = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = config.create()?;
        let mut tries = 1;
        loop {
            match producer.init_transactions(CALL) {
                Ok(()) => return anyhow::Ok(()),
                Err(error) if tries == TRIES => return Err(error.into()),
                // Its coordinator may be away just now.
                Err(_) => tries += 1,
            }
        }
    });
    task.await?.with_context(|| format!("take {transactional_id} over"))
}
