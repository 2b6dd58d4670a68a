//! A broker of a test's own, for settings that the shared one cannot have.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use tally_stack::broker::{Node, new_cluster, probe};
use tally_stack::sys::ends_with_parent;
use tally_stack::{Part, Progress};

use crate::ports::free_port;
use crate::stack::Claim;
use crate::sys;
use crate::wait::until;

/// It serves a few messages.
const JAVA: [&str; 3] = ["-Xms64m", "-Xmx256m", "-XX:TieredStopAtLevel=1"];
const SETTINGS: &str = "\
process.roles=broker,controller
node.id=1
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=data
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
";

/// It is killed when dropped.
pub(crate) struct OwnBroker {
    pub(crate) address: SocketAddr,
    process: Child,
    folder: Claim,
    jars: PathBuf,
}

impl OwnBroker {
    /// A broker with Kafka's own defaults, but for these settings.
    pub(crate) async fn start(name: &str, settings: &[(&str, &str)]) -> OwnBroker {
        let folder = Claim::new(name);
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (address, controller) = (loopback(free_port()), loopback(free_port()));
        let mut properties = format!(
            "{SETTINGS}controller.quorum.voters=1@{controller}\n\
             listeners=PLAINTEXT://{address},CONTROLLER://{controller}\n\
             advertised.listeners=PLAINTEXT://{address}\n"
        );
        for (key, value) in settings {
            writeln!(properties, "{key}={value}").expect("a String takes everything");
        }
        let jars = Part::Broker.fetch(&Progress::auto()).await.expect("Kafka is there");
        let node = Node { folder: &folder.dir, jars: &jars, options: &JAVA };
        node.configure(&properties).expect("the folder is writable");
        node.format(&new_cluster()).await.expect("its storage is formatted");
        let process = spawn(&node);
        let broker = OwnBroker { address, process, folder, jars };
        broker.answers().await;
        broker
    }

    async fn answers(&self) {
        until("the test's own broker to answer", async || probe(self.address).await).await;
    }

    /// The folder of a partition's log.
    pub(crate) fn log(&self, topic: &str, partition: i32) -> PathBuf {
        self.folder.dir.join("data").join(format!("{topic}-{partition}"))
    }

    /// SIGKILL, as when the machine is gone.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("a running child can be killed");
        self.process.wait().expect("a killed child can be waited for");
    }

    /// SIGSTOP: it answers nothing, but its connections stay.
    pub(crate) fn freeze(&self) {
        sys::freeze(&self.process).expect("a running child takes a signal");
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        sys::thaw(&self.process).expect("a frozen child takes a signal");
    }

    pub(crate) async fn start_again(&mut self) {
        let node = Node { folder: &self.folder.dir, jars: &self.jars, options: &JAVA };
        self.process = spawn(&node);
        self.answers().await;
    }
}

fn spawn(node: &Node<'_>) -> Child {
    let log = fs::File::create(node.folder.join("broker.log")).expect("the folder is writable");
    let mut command = node.command().into_std();
    command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    ends_with_parent(&mut command);
    command.spawn().expect("java starts")
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            eprintln!("kill the broker at {}: {error}", self.address);
        }
    }
}
