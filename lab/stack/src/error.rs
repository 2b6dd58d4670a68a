//! What errors say of files, logs and each other.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

/// How much of a log's end is looked at, and how many of its lines an error shows.
const BYTES: u64 = 16 << 10;
const LINES: usize = 15;

/// The context of an error of a file.
pub(super) fn file(action: &str, path: &Path) -> impl FnOnce() -> String {
    move || format!("{action} {}", path.display())
}

/// Nothing, the one error, or all of them.
pub(super) fn all(mut errors: Vec<anyhow::Error>) -> anyhow::Result<()> {
    match errors.pop() {
        None => Ok(()),
        Some(only) if errors.is_empty() => Err(only),
        Some(last) => {
            errors.push(last);
            let lines: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
            Err(anyhow::anyhow!(lines.join("\n")))
        }
    }
}

/// The last 16 KiB of a log.
pub fn log_end(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(BYTES)))?;
    let mut bytes = Vec::new();
    file.take(BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of a process's log, for an error that shows it.
pub(super) fn shown_log(log: &Path) -> String {
    let path = log.display();
    match log_end(log) {
        Ok(text) if text.is_empty() => format!("it printed nothing to {path}"),
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let shown = lines[lines.len().saturating_sub(LINES)..].join("\n    ");
            format!("the end of {path}:\n    {shown}")
        }
        Err(error) => format!("its log {path} cannot be read: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_tail_is_the_last_whole_lines_with_the_path() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..5000).map(|line| format!("line {line}\n")).collect();
        fs::write(log.path(), text).unwrap();
        let shown = shown_log(log.path());
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 1 + LINES);
        assert_eq!(lines[0], format!("the end of {}:", log.path().display()));
        assert_eq!((lines[1], lines[15]), ("    line 4985", "    line 4999"));
    }

    #[test]
    fn an_empty_and_a_missing_log_are_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.log");
        assert!(shown_log(&path).contains("cannot be read"));
        fs::write(&path, "").unwrap();
        assert_eq!(shown_log(&path), format!("it printed nothing to {}", path.display()));
    }
}
