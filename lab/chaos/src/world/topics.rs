//! Topics that grow while services run.

use std::time::{Duration, Instant};

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use tokio::time::sleep;

use super::{World, metadata};

const CALL: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

impl World {
    /// Adds a partition to `deltas`, then to `increments`, whose messages go there; its number. It
    /// may take a while: every broker must be there to have a replica.
    pub(crate) async fn add_partition(&self, patience: Duration) -> anyhow::Result<i32> {
        let kafka = self.direct_config().kafka;
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &kafka.bootstrap).create()?;
        let number = metadata::partitions(kafka.bootstrap.clone(), &kafka.increments).await?;
        let count = usize::try_from(number + 1).expect("partitions are few");
        let deadline = Instant::now() + patience;
        for topic in [&kafka.deltas, &kafka.increments] {
            while let Err(error) = grow(&admin, topic, count).await {
                // An answer that was lost says nothing of what became of it.
                match metadata::partitions(kafka.bootstrap.clone(), topic).await {
                    Ok(have) if have > number => break,
                    _ if Instant::now() < deadline => sleep(PAUSE).await,
                    _ => return Err(error).with_context(|| format!("add partitions to {topic}")),
                }
            }
        }
        Ok(number)
    }
}

async fn grow(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    count: usize,
) -> anyhow::Result<()> {
    let options = AdminOptions::new().request_timeout(Some(CALL)).operation_timeout(Some(CALL));
    let new = NewPartitions::new(topic, count);
    for outcome in admin.create_partitions([&new], &options).await? {
        outcome.map_err(|(topic, code)| anyhow::anyhow!("topic {topic}: {code}"))?;
    }
    Ok(())
}
