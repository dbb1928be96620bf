//! What a collection did.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::inventory::{Bound, LeftoverKind};
use super::plan::Unmet;
use crate::format::Holder;
use crate::id::{RevisionId, TemplateId};

/// What applying a plan did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GcReport {
    /// The revisions that are gone.
    pub removed: Vec<Collected>,
    /// Those that were to go and stayed.
    pub skipped: Vec<Skipped>,
    /// What dead processes had left behind, and is gone.
    pub swept: Vec<Swept>,
    /// What could not be removed of it.
    pub failed: Vec<FailedSweep>,
    /// The bytes that all this freed.
    pub freed: u64,
    /// The bytes of what is gone that stay on the disk for instances which have links to them.
    #[serde(default)]
    pub held_by_instances: u64,
    /// What the bytes are worth.
    pub bound: Bound,
    /// Goals of the plan that could not be reached.
    pub unmet: Vec<Unmet>,
}

impl GcReport {
    /// Whether records did not say what the plan followed: a revision was made anew, or the catalog is wrong.
    pub(crate) fn is_astray(&self) -> bool {
        self.skipped.iter().any(|skipped| matches!(skipped.why, SkipReason::Replaced | SkipReason::Misjudged))
    }
}

/// A revision that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Its template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
    /// The bytes that were freed with it: of a file with several names, with the last.
    pub freed: u64,
}

/// A revision that was to go and stayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Its template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
    /// Why.
    #[serde(flatten)]
    pub why: SkipReason,
}

/// Why a revision stayed that was to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "why")]
#[non_exhaustive]
pub enum SkipReason {
    /// It became current.
    BecameCurrent,
    /// `current` names nothing that exists, so it may be the one that was meant.
    CurrentUnknown,
    /// A rollback would go back to it now.
    BecameRollbackTarget,
    /// Live processes use it.
    Leased {
        /// Those that can be seen.
        holders: Vec<Holder>,
    },
    /// Somebody pinned it.
    Pinned {
        /// The pin's name.
        name: String,
        /// Until when; `None` is for ever.
        until: Option<Timestamp>,
    },
    /// It is not there any more.
    Gone,
    /// Another revision has its name.
    Replaced,
    /// What is kept in its stead was not published when the plan says so: a catalog was wrong, and is removed.
    Misjudged,
    /// Somebody held the template's lock all the time.
    Busy,
    /// The system refused.
    Failed {
        /// What it said.
        error: String,
    },
}

/// Something that a dead process had left behind, and that could not be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedSweep {
    /// Where it is, below the store's directory.
    pub path: String,
    /// What the system said.
    pub error: String,
}

/// Something that a dead process had left behind, and is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// What it was.
    pub kind: LeftoverKind,
    /// Where it was, below the store's directory.
    pub path: String,
    /// The bytes that were freed with it.
    pub freed: u64,
}
