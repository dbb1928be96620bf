//! Where an instance is to be, and what lies beside it while it is made.

use std::io;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::fs::lock::{Flock, Mode, Patience};
use crate::fs::read::{self, FileId, Metadata};
use crate::fs::{mounts, reach};
use crate::open::resolved;

/// What the names of half-done work beside an instance begin with.
const BESIDE: &str = ".template-store-";

/// A place for an instance.
#[derive(Debug)]
pub(super) struct Place {
    /// Absolute, with no link in it but perhaps the last part.
    pub path: Utf8PathBuf,
    pub parent: Utf8PathBuf,
    /// Whether files there can be the store's own inodes.
    pub is_near: bool,
}

impl Place {
    /// The place that somebody named; whether there is something is not asked.
    pub fn of(core: &Core, dest: &Utf8Path) -> Result<Place> {
        let refuse = |problem: &str| Error::BadDestination { path: dest.to_owned(), problem: problem.to_owned() };
        let name = dest.file_name().ok_or_else(|| refuse("has no name; name the directory that is to be made"))?;
        let parent = match dest.parent().filter(|parent| !parent.as_str().is_empty()) {
            Some(parent) => reach::trusted(parent),
            None => reach::trusted(Utf8Path::new(".")),
        };
        let parent = match parent {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refuse("can't be made: the directory that is to hold it does not exist; make that first"));
            }
            parent => parent?,
        };
        let holder = read::metadata(&parent)?;
        if !holder.is_dir() {
            return Err(refuse("can't be made: what is to hold it is no directory; name another place"));
        }
        let root = resolved(core.layout.root());
        if parent.starts_with(&root) {
            return Err(refuse("is in the store, which holds templates only; name a place outside of it"));
        }
        let is_near = FileId::of(&holder).same_file_system(FileId::of(&read::metadata(&root)?));
        Ok(Place { path: parent.join(name), parent, is_near })
    }

    pub fn check_free(&self) -> Result<()> {
        match read::exists(&self.path)? {
            true => Err(Error::DestinationTaken { path: self.path.clone() }),
            false => Ok(()),
        }
    }

    /// Refuses a name that looks like that of half-done work.
    pub fn check_name(&self) -> Result<()> {
        if !self.path.file_name().unwrap_or_default().starts_with(BESIDE) {
            return Ok(());
        }
        let problem = format!("has a name that begins with {BESIDE}, as half-made instances do; choose another");
        Err(Error::BadDestination { path: self.path.clone(), problem })
    }

    /// What names of half-done work beside it begin with.
    pub fn prefix(&self) -> String {
        // A name has at most 255 bytes, and what tells two of them apart is still to come.
        let name: String = self.path.file_name().unwrap_or_default().chars().take(50).collect();
        format!("{BESIDE}{name}.")
    }

    /// Removes what processes that died left in the same directory. What can't be removed is in nobody's way.
    pub fn sweep(&self, core: &Core) -> Result<()> {
        for entry in read::list(&self.parent)?.iter().filter(|entry| entry.is_dir && is_of_half_done_work(&entry.name))
        {
            let path = self.parent.join(&entry.name);
            if matches!(read::metadata(&path), Ok(found) if may_sweep(&found))
                && let Ok(Some(dead)) = Flock::take(&path, Mode::Exclusive, Patience::None)
                && let Ok(found) = dead.file().metadata()
                && may_sweep(&found)
                && mounts::at_or_below(&path).is_none()
            {
                let _ = core.disk.remove_tree_of(&path, FileId::of(&found));
            }
        }
        Ok(())
    }
}

/// The mode of a directory of half-done work. The sticky bit says that it is ours: it is there from the moment at which the
/// directory is, whatever a crash takes of what is in it. A directory that has all its rights for itself has no use for it.
pub(super) const HALF_DONE: u32 = 0o1700;

/// The mode of an instance.
pub(super) const WHOLE: u32 = 0o700;

/// So many letters and digits tell two of them apart.
const UNIQUE: usize = 12;

/// Whether a name is `.template-store-<name>.<unique>`.
fn is_of_half_done_work(name: &str) -> bool {
    let parts = name.strip_prefix(BESIDE).and_then(|rest| rest.rsplit_once('.'));
    parts.is_some_and(|(name, unique)| {
        !name.is_empty() && unique.len() == UNIQUE && unique.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Whether a directory of that name is ours, and this user's to remove: nobody else's, but for root, who may have given it
/// away already.
fn may_sweep(found: &Metadata) -> bool {
    // A directory in one with the set-group-ID bit has that bit too.
    let is_ours = found.is_dir() && found.mode() & 0o5777 == HALF_DONE;
    is_ours && (read::user() == 0 || found.uid() == read::user())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_program_makes_are_of_half_done_work() {
        for (name, is) in [
            (".template-store-1.aB3dE6gH9jK2", true),
            (".template-store-vm.of.mine.aB3dE6gH9jK2", true),
            (".template-store-1", false),
            (".template-store-backup", false),
            (".template-store-.aB3dE6gH9jK2", false),
            (".template-store-1.aB3dE6gH9jK", false),
            (".template-store-1.aB3dE6gH9jK23", false),
            (".template-store-1.aB3dE6gH9-K2", false),
            ("template-store-1.aB3dE6gH9jK2", false),
        ] {
            assert_eq!(is_of_half_done_work(name), is, "{name}");
        }
    }
}
