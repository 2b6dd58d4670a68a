//! The engine of this process: the library, its data folder, and one connection that keeps it
//! running.

use std::{
    ffi::{CString, NulError},
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;

use crate::{
    exception::{Exception, exception},
    ffi::{Connection, Library},
};

/// Settings that make a connection of the embedded engine read SQL as a ClickHouse server does.
const SERVER_LIKE: &[&str] = &["--implicit_select=0"];

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
    pub(crate) fn open(library: &Path, data: &Path) -> anyhow::Result<Self> {
        let folder = || format!("data folder {}", data.display());
        std::fs::create_dir_all(data).with_context(folder)?;
        let arguments = arguments(data).with_context(folder)?;
        let library = Library::load(library).context("load the engine's library")?;
        let mut anchor = library
            .connect(&arguments)
            .context(
                "the engine refused, and wrote its reason to standard error; \
             another engine may be using the folder, or a newer one wrote it",
            )
            .with_context(folder)?;
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
    fn ask(connection: &mut Connection) -> anyhow::Result<Self> {
        let sql = b"SELECT version(), timezone(), hostName()";
        let answer = connection.query(sql, "TabSeparatedRaw", &[])?;
        let text = String::from_utf8_lossy(&answer.body);
        match text.trim_end().split('\t').collect::<Vec<_>>()[..] {
            [version, timezone, host] => Ok(Self {
                version: version.to_owned(),
                timezone: timezone.to_owned(),
                host: host.to_owned(),
            }),
            _ => anyhow::bail!("the engine says of itself {text:?}"),
        }
    }
}

fn arguments(data: &Path) -> Result<Vec<CString>, NulError> {
    let path = [b"--path=".as_slice(), data.as_os_str().as_bytes()].concat();
    let arguments = [b"clickhouse".to_vec(), path].into_iter();
    arguments
        .chain(SERVER_LIKE.iter().map(|setting| setting.as_bytes().to_vec()))
        .map(CString::new)
        .collect()
}
