//! What the machine must bring, looked at before anything is downloaded or started.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::Command,
};

/// Kafka 4 and the registry run on this or any newer Java.
const JAVA_AT_LEAST: u32 = 17;

/// One thing that is not there, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    Platform,
    Tool(Tool),
    JavaTooOld { found: u32, path: PathBuf },
    JavaBroken { path: PathBuf, reason: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Java,
    Maven,
    Npm,
    Tar,
}

impl Tool {
    pub(super) fn program(self) -> &'static str {
        match self {
            Tool::Java => "java",
            Tool::Maven => "mvn",
            Tool::Npm => "npm",
            Tool::Tar => "tar",
        }
    }

    fn purpose(self) -> &'static str {
        match self {
            Tool::Java => "runs the broker and the registry",
            Tool::Maven => "downloads the broker and the registry",
            Tool::Npm => "downloads the ClickHouse engine",
            Tool::Tar => "unpacks what is downloaded",
        }
    }

    fn debian_package(self) -> &'static str {
        match self {
            Tool::Java => "default-jre-headless",
            Tool::Maven => "maven",
            Tool::Npm => "npm",
            Tool::Tar => "tar",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Platform => write!(
                f,
                "the local stack runs on Linux on x86-64 only, and this is {} on {}",
                env::consts::OS,
                env::consts::ARCH
            ),
            Missing::Tool(tool) => write!(
                f,
                "`{}` ({}) is not on the PATH; on Debian or Ubuntu: apt install {}",
                tool.program(),
                tool.purpose(),
                tool.debian_package()
            ),
            Missing::JavaTooOld { found, path } => write!(
                f,
                "{} is Java {found}, and Java {JAVA_AT_LEAST} or newer is needed; \
                 on Debian or Ubuntu: apt install {}",
                path.display(),
                Tool::Java.debian_package()
            ),
            Missing::JavaBroken { path, reason } => {
                write!(f, "{} does not tell its version: {reason}", path.display())
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this machine lacks what the local stack needs:{}", list(.0))]
pub struct Error(pub Vec<Missing>);

fn list(missing: &[Missing]) -> String {
    missing.iter().map(|missing| format!("\n  - {missing}")).collect()
}

/// Everything that a first `up` needs. Every missing thing is named, not only the first.
pub fn check() -> Result<(), Error> {
    check_tools(&[Tool::Java, Tool::Maven, Tool::Npm, Tool::Tar])
}

pub(super) fn check_tools(tools: &[Tool]) -> Result<(), Error> {
    let mut missing = Vec::new();
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        missing.push(Missing::Platform);
    }
    let path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
    for &tool in tools {
        match find(tool.program(), path.iter().flatten()) {
            None => missing.push(Missing::Tool(tool)),
            Some(path) if tool == Tool::Java => missing.extend(check_java(path)),
            Some(_) => {}
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(Error(missing)) }
}

fn find<'a>(program: &str, mut folders: impl Iterator<Item = &'a PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn check_java(path: PathBuf) -> Option<Missing> {
    let output = match Command::new(&path).arg("-version").output() {
        Ok(output) => output,
        Err(error) => return Some(Missing::JavaBroken { path, reason: error.to_string() }),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match java_major(&said) {
        Some(found) if found < JAVA_AT_LEAST => Some(Missing::JavaTooOld { found, path }),
        Some(_) => None,
        None => Some(Missing::JavaBroken {
            path,
            reason: format!("{}, it said {said:?}", output.status),
        }),
    }
}

/// The major version in what `java -version` says. Up to Java 8 the first number was a 1.
fn java_major(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(" version \"")?;
    let (version, _) = rest.split_once('"')?;
    let mut numbers = version.split(['.', '-', '+', '_']).map(str::parse);
    match numbers.next()?.ok()? {
        1 => numbers.next()?.ok(),
        major => Some(major),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn java_versions_of_all_ages_and_vendors_are_read() {
        for (said, major) in [
            (
                "openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime Environment (build 17)",
                Some(17),
            ),
            ("java version \"1.8.0_292\"", Some(8)),
            ("openjdk version \"24\" 2025-03-18", Some(24)),
            ("openjdk version \"26-ea\" 2026-03-17", Some(26)),
            (
                "Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version \"21.0.2+13\" 2024-01-16",
                Some(21),
            ),
            ("openjdk version \"next\"", None),
            ("Unrecognized option: -version", None),
            ("", None),
        ] {
            assert_eq!(java_major(said), major, "{said}");
        }
    }

    #[test]
    fn a_program_is_found_only_where_it_can_be_run() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let (plain, folder, real) = (
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
            tempfile::tempdir().unwrap(),
        );
        fs::write(plain.path().join("mvn"), "").unwrap();
        fs::create_dir(folder.path().join("mvn")).unwrap();
        fs::write(real.path().join("mvn"), "").unwrap();
        fs::set_permissions(real.path().join("mvn"), fs::Permissions::from_mode(0o755)).unwrap();

        let folders = [plain.path().into(), folder.path().into(), real.path().into()];
        assert_eq!(find("mvn", folders.iter()), Some(real.path().join("mvn")));
        assert_eq!(find("mvn", folders[..2].iter()), None);
    }

    #[test]
    fn the_error_names_every_missing_thing_and_its_package() {
        let error = Error(vec![
            Missing::JavaTooOld { found: 11, path: "/usr/bin/java".into() },
            Missing::Tool(Tool::Maven),
            Missing::Tool(Tool::Npm),
        ]);
        let text = error.to_string();
        for part in [
            "/usr/bin/java is Java 11",
            "apt install maven",
            "apt install npm",
            "default-jre-headless",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}
