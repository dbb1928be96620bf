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
        while !self.try_write_file(staging, path, bytes, lasting)? {}
        Ok(())
    }

    /// `false` if a sweep took the new file for one that nobody needs.
    fn try_write_file(&self, staging: &Utf8Path, path: &Utf8Path, bytes: &[u8], lasting: Lasting) -> Result<bool> {
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
        // From here on a sweep leaves it alone.
        let swept = || Ok(!super::read::exists(&staged)?);
        super::lock::share(&file, &staged)?;
        let write = || {
            self.write(&file, &staged, bytes)?;
            if lasting == Lasting::Durable {
                self.fsync(&file, &staged)?;
            }
            self.rename(&staged, path)
        };
        match write() {
            Err(error) if error.is_not_found() && swept()? => return Ok(false),
            Err(error) => {
                let _ = self.unlink(&staged);
                return Err(error);
            }
            Ok(()) => {}
        }
        match (lasting, path.parent()) {
            (Lasting::Durable, Some(parent)) => self.fsync_dir(parent).map(|()| true),
            _ => Ok(true),
        }
    }

    /// Makes a directory visible under its final name, which must be free.
    ///
    /// What it holds must be durable before. A crash leaves it under the old name or the new one.
    pub fn publish_dir(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        self.rename_noreplace(from, to)?;
        self.fsync_dir(parent_of(to))
    }

    /// Gives a directory the name of another one, which gets the name that this one had.
    ///
    /// What it holds must be durable before. A crash leaves both as they were, or exchanged. Where the file system can't
    /// exchange names, the old directory is moved away first: then a crash may leave neither under the name.
    pub fn exchange_dir(&self, from: &Utf8Path, to: &Utf8Path) -> Result<()> {
        match self.rename_exchange(from, to) {
            Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP)) => {
                let old = with_unique_name(parent_of(from), "old-", |name| self.rename_noreplace(to, name))?;
                if let Err(error) = self.rename_noreplace(from, to) {
                    let _ = self.rename_noreplace(&old, to);
                    return Err(error);
                }
                self.rename_noreplace(&old, from)?;
            }
            exchanged => exchanged?,
        }
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
