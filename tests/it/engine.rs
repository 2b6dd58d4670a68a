//! A store of a test's own, which may be killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tally_stack::Progress;
use tally_stack::sys::ends_with_parent;
use tempfile::TempDir;

use crate::ports::free_port;
use crate::run::std_tally;
use crate::wait::until;

pub(crate) struct Engine {
    command: Command,
    address: SocketAddr,
    data: TempDir,
    child: Child,
}

impl Engine {
    pub(crate) async fn start() -> Engine {
        let library = tally_stack::store_library(&Progress::auto())
            .await
            .expect("the engine's library is there");
        let data = tempfile::tempdir().expect("a folder is made");
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = std_tally(data.path());
        command.args(["local", "engine", "--library"]).arg(library).arg("--data").arg(data.path());
        command
            .args(["--listen", &address.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ends_with_parent(&mut command);
        let child = command.spawn().expect("the engine starts");
        let engine = Engine { command, address, data, child };
        engine.answers().await;
        engine
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A file of its data, as the engine itself names it.
    pub(crate) fn file(&self, path: &Path) -> PathBuf {
        self.data.path().join(path)
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a running child can be killed");
        self.child.wait().expect("a killed child can be waited for");
    }

    pub(crate) async fn start_again(&mut self) {
        self.child = self.command.spawn().expect("the engine starts again");
        self.answers().await;
    }

    async fn answers(&self) {
        let url = format!("{}/?query=SELECT%201", self.url());
        let http = reqwest::Client::builder().no_proxy().build().expect("a client is made");
        until("the engine to answer", async || {
            let answer = http.get(&url).send().await.map_err(|error| error.to_string())?;
            let text = answer.text().await.map_err(|error| error.to_string())?;
            if text.trim_end() == "1" { Ok(()) } else { Err(text) }
        })
        .await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("kill the engine: {error}");
        }
    }
}
