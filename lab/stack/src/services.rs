//! The services as processes of the stack, each this same program with one configuration file and
//! its own few keys.
//!
//! `down` stops them before the parts, so that they drain while the broker is still there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use futures_util::future::join_all;
use tally_platform::config::Config;
use tally_platform::service::Service;
use tokio::process::Command;

use super::part::{get, http_client};
use super::process::Process;
use super::ready::until_ready;
use super::state::{Record, StateFile};
use super::{Error, Stack};

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

/// One service process.
#[derive(Debug, Clone)]
pub struct ServiceProcess {
    /// Its name in the stack, and its log's.
    pub name: String,
    pub service: Service,
    pub health: SocketAddr,
}

/// The services of one stack.
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
    ) -> Result<Services<'s>, Error> {
        let config = connected(config, stack, args);
        let path = stack.dir().join("tally.toml");
        let text = toml::to_string(&config).expect("the configuration is plain TOML");
        fs::create_dir_all(stack.dir()).map_err(Error::file("create", stack.dir()))?;
        fs::write(&path, text).map_err(Error::file("write", &path))?;
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
        let all = named.into_iter().zip(args.health_port..).map(|((name, service), port)| {
            ServiceProcess { name, service, health: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
        });
        Ok(Services {
            stack,
            state: StateFile::open(stack.dir())?,
            http: http_client().map_err(Error::Http)?,
            config: path,
            all: all.collect(),
        })
    }

    /// The configuration file that all of them read.
    pub fn config_file(&self) -> &PathBuf {
        &self.config
    }

    /// Starts those that do not run, and returns once each is ready.
    pub async fn up(&self) -> Result<(), Error> {
        let outcomes = join_all(self.all.iter().map(|service| self.ensure(service))).await;
        Error::all(outcomes.into_iter().filter_map(Result::err).collect())
    }

    async fn ensure(&self, service: &ServiceProcess) -> Result<(), Error> {
        let process = match self.running(&service.name)? {
            Some(process) => process,
            None => self.start(service)?,
        };
        self.wait_ready(service, process).await
    }

    /// Starts one service, without waiting for it to be ready.
    pub fn start(&self, service: &ServiceProcess) -> Result<Process, Error> {
        let health = service.health.to_string();
        let mut command = Command::new(&self.stack.program);
        command
            .arg("--config")
            .arg(&self.config)
            .arg(service.service.name())
            .current_dir(self.stack.dir());
        command.env(format!("TALLY_{}__HEALTH", service.service.name().to_uppercase()), &health);
        command.env("TALLY_AGGREGATOR__INSTANCE", &service.name);
        let log = self.stack.log(&service.name);
        let process = Process::start(command, &log).map_err(|source| Error::Start {
            name: service.name.clone(),
            program: self.stack.program.clone(),
            source,
        })?;
        let record = Record::new(&process, service.health, env!("CARGO_PKG_VERSION"));
        self.state.insert(&service.name, record)?;
        Ok(process)
    }

    /// The process of that name, if it runs.
    pub fn running(&self, name: &str) -> Result<Option<Process>, Error> {
        match self.state.get(name) {
            None => Ok(None),
            Some(Record { process, .. }) => {
                Process::find(&process).map_err(Error::process(name, process.pid))
            }
        }
    }

    /// Waits until the service says that it is ready.
    pub async fn wait_ready(
        &self,
        service: &ServiceProcess,
        mut process: Process,
    ) -> Result<(), Error> {
        let url = format!("http://{}/readyz", service.health);
        let ask = async || get(&self.http, &url).await.map(drop);
        until_ready(&mut process, &service.name, self.stack.log(&service.name), ask).await
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
    config
}
