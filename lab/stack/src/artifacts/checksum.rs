//! SHA-256 of what was downloaded against what is pinned.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest, Sha256};

const CHUNK_BYTES: usize = 1 << 20;

/// How a download differs from its pin.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the SHA-256 of {file} is {actual}, not {expected}")]
    Digest { file: String, expected: String, actual: String },
    #[error("{file} did not come")]
    Absent { file: String },
    #[error("{file} came, which the manifest does not name")]
    Unexpected { file: String },
}

pub(super) fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&chunk[..read]);
    }
}

pub(super) fn of_folder(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    std::fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), of_file(&entry.path())?))
        })
        .collect()
}

fn hex(digest: &[u8]) -> String {
    let mut text = String::with_capacity(2 * digest.len());
    for byte in digest {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

pub(super) fn check_file(name: &str, expected: &str, actual: &str) -> Result<(), Mismatch> {
    if expected == actual {
        return Ok(());
    }
    Err(Mismatch::Digest {
        file: name.to_owned(),
        expected: expected.to_owned(),
        actual: actual.to_owned(),
    })
}

/// Exactly the manifest's files, each with its digest. The manifest is what `sha256sum` prints.
pub(super) fn check_manifest(
    manifest: &str,
    actual: &BTreeMap<String, String>,
) -> Result<(), Mismatch> {
    let expected: BTreeMap<&str, &str> = manifest
        .lines()
        .map(|line| {
            let (digest, file) =
                line.split_once("  ").expect("a line of the manifest: digest, two spaces, file");
            (file, digest)
        })
        .collect();
    for (&file, &digest) in &expected {
        let actual = actual.get(file).ok_or_else(|| Mismatch::Absent { file: file.to_owned() })?;
        check_file(file, digest, actual)?;
    }
    match actual.keys().find(|file| !expected.contains_key(file.as_str())) {
        Some(file) => Err(Mismatch::Unexpected { file: file.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_folder_is_taken_only_if_it_is_exactly_what_the_manifest_says() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = format!("{EMPTY}  a.jar\n{ABC}  b.jar\n");
        let check = || check_manifest(&manifest, &of_folder(folder.path()).unwrap());
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();

        write("a.jar", "");
        assert_eq!(check(), Err(Mismatch::Absent { file: "b.jar".into() }));
        write("b.jar", "abd");
        assert!(matches!(check(), Err(Mismatch::Digest { file, .. }) if file == "b.jar"));
        write("b.jar", "abc");
        assert_eq!(check(), Ok(()));
        write("c.jar", "");
        assert_eq!(check(), Err(Mismatch::Unexpected { file: "c.jar".into() }));
    }

    #[test]
    fn a_file_longer_than_a_chunk_has_the_digest_of_its_bytes() {
        let bytes = vec![7; 2 * CHUNK_BYTES + 1];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), of_bytes(&bytes));
        assert_eq!(of_bytes(b"abc"), ABC);
    }
}
