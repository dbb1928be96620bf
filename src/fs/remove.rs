//! Deleting trees, whatever modes and names a builder gave them.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::AddAssign;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use camino::Utf8Path;
use rustix::fs::{AtFlags, FileType, RawDir, RenameFlags, Stat};
use rustix::io::Errno;

use super::read::{FileId, bytes_on_disk};
use super::walk::is_dots;
use super::{Disk, Op, Result, lossy, reach};
use crate::error::At;

/// Held while a name of an inode with several is removed, so that its names are counted one after the other.
static NAMES: [Mutex<()>; 64] = [const { Mutex::new(()) }; 64];

/// What went with a tree: an inode counts when its last name goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The bytes of their blocks.
    pub bytes: u64,
    pub inodes: u64,
}

impl Removed {
    /// One name of this is about to go.
    pub fn name_of(metadata: &Metadata) -> Removed {
        match metadata.is_dir() || metadata.nlink() == 1 {
            true => Removed { bytes: bytes_on_disk(metadata), inodes: 1 },
            false => Removed::default(),
        }
    }

    fn of(found: &Stat) -> Removed {
        match FileType::from_raw_mode(found.st_mode).is_dir() || found.st_nlink == 1 {
            true => Removed { bytes: found.st_blocks as u64 * 512, inodes: 1 },
            false => Removed::default(),
        }
    }
}

impl AddAssign for Removed {
    fn add_assign(&mut self, other: Removed) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

impl Disk {
    /// Deletes a directory and all below it; links are deleted, never followed, whatever somebody swaps meanwhile. What
    /// somebody else deletes meanwhile is gone as well. What is mounted below it stays, and is an error.
    ///
    /// A crash leaves a part of it.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<Removed> {
        self.remove_tree_if(path.as_ref(), None)
    }

    /// As [`remove_tree`](Disk::remove_tree), of a directory that was looked at: another one that has its name by now stays.
    pub fn remove_tree_of(&self, path: &Utf8Path, dir: FileId) -> Result<Removed> {
        self.remove_tree_if(path.as_std_path(), Some(dir))
    }

    fn remove_tree_if(&self, path: &Path, only: Option<FileId>) -> Result<Removed> {
        let removed = reach::holder(path).at("remove", &lossy(path)).and_then(|(holder, name)| {
            let mut removed = Removed::default();
            let mut tree = Tree { disk: self, only, top: None, moved: 0 };
            // What lay too deep was moved up, and is deleted like the rest then.
            loop {
                let moved = tree.moved;
                removed += tree.remove(holder.as_fd(), name, path, 0)?;
                if tree.moved == moved {
                    return Ok(removed);
                }
            }
        });
        match removed {
            Err(error) if error.is_not_found() => Ok(Removed::default()),
            removed => removed,
        }
    }

    /// Deletes a directory that should be empty by now; what is in it all the same goes with it.
    pub fn remove_dir_or_tree(&self, dir: &Utf8Path, metadata: &Metadata) -> Result<Removed> {
        match self.rmdir(dir) {
            Ok(()) => Ok(Removed::name_of(metadata)),
            Err(_) => self.remove_tree(dir),
        }
    }

    /// Gives the owner all rights to a directory: Nix makes them read-only, and such a one cannot even be renamed.
    pub fn open_up(&self, dir: impl AsRef<Path>, metadata: &Metadata) -> Result<()> {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o700 == 0o700 { Ok(()) } else { self.chmod(dir, mode | 0o700) }
    }

    /// Gives a directory that was opened up its mode back, as far as that can be done.
    pub fn restore_mode(&self, dir: impl AsRef<Path>, metadata: &Metadata) {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o700 != 0o700 {
            let _ = self.chmod(dir, mode);
        }
    }
}

/// So many directories are open at once, one in the other. A tree may be deeper than there are descriptors, or than a
/// path can say.
const DEEPEST: usize = 48;

/// Somebody who swaps a directory for something else again and again can't keep us busy for ever.
const MOST_SWAPS: usize = 100;

/// A tree that is being deleted, each name through the open directory that has it.
struct Tree<'a> {
    disk: &'a Disk,
    /// Nothing else is deleted, if this says what is.
    only: Option<FileId>,
    /// The directory that is deleted in the end, and its path.
    top: Option<(File, PathBuf)>,
    /// How many directories were moved up to it.
    moved: u64,
}

