//! How every document of a remote begins and how a pointer ends: its version, its features, its check.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::format::{FormatError, check_depth, check_parts, pretty};
use crate::id::Digest;

/// The version of a remote's documents that this program writes, and the newest that it reads.
pub const REMOTE_FORMAT_VERSION: u32 = 1;

/// Bytes of a document. Reading one takes some five times as much memory.
pub(super) const LARGEST_DOCUMENT: u64 = 16 * 1024 * 1024;

/// As `MOST_PARTS` of the store: each part may take 800 bytes here, because manifests are held against what they would be on
/// the disk. It is enough for 10,000 revisions of a template, or 10,000 files of a revision.
pub(super) const MOST_PARTS: usize = 200_000;

/// Our documents have five levels.
const DEEPEST: usize = 32;

/// Every document begins so. A program that does not know one of the features must not read on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Preamble {
    pub version: u32,
    #[serde(default)]
    pub features: Vec<String>,
}

impl Preamble {
    pub fn ours() -> Preamble {
        Preamble { version: REMOTE_FORMAT_VERSION, features: Vec::new() }
    }
}

/// Refuses what would take too much memory, or too much room when it is written as people read it.
pub(super) fn check_cost(what: &'static str, bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        let reason = format!("it has {} bytes, and may have {LARGEST_DOCUMENT}", bytes.len());
        return Err(FormatError::invalid(what, reason));
    }
    check_parts(what, bytes, MOST_PARTS)?;
    check_depth(what, bytes, DEEPEST)
}

/// Reads a document, its version and features first: the shape of a newer one means nothing to us.
pub(super) fn document<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    check_cost(what, bytes)?;
    let invalid = |error: serde_json::Error| FormatError::invalid(what, error);
    let preamble: Preamble = serde_json::from_slice(bytes).map_err(invalid)?;
    match preamble.version {
        0 => return Err(FormatError::invalid(what, "it has version 0, and the first one is 1")),
        version if version > REMOTE_FORMAT_VERSION => {
            return Err(FormatError::Newer { what, found: version.into(), supported: REMOTE_FORMAT_VERSION });
        }
        _ => {}
    }
    if !preamble.features.is_empty() {
        return Err(FormatError::unknown_features(&preamble.features));
    }
    serde_json::from_slice(bytes).map_err(invalid)
}

/// Reads a document that ends with its check. A byte that was changed on the way, or on a disk, is not believed, nor
/// written back.
pub(super) fn checked<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    match split_check(bytes) {
        Some((before, check)) if Digest::of(before).to_hex().as_bytes() == check => document(what, bytes),
        Some(_) => Err(FormatError::invalid(what, "its bytes are not those of its check")),
        None => {
            // One of a newer program may have none.
            document::<IgnoredAny>(what, bytes)?;
            Err(FormatError::invalid(what, "it does not end with a check"))
        }
    }
}

/// What the check is of, and the check.
fn split_check(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = bytes.trim_ascii_end().strip_suffix(b"}")?.trim_ascii_end().strip_suffix(b"\"")?;
    let (before, check) = bytes.split_at_checked(bytes.len().checked_sub(64)?)?;
    let name = before.strip_suffix(b"\"")?.trim_ascii_end().strip_suffix(b":")?.trim_ascii_end();
    name.ends_with(b"\"check\"").then_some((before, check))
}

/// The bytes of a JSON object with their check at the end; `None` if they are no object.
pub(super) fn with_check(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.trim_ascii_end().strip_suffix(b"}")?.trim_ascii_end().to_vec();
    bytes.extend(b",\n  \"check\": \"");
    let check = Digest::of(&bytes).to_hex();
    bytes.extend(check.as_bytes());
    bytes.extend(b"\"\n}\n");
    Some(bytes)
}

/// `format.json`: that this is a remote of ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RemoteFormat {
    #[serde(flatten)]
    preamble: Preamble,
    /// What the whole is, for whoever finds it in a bucket.
    what: String,
}

impl RemoteFormat {
    pub fn ours() -> Vec<u8> {
        pretty(&RemoteFormat { preamble: Preamble::ours(), what: "a remote of template-store".into() })
    }

    pub fn check(bytes: &[u8]) -> Result<(), FormatError> {
        document::<RemoteFormat>("format.json", bytes).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_finds_every_byte_that_was_changed() {
        let good = with_check(b"{\"version\": 1, \"n\": 7}\n").unwrap();
        checked::<serde_json::Value>("pointer", &good).unwrap();
        for at in 0..good.len() - 1 {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let is_space = good[at].is_ascii_whitespace() && bad[at].is_ascii_whitespace();
                assert!(is_space || checked::<serde_json::Value>("pointer", &bad).is_err(), "{at} {bit}");
            }
            assert!(checked::<serde_json::Value>("pointer", &good[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn what_is_in_texts_is_not_deep() {
        let deep = format!("{{\"version\":1,\"a\":{}}}", "[".repeat(40) + &"]".repeat(40));
        assert!(document::<IgnoredAny>("manifest", deep.as_bytes()).unwrap_err().to_string().contains("32 levels"));
        let flat = format!("{{\"version\":1,\"a\":\"\\\"{}\"}}", "[{".repeat(40));
        document::<IgnoredAny>("manifest", flat.as_bytes()).unwrap();
    }
}
