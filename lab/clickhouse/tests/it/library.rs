//! Where the tests get libchdb from: the local stack's own download.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tally_stack::{Progress, store_library};

pub(crate) fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        // On a thread of its own, since the test that asks may be within a runtime.
        let download = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("make a runtime").block_on(store_library(&Progress::silent()))
        });
        let library = download.join().expect("the download does not panic");
        library.unwrap_or_else(|error| panic!("get the engine's library: {error}"))
    })
}
