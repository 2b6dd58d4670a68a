use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use tally_platform::config::Config;
use tally_platform::health::Health;
use tally_platform::http as edge;
use tally_platform::registry::{self, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Gateway};
use crate::kafka_log::KafkaLog;
use crate::metrics::Metrics;
use crate::prerequisites::{self, Readiness};
use crate::problem::Code;

/// How long a last answer may take to be written.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Bind(#[from] edge::BindError),
    #[error("make a Kafka producer")]
    Client(#[source] KafkaError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("wait for Kafka's last delivery reports")]
    Flush(#[source] KafkaError),
}

/// Takes increments until `shutdown`, then finishes the requests in progress and returns once the
/// log has reported on everything that it was given.
pub async fn run(
    config: &Config,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let readiness = Readiness::new(&health);
    let listener = edge::bind(config.producer.listen, "increments").await?;
    let metrics = Metrics::new();
    let log = Arc::new(KafkaLog::new(config, metrics.clone()).map_err(Error::Client)?);
    let registry = Registry::new(&config.registry)?;
    let gateway = Arc::new(Gateway::new(config, Arc::clone(&log), metrics));
    if let Ok(addr) = listener.local_addr() {
        tracing::info!(%addr, "increments are taken at http://{addr}/v1/increments");
    }

    let ended = shutdown.child_token();
    let serving = async {
        serve(listener, config, &gateway, &shutdown).await;
        ended.cancel();
    };
    let starting = async {
        if let Some(started) =
            prerequisites::gather(config, &registry, &log, &readiness, &ended).await
        {
            gateway.open(started);
            readiness.started();
            let allow = |allowed| gateway.allow(allowed);
            tokio::join!(
                prerequisites::watch(&log, &readiness, &ended),
                prerequisites::watch_registry(&registry, &readiness, &ended, allow),
            );
        }
    };
    tokio::join!(serving, starting);

    let flushed = tokio::task::spawn_blocking(move || log.flush()).await;
    flushed.expect("a flush does not panic").map_err(Error::Flush)?;
    tracing::info!("drained");
    Ok(())
}

/// Serves until `shutdown`, and then until the last request in progress is answered.
pub(crate) async fn serve(
    listener: TcpListener,
    config: &Config,
    gateway: &Arc<Gateway>,
    shutdown: &CancellationToken,
) {
    // What is still connected by then has not sent a whole request, or does not read its answer.
    let drain_limit = async {
        if gateway.idle().await.is_err() {
            tracing::warn!("requests are still in progress and are cut off");
        }
        tokio::time::sleep(ANSWER_LIMIT).await;
    };
    let (routes, over_limit) = (http::routes(Arc::clone(gateway)), edge::over_limit::<Code>());
    let server = edge::Server::new(routes, over_limit, config.producer.max_connections);
    server.serve(listener, shutdown, drain_limit).await;
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rdkafka::mocking::MockCluster;

    use super::*;

    fn any_port() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[tokio::test]
    async fn a_registry_that_is_down_is_waited_for() {
        let cluster = MockCluster::new(1).unwrap();
        let mut config = Config::default();
        config.producer.listen = any_port();
        config.kafka.bootstrap = cluster.bootstrap_servers();
        cluster.create_topic(&config.kafka.increments, 1, 1).unwrap();
        let nobody = edge::bind(any_port(), "a registry").await.unwrap().local_addr().unwrap();
        config.registry.url = format!("http://{nobody}");

        let health = Health::new();
        let shutdown = CancellationToken::new();
        let run = tokio::spawn({
            let (health, shutdown) = (health.clone(), shutdown.clone());
            async move { run(&config, health, shutdown).await }
        });
        let expected = format!("schemas: the schema registry at http://{nobody} does not answer");
        let waiting = async {
            // The log is there, so the schemas are all that is missing.
            while !health
                .ready()
                .is_err_and(|why| why.starts_with(&expected) && !why.contains("log"))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "{:?}", health.ready());
        shutdown.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), run).await;
        ended.expect("the gateway ends after shutdown").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_at_once() {
        let taken = edge::bind(any_port(), "the first").await.unwrap();
        let mut config = Config::default();
        config.producer.listen = taken.local_addr().unwrap();
        let error = run(&config, Health::new(), CancellationToken::new()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("listen on {} for increments", config.producer.listen)
        );
    }
}
