use std::{
    fmt, fs,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Part, artifacts, lock, prerequisites, state};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Prerequisites(#[from] prerequisites::Error),
    #[error(transparent)]
    Artifact(#[from] artifacts::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Lock(#[from] lock::Error),
    #[error("{first} and {second} are both {port}: choose another for one of them")]
    SamePort { port: u16, first: &'static str, second: &'static str },
    #[error(
        "after --broker-port 65535 no port is left for the controller: \
         choose one with --controller-port"
    )]
    NoControllerPort,
    #[error(
        "port {port}, which the {part} needs, is already in use by something that this stack did \
         not start: stop that, or choose another port with {option}"
    )]
    PortTaken { part: Part, port: u16, option: &'static str },
    #[error(
        "the {part} of {} already runs at {running}, not at {asked}: stop it first, \
         or choose another --dir",
        dir.display()
    )]
    RunsElsewhere { part: Part, dir: PathBuf, running: SocketAddr, asked: SocketAddr },
    #[error("find this program's own file: {source}")]
    OwnProgram { source: io::Error },
    #[error("start {name}: {program}: {source}", program = program.display())]
    Start { name: String, program: PathBuf, source: io::Error },
    #[error("{name} ended ({how}) before it was ready\n{log}")]
    Died { name: String, how: String, log: LogTail },
    #[error("{name} is not ready after {seconds} s: {reason}\n{log}")]
    Silent { name: String, seconds: u64, reason: String, log: LogTail },
    #[error("prepare the broker's data folder: Kafka's StorageTool failed:\n{said}")]
    Format { said: String },
    #[error("look after process {pid} ({name}): {source}")]
    Process { name: String, pid: u32, source: io::Error },
    #[error("try port {} for the {part}: {source}", address.port())]
    Port { part: Part, address: SocketAddr, source: io::Error },
    #[error("make an HTTP client: {0}")]
    Http(reqwest::Error),
    #[error("{action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}", lines(.0))]
    Several(Vec<Error>),
}

impl Error {
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::File { action, path: path.to_owned(), source }
    }

    pub(super) fn process(name: &str, pid: u32) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Process { name: name.to_owned(), pid, source }
    }

    /// Nothing, the one error, or all of them.
    pub(super) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }
}

fn lines(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
}

/// The end of a process's log, for an error that shows it.
#[derive(Debug)]
pub struct LogTail {
    path: PathBuf,
    lines: io::Result<Vec<String>>,
}

impl LogTail {
    const LINES: usize = 15;
    const BYTES: u64 = 16 << 10;

    pub(super) fn read(path: PathBuf) -> LogTail {
        let lines = Self::last_lines(&path);
        LogTail { path, lines }
    }

    fn last_lines(path: &Path) -> io::Result<Vec<String>> {
        let length = fs::metadata(path)?.len();
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(length.saturating_sub(Self::BYTES)))?;
        let mut bytes = Vec::new();
        file.take(Self::BYTES).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        Ok(lines[lines.len().saturating_sub(Self::LINES)..]
            .iter()
            .map(ToString::to_string)
            .collect())
    }
}

impl fmt::Display for LogTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.lines {
            Ok(lines) if lines.is_empty() => {
                write!(f, "it printed nothing to {}", self.path.display())
            }
            Ok(lines) => {
                write!(f, "the end of {}:", self.path.display())?;
                lines.iter().try_for_each(|line| write!(f, "\n    {line}"))
            }
            Err(error) => write!(f, "its log {} cannot be read: {error}", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_whole_lines_with_the_path() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..5000).map(|line| format!("line {line}\n")).collect();
        fs::write(log.path(), text).unwrap();
        let shown = LogTail::read(log.path().to_owned()).to_string();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines.len(), 1 + LogTail::LINES);
        assert_eq!(lines[0], format!("the end of {}:", log.path().display()));
        assert_eq!((lines[1], lines[15]), ("    line 4985", "    line 4999"));
    }

    #[test]
    fn an_empty_and_a_missing_log_are_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.log");
        assert!(LogTail::read(path.clone()).to_string().contains("cannot be read"));
        fs::write(&path, "").unwrap();
        assert_eq!(
            LogTail::read(path.clone()).to_string(),
            format!("it printed nothing to {}", path.display())
        );
    }
}
