//! Apicurio Registry, asked through its Confluent-compatible API.

use std::{net::SocketAddr, path::Path};

use tokio::process::Command;

use super::{
    artifacts::{Artifact, MavenTarball},
    part::{NoAnswer, get},
};

/// The last line that runs on Java 17.
pub(super) const VERSION: &str = "3.0.9";

const RUNNER: &str = "apicurio-registry-app-3.0.9-runner.jar";

pub(super) const TARBALL: Artifact = Artifact::MavenTarball(MavenTarball {
    what: "Apicurio Registry",
    version: VERSION,
    coordinates: "io.apicurio:apicurio-registry-app:3.0.9:tar.gz:all",
    sha256: "2b28181501a20cbf6efcd77f9b7153908fc01f3d3a7c32024c0bd9e1b04c8a43",
    size_bytes: 108_860_403,
    members: &[RUNNER, "lib"],
});

/// Schema ids are in every message of the log, so they must outlive the process: the database is a
/// file, and each commit is in it before it is answered (H2 would otherwise write up to half a
/// second later).
const DATABASE: &str =
    "jdbc:h2:file:./registry;DB_CLOSE_DELAY=-1;DB_CLOSE_ON_EXIT=FALSE;WRITE_DELAY=0";

/// The command that serves at `address`, with its database in `folder`.
pub fn command(folder: &Path, address: SocketAddr, unpacked: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .current_dir(folder)
        // It is asked rarely, since clients keep what they learn: a quick start counts for more
        // than its peak.
        .args([
            "-Xmx256m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
        ])
        .arg(format!("-Dquarkus.http.host={}", address.ip()))
        .arg(format!("-Dquarkus.http.port={}", address.port()))
        .arg("-Dquarkus.http.access-log.enabled=false")
        .arg(format!("-Dapicurio.datasource.url={DATABASE}"))
        .args([
            "-Dapicurio.datasource.jdbc.initial-size=2",
            "-Dapicurio.datasource.jdbc.min-size=2",
        ])
        .arg("-jar")
        .arg(unpacked.join(RUNNER));
    command
}

/// Asks for the list of subjects.
pub async fn probe(address: SocketAddr, http: &reqwest::Client) -> Result<(), NoAnswer> {
    let subjects = get(http, &format!("http://{address}/apis/ccompat/v7/subjects")).await?;
    match serde_json::from_str::<Vec<String>>(&subjects) {
        Ok(_) => Ok(()),
        Err(_) => Err(NoAnswer(format!("its list of subjects is not one: {subjects:.80}"))),
    }
}
