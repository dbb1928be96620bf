//! `format.json` and the entries of `keys/`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Extra, FormatError, STORE_FORMAT_VERSION, plain, pretty};
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};

/// Whether a store waits until the disk has what it was told; fixed when the store is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// What has returned survives a power cut.
    #[default]
    Full,
    /// Nothing is synced: for stores that may be lost, such as those of a test. A power cut may leave
    /// damaged revisions.
    None,
}

/// `format.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoreFormat {
    pub format_version: u32,
    /// Names of what an older program must not ignore.
    #[serde(default)]
    pub features: Vec<String>,
    #[serde(default)]
    pub durability: Durability,
    pub created_at: Timestamp,
    #[serde(flatten)]
    pub extra: Extra,
}

impl StoreFormat {
    pub fn new(durability: Durability, now: Timestamp) -> StoreFormat {
        StoreFormat {
            format_version: STORE_FORMAT_VERSION,
            features: Vec::new(),
            durability,
            created_at: now,
            extra: Extra::new(),
        }
    }

    pub fn from_json(bytes: &[u8]) -> Result<StoreFormat, FormatError> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u64,
        }
        let what = "store format";
        let found = plain::<Version>("format.json", bytes)?.format_version;
        if found > STORE_FORMAT_VERSION.into() {
            return Err(FormatError::Newer { what, found, supported: STORE_FORMAT_VERSION });
        }
        let format: StoreFormat = plain("format.json", bytes)?;
        if !format.features.is_empty() {
            return Err(FormatError::unknown_features(&format.features));
        }
        Ok(format)
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}

/// A revision that was made from a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyHint {
    pub template: TemplateId,
    pub revision: RevisionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_hash: Option<Digest>,
}

/// What `keys/` holds for a key: the revisions that were made from it, the newest first.
///
/// A hint: whoever uses it looks at the revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyEntry {
    pub key: CacheKey,
    pub revisions: Vec<KeyHint>,
}

/// More hints than this make a look-up slower than they are worth.
const MOST_HINTS: usize = 64;

impl KeyEntry {
    pub fn from_json(bytes: &[u8]) -> Result<KeyEntry, FormatError> {
        let mut entry: KeyEntry = plain("key entry", bytes)?;
        entry.revisions.truncate(MOST_HINTS);
        Ok(entry)
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Whether a hint may have been left out.
    pub fn is_full(&self) -> bool {
        self.revisions.len() >= MOST_HINTS
    }

    /// Puts a hint first; it takes the place of the one with the same template and sources.
    pub fn put(&mut self, hint: KeyHint) {
        self.revisions.retain(|old| (&old.template, &old.source_hash) != (&hint.template, &hint.source_hash));
        self.revisions.insert(0, hint);
        self.revisions.truncate(MOST_HINTS);
    }

    /// Whether there is a hint with the same template and sources.
    pub fn has_one_like(&self, hint: &KeyHint) -> bool {
        self.revisions.iter().any(|old| (&old.template, &old.source_hash) == (&hint.template, &hint.source_hash))
    }

    /// Puts a hint last, if there is room, and none with the same template and sources.
    pub fn offer(&mut self, hint: KeyHint) {
        if !self.is_full() && !self.has_one_like(&hint) {
            self.revisions.push(hint);
        }
    }
}
