//! Second files with the same bytes, and whom files belong to.

use std::fs::File;

use camino::Utf8Path;

use super::copy::{Advance, cannot_clone};
use super::parts::{Source, see_parts};
use super::target::Target;
use super::{Disk, Op, Result};
use crate::error::At;

/// What may be done where files can't share blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    Copy,
    Nothing,
}

/// How a second file came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicated {
    /// It shares its blocks.
    Cloned,
    Copied,
}

impl Disk {
    /// A new file with the bytes of an open one: a clone where the file system can, else a copy without its holes and
    /// zeros. Only this user can read it yet; nothing is synced.
    ///
    /// A crash leaves a part of the new file. After an error it is removed.
    ///
    /// # Errors
    /// Without a fallback, that of the clone.
    pub fn duplicate(
        &self,
        source: (&File, &Utf8Path),
        to: &Utf8Path,
        fallback: Fallback,
        advance: Advance,
    ) -> Result<(File, Duplicated)> {
        let target = self.create(to, 0o600)?;
        let made = match self.clone_file(source, (&target, to)) {
            Ok(()) => Ok(Duplicated::Cloned),
            Err(error) if fallback == Fallback::Copy && cannot_clone(&error) => {
                self.copy_extents(source, (&target, to), advance).map(|()| Duplicated::Copied)
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(how) => Ok((target, how)),
            Err(error) => {
                let _ = self.unlink(to);
                Err(error)
            }
        }
    }

    /// Copies what is neither hole nor zeros. It is not hashed: that would take longer than the copy, for a disk that is
    /// mostly holes many times as long.
    fn copy_extents(&self, source: (&File, &Utf8Path), target: (&File, &Utf8Path), advance: Advance) -> Result<()> {
        let size = source.0.metadata().at("read", source.1)?.len();
        self.set_len(target.0, target.1, size)?;
        let target = Target::new(target.0, target.1, size);
        let source = Source { file: source.0, path: source.1, advance };
        see_parts(source, size, |bytes, at| target.write(self, bytes, at))
    }

    /// Gives a file or directory to somebody; a link is not followed.
    pub fn chown(&self, path: &Utf8Path, uid: u32, gid: u32) -> Result<()> {
        let change = || super::reach::chown(path.as_std_path(), uid, gid);
        self.step(|| Op::Chown { path: path.into(), uid, gid }, change).at("set the owner of", path)
    }
}
