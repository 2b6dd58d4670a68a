//! What the machine must bring, looked at before anything is downloaded or started.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// Kafka 4 and the registry run on this or any newer Java.
const JAVA_AT_LEAST: u32 = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) program: &'static str,
    purpose: &'static str,
    debian_package: &'static str,
}

pub(super) const JAVA: Tool = Tool {
    program: "java",
    purpose: "runs the broker and the registry",
    debian_package: "default-jre-headless",
};
pub(super) const MAVEN: Tool = Tool {
    program: "mvn",
    purpose: "downloads the broker and the registry",
    debian_package: "maven",
};
pub(super) const NPM: Tool =
    Tool { program: "npm", purpose: "downloads the ClickHouse engine", debian_package: "npm" };
pub(super) const TAR: Tool =
    Tool { program: "tar", purpose: "unpacks what is downloaded", debian_package: "tar" };

impl Tool {
    fn missing(self) -> String {
        let Tool { program, purpose, debian_package } = self;
        format!(
            "`{program}` ({purpose}) is not on the PATH; \
             on Debian or Ubuntu: apt install {debian_package}"
        )
    }
}

/// Every missing thing is named, not only the first, and what to do about it.
pub(super) fn check_tools(tools: &[Tool]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if cfg!(not(all(target_os = "linux", target_arch = "x86_64"))) {
        missing.push(format!(
            "the local stack runs on Linux on x86-64 only, and this is {} on {}",
            env::consts::OS,
            env::consts::ARCH
        ));
    }
    let path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
    for &tool in tools {
        match find(tool.program, path.iter().flatten()) {
            None => missing.push(tool.missing()),
            Some(path) if tool == JAVA => missing.extend(check_java(&path)),
            Some(_) => {}
        }
    }
    let list: String = missing.iter().map(|missing| format!("\n  - {missing}")).collect();
    anyhow::ensure!(list.is_empty(), "this machine lacks what the local stack needs:{list}");
    Ok(())
}

fn find<'a>(program: &str, mut folders: impl Iterator<Item = &'a PathBuf>) -> Option<PathBuf> {
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| is_executable(path)))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What is wrong with this Java, if anything is.
fn check_java(path: &Path) -> Option<String> {
    let broken = |reason: String| format!("{} does not tell its version: {reason}", path.display());
    let output = match Command::new(path).arg("-version").output() {
        Ok(output) => output,
        Err(error) => return Some(broken(error.to_string())),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    match java_major(&said) {
        Some(found) => (found < JAVA_AT_LEAST).then(|| java_too_old(found, path)),
        None => Some(broken(format!("{}, it said {said:?}", output.status))),
    }
}

fn java_too_old(found: u32, path: &Path) -> String {
    format!(
        "{} is Java {found}, and Java {JAVA_AT_LEAST} or newer is needed; \
         on Debian or Ubuntu: apt install {}",
        path.display(),
        JAVA.debian_package
    )
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
        let (one, other) =
            (Tool { program: "not-there", ..MAVEN }, Tool { program: "nor-there", ..NPM });
        let text = check_tools(&[one, other]).unwrap_err().to_string()
            + &java_too_old(11, Path::new("/usr/bin/java"));
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
