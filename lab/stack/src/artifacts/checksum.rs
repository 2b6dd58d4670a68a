//! SHA-256 of what was downloaded against what is pinned.

use std::{collections::BTreeMap, fs::File, io, path::Path};

use sha2::{Digest, Sha256};

pub(super) fn of_bytes(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

pub(super) fn of_file(path: &Path) -> io::Result<String> {
    let mut digest = Sha256::new();
    io::copy(&mut File::open(path)?, &mut digest)?;
    Ok(format!("{:x}", digest.finalize()))
}

pub(super) fn of_folder(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    std::fs::read_dir(folder)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), of_file(&entry.path())?))
        })
        .collect()
}

/// How the file differs from its pin, if it does.
pub(super) fn check_file(name: &str, expected: &str, actual: &str) -> Result<(), String> {
    if expected == actual {
        return Ok(());
    }
    Err(format!("the SHA-256 of {name} is {actual}, not {expected}"))
}

/// Exactly the manifest's files, each with its digest. The manifest is what `sha256sum` prints.
pub(super) fn check_manifest(
    manifest: &str,
    actual: &BTreeMap<String, String>,
) -> Result<(), String> {
    let expected: BTreeMap<&str, &str> = manifest
        .lines()
        .map(|line| {
            line.split_once("  ").expect("a line of the manifest: digest, two spaces, file")
        })
        .map(|(digest, file)| (file, digest))
        .collect();
    for (&file, &digest) in &expected {
        let actual = actual.get(file).ok_or_else(|| format!("{file} did not come"))?;
        check_file(file, digest, actual)?;
    }
    match actual.keys().find(|file| !expected.contains_key(file.as_str())) {
        Some(file) => Err(format!("{file} came, which the manifest does not name")),
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
        assert_eq!(check(), Err("b.jar did not come".into()));
        write("b.jar", "abd");
        assert!(check().unwrap_err().starts_with("the SHA-256 of b.jar is "));
        write("b.jar", "abc");
        assert_eq!(check(), Ok(()));
        write("c.jar", "");
        assert_eq!(check(), Err("c.jar came, which the manifest does not name".into()));
    }

    #[test]
    fn a_long_file_has_the_digest_of_its_bytes() {
        let bytes = vec![7; (2 << 20) + 1];
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(of_file(file.path()).unwrap(), of_bytes(&bytes));
        assert_eq!(of_bytes(b"abc"), ABC);
    }
}
