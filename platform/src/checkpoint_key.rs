//! The key by which checkpoints are signed, and compared with ClickHouse.
//!
//! ```text
//!  key file (PEM, PKCS#8) ─► Ed25519 key ─┬─► signs and checks checkpoints
//!                                         └─ SHA-512, with the topic's id ─► the key's own salt
//! ```
//!
//! Only who has the file can sign, and knows the salt before a verify has asked ClickHouse with it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{Signature, Signer, SigningKey};
use sha2::{Digest, Sha512};
use tally_counts::Salt;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{what} the key file {}: {reason}", file.display())]
    File { file: PathBuf, what: &'static str, reason: String },
    #[error("draw a key: {0}")]
    Random(getrandom::Error),
}

/// An Ed25519 key that signs checkpoints.
#[derive(Clone)]
pub struct CheckpointKey(SigningKey);

impl CheckpointKey {
    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it.
    pub fn read(file: &Path) -> Result<CheckpointKey, KeyError> {
        let failed =
            |reason: String| KeyError::File { file: file.to_owned(), what: "read", reason };
        let pem = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
        let key = SigningKey::from_pkcs8_pem(&pem)
            .map_err(|error| failed(format!("it is no Ed25519 key in PEM (PKCS#8): {error}")))?;
        Ok(CheckpointKey(key))
    }

    /// Draws a key and writes it to a file that only its owner reads.
    pub fn make(file: &Path) -> Result<CheckpointKey, KeyError> {
        let failed =
            |reason: String| KeyError::File { file: PathBuf::from(file), what: "make", reason };
        let key = CheckpointKey::draw()?;
        let pem = key.0.to_pkcs8_pem(LineEnding::LF).map_err(|error| failed(error.to_string()))?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)
            .and_then(|mut file| file.write_all(pem.as_bytes()))
            .map_err(|error| failed(error.to_string()))?;
        Ok(key)
    }

    /// A key that is kept nowhere.
    pub fn draw() -> Result<CheckpointKey, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(KeyError::Random)?;
        Ok(CheckpointKey(SigningKey::from_bytes(&seed)))
    }

    /// The public half, in base64.
    pub fn public(&self) -> String {
        BASE64.encode(self.0.verifying_key().as_bytes())
    }

    /// The salt of this key's fingerprints over one topic.
    pub fn salt(&self, topic_id: &str) -> Salt {
        let digest = Sha512::new()
            .chain_update(b"tally checkpoint salt\0")
            .chain_update(self.0.as_bytes())
            .chain_update(topic_id.as_bytes())
            .finalize();
        Salt::from_bytes(digest[..24].try_into().expect("a digest of 64 bytes"))
    }

    /// The signature of a text, in base64.
    pub fn sign(&self, text: &str) -> String {
        BASE64.encode(self.0.sign(text.as_bytes()).to_bytes())
    }

    /// Whether the signature, in base64, is this key's of the text.
    pub fn has_signed(&self, text: &str, signature: &str) -> bool {
        let bytes = BASE64.decode(signature).ok();
        let signature = bytes.and_then(|bytes| Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| {
            self.0.verifying_key().verify_strict(text.as_bytes(), &signature).is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_signs_for_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        let made = CheckpointKey::make(&file).unwrap();
        let read = CheckpointKey::read(&file).unwrap();
        assert_eq!(made.public(), read.public());
        assert!(made.salt("a") == read.salt("a") && made.salt("a") != made.salt("b"));
        let signature = made.sign("text");
        assert!(read.has_signed("text", &signature));
        assert!(!read.has_signed("Text", &signature) && !read.has_signed("text", "c2hvcnQ="));
        assert!(!CheckpointKey::draw().unwrap().has_signed("text", &signature));
        // A key that is there is never replaced.
        assert!(CheckpointKey::make(&file).is_err());
    }
}