impl Tree<'_> {
    /// Deletes what has a name in an open directory.
    fn remove(&mut self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path, depth: usize) -> Result<Removed> {
        let mut swaps = 0;
        loop {
            let found = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(Removed::default()),
                found => found.at("read", &lossy(path))?,
            };
            let removed = match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => self.remove_dir(dir, name, path, &found, depth),
                _ => self.remove_file(dir, name, path, &found),
            };
            match removed {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Removed::default()),
                // A directory that is none by now, or the other way round.
                Err(error) if matches!(error.errno(), Some(libc::ENOTDIR | libc::EISDIR)) && swaps < MOST_SWAPS => {
                    swaps += 1;
                }
                removed => return removed,
            }
        }
    }

    fn remove_file(&self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path, found: &Stat) -> Result<Removed> {
        if found.st_nlink == 1 {
            return self.unlink(dir, name, path).map(|()| Removed::of(found));
        }
        // Of several threads that remove its names at once, just one removes the last.
        let stripe = &NAMES[found.st_ino as usize % NAMES.len()];
        let _alone = stripe.lock().unwrap_or_else(PoisonError::into_inner);
        let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).at("read", &lossy(path))?;
        self.unlink(dir, name, path).map(|()| Removed::of(&found))
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<()> {
        let remove = || Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?);
        self.disk.step(|| Op::Unlink { path: lossy(path) }, remove).at("remove", &lossy(path))
    }

    fn remove_dir(
        &mut self,
        holder: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        found: &Stat,
        depth: usize,
    ) -> Result<Removed> {
        // A directory without write permission keeps its entries, and one without read permission hides them.
        let mode = found.st_mode & 0o7777;
        let another = |found: FileId| depth == 0 && self.only.is_some_and(|only| only != found);
        if another(FileId::of_stat(found)) {
            return Ok(Removed::default());
        }
        if mode & 0o700 != 0o700 {
            let (name, mode) = (Path::new(name), mode | 0o700);
            let change = || reach::chmod_from(holder, name, mode);
            self.disk.step(|| Op::Chmod { path: lossy(path), mode }, change).at("set the mode of", &lossy(path))?;
        }
        if depth == DEEPEST {
            self.move_up(holder, name, path)?;
            return Ok(Removed::default());
        }
        let dir = reach::open_in_one_mount(holder, name).map_err(is_mounted).at("remove", &lossy(path))?;
        if another(FileId::of(&dir.metadata().at("read", &lossy(path))?)) {
            return Ok(Removed::default());
        }
        if depth == 0 {
            let top = dir.try_clone().at("list", &lossy(path))?;
            self.top = Some((top, path.to_owned()));
        }
        let moved = self.moved;
        let mut removed = self.remove_entries(&dir, path, depth + 1)?;
        if depth == 0 && self.moved > moved {
            return Ok(removed);
        }
        let remove = || Ok(rustix::fs::unlinkat(holder, name, AtFlags::REMOVEDIR)?);
        self.disk.step(|| Op::Rmdir { path: lossy(path) }, remove).at("remove directory", &lossy(path))?;
        removed += Removed::of(found);
        Ok(removed)
    }

    fn remove_entries(&mut self, dir: &File, path: &Path, depth: usize) -> Result<Removed> {
        let mut removed = Removed::default();
        let mut buffer = Vec::with_capacity(8192);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.at("list", &lossy(path))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if !is_dots(name) {
                removed += self.remove(dir.as_fd(), name, &path.join(name), depth)?;
            }
        }
        Ok(removed)
    }

    /// Moves a directory that lies too deep into the topmost one.
    fn move_up(&mut self, holder: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<()> {
        let (top, top_path) = self.top.as_ref().expect("it was opened on the way down");
        loop {
            let to = format!(".deep-{}", self.moved);
            self.moved += 1;
            let at = top_path.join(&to);
            let rename = || Ok(rustix::fs::renameat_with(holder, name, top, &to, RenameFlags::NOREPLACE)?);
            let op = || Op::RenameNoReplace { from: lossy(path), to: lossy(&at) };
            match self.disk.step(op, rename) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                moved => return moved.at("rename to", &lossy(&at)),
            }
        }
    }
}

fn is_mounted(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EXDEV) => io::Error::other("something is mounted there; unmount it first"),
        _ => error,
    }
}
