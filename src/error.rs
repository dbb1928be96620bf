//! What can go wrong, said with the path and the next step.

use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use crate::format::{Attempt, Durability, FormatError};
use crate::id::{InvalidName, RevisionId, TemplateId};

/// A call to the system that failed, and what it was about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}{}", advice(source))]
pub struct PathError {
    /// What was tried, as a verb: `open`, `rename`, …
    pub doing: &'static str,
    /// The file or directory.
    pub path: Utf8PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free space on its file system, or remove revisions with `template-store rm`, and try again"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; the store can be read, but nothing can be changed until it is mounted writable"
        }
        io::ErrorKind::PermissionDenied => "; run as the owner of the store, or give this user access",
        io::ErrorKind::CrossesDevices => "; both must be on one file system",
        _ => "",
    }
}

/// Adds to an error of the system what it was about.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: &Utf8Path) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: &Utf8Path) -> Result<T, PathError> {
        self.map_err(|error| PathError { doing, path: path.to_owned(), source: error.into() })
    }
}

impl PathError {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }

    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// What a caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The work could not be done; the text says why.
    Failed,
    /// What was given is not valid.
    Invalid,
    /// What was asked for does not exist.
    NotFound,
    /// Something in the store is damaged.
    Damaged,
    /// Something is in use, or the store would not do this unasked.
    Refused,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is not valid.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// A call to the system failed.
    #[error(transparent)]
    Io(#[from] PathError),
    /// A file of the store, or one that was given, is not what it should be.
    #[error("{path}: {source}")]
    Format {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        source: FormatError,
    },
    /// There is no store.
    #[error("there is no store at {path}; make one with `template-store init`, or name another with --store")]
    NoStore {
        /// Where it was looked for.
        path: Utf8PathBuf,
    },
    /// A directory that holds something else.
    #[error("{path} is not empty and not a template store; name an empty or new directory")]
    NotAStore {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// A data directory of mvm.
    #[error(
        "{path} is a data directory of mvm that was not adopted: it can be read, not changed; take it over with `template-store adopt {path}`, or name another store"
    )]
    NotAdopted {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// A file system on which locks of other hosts do not count.
    #[error(
        "{path} is on a network file system ({name}), where the locks of other hosts may not count; use a local one, or insist with --allow-network-fs"
    )]
    NetworkFileSystem {
        /// The directory.
        path: Utf8PathBuf,
        /// The kind of the file system.
        name: &'static str,
    },
    /// The store was made with another durability.
    #[error("the store at {path} was made with durability {}, which is fixed; make another store for another one", format!("{durability:?}").to_lowercase())]
    DurabilityFixed {
        /// The store.
        path: Utf8PathBuf,
        /// The durability that it has.
        durability: Durability,
    },
    /// There is no such template.
    #[error("there is no template {template}; `template-store list` shows those that exist")]
    TemplateNotFound {
        /// Its id.
        template: TemplateId,
    },
    /// The template exists with another definition.
    #[error(
        "template {template} exists already with another definition ({difference}); `template-store apply` changes it"
    )]
    TemplateExists {
        /// Its id.
        template: TemplateId,
        /// What differs.
        difference: String,
    },
    /// There is no such revision.
    #[error("template {template} has no revision {revision}; `template-store show {template}` lists those that exist")]
    RevisionNotFound {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
    },
    /// The template has no `current` yet.
    #[error(
        "template {template} has no current revision; build or publish one, or choose one with `template-store activate`"
    )]
    NoCurrent {
        /// The template.
        template: TemplateId,
    },
    /// `current` points to nothing.
    #[error("{path} points to {target:?}, which does not exist; choose a revision with `template-store activate`")]
    DanglingCurrent {
        /// The link.
        path: Utf8PathBuf,
        /// Its text.
        target: String,
    },
    /// There is no earlier activation.
    #[error(
        "template {template} has no earlier revision to go back to; `template-store history {template}` shows what was current"
    )]
    NothingToRollBack {
        /// The template.
        template: TemplateId,
    },
    /// The revision exists with other contents.
    #[error(
        "revision {revision} of template {template} exists already with other contents: {path} differs; publish under another id, or without one"
    )]
    RevisionDiffers {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// The first file that differs.
        path: String,
    },
    /// A draft holds something that a revision can't.
    #[error("{path} {problem}")]
    BadDraft {
        /// The file or directory.
        path: Utf8PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A draft lacks an artifact that every revision has.
    #[error(
        "the build left no {name} in {dir}; a revision needs a kernel, a root file system and a Firecracker configuration (other names can be given)"
    )]
    MissingArtifact {
        /// Its name.
        name: String,
        /// The draft.
        dir: Utf8PathBuf,
    },
    /// A file that was to be a `flake.lock`.
    #[error("{path} is not a flake.lock: {reason}")]
    NotAFlakeLock {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else builds the same key, and the time to wait is over.
    #[error("process {} has been building this since {} (template {}{}); {} passed without an end", attempt.pid, attempt.started_at, attempt.template, command(attempt), seconds(waited))]
    BuildInProgress {
        /// Who builds.
        attempt: Box<Attempt>,
        /// How long this process waited.
        waited: Duration,
    },
    /// The build of somebody else, on which this process waited, failed.
    #[error("the build by process {} failed: {message}", attempt.pid)]
    BuildFailed {
        /// Who built.
        attempt: Box<Attempt>,
        /// Its error.
        message: String,
    },
    /// This thread builds the key already.
    #[error("this thread already builds the same key for template {template}; seal or drop that draft first")]
    AlreadyBuilding {
        /// The template.
        template: TemplateId,
    },
    /// The compare-and-swap of `current` failed.
    #[error("template {template}: current was expected to be {expected}, but is {found}; nothing was changed")]
    CurrentMoved {
        /// The template.
        template: TemplateId,
        /// What the caller expected.
        expected: String,
        /// What is current.
        found: String,
    },
    /// A live process uses the revision.
    #[error(
        "revision {revision} of template {template} is in use by a live process; stop it first, or insist with --force"
    )]
    InUse {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
    },
    /// The revision is current.
    #[error("revision {revision} is current in template {template}; activate another first{advice}")]
    IsCurrent {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// What else can be done.
        advice: &'static str,
    },
    /// What is to be written does not fit.
    #[error(
        "{path} needs {needed} bytes, and its file system has {available}; free space, or remove revisions with `template-store rm`, and try again"
    )]
    NoSpace {
        /// The store.
        path: Utf8PathBuf,
        /// Bytes that are to be written.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// A file of a revision is not what was published.
    #[error(
        "{path} is damaged: {problem}; publish the same contents again, or remove the revision with `template-store rm`"
    )]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The thing that was being worked on disappeared.
    #[error("{path} was removed while it was being written")]
    Vanished {
        /// The draft.
        path: Utf8PathBuf,
    },
}

