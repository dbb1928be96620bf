//! Deleting trees, whatever modes and names a builder gave them.

use std::fs::{self, Metadata};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::read::Entry;
use super::{Disk, Result, lossy};
use crate::error::At;

impl Disk {
    /// Deletes a directory and all below it; links are deleted, never followed.
    ///
    /// A crash leaves a part of it.
    pub fn remove_tree(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match fs::symlink_metadata(path).at("read", &lossy(path)) {
            Ok(metadata) if metadata.is_dir() => self.remove_dir(path, &metadata),
            Ok(_) => self.unlink(path),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn remove_dir(&self, dir: &Path, metadata: &Metadata) -> Result<()> {
        // A directory without write permission keeps its entries, and one without read permission hides them.
        self.open_up(dir, metadata)?;
        for entry in fs::read_dir(dir).at("list", &lossy(dir))? {
            self.remove_tree(entry.at("list", &lossy(dir))?.path())?;
        }
        self.rmdir(dir)
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

    /// Opens up every directory below `dir`, so that a walk can read it and a rename can move it.
    pub fn open_up_tree(&self, dir: &Path) -> Result<()> {
        let metadata = fs::symlink_metadata(dir).at("read", &lossy(dir))?;
        self.open_up(dir, &metadata)?;
        for entry in fs::read_dir(dir).at("list", &lossy(dir))? {
            let entry = entry.at("list", &lossy(dir))?;
            if entry.file_type().at("read", &lossy(&entry.path()))?.is_dir() {
                self.open_up_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The directories of a walk, each after those that it holds: a sync of one finds the names below it synced.
pub(crate) fn bottom_up(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().rev().filter(|entry| entry.kind.is_dir())
}
