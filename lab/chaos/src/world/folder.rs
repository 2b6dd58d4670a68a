use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Error;

/// Says that the folder is a run's, and so may be removed by the next.
const MARK: &str = ".tally-chaos";

pub(super) struct Folder(PathBuf);

impl Folder {
    /// Removes what an earlier run left, and nothing else.
    pub(super) fn anew(dir: &Path) -> Result<Folder, Error> {
        let dir = std::path::absolute(dir).map_err(Error::file("make absolute", dir))?;
        match fs::read_dir(&dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) if dir.join(MARK).is_file() => {
                fs::remove_dir_all(&dir).map_err(Error::file("remove", &dir))?;
            }
            Ok(false) => return Err(Error::NotOurs(dir)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", &dir)(error)),
        }
        let folder = Folder(dir);
        for made in [folder.logs(), folder.members()] {
            fs::create_dir_all(&made).map_err(Error::file("create", &made))?;
        }
        let mark = folder.0.join(MARK);
        fs::write(&mark, "").map_err(Error::file("write", &mark))?;
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
        assert!(matches!(Folder::anew(&dir), Err(Error::NotOurs(_))));
        assert!(dir.join("precious").exists());
    }
}
