//! A service as a process of the real binary.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use serde_json::Value;
pub(crate) use tally_platform::service::Service;
use tally_platform::telemetry::{series, sum_of_series};
use tally_stack::sys::ends_with_parent;

use crate::sys;
use crate::wait::until;

/// What it takes to start a service, and to start it again.
pub(crate) struct Launch {
    pub(crate) service: Service,
    pub(crate) command: std::process::Command,
    pub(crate) log: PathBuf,
    pub(crate) health: SocketAddr,
    /// Where it serves its own interface, if it has one.
    pub(crate) listen: SocketAddr,
}

/// A running service; it is killed when dropped.
pub(crate) struct ServiceProcess {
    launch: Launch,
    child: Child,
    http: reqwest::Client,
}

impl ServiceProcess {
    pub(crate) fn start(mut launch: Launch) -> ServiceProcess {
        // A test starts its services from its own thread, and drops them before that ends; one that
        // is killed leaves no service behind.
        ends_with_parent(&mut launch.command);
        let child = spawn(&mut launch);
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build();
        ServiceProcess { launch, child, http: http.expect("a client is made") }
    }

    /// Starts it again under the same name, on the same ports.
    pub(crate) fn start_again(&mut self) {
        assert!(self.has_ended().is_some(), "{} still runs", self.log_name());
        self.child = spawn(&mut self.launch);
    }

    /// As a supervisor does.
    pub(crate) fn start_again_if_ended(&mut self) {
        if self.has_ended().is_some() {
            self.start_again();
        }
    }

    /// The base of its own interface.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.launch.listen)
    }

    /// Where it serves health and metrics.
    pub(crate) fn health(&self) -> SocketAddr {
        self.launch.health
    }

    /// `/readyz`: the reason why it is not ready, if so.
    pub(crate) async fn readiness(&self) -> Result<(), String> {
        let (status, body) = self.get("/readyz").await?;
        if status == reqwest::StatusCode::OK { Ok(()) } else { Err(body) }
    }

    pub(crate) async fn ready(&mut self) {
        until(&format!("{} to be ready", self.log_name()), async || {
            if let Some(status) = self.has_ended() {
                panic!("{} ended ({status}) before it was ready", self.log_name());
            }
            self.readiness().await
        })
        .await;
    }

    /// The sum of a counter over all series whose labels contain `labels`; zero if it was never
    /// counted.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> Result<f64, String> {
        let (_, text) = self.get("/metrics").await?;
        sum_of_series(&text, name, labels)
    }

    /// The values of all series of a metric whose labels contain `labels`.
    pub(crate) async fn series(&self, name: &str, labels: &str) -> Result<Vec<f64>, String> {
        let (_, text) = self.get("/metrics").await?;
        series(&text, name, labels)
    }

    /// Waits until a counter is beyond `least`.
    pub(crate) async fn counts_beyond(&self, least: f64, name: &str, labels: &str) {
        until(&format!("{} of {}", name, self.log_name()), async || {
            let value = self.metric(name, labels).await?;
            if value > least { Ok(()) } else { Err(format!("it is at {value}")) }
        })
        .await;
    }

    /// The most memory that it has had so far, without what is shared with others.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("Linux says so") * 1024
    }

    /// Waits for a log line whose text contains `text`, since the first start.
    pub(crate) async fn logs(&self, text: &str) {
        let what = format!("{} to log {text:?}", self.log_name());
        until(&what, async || {
            let log = self.log_text().map_err(|error| error.to_string())?;
            if log.contains(text) { Ok(()) } else { Err(String::from("no such line")) }
        })
        .await;
    }

    fn log_text(&self) -> io::Result<String> {
        std::fs::read_to_string(&self.launch.log)
    }

    /// SIGKILL.
    ///
    /// # Panics
    /// If it does not run any more: then nothing was killed.
    pub(crate) fn kill(&mut self) {
        assert!(self.has_ended().is_none(), "{} ended before it was killed", self.log_name());
        self.child.kill().expect("a running child can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    /// SIGTERM, which every service answers with a drained end and exit code 0.
    pub(crate) async fn terminate(&mut self) {
        self.ask_to_end();
        let status = self.ended().await;
        assert_eq!(status.code(), Some(0), "{} did not drain: {status}", self.log_name());
    }

    /// SIGTERM, and nothing more.
    pub(crate) fn ask_to_end(&mut self) {
        assert!(self.has_ended().is_none(), "{} ended before it was asked to", self.log_name());
        sys::terminate(&self.child).expect("a running child takes a signal");
    }

    /// SIGSTOP: it does nothing more, but the kernel still holds its connections.
    pub(crate) fn freeze(&mut self) {
        assert!(self.has_ended().is_none(), "{} ended before it was frozen", self.log_name());
        sys::freeze(&self.child).expect("a running child takes a signal");
    }

    /// SIGCONT.
    pub(crate) fn thaw(&self) {
        sys::thaw(&self.child).expect("a frozen child takes a signal");
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let what = format!("{} to end", self.log_name());
        until(&what, async || self.has_ended().ok_or("it still runs")).await
    }

    fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("an own child can be asked for its status")
    }

    fn log_name(&self) -> String {
        let stem = self.launch.log.file_stem().expect("a log has a name");
        stem.to_string_lossy().into_owned()
    }

    async fn get(&self, path: &str) -> Result<(reqwest::StatusCode, String), String> {
        let url = format!("http://{}{path}", self.launch.health);
        let told = |error: reqwest::Error| format!("{url}: {error}");
        let response = self.http.get(&url).send().await.map_err(told)?;
        Ok((response.status(), response.text().await.map_err(told)?))
    }

    /// A request to its own interface: the status, and the body as JSON.
    pub(crate) async fn call(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response =
            request.send().await.unwrap_or_else(|error| panic!("{}: {error}", self.log_name()));
        let status = response.status().as_u16();
        let body = response.text().await.expect("an answer has a body");
        let json = serde_json::from_str(&body);
        (
            status,
            json.unwrap_or_else(|error| {
                panic!("{} answered {status} {body:?}: {error}", self.log_name())
            }),
        )
    }

    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }
}

impl Drop for ServiceProcess {
    fn drop(&mut self) {
        // One that ended by itself is waited for already, and both calls say so.
        let killed = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = killed {
            eprintln!("kill {}: {error}", self.launch.service.name());
        }
    }
}

fn spawn(launch: &mut Launch) -> Child {
    let open = || -> io::Result<(File, File)> {
        let log = OpenOptions::new().create(true).append(true).open(&launch.log)?;
        Ok((log.try_clone()?, log))
    };
    let (stdout, stderr) =
        open().unwrap_or_else(|error| panic!("open {}: {error}", launch.log.display()));
    launch.command.stdout(stdout).stderr(stderr).spawn().expect("the binary starts")
}
