//! What a verification finds, and how bad it is.

use std::fmt;

use camino::Utf8PathBuf;
use serde::Serialize;

use crate::format::Content;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A leftover that a collection removes, or something that needs nothing.
    Note,
    /// Something is lost or not as it should be; no data are damaged.
    Warning,
    /// Data or `current` are damaged.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

/// Declares the kinds with the words that people and JSON see.
macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum FindingKind { $($(#[$doc])* $name,)* }

        impl fmt::Display for FindingKind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(FindingKind::$name => $text,)* })
            }
        }
    };
}

kinds! {
    /// A file does not have the bytes that were published.
    Corrupt = "corrupt",
    /// A file is shorter than it was published.
    Truncated = "truncated",
    /// A file or directory is not there.
    Missing = "missing",
    /// Something else is in its place: a symbolic link, a directory, a file.
    Swapped = "swapped",
    /// It can't be read.
    Unreadable = "unreadable",
    /// A document of the store is not what it should be: empty, torn, or not JSON.
    Invalid = "invalid",
    /// A document was written by a newer program; what it says is not known.
    Newer = "newer",
    /// Something that does not belong there.
    Foreign = "foreign",
    /// The right bytes, with other permissions than a published file has.
    WrongMode = "wrong mode",
    /// The right bytes, with another modification time than a published file has.
    WrongTime = "wrong mtime",
    /// An object whose bytes are not those that its name says.
    ObjectDiffers = "object differs",
    /// A file that should be an object, and is none.
    Unshared = "unshared",
    /// A file with blocks of its own, although an object has the same bytes.
    Twin = "twin",
    /// An object that no revision has.
    UnusedObject = "unused object",
    /// A revision that the index of keys does not know.
    MissingKey = "missing key",
    /// An entry of the index of keys that leads nowhere.
    StaleKey = "stale key",
    /// `current` names a revision that is not there.
    DanglingCurrent = "dangling current",
    /// `current` is empty, names no revision, or is no symbolic link.
    StrangeCurrent = "strange current",
    /// `current` is not there, although a revision was current.
    MissingCurrent = "missing current",
    /// `revisions`, through which `current` resolves, is not the link that it should be.
    WrongAlias = "wrong alias",
    /// A pin keeps a revision that is not there.
    DanglingPin = "dangling pin",
    /// A pin that keeps nothing any more.
    ExpiredPin = "expired pin",
    /// A draft of a process that died.
    DeadDraft = "dead draft",
    /// A deletion that was cut short.
    HalfDeletion = "half deletion",
    /// A revision that this store did not publish: its digests are not known.
    Unlisted = "unlisted",
    /// A revision that a repair has marked as damaged.
    Marked = "marked",
    /// A mark on a revision that is intact, or gone.
    StaleMark = "stale mark",
    /// The note of an instance that is gone.
    StaleInstance = "stale instance",
    /// What `revision.json` says of the snapshot is not what `snapshot.json` says.
    WrongField = "wrong field",
    /// Every user of the machine can change it.
    OpenToAll = "open to all",
    /// It belongs to a user who is neither root nor the owner of the store.
    OtherOwner = "other owner",
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// How bad it is.
    pub severity: Severity,
    /// What it is wrong with; below the store's directory, as an absolute path if the store's is one.
    pub path: Utf8PathBuf,
    /// The template that it belongs to.
    pub template: Option<TemplateId>,
    /// The revision that it belongs to.
    pub revision: Option<RevisionId>,
    /// More, for people.
    pub detail: String,
    /// What a repair does something about.
    #[serde(skip)]
    pub(crate) subject: Subject,
}

/// What a finding is about, in the words of a repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing that a repair touches.
    Nothing,
    /// What this user may not read: whether it is damaged is for others to say.
    Denied,
    /// A directory that every store or template has.
    Directory,
    /// Something that is not the store's, where only the store's things should be.
    Stranger,
    /// The directory of a template or a revision.
    Whole,
    Definition,
    Record,
    File(Content),
    Object(Digest),
    Objects,
    Key(CacheKey),
    Keys,
    Current,
    Alias,
    Log,
    Mark,
    /// The whole snapshot of a revision.
    Snapshot,
    /// What the record of a revision says of its snapshot.
    SnapshotField,
}

impl Finding {
    pub(crate) fn new(kind: FindingKind, severity: Severity, path: Utf8PathBuf, detail: impl Into<String>) -> Finding {
        let detail = detail.into();
        Finding { kind, severity, path, template: None, revision: None, detail, subject: Subject::Nothing }
    }

    pub(crate) fn of(mut self, template: &TemplateId) -> Finding {
        self.template = Some(template.clone());
        self
    }

    pub(crate) fn in_revision(mut self, template: &TemplateId, revision: &RevisionId) -> Finding {
        self.revision = Some(revision.clone());
        self.of(template)
    }

    pub(crate) fn about(mut self, subject: Subject) -> Finding {
        self.subject = subject;
        self
    }

    /// Whether it is more than a note.
    pub(crate) fn counts(&self) -> bool {
        self.severity > Severity::Note
    }

    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// Whether it is about the snapshot of a revision, which does without it.
    pub(crate) fn is_of_snapshot(&self) -> bool {
        match &self.subject {
            Subject::Snapshot | Subject::SnapshotField => true,
            Subject::File(content) => content.path.is_in_snapshot(),
            _ => false,
        }
    }

    /// Whether it is an error of a revision itself.
    pub(crate) fn spoils_revision(&self) -> bool {
        self.is_error() && !self.is_of_snapshot()
    }

    /// The revision that it belongs to, if it belongs to one.
    pub(crate) fn place(&self) -> Option<(TemplateId, RevisionId)> {
        Some((self.template.clone()?, self.revision.clone()?))
    }
}

/// What a verification looked at, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// What is not as it should be, the worst first.
    pub findings: Vec<Finding>,
    /// Revisions that were looked at.
    pub revisions: usize,
    /// Artifacts that were looked at, those of each revision counted.
    pub files: u64,
    /// Bytes that were read and hashed; each inode counts once.
    pub bytes_hashed: u64,
}

impl Report {
    /// Whether there is nothing but notes.
    pub fn is_clean(&self) -> bool {
        !self.findings.iter().any(Finding::counts)
    }

    /// How many findings are this bad.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The worst first; in the order of their paths, and each once.
    pub(crate) fn sort(&mut self) {
        let wrong = |finding: &Finding| matches!(finding.kind, FindingKind::WrongMode | FindingKind::WrongTime);
        let says_why = |finding: &Finding| finding.subject != Subject::Denied;
        let damaged = self.findings.iter().filter(|finding| finding.is_error() && !wrong(finding) && says_why(finding));
        let damaged: std::collections::HashSet<_> = damaged.map(|finding| finding.path.clone()).collect();
        // What was written to has another time as well: that says nothing new. Of what may not be read, the mode does.
        self.findings.retain(|finding| !wrong(finding) || !damaged.contains(&finding.path));
        self.findings.sort_by(|a, b| (b.severity, &a.path, a.kind).cmp(&(a.severity, &b.path, b.kind)));
        self.findings.dedup();
    }
}

/// Something that a repair set right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Mended {
    /// What it set right.
    pub path: Utf8PathBuf,
    /// How, for people.
    pub how: String,
}

/// What a repair found and did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// What was found before anything was changed.
    pub report: Report,
    /// What was set right.
    pub mended: Vec<Mended>,
    /// What could not be: errors and warnings only.
    pub remaining: Vec<Finding>,
}
