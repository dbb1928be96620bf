//! Whether a path still names what it named.

use std::fs::{File, Metadata};
use std::os::fd::AsFd;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{Mode, OFlags};

use super::read::{FileId, if_there, metadata_if_there};
use super::{Result, reach};
use crate::error::At;

/// What a path named when it was looked at: a directory, a file or a link.
///
/// While this lives, the number of its inode is given to no other: so what is removed and made again is never taken
/// for the same, however alike the two are. It needs no right to read, and locks nothing.
#[derive(Debug)]
pub(crate) struct Handle {
    inode: File,
    path: Utf8PathBuf,
}

impl Handle {
    /// `None` if there is nothing.
    pub fn of(path: &Utf8Path) -> Result<Option<Handle>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = if_there(rustix::fs::open(path.as_std_path(), flags, Mode::empty()).at("look at", path))?;
        Ok(opened.map(|inode| Handle { inode: inode.into(), path: path.to_owned() }))
    }

    /// What named it.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The number of its inode.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.id()?.inode())
    }

    /// Whether the path names it at this moment.
    pub fn still_named(&self) -> Result<bool> {
        let ours = self.id()?;
        Ok(metadata_if_there(&self.path)?.is_some_and(|named| FileId::of(&named) == ours))
    }

    /// What is below it, whatever names it by now; `None` if there is nothing.
    pub fn metadata_below(&self, below: &Utf8Path) -> Result<Option<Metadata>> {
        let opened = reach::open_from(self.inode.as_fd(), below.as_std_path(), OFlags::PATH, 0);
        if_there(opened.and_then(|found| found.metadata()).at("read", &self.path.join(below)))
    }

    fn id(&self) -> Result<FileId> {
        Ok(FileId::of(&self.inode.metadata().at("read", &self.path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_again_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("link");
        for _ in 0..100 {
            std::os::unix::fs::symlink("target", &path).unwrap();
            let handle = Handle::of(&path).unwrap().expect("it was just made");
            assert!(handle.still_named().unwrap());
            std::fs::remove_file(&path).unwrap();
            assert!(!handle.still_named().unwrap());
            std::os::unix::fs::symlink("target", &path).unwrap();
            assert!(!handle.still_named().unwrap(), "it has the number of the one before");
            std::fs::remove_file(&path).unwrap();
        }
        assert!(Handle::of(&path).unwrap().is_none());
    }
}
