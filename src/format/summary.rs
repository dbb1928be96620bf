//! The few things in `revision.json` that a pass over all revisions needs; the rest is not even kept in memory.

use std::borrow::Cow;
use std::fmt;

use jiff::Timestamp;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{CURRENT_SCHEMA_VERSION, FormatError, plain};
use crate::format::OBJECT_MIN_SIZE;
use crate::id::{CacheKey, Digest};

/// `C` is what is read of the list of contents.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "C: Deserialize<'de>"))]
pub(crate) struct RevisionSummary<'a, C = IgnoredAny> {
    schema_version: Option<u64>,
    #[serde(borrow, default)]
    flake_lock_hash: Cow<'a, str>,
    #[serde(borrow, default)]
    profile: Cow<'a, str>,
    #[serde(borrow, default)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    also_made_from: Vec<Made<'a>>,
    contents: Option<C>,
    #[serde(borrow, default)]
    pub built_at: Cow<'a, str>,
    pub published_at: Option<Timestamp>,
    pub adopted_at: Option<Timestamp>,
    pub build_seconds: Option<f64>,
}

/// What is read of a file to know its object.
#[derive(Debug, Deserialize)]
pub(crate) struct ObjectOf {
    size: u64,
    blake3: Digest,
}

/// The sizes of all files, added up while they are read.
#[derive(Debug)]
pub(crate) struct Sizes(pub u64);

impl<'de> Deserialize<'de> for Sizes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sizes, D::Error> {
        #[derive(Deserialize)]
        struct Size {
            size: u64,
        }
        struct Sum;
        impl<'de> Visitor<'de> for Sum {
            type Value = Sizes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of files")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut files: A) -> Result<Sizes, A::Error> {
                let mut bytes = 0_u64;
                while let Some(Size { size }) = files.next_element()? {
                    // A record may say anything.
                    bytes = bytes.saturating_add(size);
                }
                Ok(Sizes(bytes))
            }
        }
        deserializer.deserialize_seq(Sum)
    }
}

impl RevisionSummary<'_, Sizes> {
    /// The sizes of its files.
    pub fn bytes(&self) -> u64 {
        self.contents.as_ref().map_or(0, |sizes| sizes.0)
    }
}

impl RevisionSummary<'_, Vec<ObjectOf>> {
    /// The objects of its large files.
    pub fn objects(&self) -> Vec<Digest> {
        let large = self.contents.iter().flatten().filter(|content| content.size >= OBJECT_MIN_SIZE);
        large.map(|content| content.blake3).collect()
    }
}

#[derive(Debug, Deserialize)]
struct Made<'a> {
    #[serde(borrow)]
    flake_lock_hash: Cow<'a, str>,
    #[serde(borrow)]
    profile: Cow<'a, str>,
    #[serde(borrow)]
    role: Cow<'a, str>,
}

impl Made<'_> {
    fn key(&self) -> CacheKey {
        CacheKey::of_text(&self.flake_lock_hash, &self.profile, &self.role)
    }
}

impl<'a, C: Deserialize<'a>> RevisionSummary<'a, C> {
    pub fn from_json(bytes: &'a [u8]) -> Result<RevisionSummary<'a, C>, FormatError> {
        let summary: RevisionSummary<C> = plain("revision.json", bytes)?;
        match summary.schema_version {
            Some(found) if found > CURRENT_SCHEMA_VERSION.into() => {
                Err(FormatError::Newer { what: "revision.json", found, supported: CURRENT_SCHEMA_VERSION })
            }
            _ => Ok(summary),
        }
    }

    /// Whether it lists its files.
    pub fn has_contents(&self) -> bool {
        self.contents.is_some()
    }

    /// The keys of all inputs that it is known to be made from.
    pub fn keys(&self) -> Vec<CacheKey> {
        let known = !self.flake_lock_hash.is_empty();
        let first = known.then(|| CacheKey::of_text(&self.flake_lock_hash, &self.profile, &self.role));
        let mut keys: Vec<CacheKey> = first.into_iter().chain(self.also_made_from.iter().map(Made::key)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}
