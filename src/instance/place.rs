//! Where an instance is to be, and what lies beside it while it is made.

use std::io;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::fs::lock::{Flock, Mode, Patience};
use crate::fs::reach;
use crate::fs::read::{self, FileId};
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

    /// What names of half-done work beside it begin with.
    pub fn prefix(&self) -> String {
        // A name has at most 255 bytes, and what tells two of them apart is still to come.
        let name: String = self.path.file_name().unwrap_or_default().chars().take(50).collect();
        format!("{BESIDE}{name}.")
    }

    /// Removes what processes that died left in the same directory. What can't be removed is in nobody's way.
    pub fn sweep(&self, core: &Core) -> Result<()> {
        for entry in read::list(&self.parent)?.iter().filter(|entry| entry.is_dir && entry.name.starts_with(BESIDE)) {
            let path = self.parent.join(&entry.name);
            // Nobody else's: whoever could swap a directory for a link meanwhile must not lead us.
            let ours = matches!(read::metadata(&path), Ok(found) if found.uid() == read::user());
            if ours && let Ok(Some(_dead)) = Flock::take(&path, Mode::Exclusive, Patience::None) {
                let _ = core.disk.remove_tree(&path);
            }
        }
        Ok(())
    }
}
