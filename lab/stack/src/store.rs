//! The ClickHouse engine, served by this same program (`tally local engine`).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use super::{
    Part, Progress,
    artifacts::{Artifact, NpmPackage},
    part::{NoAnswer, get},
};

pub(super) const VERSION: &str = "26.7.3-stable.1";

const FILE: &str = "libchdb.so";

pub(super) const LIBRARY: Artifact = Artifact::Npm(NpmPackage {
    name: "@chdb/lib-linux-x64-gnu",
    version: VERSION,
    sha256: "c0d32b129e988f2b9a9a31c9141aecf5e1e2453f9a079efc4d36ab8e3f92b2ad",
    size_bytes: 177_817_999,
    files: &[FILE],
});

/// The engine's library, downloaded unless it is there.
pub async fn store_library(progress: &Progress) -> anyhow::Result<PathBuf> {
    Ok(Part::Store.fetch(progress).await?.join(FILE))
}

/// The command of `program` (the `tally` binary) that serves at `address`, with its tables in
/// `folder`.
pub fn command(program: &Path, folder: &Path, address: SocketAddr, unpacked: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(["local", "engine"]);
    command.arg("--library").arg(unpacked.join(FILE));
    command.arg("--data").arg(folder);
    command.arg("--listen").arg(address.to_string());
    command
}

/// Asks for an answer to a query.
pub async fn probe(address: SocketAddr, http: &reqwest::Client) -> Result<(), NoAnswer> {
    get(http, &format!("http://{address}/ping")).await?;
    let answer = get(http, &format!("http://{address}/?query=SELECT%201")).await?;
    if answer.trim_end() == "1" {
        Ok(())
    } else {
        Err(NoAnswer(format!("SELECT 1 gives {answer:.80}")))
    }
}
