//! The engine of this process: the library, its data folder, and one connection that keeps it
//! running.

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    exception::{Exception, exception},
    ffi::{Connection, Library},
};

/// Settings that make a connection of the embedded engine read SQL as a ClickHouse server does.
const SERVER_LIKE: &[&str] = &["--implicit_select=0"];

/// Why the engine did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("load {library}")]
    Load { library: PathBuf, source: libloading::Error },
    #[error("create data folder {data}")]
    Folder { data: PathBuf, source: std::io::Error },
    #[error("data folder {data}: its name holds a NUL byte")]
    FolderName { data: PathBuf },
    #[error(
        "open data folder {data}: the engine refused, and wrote its reason to standard error; \
         another engine may be using the folder, or a newer one wrote it"
    )]
    Refused { data: PathBuf },
    #[error("ask the engine for its version: {0}")]
    Identity(String),
}

pub(crate) struct Engine {
    library: Arc<Library>,
    arguments: Vec<CString>,
    /// The engine stops with its last connection, and is not meant to start twice in a process.
    anchor: Mutex<Option<Connection>>,
    pub(crate) identity: Identity,
}

/// What the engine says of itself, sent with every answer.
pub(crate) struct Identity {
    pub(crate) version: String,
    pub(crate) timezone: String,
    pub(crate) host: String,
}

impl Engine {
    pub(crate) fn open(library: &Path, data: &Path) -> Result<Self, OpenError> {
        std::fs::create_dir_all(data)
            .map_err(|source| OpenError::Folder { data: data.to_owned(), source })?;
        let arguments = arguments(data)?;
        let library = Library::load(library)
            .map_err(|source| OpenError::Load { library: library.to_owned(), source })?;
        let mut anchor = library
            .connect(&arguments)
            .ok_or_else(|| OpenError::Refused { data: data.to_owned() })?;
        let identity = Identity::ask(&mut anchor)?;
        Ok(Self { library, arguments, anchor: Mutex::new(Some(anchor)), identity })
    }

    /// A fresh connection: default settings, database `default`, no temporary tables.
    pub(crate) fn connect(&self) -> Result<Connection, Exception> {
        self.library
            .connect(&self.arguments)
            .ok_or_else(|| exception!(UNKNOWN_EXCEPTION, "the engine refused a connection"))
    }

    /// Closes the engine: everything is written, nothing runs. False when a connection or an answer
    /// is still in use; the engine then goes on.
    pub(crate) fn close(&self) -> bool {
        drop(self.anchor.lock().unwrap_or_else(PoisonError::into_inner).take());
        if self.library.in_use() {
            return false;
        }
        if !self.library.shutdown() {
            tracing::debug!("idle threads of the engine are left to the exit of the process");
        }
        true
    }
}

impl Identity {
    fn ask(connection: &mut Connection) -> Result<Self, OpenError> {
        let sql = b"SELECT version(), timezone(), hostName()";
        let answer = connection
            .query(sql, "TabSeparatedRaw", &[])
            .map_err(|exception| OpenError::Identity(exception.to_string()))?;
        let text = String::from_utf8_lossy(&answer.body);
        match text.trim_end().split('\t').collect::<Vec<_>>()[..] {
            [version, timezone, host] => Ok(Self {
                version: version.to_owned(),
                timezone: timezone.to_owned(),
                host: host.to_owned(),
            }),
            _ => Err(OpenError::Identity(format!("unexpected answer {text:?}"))),
        }
    }
}

fn arguments(data: &Path) -> Result<Vec<CString>, OpenError> {
    let path = [b"--path=".as_slice(), data.as_os_str().as_bytes()].concat();
    [b"clickhouse".to_vec(), path]
        .into_iter()
        .chain(SERVER_LIKE.iter().map(|setting| setting.as_bytes().to_vec()))
        .map(|argument| {
            CString::new(argument).map_err(|_| OpenError::FolderName { data: data.to_owned() })
        })
        .collect()
}
