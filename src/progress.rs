//! What long work says while it runs.

use std::fmt;

use camino::Utf8PathBuf;

use crate::format::Attempt;
use crate::id::{ArtifactPath, RevisionId, TemplateId};

/// A part of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// Files are copied into the store, and hashed on the way.
    Copying,
    /// Files are hashed and made durable.
    Sealing,
    /// Files are compared with those of another revision.
    Comparing,
    /// Revisions are collected; the numbers are revisions, not bytes.
    Collecting,
    /// Revisions are looked at, and small files are read; the numbers are templates, not bytes.
    Looking,
    /// Files are read, to see whether they are what was published.
    Verifying,
    /// Files are sent to a remote.
    Sending,
    /// Files come from a remote.
    Fetching,
}

/// Hears how long work goes on; `()` does not care.
pub trait Progress: Send {
    /// A part begins that has this many bytes to go through.
    fn begin(&mut self, _stage: Stage, _bytes: u64) {}

    /// This many more bytes are done.
    fn advance(&mut self, _bytes: u64) {}

    /// The part is done.
    fn end(&mut self) {}

    /// Another process builds the same; this one waits for it.
    fn waiting(&mut self, _on: &Attempt) {}

    /// Something that the user should know, and that is no error.
    fn note(&mut self, _note: Note) {}
}

impl Progress for () {}

/// Something that the user should know, and that is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// A revision with this key was not used: its sources were others.
    SourcesDiffer {
        /// Its template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
    },
    /// A revision with this key comes from another flake reference.
    FlakeRefDiffers {
        /// Its template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// The reference that it was built from.
        flake_ref: String,
        /// Whether it was used all the same.
        used: bool,
    },
    /// A revision with this key was not used: it is damaged.
    SourceDamaged {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Extended attributes that a published file does not keep.
    AttributesDropped {
        /// The file.
        path: ArtifactPath,
        /// Their names.
        names: Vec<String>,
    },
    /// A file was copied: the builder's own inode could not be kept.
    Copied {
        /// The file.
        path: ArtifactPath,
        /// Why.
        reason: &'static str,
    },
    /// A file of an adopted revision has a fresh inode: the one that it had could not be kept.
    Detached {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// A file has its own blocks, although the store has the same bytes already.
    NotShared {
        /// The file.
        path: ArtifactPath,
        /// Why.
        reason: String,
    },
    /// A damaged file was replaced by an intact one.
    Healed {
        /// The file.
        path: Utf8PathBuf,
    },
    /// A damaged file could not be replaced.
    NotHealed {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        reason: String,
    },
    /// A registry has no definition of a template: it was made from what the revision says.
    DefinitionMissing {
        /// The template.
        template: TemplateId,
    },
    /// A repair made another revision current: what was current is damaged or gone.
    CurrentMoved {
        /// The template.
        template: TemplateId,
        /// What `current` held.
        from: String,
        /// The revision that is current now.
        to: RevisionId,
    },
    /// A repair found nothing to mend a revision with: it is not offered any more.
    RevisionLost {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// Where it is now.
        path: Utf8PathBuf,
    },
    /// A repair found nothing to mend a snapshot with; its revision has none any more.
    SnapshotLost {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// Where it is now.
        path: Utf8PathBuf,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::SourcesDiffer { template, revision } => {
                write!(f, "{template}@{revision} has the same key, but was built from other sources: not reused")
            }
            Note::FlakeRefDiffers { template, revision, flake_ref, used } => {
                let used = if *used { "reused all the same" } else { "not reused (--strict)" };
                write!(f, "{template}@{revision} has the same key, but was built from {flake_ref:?}: {used}")
            }
            Note::SourceDamaged { path, problem } => write!(f, "{path} is damaged ({problem}): not reused"),
            Note::AttributesDropped { path, names } => {
                write!(f, "{path}: extended attributes are not kept: {}", names.join(", "))
            }
            Note::Copied { path, reason } => write!(f, "{path} was copied: {reason}"),
            Note::Detached { path, reason } => write!(f, "{path} was replaced by a copy of itself: {reason}"),
            Note::NotShared { path, reason } => write!(f, "{path} does not share its blocks: {reason}"),
            Note::Healed { path } => write!(f, "{path} was damaged; it has its bytes again"),
            Note::DefinitionMissing { template } => {
                write!(f, "template.json is missing; the definition of {template} was made from what its revision says")
            }
            Note::CurrentMoved { template, from, to } => {
                write!(f, "ATTENTION: {to} is current in {template} now; {from} is damaged or gone")
            }
            Note::RevisionLost { template, revision, path } => {
                write!(f, "ATTENTION: {template}@{revision} is damaged beyond repair, and not offered any more: {path}")
            }
            Note::SnapshotLost { template, revision, path } => write!(
                f,
                "ATTENTION: the snapshot of {template}@{revision} is damaged beyond repair, and is at {path} now; the revision boots as before"
            ),
            Note::NotHealed { path, reason } => write!(f, "{path} is damaged and could not be replaced: {reason}"),
        }
    }
}
