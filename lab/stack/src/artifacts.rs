//! Programs and data that the local stack downloads, kept in a cache that every checkout shares.
//!
//! ```text
//! mvn / npm ──► temporary folder ──► checksums ──► unpack
//!                                                   └─rename─► <cache>/<name>-<version>-<pin>/
//! ```
//!
//! A folder appears under its final name only when it is whole, so its being there is the proof.
//! The name holds the beginning of the pinned checksum: what is pinned differently is another
//! folder.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use tokio::time::sleep;

use super::{
    error::file,
    lock::Lock,
    prerequisites::{self, Tool},
    progress::{Progress, Task},
};

mod checksum;
mod maven;
mod npm;
mod tarball;
mod tool;

pub(super) use maven::{MavenJars, MavenTarball};
pub use npm::NpmPackage;

const ATTEMPTS: u32 = 3;
/// The first pause before another attempt; it doubles.
const BACKOFF: Duration = Duration::from_secs(2);
/// How long somebody else's download of the same artifact is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(30 * 60);

/// The next attempt may fare better.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("download {what}: {reason}")]
struct Transient {
    what: &'static str,
    reason: String,
}

/// What can be downloaded, pinned down to its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Artifact {
    MavenJars(MavenJars),
    MavenTarball(MavenTarball),
    Npm(NpmPackage),
}

impl Artifact {
    fn what(&self) -> &'static str {
        match self {
            Artifact::MavenJars(jars) => jars.what,
            Artifact::MavenTarball(tarball) => tarball.what,
            Artifact::Npm(package) => package.name,
        }
    }

    /// The name of its folder in the cache.
    fn key(&self) -> String {
        let (name, version, pin) = match self {
            Artifact::MavenJars(jars) => {
                (jars.what, jars.version, checksum::of_bytes(jars.manifest.as_bytes()))
            }
            Artifact::MavenTarball(tarball) => {
                (tarball.what, tarball.version, tarball.sha256.to_owned())
            }
            Artifact::Npm(package) => (package.name, package.version, package.sha256.to_owned()),
        };
        let name = name.to_ascii_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        format!("{}-{version}-{}", name.trim_matches('-'), &pin[..8])
    }

    /// The programs that a download needs.
    pub(super) fn tools(&self) -> &'static [Tool] {
        match self {
            Artifact::MavenJars(_) => &[prerequisites::MAVEN],
            Artifact::MavenTarball(_) => &[prerequisites::MAVEN, prerequisites::TAR],
            Artifact::Npm(_) => &[prerequisites::NPM, prerequisites::TAR],
        }
    }

    pub(super) fn is_cached(&self) -> anyhow::Result<bool> {
        let folder = cache_folder()?.join(self.key());
        folder.try_exists().with_context(file("look for", &folder))
    }

    /// The folder that holds it; downloaded first unless it is there.
    pub(super) async fn fetch(&self, task: &Task) -> anyhow::Result<PathBuf> {
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(file("create", &cache))?;
        let key = self.key();
        let folder = cache.join(&key);
        if self.is_cached()? {
            return Ok(folder);
        }

        let lock = cache.join(format!("{key}.lock"));
        let lock = Lock::acquire(&lock, LOCK_PATIENCE, || {
            task.step(format_args!("waits for another download of {}", self.what()));
        });
        let _lock = lock.await?;
        if self.is_cached()? {
            return Ok(folder);
        }

        let scratch_prefix = format!(".{key}.");
        remove_leftovers(&cache, &scratch_prefix)?;
        let mut backoff = BACKOFF;
        for attempt in 1..=ATTEMPTS {
            match self.attempt(&cache, &scratch_prefix, &folder, task).await {
                Ok(()) => break,
                Err(error) if !error.is::<Transient>() => return Err(error),
                Err(error) if attempt == ATTEMPTS => {
                    return Err(error.context(format!("the last of {ATTEMPTS} attempts")));
                }
                Err(error) => {
                    task.step(format_args!(
                        "attempt {attempt} of {ATTEMPTS} failed, again soon: {error:#}"
                    ));
                    sleep(backoff).await;
                    backoff *= 2;
                }
            }
        }
        Ok(folder)
    }

    async fn attempt(
        &self,
        cache: &Path,
        prefix: &str,
        folder: &Path,
        task: &Task,
    ) -> anyhow::Result<()> {
        let scratch = Scratch::new(cache, prefix)?;
        match self {
            Artifact::MavenJars(jars) => jars.download(&scratch, task).await?,
            Artifact::MavenTarball(tarball) => tarball.download(&scratch, task).await?,
            Artifact::Npm(package) => package.download(&scratch, task).await?,
        }
        fs::rename(&scratch.whole, folder).with_context(file("move into place", folder))
    }
}

