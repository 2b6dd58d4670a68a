//! Verifies the tarball that a download left, and unpacks the members that are wanted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tokio::{process::Command, task::spawn_blocking};

use super::{
    super::{error::file, progress::Task},
    Scratch, Transient, checksum,
    tool::Run,
};

pub(super) struct Tarball {
    pub what: &'static str,
    pub sha256: &'static str,
    /// The folder in it that everything is under.
    pub top: Option<&'static str>,
    /// Files and folders, below the top.
    pub members: &'static [&'static str],
}

impl Tarball {
    pub(super) async fn unpack(&self, scratch: &Scratch, task: &Task) -> anyhow::Result<()> {
        let broken = |reason| Transient { what: self.what, reason };
        let archive = find(&scratch.work).with_context(file("list", &scratch.work))?;
        let archive = archive.ok_or_else(|| broken(String::from("the tarball did not come")))?;

        task.step(format_args!("verifies {}", self.what));
        let path = archive.clone();
        let digest =
            spawn_blocking(move || checksum::of_file(&path)).await.expect("reads a file only");
        let digest = digest.with_context(file("read", &archive))?;
        let name = archive.file_name().unwrap_or(archive.as_os_str()).to_string_lossy();
        checksum::check_file(&name, self.sha256, &digest).map_err(broken)?;

        task.step(format_args!("unpacks {}", self.what));
        let mut command = Command::new("tar");
        command
            .arg("--extract")
            .arg("--no-same-owner")
            .arg("--file")
            .arg(&archive)
            .arg("-C")
            .arg(&scratch.whole);
        if let Some(top) = self.top {
            command.arg("--strip-components=1");
            command.args(self.members.iter().map(|member| format!("{top}/{member}")));
        } else {
            command.args(self.members);
        }
        Run { what: self.what, program: "tar", command, watch: &scratch.whole }.finish(task).await
    }
}

fn find(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "tgz" || extension == "gz") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}
