//! The services as processes of the stack, each this same program with one configuration file and
//! its own few keys.
//!
//! `down` stops them before the parts, so that they drain while the broker is still there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use futures_util::future::join_all;
use tally_platform::config::Config;
use tally_platform::service::Service;
use tokio::process::Command;

use super::Stack;
use super::error::{self, file};
use super::part::{get, http_client};
use super::process::Process;
use super::ready::until_ready;
use super::state::{Record, StateFile};

#[derive(Debug, Clone, clap::Args)]
pub struct ServiceArgs {
    /// Port of the HTTP gateway.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub producer_port: u16,

    /// Port of the reader.
    #[arg(long, value_name = "PORT", default_value_t = 8082)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub reader_port: u16,

    /// The first of the ports for health and metrics, one a service.
    #[arg(long, value_name = "PORT", default_value_t = 9100)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65000))]
    pub health_port: u16,
}

#[derive(Debug, Clone)]
pub struct ServiceProcess {
    /// Its name in the stack, and its log's.
    pub name: String,
    pub service: Service,
    pub health: SocketAddr,
}

pub struct Services<'s> {
    stack: &'s Stack,
    state: StateFile,
    http: reqwest::Client,
    config: PathBuf,
    pub all: Vec<ServiceProcess>,
}

impl<'s> Services<'s> {
    /// One producer and reader, and as many aggregators and sinks as `members` says. Writes the
    /// configuration that they all share into the stack's folder: `config`, with the stack's
    /// addresses.
    pub fn new(
        stack: &'s Stack,
        args: &ServiceArgs,
        members: usize,
        config: &Config,
    ) -> anyhow::Result<Services<'s>> {
        let config = connected(config, stack, args);
        let path = stack.dir().join("tally.toml");
        let text = toml::to_string(&config).expect("the configuration is plain TOML");
        fs::create_dir_all(stack.dir()).with_context(file("create", stack.dir()))?;
        fs::write(&path, text).with_context(file("write", &path))?;
        let numbered = |name: &str, number| match members {
            1 => name.to_owned(),
            _ => format!("{name}-{number}"),
        };
        let mut named: Vec<_> =
            [Service::Producer, Service::Reader].map(|one| (one.name().to_owned(), one)).into();
        for number in 1..=members {
            for service in [Service::Aggregator, Service::Sink] {
                named.push((numbered(service.name(), number), service));
            }
        }
        named.push((Service::Watch.name().to_owned(), Service::Watch));
        let all = named.into_iter().zip(args.health_port..).map(|((name, service), port)| {
            ServiceProcess { name, service, health: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
        });
        Ok(Services {
            stack,
            state: StateFile::open(stack.dir())?,
            http: http_client()?,
            config: path,
            all: all.collect(),
        })
    }

    /// The configuration file that all of them read.
    pub fn config_file(&self) -> &PathBuf {
        &self.config
    }

    /// Starts those that do not run, and returns once each is ready.
    pub async fn up(&self) -> anyhow::Result<()> {
        let outcomes = join_all(self.all.iter().map(|service| self.ensure(service))).await;
        error::all(outcomes.into_iter().filter_map(Result::err).collect())
    }

    async fn ensure(&self, service: &ServiceProcess) -> anyhow::Result<()> {
        let process = match self.running(&service.name)? {
            Some(process) => process,
            None => self.start(service)?,
        };
        self.wait_ready(service, process).await
    }

    /// Starts one service, without waiting for it to be ready.
    pub fn start(&self, service: &ServiceProcess) -> anyhow::Result<Process> {
        let ServiceProcess { name, service, health } = service;
        let mut command = Command::new(&self.stack.program);
        command
            .arg("--config")
            .arg(&self.config)
            .args(service.command())
            .current_dir(self.stack.dir())
            .env(service.health_variable(), health.to_string())
            .env("TALLY_AGGREGATOR__INSTANCE", name);
        let log = self.stack.log(name);
        self.state.start(name, command, &log, *health, env!("CARGO_PKG_VERSION"))
    }

    /// The process of that name, if it runs.
    pub fn running(&self, name: &str) -> anyhow::Result<Option<Process>> {
        match self.state.get(name) {
            None => Ok(None),
            Some(Record { process, .. }) => {
                Process::find(&process).with_context(|| name.to_owned())
            }
        }
    }

    pub async fn wait_ready(
        &self,
        service: &ServiceProcess,
        mut process: Process,
    ) -> anyhow::Result<()> {
        let url = format!("http://{}/readyz", service.health);
        let ask = async || get(&self.http, &url).await.map(drop);
        until_ready(&mut process, &service.name, &self.stack.log(&service.name), ask).await
    }
}

/// `config` with the addresses of the stack and of its services.
fn connected(config: &Config, stack: &Stack, args: &ServiceArgs) -> Config {
    let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut config = config.clone();
    config.kafka.bootstrap = stack.bootstrap();
    config.registry.url = stack.registry_url();
    config.store.url = stack.store_url();
    config.producer.listen = loopback(args.producer_port);
    config.reader.listen = loopback(args.reader_port);
    let key_file = || stack.dir().join("checkpoint-key.pem");
    config.reconciler.key_file.get_or_insert_with(key_file);
    config
}
