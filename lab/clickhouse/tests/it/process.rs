//! A server process, stopped when dropped.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::library;

pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
    pub(crate) data: TempDir,
}

/// What a test may want otherwise.
pub(crate) struct Options {
    pub(crate) connections: usize,
    pub(crate) queue_seconds: u64,
    pub(crate) drain_seconds: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { connections: 16, queue_seconds: 10, drain_seconds: 10 }
    }
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub(crate) fn start_with(options: Options) -> Self {
        Self::start_on(tempfile::tempdir().expect("create a data folder"), options)
    }

    pub(crate) fn start_on(data: TempDir, options: Options) -> Self {
        let mut process = Command::new(example())
            .args([library::path(), data.path()])
            .arg("127.0.0.1:0")
            .args(
                [options.connections as u64, options.queue_seconds, options.drain_seconds]
                    .map(|n| n.to_string()),
            )
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the server");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("read the server's first line");
        let address =
            line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}"));
        Self { process, url: format!("http://{address}"), data }
    }

    pub(crate) fn terminate(&self) {
        let status =
            Command::new("kill").arg(self.process.id().to_string()).status().expect("run kill");
        assert!(status.success(), "kill: {status}");
    }

    /// Waits for the process to end by itself, and gives its data folder back.
    pub(crate) fn wait(mut self, patience: Duration) -> (ExitStatus, TempDir) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait().expect("wait for the server") {
                let data = std::mem::replace(
                    &mut self.data,
                    tempfile::tempdir().expect("create a folder"),
                );
                return (status, data);
            }
            assert!(Instant::now() < deadline, "the server runs on after {patience:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn client(&self) -> clickhouse::Client {
        clickhouse::Client::default().with_url(&self.url)
    }

    /// Posts a statement with the given pairs in the URL.
    pub(crate) async fn post(
        &self,
        pairs: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Reply {
        let url = reqwest::Url::parse_with_params(&self.url, pairs).expect("a URL");
        Reply::of(reqwest::Client::new().post(url).body(body)).await
    }

    /// Posts a statement that must succeed, and gives its answer.
    pub(crate) async fn ok(&self, pairs: &[(&str, &str)], body: &str) -> String {
        let reply = self.post(pairs, body.to_owned()).await;
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.text()
    }

    /// Posts a statement that must fail, and gives the exception's code.
    pub(crate) async fn code(&self, pairs: &[(&str, &str)], body: &str) -> u32 {
        let reply = self.post(pairs, body.to_owned()).await;
        assert_ne!(reply.status, 200, "{body}: {}", reply.text());
        reply.header("x-clickhouse-exception-code").parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("send a request");
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await.expect("receive the answer").to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self
            .headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name} in {:?}", self.headers));
        value.to_str().expect("text")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }
}

/// The example is built with the tests, into the folder beside theirs.
fn example() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.parent().and_then(Path::parent).expect("a profile's folder");
    let example = profile.join("examples").join("serve");
    assert!(
        example.exists(),
        "{} is missing: `cargo build -p tally-clickhouse --example serve` \
         (a test run of the whole package builds it)",
        example.display()
    );
    example
}
