//! Changes that are there whole or not at all, with the syncs that make them last.

use std::io;

use camino::Utf8Path;

use super::{Disk, Result, with_unique_name};

/// Whether a file must survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    Durable,
    /// It can be made again; after a power cut it may be gone, old or damaged.
    Hint,
}

impl Disk {
    /// A new file in a directory that nobody sees yet; its bytes are durable, its name is not.
    pub fn write_new(&self, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let file = self.create(path, 0o666)?;
        self.write(&file, path, bytes)?;
        self.fsync(&file, path)
    }

    /// Replaces a file, by way of `staging` on the same file system.
    ///
    /// A crash leaves the old file or the new one, and at most a stray file in `staging`.
    pub fn write_file(&self, staging: &Utf8Path, path: &Utf8Path, bytes: &[u8], lasting: Lasting) -> Result<()> {
        let mut file = None;
        let mut create = || {
            with_unique_name(staging, "file-", |name| {
                file = Some(self.create(name, 0o666)?);
                Ok(())
            })
        };
        let staged = match create() {
            Err(error) if error.is_not_found() => {
                self.ensure_dir(staging)?;
                create()?
            }
            created => created?,
        };
        let file = file.expect("a name was found, so a file was made");
        let write = || {
            self.write(&file, &staged, bytes)?;
            if lasting == Lasting::Durable {
                self.fsync(&file, &staged)?;
            }
            self.rename(&staged, path)
        };
        if let Err(error) = write() {
            let _ = self.unlink(&staged);
            return Err(error);
        }
        match (lasting, path.parent()) {
            (Lasting::Durable, Some(parent)) => self.fsync_dir(parent),
            _ => Ok(()),
        }
    }

    /// Makes a directory visible under its final name, which must be free.
    ///
    /// What it holds must be durable before. A crash leaves it under the old name or the new one.
    pub fn publish_dir(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        self.rename_noreplace(from, to)?;
        self.fsync_dir(parent_of(to))
    }

    /// Makes the symbolic link `dir/name` hold `target`; the link is never absent, and lasts when this returns.
    ///
    /// The caller holds the lock of `dir`, so that the one temporary name is free: what is there was left by
    /// a crash. A crash leaves the old text or the new one.
    pub fn swap_link(&self, dir: &Utf8Path, name: &str, target: &str) -> Result<()> {
        let temporary = dir.join(format!(".{name}.new"));
        self.unlink_if_there(&temporary)?;
        self.symlink(target, &temporary)?;
        self.rename(&temporary, &dir.join(name))?;
        self.fsync_dir(dir)
    }

    /// Gives `path` the inode of `good`, by way of a new name in `staging`; the caller syncs the directory.
    pub fn replace_by_link(&self, staging: &Utf8Path, good: &Utf8Path, path: &Utf8Path) -> Result<()> {
        let staged = with_unique_name(staging, ".link-", |name| self.link(good, name))?;
        if let Err(error) = self.rename(&staged, path) {
            let _ = self.unlink(&staged);
            return Err(error);
        }
        Ok(())
    }
}

/// The directory of a path that has one.
pub(crate) fn parent_of(path: &Utf8Path) -> &Utf8Path {
    path.parent().unwrap_or(Utf8Path::new("/"))
}

/// Whether a link or rename failed for a reason that a copy does not have.
pub(crate) fn needs_copy(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(kind, CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}
