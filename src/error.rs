//! What can go wrong, said with the path and the next step.

mod path;

use std::time::Duration;

use camino::Utf8PathBuf;

use crate::format::{Attempt, Durability, FormatError};
use crate::id::{DriveId, InvalidName, RevisionId, TemplateId};

pub(crate) use path::At;
pub use path::PathError;

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
    /// Something is wrong with a remote.
    #[cfg(feature = "remote")]
    #[error(transparent)]
    Remote(#[from] crate::remote::RemoteError),
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
    /// What should hold the store's own things is a link or a file.
    #[error(
        "{path} is not a directory, so nothing is read or changed here; remove it, and `template-store adopt` makes a store again of the templates beside it"
    )]
    PrivateSwapped {
        /// `.store`.
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
    /// A directory that was to be adopted, and that mvm did not make.
    #[error(
        "{path} is not a data directory of mvm: it has no templates/ with a template in it; name the directory that holds templates/, or make a store with `template-store init`"
    )]
    NotMvm {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// The name of the link that makes `current` resolve has something else.
    #[error("{path} is not the link to `artifacts` through which `current` resolves; move it away, and try again")]
    AliasTaken {
        /// Where the link would be.
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
    /// A pin keeps the revision.
    #[error("revision {revision} of template {template} is pinned as {pin}; `template-store unpin {pin}` lets it go")]
    Pinned {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// The pin's name.
        pin: String,
    },
    /// The pin's name is taken.
    #[error("there is a pin {pin} already, for {template}@{revision}; unpin it first, or choose another name")]
    PinExists {
        /// The pin's name.
        pin: String,
        /// The template that it names.
        template: TemplateId,
        /// The revision that it names.
        revision: RevisionId,
    },
    /// There is no such pin.
    #[error("there is no pin {pin}; `template-store pins` lists those that exist")]
    PinNotFound {
        /// The name.
        pin: String,
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
        "{path} needs {needed} bytes, and its file system has {available}; collect what nobody needs with `template-store gc`, or free space, and try again"
    )]
    NoSpace {
        /// The store.
        path: Utf8PathBuf,
        /// Bytes that are to be written.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// There is something where an instance was to be made.
    #[error(
        "{path} exists already; name a directory that does not, or remove it first, if it is an instance with `template-store instance rm {path}`"
    )]
    DestinationTaken {
        /// The path.
        path: Utf8PathBuf,
    },
    /// An instance can't be made there.
    #[error("{path} {problem}")]
    BadDestination {
        /// The path.
        path: Utf8PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A revision from which an instance can't be made.
    #[error("no instance can be made of {template}@{revision}: {problem}")]
    BadForInstance {
        /// Its template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// Why, and what to do.
        problem: String,
    },
    /// A file was to share its blocks with the store's, and can't.
    #[error("{path} can't be a clone of the store's file: {reason}; without --require-reflink it is copied")]
    CannotClone {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no instance.
    #[error("there is nothing at {path}; `template-store instance list` shows the instances that there are")]
    InstanceNotFound {
        /// Where it was looked for.
        path: Utf8PathBuf,
    },
    /// A directory that was to be an instance of this store.
    #[error("{path} is not an instance of this store: {problem}; `template-store instance list` shows those that are")]
    NotAnInstance {
        /// The directory.
        path: Utf8PathBuf,
        /// Why.
        problem: String,
    },
    /// Somebody has a disk of an instance open for writing.
    #[error("{path} is open for writing: a VM uses its instance; stop it first, or insist with --force")]
    InstanceInUse {
        /// The disk.
        path: Utf8PathBuf,
    },
    /// Somebody writes to a file of a revision that this store neither published nor adopted.
    #[error(
        "{path} is open for writing, so a copy would be of no one moment; stop the VM that writes to it, and try again (`template-store adopt` seals the revision then)"
    )]
    ArtifactInUse {
        /// The file.
        path: Utf8PathBuf,
    },
    /// Something is mounted in an instance that is to be removed.
    #[error("something is mounted at {path}, in an instance that is to be removed; unmount it first (`umount {path}`)")]
    InstanceHasMount {
        /// The mount point.
        path: Utf8PathBuf,
    },
    /// This user may not give files away.
    #[error("only root can give files to user {uid} and group {gid}; run as root, or leave --owner out")]
    CannotGive {
        /// The user.
        uid: u32,
        /// The group.
        gid: u32,
    },
    /// A snapshot without the state of a disk that its VM writes to.
    #[error(
        "the snapshot of {template}@{revision} lacks the writable drive {drive}: memory and disks must be of one moment; give its file as of the pause (--drive {drive}=FILE)"
    )]
    SnapshotLacksDrive {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
        /// The drive.
        drive: DriveId,
    },
    /// A file that can't be a part of a snapshot.
    #[error("{path} {problem}")]
    BadSnapshot {
        /// The file.
        path: Utf8PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// The revision has no snapshot that this store knows.
    #[error(
        "revision {revision} of template {template} has no snapshot; `template-store snapshot attach` attaches one"
    )]
    NoSnapshot {
        /// The template.
        template: TemplateId,
        /// The revision.
        revision: RevisionId,
    },
    /// What a snapshot's own document says can't be understood.
    #[error(
        "{path} is damaged: {problem}; `template-store verify --repair` moves the snapshot aside, and `template-store snapshot attach` attaches a new one"
    )]
    SnapshotDamaged {
        /// The document.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
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
    /// Something else is where a directory of the store should be.
    #[error(
        "{path} is not a directory: nothing is changed through it; `template-store verify --repair` moves it aside"
    )]
    Misplaced {
        /// The path.
        path: Utf8PathBuf,
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
            #[cfg(feature = "remote")]
            Error::Remote(error) => error.kind(),
            Error::NoStore { .. }
            | Error::TemplateNotFound { .. }
            | Error::RevisionNotFound { .. }
            | Error::NoCurrent { .. }
            | Error::PinNotFound { .. }
            | Error::NoSnapshot { .. }
            | Error::InstanceNotFound { .. }
            | Error::NothingToRollBack { .. } => ErrorKind::NotFound,
            Error::Damaged { .. }
            | Error::SnapshotDamaged { .. }
            | Error::DanglingCurrent { .. }
            | Error::Misplaced { .. }
            | Error::PrivateSwapped { .. } => ErrorKind::Damaged,
            Error::Format { source: FormatError::Invalid { what, .. }, .. } if STORED.contains(what) => {
                ErrorKind::Damaged
            }
            Error::NotAdopted { .. }
            | Error::AliasTaken { .. }
            | Error::DurabilityFixed { .. }
            | Error::NetworkFileSystem { .. }
            | Error::TemplateExists { .. }
            | Error::RevisionDiffers { .. }
            | Error::BuildInProgress { .. }
            | Error::AlreadyBuilding { .. }
            | Error::CurrentMoved { .. }
            | Error::InUse { .. }
            | Error::SnapshotLacksDrive { .. }
            | Error::BadSnapshot { .. }
            | Error::DestinationTaken { .. }
            | Error::CannotClone { .. }
            | Error::NotAnInstance { .. }
            | Error::InstanceInUse { .. }
            | Error::InstanceHasMount { .. }
            | Error::ArtifactInUse { .. }
            | Error::Pinned { .. }
            | Error::PinExists { .. }
            | Error::IsCurrent { .. } => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        }
    }
}

/// Documents that the store wrote itself: one that can't be read is damage, not a mistake of the caller.
const STORED: [&str; 4] = ["template.json", "revision.json", "format.json", "pin"];

/// The result of the store's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;
