//! Where the tests get libchdb from: `TALLY_LIBCHDB`, else npm, once, into the cache.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

const PACKAGE: &str = "@chdb/lib-linux-x64-gnu@26.7.3-stable.1";

pub(crate) fn path() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("TALLY_LIBCHDB") {
        Some(path) => path.into(),
        None => download(),
    })
}

fn download() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME or XDG_CACHE_HOME is set")).join(".cache")
    });
    let folder = cache.join("tally").join("libchdb-26.7.3-stable.1");
    let library = folder.join("libchdb.so");
    if library.exists() {
        return library;
    }
    std::fs::create_dir_all(folder.parent().expect("the folder lies in the cache"))
        .expect("create the cache");
    let unpacked = tempfile::tempdir_in(&cache).expect("create a folder in the cache");
    let script = format!(
        "npm pack --silent {PACKAGE} && tar xzf *.tgz --strip-components=1 package/libchdb.so && rm *.tgz"
    );
    let status = Command::new("sh")
        .args(["-ec", &script])
        .current_dir(unpacked.path())
        .status()
        .expect("run sh for npm and tar");
    assert!(
        status.success(),
        "npm pack {PACKAGE} failed: install npm and tar, or name the file in TALLY_LIBCHDB"
    );
    match std::fs::rename(unpacked.path(), &folder) {
        Ok(()) => {}
        Err(_) if library.exists() => {}
        Err(error) => panic!("move {} to {}: {error}", unpacked.path().display(), folder.display()),
    }
    library
}
