//! Apache Kafka, one process that is broker and controller (KRaft).

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context;
use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};
use tokio::{process::Command, task::spawn_blocking};
use uuid::Uuid;

use super::{
    Part, Stack,
    artifacts::{Artifact, MavenJars},
    error::file,
    part::NoAnswer,
    progress::Task,
};

pub(super) const VERSION: &str = "4.3.1";

/// `kafka-tools` holds what the server needs to format its storage; slf4j's binding lets Kafka's
/// own log be seen.
pub(super) const JARS: Artifact = Artifact::MavenJars(MavenJars {
    what: "Kafka",
    version: VERSION,
    roots: &[
        "org.apache.kafka:kafka_2.13:4.3.1",
        "org.apache.kafka:kafka-tools:4.3.1",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
    ],
    manifest: include_str!("artifacts/kafka.sha256"),
});

/// One node has nobody to replicate to, and a laptop wants few partitions of the internal topics:
/// each is a log to open at the start.
const SETTINGS: &[(&str, &str)] = &[
    ("process.roles", "broker,controller"),
    ("node.id", "1"),
    ("listener.security.protocol.map", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT"),
    ("controller.listener.names", "CONTROLLER"),
    ("inter.broker.listener.name", "PLAINTEXT"),
    ("log.dirs", "data"),
    ("auto.create.topics.enable", "false"),
    ("default.replication.factor", "1"),
    ("min.insync.replicas", "1"),
    ("group.initial.rebalance.delay.ms", "0"),
    ("offsets.topic.num.partitions", "8"),
    ("offsets.topic.replication.factor", "1"),
    ("transaction.state.log.num.partitions", "8"),
    ("transaction.state.log.replication.factor", "1"),
    ("transaction.state.log.min.isr", "1"),
    ("share.coordinator.state.topic.num.partitions", "1"),
    ("share.coordinator.state.topic.replication.factor", "1"),
    ("share.coordinator.state.topic.min.isr", "1"),
];

const LOG_SETTINGS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <Console name="out" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %p [%c{1}] %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Root level="INFO"><AppenderRef ref="out"/></Root>
  </Loggers>
</Configuration>
"#;

/// The command that serves, its configuration written and its storage formatted.
pub(super) async fn prepare(stack: &Stack, jars: &Path, task: &Task) -> anyhow::Result<Command> {
    let node = Node { folder: &stack.data(Part::Broker), jars, options: &["-Xms1g", "-Xmx1g"] };
    node.configure(&properties(stack))?;
    if !node.is_formatted()? {
        task.step("formats its storage");
        node.format(&new_cluster()).await?;
    }
    Ok(node.command())
}

/// The id of a cluster that is to be.
pub fn new_cluster() -> String {
    Uuid::new_v4().simple().to_string()
}

/// One node of a cluster: what it runs, and where. Its configuration must have `data` as its
/// `log.dirs`.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// Holds its configuration, and its data in `data`.
    pub folder: &'a Path,
    /// The folder of [`Part::fetch`].
    pub jars: &'a Path,
    /// Java's, such as the heap's size.
    pub options: &'a [&'a str],
}

impl Node<'_> {
    pub fn configure(&self, properties: &str) -> anyhow::Result<()> {
        for (name, content) in [("server.properties", properties), ("log4j2.xml", LOG_SETTINGS)] {
            let path = self.folder.join(name);
            fs::write(&path, content).with_context(file("write", &path))?;
        }
        Ok(())
    }

    fn is_formatted(&self) -> anyhow::Result<bool> {
        let formatted = self.folder.join("data/meta.properties");
        formatted.try_exists().with_context(file("look for", &formatted))
    }

    /// Kafka gives a storage its cluster's id, once. The configuration must be there.
    pub async fn format(&self, cluster: &str) -> anyhow::Result<()> {
        let mut command = self.java();
        command.args([
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "kafka.tools.StorageTool",
            "format",
        ]);
        // A first attempt that was cut short is taken up, not refused.
        command.args(["--ignore-formatted", "--config", "server.properties"]);
        command.args(["--cluster-id", cluster]);
        let output = command.kill_on_drop(true).output().await;
        let output = output.context("start Kafka's StorageTool: java")?;
        let said = [output.stdout, output.stderr].concat();
        anyhow::ensure!(
            output.status.success(),
            "prepare the broker's data folder: Kafka's StorageTool failed:\n{}",
            String::from_utf8_lossy(&said)
        );
        Ok(())
    }

    pub fn command(&self) -> Command {
        let mut command = self.java();
        // Serial: on two cores the collector's own threads cost more than its pauses.
        command
            .arg("-XX:+UseSerialGC")
            .args(self.options)
            .args(["kafka.Kafka", "server.properties"]);
        command
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command
            .current_dir(self.folder)
            .arg("-cp")
            .arg(self.jars.join("*"))
            .args(["-Djava.awt.headless=true", "-Dlog4j2.configurationFile=log4j2.xml"])
            .arg("-XX:+ExitOnOutOfMemoryError");
        command
    }
}

fn properties(stack: &Stack) -> String {
    let Stack { broker, controller, .. } = stack;
    let mut text = String::from("# Written at each start of the local stack: edits do not last.\n");
    for (key, value) in SETTINGS {
        writeln!(text, "{key}={value}").expect("a String takes everything");
    }
    text += &format!(
        "controller.quorum.voters=1@{controller}\n\
         listeners=PLAINTEXT://{broker},CONTROLLER://{controller}\n\
         advertised.listeners=PLAINTEXT://{broker}\n"
    );
    text
}

/// Asks for the cluster's metadata, and that a broker is in it.
pub async fn probe(address: SocketAddr) -> Result<(), NoAnswer> {
    spawn_blocking(move || {
        let metadata = quiet_client(&address.to_string())
            .and_then(|client| client.fetch_metadata(None, Duration::from_secs(2)))
            .map_err(|error| NoAnswer::because(&error))?;
        if metadata.brokers().is_empty() {
            return Err(NoAnswer("no broker is in the cluster's metadata yet".to_owned()));
        }
        Ok(())
    })
    .await
    .expect("the probe does not panic")
}

/// A client that asks for metadata, and whose log is of no interest.
pub fn quiet_client(bootstrap: &str) -> Result<BaseConsumer<Quiet>, KafkaError> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("broker.address.family", "v4")
        .create_with_context(Quiet)
}

/// While a broker is away, refused connections are what is expected: they are the answer, not news.
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, message, "probe");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "probe");
    }
}

impl ConsumerContext for Quiet {}
