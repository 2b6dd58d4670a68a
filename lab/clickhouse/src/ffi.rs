//! libchdb's C interface (`chdb.h` of 26.7), as far as it is used, made safe.
//!
//! ```text
//!  Library ──connect──► Connection ──query────────────────────────────► QueryResult: the engine's
//!                                  └─insert──► InsertStream ──finish──►  buffer, not a copy
//! ```
//!
//! Everything that points into the engine holds the [`Library`], so `shutdown` can tell whether
//! anything is left.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr::NonNull,
    slice,
    sync::Arc,
};

use bytes::Bytes;

use crate::exception::{Exception, exception};

type RawConnection = *mut c_void;
/// A statement, an output format, and parameters as four parallel arrays, each with its lengths.
type StatementFn = unsafe extern "C" fn(
    RawConnection,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> *mut c_void;
type RawResult = *mut c_void;
type RawInsert = *mut c_void;

/// `chdb_state`'s value for success.
const SUCCESS: c_int = 0;

macro_rules! symbols {
    ($($field:ident = $name:literal: $type:ty;)*) => {
        struct Symbols { $($field: $type,)* }

        impl Symbols {
            fn resolve(library: &libloading::Library) -> Result<Self, libloading::Error> {
                // SAFETY: each type is the function's declaration in chdb.h. The pointers outlive
                // `library` because it is never unloaded (`Library::load`).
                unsafe { Ok(Self { $($field: *library.get::<$type>($name)?,)* }) }
            }
        }
    };
}

symbols! {
    set_signal_handlers = b"chdb_set_signal_handlers_enabled": unsafe extern "C" fn(c_int);
    connect = b"chdb_connect": unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut RawConnection;
    close = b"chdb_close_conn": unsafe extern "C" fn(*mut RawConnection);
    shutdown = b"chdb_shutdown": unsafe extern "C" fn() -> c_int;
    query = b"chdb_query_with_params_n": StatementFn;
    insert = b"chdb_stream_insert_with_params_n": StatementFn;
    insert_append = b"chdb_stream_append":
        unsafe extern "C" fn(RawInsert, *const c_void, usize) -> c_int;
    insert_done = b"chdb_stream_done": unsafe extern "C" fn(RawInsert) -> RawResult;
    insert_error = b"chdb_stream_insert_error": unsafe extern "C" fn(RawInsert) -> *const c_char;
    insert_destroy = b"chdb_destroy_insert_stream": unsafe extern "C" fn(RawInsert);
    result_error = b"chdb_result_error": unsafe extern "C" fn(RawResult) -> *const c_char;
    result_buffer = b"chdb_result_buffer": unsafe extern "C" fn(RawResult) -> *const u8;
    result_length = b"chdb_result_length": unsafe extern "C" fn(RawResult) -> usize;
    result_rows = b"chdb_result_rows_read": unsafe extern "C" fn(RawResult) -> u64;
    result_rows_read = b"chdb_result_storage_rows_read": unsafe extern "C" fn(RawResult) -> u64;
    result_bytes_read = b"chdb_result_storage_bytes_read": unsafe extern "C" fn(RawResult) -> u64;
    result_rows_written = b"chdb_result_rows_written": unsafe extern "C" fn(RawResult) -> u64;
    result_bytes_written = b"chdb_result_bytes_written": unsafe extern "C" fn(RawResult) -> u64;
    result_elapsed = b"chdb_result_elapsed": unsafe extern "C" fn(RawResult) -> f64;
    result_destroy = b"chdb_destroy_query_result": unsafe extern "C" fn(RawResult);
}

pub(crate) struct Library {
    symbols: Symbols,
}

impl Library {
    /// Loads libchdb for the rest of the process: its threads and destructors do not survive an
    /// unload.
    pub(crate) fn load(path: &Path) -> Result<Arc<Self>, libloading::Error> {
        // SAFETY: libchdb's initialisers touch nothing of this process.
        let library = unsafe { libloading::Library::new(path) }?;
        let symbols = Symbols::resolve(&library)?;
        std::mem::forget(library);
        // SAFETY: called before the first connection, as chdb.h asks. Signals are the caller's
        // business.
        unsafe { (symbols.set_signal_handlers)(0) };
        Ok(Arc::new(Self { symbols }))
    }

    /// Opens a connection; the first one starts the engine with the folder named in `--path=`.
    pub(crate) fn connect(self: &Arc<Self>, arguments: &[CString]) -> Option<Connection> {
        let mut argv: Vec<*mut c_char> =
            arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(argv.len()).ok()?;
        // SAFETY: `argv` holds `count` terminated strings that live until the call returns; the
        // engine copies them.
        let handle = unsafe { (self.symbols.connect)(count, argv.as_mut_ptr()) };
        Some(Connection { library: Arc::clone(self), handle: NonNull::new(handle)? })
    }

    /// Whether a connection or an answer still points into the engine.
    pub(crate) fn in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1
    }

    /// Joins the threads that outlive the last connection, and refuses connections from then on.
    /// False when some do not stop. They are idle then, and chdb.h leaves them to the exit of the
    /// process.
    ///
    /// Does nothing, and gives false, while the engine is in use.
    pub(crate) fn shutdown(self: &Arc<Self>) -> bool {
        // SAFETY: this is the only reference, so every connection is closed and every answer
        // destroyed.
        !self.in_use() && unsafe { (self.symbols.shutdown)() } == SUCCESS
    }
}

/// A connection, which is also a session: its settings, its database, its temporary tables.
pub(crate) struct Connection {
    library: Arc<Library>,
    handle: NonNull<RawConnection>,
}

