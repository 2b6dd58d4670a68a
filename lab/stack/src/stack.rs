//! Which stack is meant: its folder and its ports.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::{Part, error::file};

#[derive(Debug, Clone, clap::Args)]
pub struct StackArgs {
    /// Where the stack keeps its data and logs.
    #[arg(long, value_name = "FOLDER", default_value = ".tally")]
    pub dir: PathBuf,

    /// Port of the Kafka broker.
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub broker_port: u16,

    /// Port of the Kafka controller, which only the broker talks to [default: the broker's port +
    /// 1].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub controller_port: Option<u16>,

    /// Port of the schema registry.
    #[arg(long, value_name = "PORT", default_value_t = 8081)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub registry_port: u16,

    /// Port of ClickHouse's HTTP interface.
    #[arg(long, value_name = "PORT", default_value_t = 8123)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub store_port: u16,

    /// The `tally` program whose `local engine` serves the store, where this process is another
    /// program (a test).
    #[arg(skip)]
    pub program: Option<PathBuf>,
}

/// The addresses of a stack, and where its files are.
#[derive(Debug, Clone)]
pub struct Stack {
    pub(super) dir: PathBuf,
    pub(super) broker: SocketAddr,
    pub(super) controller: SocketAddr,
    pub(super) registry: SocketAddr,
    pub(super) store: SocketAddr,
    pub(super) program: PathBuf,
}

impl Stack {
    /// Reads the arguments only; nothing is created or started.
    pub fn new(args: &StackArgs) -> anyhow::Result<Stack> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let controller = match args.controller_port {
            Some(port) => port,
            None => args.broker_port.checked_add(1).context(
                "after --broker-port 65535 no port is left for the controller: \
                 choose one with --controller-port",
            )?,
        };
        let dir = std::path::absolute(&args.dir).with_context(file("make absolute", &args.dir))?;
        let program = match &args.program {
            Some(program) => {
                std::path::absolute(program).with_context(file("make absolute", program))?
            }
            None => std::env::current_exe().context("find this program's own file")?,
        };
        let stack = Stack {
            dir,
            broker: loopback(args.broker_port),
            controller: loopback(controller),
            registry: loopback(args.registry_port),
            store: loopback(args.store_port),
            program,
        };
        stack.check_ports_differ()?;
        Ok(stack)
    }

    fn check_ports_differ(&self) -> anyhow::Result<()> {
        let ports: Vec<_> = Part::ALL.iter().flat_map(|part| part.ports(self)).collect();
        for (at, (address, second)) in ports.iter().enumerate() {
            if let Some((_, first)) = ports[..at].iter().find(|(other, _)| other == address) {
                let port = address.port();
                bail!("{first} and {second} are both {port}: choose another for one of them");
            }
        }
        Ok(())
    }

    /// Kafka's `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.broker.to_string()
    }

    /// The base of the registry's Confluent-compatible API.
    pub fn registry_url(&self) -> String {
        format!("http://{}/apis/ccompat/v7", self.registry)
    }

    /// ClickHouse's HTTP interface.
    pub fn store_url(&self) -> String {
        format!("http://{}", self.store)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the process of that name prints to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{name}.log"))
    }

    pub(super) fn data(&self, part: Part) -> PathBuf {
        self.dir.join(part.data())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        stack: StackArgs,
    }

    fn stack(args: &[&str]) -> anyhow::Result<Stack> {
        Stack::new(&Cli::try_parse_from([&["tally"], args].concat()).unwrap().stack)
    }

    #[test]
    fn the_defaults_are_the_documented_addresses() {
        let stack = stack(&[]).unwrap();
        assert_eq!(stack.bootstrap(), "127.0.0.1:9092");
        assert_eq!(stack.controller.port(), 9093);
        assert_eq!(stack.registry_url(), "http://127.0.0.1:8081/apis/ccompat/v7");
        assert_eq!(stack.store_url(), "http://127.0.0.1:8123");
        assert!(stack.dir().is_absolute() && stack.dir().ends_with(".tally"));
    }

    #[test]
    fn two_parts_on_one_port_are_refused_by_the_options_that_chose_it() {
        let error =
            stack(&["--broker-port", "8080", "--registry-port", "8081"]).unwrap_err().to_string();
        assert!(error.contains("8081") && error.contains("--controller-port"), "{error}");
        assert!(error.contains("--registry-port"), "{error}");
        stack(&["--broker-port", "8080", "--controller-port", "8090"]).unwrap();
    }

    #[test]
    fn the_last_port_leaves_none_for_the_controller() {
        let error = stack(&["--broker-port", "65535"]).unwrap_err().to_string();
        assert!(error.contains("no port is left for the controller"), "{error}");
        assert!(Cli::try_parse_from(["tally", "--store-port", "0"]).is_err());
    }
}
