use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Says that the folder is a run's, and so may be removed by the next.
const MARK: &str = ".tally-chaos";

pub(super) struct Folder(PathBuf);

impl Folder {
    /// Removes what an earlier run left, and nothing else.
    pub(super) fn anew(dir: &Path) -> anyhow::Result<Folder> {
        Folder::made_anew(dir).with_context(|| format!("make {} anew", dir.display()))
    }

    fn made_anew(dir: &Path) -> anyhow::Result<Folder> {
        let dir = std::path::absolute(dir)?;
        match fs::read_dir(&dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) if dir.join(MARK).is_file() => fs::remove_dir_all(&dir)?,
            Ok(false) => anyhow::bail!(
                "it is there and is not what an earlier run left: \
                 choose another folder, or remove it"
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let folder = Folder(dir);
        fs::create_dir_all(folder.logs())?;
        fs::create_dir_all(folder.members())?;
        fs::write(folder.0.join(MARK), "")?;
        Ok(folder)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    fn members(&self) -> PathBuf {
        self.0.join("members")
    }

    pub(super) fn clocks(&self) -> PathBuf {
        self.0.join("clocks")
    }

    pub(super) fn config(&self, name: &str) -> PathBuf {
        self.members().join(format!("{name}.toml"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_left_is_removed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("run");
        let folder = Folder::anew(&dir).unwrap();
        fs::write(folder.logs().join("old"), "").unwrap();
        Folder::anew(&dir).unwrap();
        assert!(dir.join("logs").is_dir() && !dir.join("logs/old").exists());

        fs::remove_file(dir.join(MARK)).unwrap();
        fs::write(dir.join("precious"), "").unwrap();
        let refused = Folder::anew(&dir).err().expect("it is not a run's");
        assert!(format!("{refused:#}").contains("is not what an earlier run left"), "{refused:#}");
        assert!(dir.join("precious").exists());
    }
}
