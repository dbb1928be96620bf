//! What a builder writes into the lock of the key that it builds, for those who wait.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, plain, pretty};
use crate::id::{Digest, RevisionId, TemplateId};

/// One attempt to build a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// The template that it is built for.
    pub template: TemplateId,
    /// The process that builds.
    pub pid: u32,
    /// What it runs, as people would write it; empty when it did not say.
    pub command: String,
    /// When it began.
    pub started_at: Timestamp,
    /// The hash of its sources, if they were given.
    #[serde(default)]
    pub source_hash: Option<Digest>,
    /// The name of the draft that it writes, below `drafts/`.
    #[serde(default)]
    pub(crate) draft: String,
    /// How it ended; `None` while it goes on, or after its process died.
    #[serde(default)]
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The revision is published.
    Published(RevisionId),
    /// The builder said that it failed.
    Failed(String),
}

impl Attempt {
    pub(crate) fn from_json(bytes: &[u8]) -> Result<Attempt, FormatError> {
        plain("build lock", bytes)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}
