//! Verifies the tarball that a download left, and unpacks the members that are wanted.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::{process::Command, task::spawn_blocking};

use super::{super::progress::Task, Error, Mismatch, Scratch, checksum, tool::Run};

pub(super) struct Tarball {
    pub what: &'static str,
    pub sha256: &'static str,
    /// The folder in it that everything is under.
    pub top: Option<&'static str>,
    /// Files and folders, below the top.
    pub members: &'static [&'static str],
}

impl Tarball {
    pub(super) async fn unpack(&self, scratch: &Scratch, task: &Task) -> Result<(), Error> {
        let file = find(&scratch.work).map_err(Error::file("list", &scratch.work))?;
        let file =
            file.ok_or_else(|| self.broken(Mismatch::Absent { file: "the tarball".to_owned() }))?;

        task.step(format_args!("verifies {}", self.what));
        let path = file.clone();
        let digest =
            spawn_blocking(move || checksum::of_file(&path)).await.expect("reads a file only");
        let digest = digest.map_err(Error::file("read", &file))?;
        let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
        checksum::check_file(&name, self.sha256, &digest)
            .map_err(|mismatch| self.broken(mismatch))?;

        task.step(format_args!("unpacks {}", self.what));
        let mut command = Command::new("tar");
        command
            .arg("--extract")
            .arg("--no-same-owner")
            .arg("--file")
            .arg(&file)
            .arg("-C")
            .arg(&scratch.whole);
        match self.top {
            Some(top) => {
                command.arg("--strip-components=1");
                command.args(self.members.iter().map(|member| format!("{top}/{member}")));
            }
            None => {
                command.args(self.members);
            }
        }
        Run { what: self.what, program: "tar", command, watch: &scratch.whole }.finish(task).await
    }

    fn broken(&self, mismatch: Mismatch) -> Error {
        Error::Broken { what: self.what, mismatch }
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