/// A temporary folder beside the final one, gone when dropped.
struct Scratch {
    /// Holds what is thrown away afterwards.
    work: PathBuf,
    /// Becomes the artifact's folder.
    whole: PathBuf,
    _folder: tempfile::TempDir,
}

impl Scratch {
    fn new(cache: &Path, prefix: &str) -> anyhow::Result<Scratch> {
        let folder = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(cache)
            .with_context(file("create a folder in", cache))?;
        let (work, whole) = (folder.path().join("work"), folder.path().join("whole"));
        for part in [&work, &whole] {
            fs::create_dir(part).with_context(file("create", part))?;
        }
        Ok(Scratch { work, whole, _folder: folder })
    }
}

/// Removes what a killed download left. Call it with the artifact's lock held: nobody else uses
/// that prefix then.
fn remove_leftovers(cache: &Path, prefix: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(cache).with_context(file("list", cache))? {
        let entry = entry.with_context(file("list", cache))?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(file("remove", &path))?;
        }
    }
    Ok(())
}

/// Downloads an npm package's files once; the answer is the folder that holds them, at their paths
/// in the package.
pub async fn npm_package(package: NpmPackage, progress: &Progress) -> anyhow::Result<PathBuf> {
    let task = progress.task("download");
    let folder = Artifact::Npm(package).fetch(&task).await?;
    task.finish(format_args!("{} {} is in {}", package.name, package.version, folder.display()));
    Ok(folder)
}

/// `$TALLY_CACHE`, else `$XDG_CACHE_HOME/tally`, else `~/.cache/tally`.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let folder = choose_cache_folder(|name| env::var_os(name))?;
    std::path::absolute(&folder).with_context(file("make absolute", &folder))
}

fn choose_cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<PathBuf> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("TALLY_CACHE")
        // The XDG base directory specification: a relative path counts as unset.
        .or_else(|| Some(set("XDG_CACHE_HOME").filter(|path| path.is_absolute())?.join("tally")))
        .or_else(|| Some(set("HOME")?.join(".cache/tally")))
        .context(
            "no folder for the download cache: none of TALLY_CACHE, XDG_CACHE_HOME and HOME is set",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(variables: &[(&str, &str)]) -> Option<PathBuf> {
        let variable =
            |name: &str| Some(variables.iter().find(|(known, _)| *known == name)?.1.into());
        choose_cache_folder(variable).ok()
    }

    #[test]
    fn the_most_specific_variable_names_the_cache() {
        let (own, xdg, home) =
            (("TALLY_CACHE", "/own"), ("XDG_CACHE_HOME", "/xdg"), ("HOME", "/home/me"));
        assert_eq!(chosen(&[own, xdg, home]), Some("/own".into()));
        assert_eq!(chosen(&[xdg, home]), Some("/xdg/tally".into()));
        assert_eq!(chosen(&[home]), Some("/home/me/.cache/tally".into()));
        assert_eq!(
            chosen(&[("TALLY_CACHE", ""), ("XDG_CACHE_HOME", "relative"), home]).unwrap(),
            { PathBuf::from("/home/me/.cache/tally") }
        );
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn another_pin_is_another_folder() {
        let package = NpmPackage {
            name: "@chdb/lib-linux-x64-gnu",
            version: "1.0.0",
            sha256: "0123456789abcdef",
            size_bytes: 1,
            files: &["libchdb.so"],
        };
        let key = Artifact::Npm(package).key();
        assert_eq!(key, "chdb-lib-linux-x64-gnu-1.0.0-01234567");
        assert_ne!(key, Artifact::Npm(NpmPackage { sha256: "f123456789abcdef", ..package }).key());
    }

    #[test]
    fn leftovers_of_one_artifact_go_and_everything_else_stays() {
        let cache = tempfile::tempdir().unwrap();
        for folder in [".kafka-1.x7/work", "kafka-1", ".kafka-10.x7"] {
            fs::create_dir_all(cache.path().join(folder)).unwrap();
        }
        remove_leftovers(cache.path(), ".kafka-1.").unwrap();
        assert!(!cache.path().join(".kafka-1.x7").exists());
        assert!(cache.path().join("kafka-1").exists());
        assert!(cache.path().join(".kafka-10.x7").exists());
    }
}
