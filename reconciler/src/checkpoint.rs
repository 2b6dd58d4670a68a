//! What one partition was proven to come to, up to an offset, signed: the next replay begins there.
//!
//! ```text
//!  {"body": "<JSON of Checkpoint>", "key": "<public key>", "signature": "<of the body's bytes>"}
//! ```

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use tally_counts::{Bookmark, KeyedFingerprint, Reject, Rules};
use tally_platform::checkpoint_key::CheckpointKey;

/// What the messages before `position` came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    pub(crate) format: u32,
    /// Kafka's id of the topic `increments`.
    pub(crate) topic_id: String,
    pub(crate) partition: i32,
    /// The next offset of `increments`: every message before it is in the totals.
    pub(crate) position: i64,
    /// The first offset that Kafka must still have for the replay to begin here: that of the oldest
    /// id that is remembered, or the position.
    pub(crate) needs_from: i64,
    /// ClickHouse's next offset of `deltas` when this was proven.
    pub(crate) deltas: i64,
    /// When it was signed, and Kafka's time of the last message before `position`, in milliseconds
    /// since 1970.
    pub(crate) signed_ms: i64,
    pub(crate) through_ms: Option<i64>,
    /// Messages.
    pub(crate) messages: u64,
    pub(crate) counted: u64,
    pub(crate) duplicate: u64,
    pub(crate) rejected: BTreeMap<String, u64>,
    /// Increments that were added: all events of all counts.
    pub(crate) increments: u64,
    /// By which the remembered ids are found again.
    pub(crate) bookmark: String,
    /// The rules of counting.
    pub(crate) rules: String,
    /// The fingerprint of each range under the key's own salt, 32 bytes each, in base64.
    pub(crate) fingerprints: String,
}

#[derive(Serialize, Deserialize)]
struct Signed {
    body: String,
    key: String,
    signature: String,
}

/// What a checkpoint must be of, to be believed.
pub(crate) struct Expected<'a> {
    pub(crate) key: &'a CheckpointKey,
    pub(crate) topic_id: &'a str,
    pub(crate) rules: Rules,
}

impl Checkpoint {
    /// The format of the body.
    pub(crate) const FORMAT: u32 = 2;

    /// One line of JSON.
    pub(crate) fn sign(&self, key: &CheckpointKey) -> String {
        let body = serde_json::to_string(self).expect("a checkpoint is plain JSON");
        let signature = key.sign(&body);
        let signed = Signed { body, key: key.public(), signature };
        serde_json::to_string(&signed).expect("three texts are plain JSON")
    }

    /// The checkpoint in a line, or why it is refused.
    pub(crate) fn open(line: &[u8], expected: &Expected<'_>) -> Result<Checkpoint, String> {
        let signed: Signed = serde_json::from_slice(line)
            .map_err(|error| format!("it is no signed checkpoint: {error}"))?;
        let public = expected.key.public();
        if signed.key != public {
            return Err(format!("it is signed by key {}, not by ours, {public}", signed.key));
        }
        if !expected.key.has_signed(&signed.body, &signed.signature) {
            return Err(String::from("its signature is not our key's"));
        }
        let checkpoint: Checkpoint = serde_json::from_str(&signed.body)
            .map_err(|error| format!("its body cannot be read: {error}"))?;
        if checkpoint.format != Self::FORMAT {
            return Err(format!("it is of format {}, not {}", checkpoint.format, Self::FORMAT));
        }
        if checkpoint.topic_id != expected.topic_id {
            return Err(format!(
                "it is of topic id {}, not {}: of another installation, or from before the topic \
                 was made again",
                checkpoint.topic_id, expected.topic_id
            ));
        }
        if checkpoint.rules.parse() != Ok(expected.rules) {
            return Err(format!("it was counted by other rules: {}", checkpoint.rules));
        }
        let is_whole = checkpoint.bookmark().is_some()
            && checkpoint.fingerprints().is_some()
            && checkpoint.rejected().is_some();
        if !is_whole {
            return Err(String::from(
                "its bookmark, its fingerprints or its reject reasons cannot be read",
            ));
        }
        Ok(checkpoint)
    }

    pub(crate) fn bookmark(&self) -> Option<Bookmark> {
        self.bookmark.parse().ok()
    }

    pub(crate) fn fingerprints(&self) -> Option<Vec<KeyedFingerprint>> {
        let bytes = BASE64.decode(&self.fingerprints).ok()?;
        let (chunks, []) = bytes.as_chunks::<32>() else { return None };
        (chunks.len() == KeyedFingerprint::RANGES)
            .then(|| chunks.iter().copied().map(KeyedFingerprint::from_bytes).collect())
    }

    /// The messages that were rejected, by reason.
    pub(crate) fn rejected(&self) -> Option<BTreeMap<&'static str, u64>> {
        let known = |(reason, count): (&String, &u64)| {
            Some((reason.parse::<Reject>().ok()?.as_str(), *count))
        };
        self.rejected.iter().map(known).collect()
    }

    pub(crate) fn encode(fingerprints: &[KeyedFingerprint]) -> String {
        let bytes: Vec<u8> = fingerprints.iter().flat_map(|one| one.to_bytes()).collect();
        BASE64.encode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            format: Checkpoint::FORMAT,
            topic_id: String::from("topic"),
            partition: 1,
            position: 10,
            needs_from: 7,
            deltas: 4,
            signed_ms: 5,
            through_ms: Some(3),
            messages: 9,
            counted: 8,
            duplicate: 0,
            rejected: BTreeMap::from([(String::from("not_framed"), 1)]),
            increments: 8,
            bookmark: String::from("ids=7"),
            rules: Rules::default().to_string(),
            fingerprints: Checkpoint::encode(&vec![
                KeyedFingerprint::ZERO;
                KeyedFingerprint::RANGES
            ]),
        }
    }

    #[test]
    fn a_checkpoint_is_refused_if_forged_altered_or_foreign() {
        let (key, other) = (CheckpointKey::draw().unwrap(), CheckpointKey::draw().unwrap());
        let expected = Expected { key: &key, topic_id: "topic", rules: Rules::default() };
        let line = checkpoint().sign(&key);
        assert_eq!(Checkpoint::open(line.as_bytes(), &expected), Ok(checkpoint()));

        let refused = |line: &str| Checkpoint::open(line.as_bytes(), &expected).unwrap_err();
        assert!(refused("junk").contains("no signed checkpoint"));
        assert!(refused(&checkpoint().sign(&other)).contains("not by ours"));
        let forged = checkpoint().sign(&other).replace(&other.public(), &key.public());
        assert!(refused(&forged).contains("signature"));
        let altered = line.replace("\\\"position\\\":10", "\\\"position\\\":11");
        assert_ne!(altered, line);
        assert!(refused(&altered).contains("signature"));
        let foreign = Checkpoint { topic_id: String::from("another"), ..checkpoint() };
        assert!(refused(&foreign.sign(&key)).contains("another installation"));
        let rules = Rules { max_future_s: 1, ..Rules::default() }.to_string();
        assert!(refused(&Checkpoint { rules, ..checkpoint() }.sign(&key)).contains("other rules"));
        let short = Checkpoint { fingerprints: String::from("AAAA"), ..checkpoint() };
        assert!(refused(&short.sign(&key)).contains("fingerprints"));
        let rejected = BTreeMap::from([(String::from("of a later version"), 1)]);
        let later = Checkpoint { rejected, ..checkpoint() };
        assert!(refused(&later.sign(&key)).contains("reject reasons"));
    }
}
