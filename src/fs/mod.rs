//! The only door to the disk.
//!
//! [`Disk`] has one method for each change that the store can make; each tells the observer first. Reads are
//! plain functions. Neither follows a link on the way to what it is about ([`reach`]). No other part of the library
//! names `std::fs`, rustix, tempfile, fs2 or walkdir; the program's own code only reads.

pub(crate) mod atomic;
pub(crate) mod copy;
pub(crate) mod duplicate;
pub(crate) mod fixed;
pub(crate) mod handle;
pub(crate) mod holes;
mod ioctl;
pub(crate) mod lock;
pub(crate) mod mounts;
mod op;
mod parts;
pub(crate) mod process;
pub(crate) mod reach;
pub(crate) mod read;
#[cfg(feature = "remote")]
pub(crate) mod receive;
pub(crate) mod remove;
pub(crate) mod seal;
pub(crate) mod size;
mod target;
pub(crate) mod walk;
pub(crate) mod writer;

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::error::{At, PathError};
use crate::format::{Durability, SEALED_MTIME};
use writer::Starting;

pub use op::{Observer, Op, Verdict};

type Result<T> = std::result::Result<T, PathError>;

/// Every change that the store makes to the disk.
///
/// Without durability, nothing is synced.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    observer: Option<Arc<dyn Observer>>,
    durability: Durability,
    starting: Starting,
}

impl Disk {
    pub fn new(observer: Option<Arc<dyn Observer>>, durability: Durability) -> Disk {
        Disk { observer, durability, starting: Starting::default() }
    }

    /// Whether what is written is waited for.
    pub fn waits(&self) -> bool {
        self.durability != Durability::None
    }

    /// The same disk for work that is thrown away.
    pub fn without_syncs(&self) -> Disk {
        Disk { durability: Durability::None, ..self.clone() }
    }