fn command(attempt: &Attempt) -> String {
    if attempt.command.is_empty() { String::new() } else { format!(", command `{}`", attempt.command) }
}

fn seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::InvalidName(_) => ErrorKind::Invalid,
            Error::NoStore { .. }
            | Error::TemplateNotFound { .. }
            | Error::RevisionNotFound { .. }
            | Error::NoCurrent { .. }
            | Error::NothingToRollBack { .. } => ErrorKind::NotFound,
            Error::Damaged { .. } | Error::DanglingCurrent { .. } => ErrorKind::Damaged,
            Error::Format { source: FormatError::Invalid { what, .. }, .. } if STORED.contains(what) => {
                ErrorKind::Damaged
            }
            Error::NotAdopted { .. }
            | Error::DurabilityFixed { .. }
            | Error::NetworkFileSystem { .. }
            | Error::TemplateExists { .. }
            | Error::RevisionDiffers { .. }
            | Error::BuildInProgress { .. }
            | Error::AlreadyBuilding { .. }
            | Error::CurrentMoved { .. }
            | Error::InUse { .. }
            | Error::IsCurrent { .. } => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        }
    }
}

/// Documents that the store wrote itself: one that can't be read is damage, not a mistake of the caller.
const STORED: [&str; 3] = ["template.json", "revision.json", "format.json"];

/// The result of the store's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
