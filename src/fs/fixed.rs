//! What this user can't change, said before anything changes; and what was changed, given back.

use std::fs::{Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use camino::Utf8Path;
use rustix::fs::{Access, AtFlags, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::read::{self, FileId};
use super::{Disk, Op, Result, reach};
use crate::error::At;
use crate::format::SEALED_MTIME;

/// Refuses a file whose mode, or a directory whose names, this user could not change.
///
/// It is as much as can be known without trying: a file that passes may still turn out to be fixed.
pub(crate) fn check_changeable(path: &Utf8Path, metadata: &Metadata) -> Result<()> {
    let fixed = is_fixed(path).at("read", path)?;
    // One's own directory can be opened up.
    let foreign = metadata.is_dir() && metadata.uid() != read::user();
    let refused = match () {
        () if fixed => Err(Errno::PERM),
        () if foreign => may_write(path),
        () => Ok(()),
    };
    refused.at("change", path)
}

/// Whether it has an attribute that holds against everybody (`chattr`).
fn is_fixed(path: &Utf8Path) -> io::Result<bool> {
    let file = reach::open(path, OFlags::PATH, 0)?;
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::empty()) {
        Ok(found) => Ok(found.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)),
        // Who filters calls may know no such one.
        Err(_) => Ok(false),
    }
}

fn may_write(path: &Utf8Path) -> rustix::io::Result<()> {
    let Ok((dir, name)) = reach::holder(path.as_std_path()) else { return Ok(()) };
    match rustix::fs::accessat(dir, name, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Err(error @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => Err(error),
        _ => Ok(()),
    }
}

impl Disk {
    /// Gives a file the mode and the time that it had before it was sealed, as far as that can be done.
    ///
    /// A file that has got another name since may be an object, and one that was written since has a time of its own.
    pub fn unseal(&self, path: &Utf8Path, was: &Metadata) {
        let Ok(Some(now)) = read::metadata_if_there(path) else { return };
        let same = FileId::of(&now) == FileId::of(was) && now.nlink() == 1 && was.nlink() == 1;
        let mode = was.mode() & 0o7777;
        let (same_mode, timed) = (now.mode() & 0o7777 == mode, now.mtime() == SEALED_MTIME);
        let back = (was.mtime(), was.mtime_nsec());
        if !same || same_mode && (now.mtime(), now.mtime_nsec()) == back {
            return;
        }
        let give_back = || {
            let file = reach::open(path, OFlags::RDONLY, 0)?;
            if timed {
                let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
                let last_access = time(was.atime(), was.atime_nsec());
                rustix::fs::futimens(&file, &Timestamps { last_access, last_modification: time(back.0, back.1) })?;
            }
            file.set_permissions(Permissions::from_mode(mode))
        };
        let _ = self.step(|| Op::Chmod { path: path.into(), mode }, give_back);
    }
}
