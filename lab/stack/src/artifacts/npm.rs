//! Files out of an npm package. The package's own scripts never run.

use tokio::process::Command;

use super::{super::progress::Task, Scratch, tarball::Tarball, tool::Run};

#[derive(Debug, Clone, Copy)]
pub struct NpmPackage {
    pub name: &'static str,
    pub version: &'static str,
    /// SHA-256 of the tarball that the npm registry hands out, in hexadecimal.
    pub sha256: &'static str,
    /// The same tarball's size: the length of the progress bar.
    pub size_bytes: u64,
    /// What is kept, by the paths in the package: files, or folders with all that is in them.
    pub files: &'static [&'static str],
}

impl NpmPackage {
    pub(super) async fn download(&self, scratch: &Scratch, task: &Task) -> anyhow::Result<()> {
        task.transfer(
            format_args!("downloads {} {}", self.name, self.version),
            Some(self.size_bytes),
        );
        let cache = scratch.work.join("cache");
        let mut command = Command::new("npm");
        command
            .current_dir(&scratch.work)
            .args(["pack", "--ignore-scripts", "--loglevel=error", "--cache"])
            .arg(&cache)
            .arg("--pack-destination")
            .arg(&scratch.work)
            .arg(format!("{}@{}", self.name, self.version));
        Run { what: self.name, program: "npm", command, watch: &cache }.finish(task).await?;
        let tarball = Tarball {
            what: self.name,
            sha256: self.sha256,
            top: Some("package"),
            members: self.files,
        };
        tarball.unpack(scratch, task).await
    }
}
