//! What the store does to the disk, one step at a time, and who may watch it.

use std::fmt::Debug;
use std::io;

use camino::Utf8PathBuf;

/// One change to the disk, as the store is about to make it.
///
/// Paths are those that the step uses at that moment. Reading is not a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op {
    /// A new, empty file.
    Create {
        /// The file.
        path: Utf8PathBuf,
    },
    /// Bytes written to a file.
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// How many bytes.
        len: u64,
    },
    /// Bytes written at the end of a file.
    Append {
        /// The file.
        path: Utf8PathBuf,
        /// How many bytes.
        len: u64,
    },
    /// The length of a file set.
    Truncate {
        /// The file.
        path: Utf8PathBuf,
        /// The new length in bytes.
        len: u64,
    },
    /// Blocks given to a file, which read as zeros.
    Allocate {
        /// The file.
        path: Utf8PathBuf,
        /// The new length in bytes.
        len: u64,
    },
    /// The blocks of a range taken away; it reads as zeros, as it did before.
    PunchHole {
        /// The file.
        path: Utf8PathBuf,
        /// Where the range starts, in bytes.
        start: u64,
        /// How many bytes it has.
        len: u64,
    },
    /// A file made durable: its data, size, mode and times, not its name.
    Fsync {
        /// The file.
        path: Utf8PathBuf,
    },
    /// The names in a directory made durable.
    FsyncDir {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// Everything on a file system made durable.
    SyncFileSystem {
        /// A path on it.
        path: Utf8PathBuf,
    },
    /// A new directory.
    Mkdir {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// An empty directory removed.
    Rmdir {
        /// The directory.
        path: Utf8PathBuf,
    },
    /// A second name for a file.
    Link {
        /// The name that exists.
        from: Utf8PathBuf,
        /// The new name.
        to: Utf8PathBuf,
    },
    /// A name of a file or symbolic link removed.
    Unlink {
        /// The name.
        path: Utf8PathBuf,
    },
    /// A new symbolic link.
    Symlink {
        /// The text that it holds.
        target: String,
        /// The link.
        path: Utf8PathBuf,
    },
    /// A name moved; what had the new name is replaced.
    Rename {
        /// The old name.
        from: Utf8PathBuf,
        /// The new name.
        to: Utf8PathBuf,
    },
    /// A name moved to one that must be free.
    RenameNoReplace {
        /// The old name.
        from: Utf8PathBuf,
        /// The new name.
        to: Utf8PathBuf,
    },
    /// Two names exchanged.
    RenameExchange {
        /// One name.
        from: Utf8PathBuf,
        /// The other.
        to: Utf8PathBuf,
    },
    /// Permission bits set.
    Chmod {
        /// The file or directory.
        path: Utf8PathBuf,
        /// The new bits.
        mode: u32,
    },
    /// An owner set.
    Chown {
        /// The file or directory.
        path: Utf8PathBuf,
        /// The new owner.
        uid: u32,
        /// The new group.
        gid: u32,
    },
    /// The modification time set to [`SEALED_MTIME`](crate::format::SEALED_MTIME).
    SetMtime {
        /// The file.
        path: Utf8PathBuf,
    },
    /// An extended attribute removed.
    RemoveXattr {
        /// The file.
        path: Utf8PathBuf,
        /// The attribute's name.
        name: String,
    },
    /// A file made to share all extents of another (`FICLONE`).
    Clone {
        /// The file whose bytes are shared.
        from: Utf8PathBuf,
        /// The file that receives them.
        to: Utf8PathBuf,
    },
    /// Not a step of the store: all below `path` was written by a builder, and counts as not synced.
    Foreign {
        /// A directory.
        path: Utf8PathBuf,
    },
}

/// What is to become of a step.
#[derive(Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Take it.
    Proceed,
    /// Leave it out and report success: a broken store, for tests that must notice.
    Skip,
    /// Leave it out and report this error.
    Fail(io::Error),
}

/// Sees every change that a store makes to the disk; for tests of crashes and failing disks.
///
/// Steps of parallel work arrive from several threads.
pub trait Observer: Debug + Send + Sync {
    /// Called before a step; its verdict is obeyed.
    fn before(&self, _op: &Op) -> Verdict {
        Verdict::Proceed
    }

    /// Called after a step that was taken, with what came of it.
    fn after(&self, _op: &Op, _outcome: Result<(), &io::Error>) {}
}