    /// A new, empty file that only this user can read yet, open for writing.
    pub fn create(&self, path: &Utf8Path, mode: u32) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mut file = None;
        let mut open = || {
            file = Some(reach::open(path, flags, mode)?);
            Ok(())
        };
        self.step(|| Op::Create { path: path.into() }, &mut open).at("create", path)?;
        match file {
            Some(file) => Ok(file),
            None => Err(io::Error::other("the step was left out")).at("create", path),
        }
    }

    /// Writes at the file's position.
    pub fn write(&self, mut file: &File, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.step(|| Op::Write { path: path.into(), len }, || file.write_all(bytes)).at("write", path)
    }

    /// Writes from the start of a file, wherever its position is.
    pub fn write_at_start(&self, file: &File, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        self.write_at(file, path, bytes, 0)
    }

    /// Writes at a place of a file, wherever its position is.
    pub fn write_at(&self, file: &File, path: &Utf8Path, bytes: &[u8], at: u64) -> Result<()> {
        let len = bytes.len() as u64;
        self.step(|| Op::Write { path: path.into(), len }, || file.write_all_at(bytes, at)).at("write", path)
    }

    /// Writes at the end of a file that exists.
    pub fn append(&self, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let mut file = reach::open(path, OFlags::WRONLY | OFlags::APPEND, 0).at("open", path)?;
        self.step(|| Op::Append { path: path.into(), len }, || file.write_all(bytes)).at("append to", path)
    }

    /// Sets the length of a file.
    pub fn truncate(&self, path: &Utf8Path, len: u64) -> Result<()> {
        let file = reach::open(path, OFlags::WRONLY, 0).at("open", path)?;
        self.set_len(&file, path, len)
    }

    /// Sets the length of an open file.
    pub fn set_len(&self, file: &File, path: &Utf8Path, len: u64) -> Result<()> {
        self.step(|| Op::Truncate { path: path.into(), len }, || file.set_len(len)).at("set the length of", path)
    }

    /// Gives a file blocks for this many bytes, which read as zeros.
    pub fn allocate(&self, file: &File, path: &Utf8Path, len: u64) -> Result<()> {
        let allocate = || fs2::FileExt::allocate(file, len);
        self.step(|| Op::Allocate { path: path.into(), len }, allocate).at("set blocks aside for", path)
    }

    /// Makes a file's bytes, size, mode and times durable; not its name.
    pub fn fsync(&self, file: &File, path: &Utf8Path) -> Result<()> {
        self.sync_step(|| Op::Fsync { path: path.into() }, || file.sync_all()).at("sync", path)
    }

    /// Makes the names in a directory durable.
    pub fn fsync_dir(&self, path: &Utf8Path) -> Result<()> {
        let sync = || reach::open(path, reach::DIRECTORY, 0)?.sync_all();
        self.sync_step(|| Op::FsyncDir { path: path.into() }, sync).at("sync", path)
    }

    /// Makes everything on the file system of `path` durable.
    pub fn sync_file_system(&self, path: &Utf8Path) -> Result<()> {
        let sync = || Ok(rustix::fs::syncfs(reach::open(path, reach::DIRECTORY, 0)?)?);
        self.sync_step(|| Op::SyncFileSystem { path: path.into() }, sync).at("sync the file system of", path)
    }

    pub fn mkdir(&self, path: &Utf8Path, mode: u32) -> Result<()> {
        let make = || reach::mkdir(path.as_std_path(), mode);
        self.step(|| Op::Mkdir { path: path.into() }, make).at("create directory", path)
    }

    /// A directory that may be there already; so may the one that holds it, or not.
    pub fn ensure_dir(&self, path: &Utf8Path) -> Result<()> {
        match (self.mkdir(path, 0o777), path.parent()) {
            (Err(error), _) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound && !parent.as_str().is_empty() => {
                self.ensure_dir(parent)?;
                self.ensure_dir(path)
            }
            (made, _) => made,
        }
    }

    pub fn rmdir(&self, path: impl AsRef<Path>) -> Result<()> {
        let (real, path) = (path.as_ref(), lossy(path.as_ref()));
        let remove = || reach::remove(real, AtFlags::REMOVEDIR);
        self.step(|| Op::Rmdir { path: path.clone() }, remove).at("remove directory", &path)
    }

    pub fn link(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        let link = || reach::link(from.as_std_path(), to.as_std_path());
        self.step(|| Op::Link { from: from.into(), to: to.into() }, link).at("link", to)
    }

    pub fn unlink(&self, path: impl AsRef<Path>) -> Result<()> {
        let (real, path) = (path.as_ref(), lossy(path.as_ref()));
        let remove = || reach::remove(real, AtFlags::empty());
        self.step(|| Op::Unlink { path: path.clone() }, remove).at("remove", &path)
    }

    /// Removes a file that may be gone already.
    pub fn unlink_if_there(&self, path: &Utf8Path) -> Result<()> {
        match self.unlink(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub fn symlink(&self, target: &str, path: &Utf8Path) -> Result<()> {
        let link = || reach::symlink(target, path.as_std_path());
        self.step(|| Op::Symlink { target: target.into(), path: path.into() }, link).at("create link", path)
    }

    /// Moves a name; what had the new one is replaced.
    ///
    /// Two names of one inode are left as they are: the kernel does nothing then, and reports success.
    pub fn rename(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        let rename = || reach::rename(from.as_std_path(), to.as_std_path(), RenameFlags::empty());
        self.step(|| Op::Rename { from: from.into(), to: to.into() }, rename).at("rename to", to)
    }

    /// Moves a directory to a name that must be free; the caller's lock keeps others from taking it.
    ///
    /// A file system that can't promise that gets a plain rename, which refuses a directory that is not empty.
    pub fn rename_noreplace(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        let rename = || reach::rename(from.as_std_path(), to.as_std_path(), RenameFlags::NOREPLACE);
        let moved = self.step(|| Op::RenameNoReplace { from: from.into(), to: to.into() }, rename).at("rename to", to);
        match moved {
            Err(error) if error.errno() == Some(libc::EINVAL) => {
                if read::exists(to)? {
                    return Err(io::Error::from(Errno::EXIST)).at("rename to", to);
                }
                self.rename(from, to)
            }
            moved => moved,
        }
    }

    /// Exchanges two names in one step.
    pub fn rename_exchange(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        let rename = || reach::rename(from.as_std_path(), to.as_std_path(), RenameFlags::EXCHANGE);
        self.step(|| Op::RenameExchange { from: from.into(), to: to.into() }, rename).at("exchange with", to)
    }

    pub fn chmod(&self, path: impl AsRef<Path>, mode: u32) -> Result<()> {
        let (real, path) = (path.as_ref(), lossy(path.as_ref()));
        let change = || reach::chmod(real, mode);
        self.step(|| Op::Chmod { path: path.clone(), mode }, change).at("set the mode of", &path)
    }

    /// Sets the mode of an open file.
    pub fn chmod_file(&self, file: &File, path: &Utf8Path, mode: u32) -> Result<()> {
        let change = || file.set_permissions(Permissions::from_mode(mode));
        self.step(|| Op::Chmod { path: path.into(), mode }, change).at("set the mode of", path)
    }

    /// Gives a file the modification time of a sealed one.
    pub fn set_sealed_mtime(&self, file: &File, path: &Utf8Path) -> Result<()> {
        let time = Timespec { tv_sec: SEALED_MTIME, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        let set = || rustix::fs::futimens(file, &times).map_err(io::Error::from);
        self.step(|| Op::SetMtime { path: path.into() }, set).at("set the time of", path)
    }

    pub fn remove_xattr(&self, file: &File, path: &Utf8Path, name: &str) -> Result<()> {
        let remove = || rustix::fs::fremovexattr(file, name).map_err(io::Error::from);
        self.step(|| Op::RemoveXattr { path: path.into(), name: name.into() }, remove)
            .at("remove an attribute of", path)
    }

    /// Makes `to` share all extents of `from`.
    pub fn clone_file(&self, from: (&File, &Utf8Path), to: (&File, &Utf8Path)) -> Result<()> {
        let clone = || rustix::fs::ioctl_ficlone(to.0, from.0).map_err(io::Error::from);
        self.step(|| Op::Clone { from: from.1.into(), to: to.1.into() }, clone).at("clone to", to.1)
    }

    /// Tells the observer that a builder wrote what is below `path`.
    pub fn note_foreign(&self, path: &Utf8Path) -> Result<()> {
        self.step(|| Op::Foreign { path: path.into() }, || Ok(())).at("read", path)
    }

    fn sync_step(&self, op: impl FnOnce() -> Op, act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        match self.durability {
            Durability::Full => self.step(op, act),
            Durability::None => Ok(()),
        }
    }

    /// Takes a step, and takes it again as long as a signal interrupts it.
    ///
    /// The standard library does so for some calls, and the kernel interrupts others on a file system of a server or
    /// of a program (FUSE), or while it sets blocks aside: whoever uses the store should not have to know which.
    fn step(&self, op: impl FnOnce() -> Op, mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        if self.observer.is_none() && !tracing::enabled!(tracing::Level::DEBUG) {
            return uninterrupted(act);
        }
        let op = op();
        tracing::debug!("{op:?}");
        let Some(observer) = &self.observer else { return uninterrupted(act) };
        uninterrupted(|| match observer.before(&op) {
            Verdict::Proceed => {
                let outcome = act();
                observer.after(&op, outcome.as_ref().map(|_| ()));
                outcome
            }
            Verdict::Skip => Ok(()),
            Verdict::Fail(error) => Err(error),
        })
    }
}

/// Does something again until no signal interrupts it.
fn uninterrupted(mut act: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A path that a caller named; inside, all paths are UTF-8.
pub(crate) fn utf8(path: &Path) -> Result<&Utf8Path> {
    Utf8Path::from_path(path).ok_or_else(|| PathError {
        doing: "use",
        path: lossy(path),
        source: io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8"),
    })
}

/// A path for a message: a draft that is thrown away may hold names that are not UTF-8.
fn lossy(path: &Path) -> Utf8PathBuf {
    path.to_string_lossy().into_owned().into()
}

/// A name in `dir` that nothing has yet, given to `make` until it succeeds.
pub(crate) fn with_unique_name(
    dir: &Utf8Path,
    prefix: &str,
    mut make: impl FnMut(&Utf8Path) -> Result<()>,
) -> Result<Utf8PathBuf> {
    let mut failed = None;
    let made = tempfile::Builder::new().prefix(prefix).rand_bytes(12).make_in(dir, |path| {
        let path = Utf8Path::from_path(path).ok_or(io::ErrorKind::InvalidFilename)?;
        make(path).map_err(|error| {
            let kind = error.kind();
            failed = Some(error);
            io::Error::from(kind)
        })
    });
    match made {
        Ok(made) => {
            let (_, path) = made.keep().map_err(|error| error.error).at("keep", dir)?;
            Ok(Utf8PathBuf::from_path_buf(path).expect("the closure saw that it is UTF-8"))
        }
        Err(error) => Err(failed.unwrap_or(PathError { doing: "create a file in", path: dir.into(), source: error })),
    }
}