// SAFETY: the engine lets any thread use a connection, one statement at a time, which `&mut self`
// ensures.
unsafe impl Send for Connection {}

impl Connection {
    pub(crate) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<QueryResult, Exception> {
        let result = self.call(self.library.symbols.query, sql, format, parameters);
        QueryResult::new(&self.library, result)
    }

    /// Begins an INSERT whose data comes by [`InsertStream::append`]. `sql` ends before its FORMAT
    /// clause.
    pub(crate) fn insert(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<InsertStream<'_>, Exception> {
        let stream = self.call(self.library.symbols.insert, sql, format, parameters);
        let stream = InsertStream { connection: self, stream };
        match stream.error() {
            Some(exception) => Err(exception),
            None => Ok(stream),
        }
    }

    fn call(
        &mut self,
        function: StatementFn,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> *mut c_void {
        let (names, values): (Vec<&str>, Vec<&str>) =
            parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).unzip();
        let pointers =
            |texts: &[&str]| texts.iter().map(|text| text.as_ptr().cast()).collect::<Vec<_>>();
        let lengths = |texts: &[&str]| texts.iter().map(|text| text.len()).collect::<Vec<_>>();
        // SAFETY: the handle is open until drop; every pointer comes with its length and outlives
        // the call.
        unsafe {
            function(
                *self.handle.as_ptr(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                pointers(&names).as_ptr(),
                lengths(&names).as_ptr(),
                pointers(&values).as_ptr(),
                lengths(&values).as_ptr(),
                parameters.len(),
            )
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the handle came from `connect` and is closed once. An insert stream borrows the
        // connection.
        unsafe { (self.library.symbols.close)(self.handle.as_ptr()) };
    }
}

/// An INSERT that is under way. Dropped unfinished, it is cancelled.
pub(crate) struct InsertStream<'a> {
    connection: &'a mut Connection,
    stream: RawInsert,
}

impl InsertStream<'_> {
    pub(crate) fn append(&mut self, data: &[u8]) -> Result<(), Exception> {
        let append = self.connection.library.symbols.insert_append;
        // SAFETY: the stream is open until drop; the engine copies the data.
        if unsafe { append(self.stream, data.as_ptr().cast(), data.len()) } == SUCCESS {
            return Ok(());
        }
        Err(self.error().unwrap_or_else(|| {
            exception!(UNKNOWN_EXCEPTION, "the engine refused data and gave no reason")
        }))
    }

    pub(crate) fn finish(self) -> Result<QueryResult, Exception> {
        let library = &self.connection.library;
        // SAFETY: the stream is open until drop, which comes after this.
        let result = unsafe { (library.symbols.insert_done)(self.stream) };
        QueryResult::new(library, result)
    }

    fn error(&self) -> Option<Exception> {
        // SAFETY: the stream is open until drop, and its error text lives as long.
        unsafe { text_exception((self.connection.library.symbols.insert_error)(self.stream)) }
    }
}

impl Drop for InsertStream<'_> {
    fn drop(&mut self) {
        // SAFETY: the stream came from `insert` and is destroyed once.
        unsafe { (self.connection.library.symbols.insert_destroy)(self.stream) };
    }
}

pub(crate) struct QueryResult {
    pub(crate) body: Bytes,
    pub(crate) rows: u64,
    pub(crate) rows_read: u64,
    pub(crate) bytes_read: u64,
    pub(crate) rows_written: u64,
    pub(crate) bytes_written: u64,
    pub(crate) elapsed_seconds: f64,
}

impl QueryResult {
    fn new(library: &Arc<Library>, result: RawResult) -> Result<Self, Exception> {
        if result.is_null() {
            return Err(exception!(UNKNOWN_EXCEPTION, "the engine gave no result"));
        }
        let owner = ResultBuffer { library: Arc::clone(library), result };
        let symbols = &library.symbols;
        // SAFETY: `result` is not null and is destroyed by `owner`, later than each of these calls.
        unsafe {
            if let Some(exception) = text_exception((symbols.result_error)(result)) {
                return Err(exception);
            }
            Ok(Self {
                rows: (symbols.result_rows)(result),
                rows_read: (symbols.result_rows_read)(result),
                bytes_read: (symbols.result_bytes_read)(result),
                rows_written: (symbols.result_rows_written)(result),
                bytes_written: (symbols.result_bytes_written)(result),
                elapsed_seconds: (symbols.result_elapsed)(result),
                body: Bytes::from_owner(owner),
            })
        }
    }
}

/// A result of the engine, for as long as its buffer is in use.
struct ResultBuffer {
    library: Arc<Library>,
    result: RawResult,
}

// SAFETY: a result belongs to no connection and no thread; chdb.h lets any thread read and destroy
// it.
unsafe impl Send for ResultBuffer {}

impl AsRef<[u8]> for ResultBuffer {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the buffer holds `length` bytes, does not change, and lives until the result is
        // destroyed in drop.
        unsafe {
            let length = (self.library.symbols.result_length)(self.result);
            let buffer = (self.library.symbols.result_buffer)(self.result);
            if buffer.is_null() || length == 0 {
                &[]
            } else {
                slice::from_raw_parts(buffer, length)
            }
        }
    }
}

impl Drop for ResultBuffer {
    fn drop(&mut self) {
        // SAFETY: the result came from the engine and is destroyed once.
        unsafe { (self.library.symbols.result_destroy)(self.result) };
    }
}

/// # Safety
/// `text` is null or a terminated string.
unsafe fn text_exception(text: *const c_char) -> Option<Exception> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(Exception::from_engine(&unsafe { CStr::from_ptr(text) }.to_string_lossy()))
}
