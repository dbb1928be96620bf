//! Looking at all that is below a directory that somebody else may change meanwhile.
//!
//! Each directory is opened over real directories only, and what is in it is looked at through what was opened.

use std::ffi::OsStr;
use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, Dir, DirEntry, OFlags};
use walkdir::WalkDir;

use super::{Disk, Result, lossy, reach};
use crate::error::{At, PathError};

/// A file or directory below a directory that was walked.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Below the directory.
    pub relative: Utf8PathBuf,
    /// The whole path.
    pub path: Utf8PathBuf,
    pub kind: FileType,
    pub metadata: Metadata,
}

/// All that is below a directory, each directory before what it holds, sorted; links are not followed.
///
/// # Errors
/// A name that is not UTF-8 is one.
pub(crate) fn walk(dir: &Utf8Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    below::<Metadata>(dir, |found| {
        let relative = Utf8PathBuf::from_path_buf(found.relative).map_err(|relative| PathError {
            doing: "use",
            path: lossy(&dir.as_std_path().join(relative)),
            source: io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8; rename it"),
        })?;
        let (path, metadata) = (dir.join(&relative), found.seen);
        entries.push(Entry { relative, path, kind: metadata.file_type(), metadata });
        Ok(())
    })?;
    Ok(entries)
}

/// All that is below a directory and no directory itself, by its path below it; links are not followed.
///
/// A name that is not UTF-8 is shown as well as it can be.
pub(crate) fn files_below(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut files = Vec::new();
    below::<Kind>(dir, |found| {
        if !found.seen.is_dir() {
            files.push(lossy(&found.relative));
        }
        Ok(())
    })?;
    Ok(files)
}

/// As [`walk`], for a tree of sources, of which nothing but a digest is made: who can swap what is in it can as well
/// change it.
pub(crate) fn sources(dir: &Utf8Path) -> Result<Vec<Entry>> {
    let walker = WalkDir::new(dir).min_depth(1).sort_by_file_name().follow_links(false);
    let entry = |entry: walkdir::Result<walkdir::DirEntry>| {
        let entry = entry.at("list", dir)?;
        let (kind, metadata) = (entry.file_type(), entry.metadata().at("list", dir)?);
        let path = super::utf8(entry.path())?.to_owned();
        let relative = path.strip_prefix(dir).expect("a walk stays below its root").to_owned();
        Ok(Entry { relative, path, kind, metadata })
    };
    walker.into_iter().map(entry).collect()
}

/// What a walk wants to know of a name in a directory.
trait Look: Sized {
    fn at(dir: BorrowedFd<'_>, entry: &DirEntry) -> io::Result<Self>;

    fn is_dir(&self) -> bool;
}

impl Look for Metadata {
    fn at(dir: BorrowedFd<'_>, entry: &DirEntry) -> io::Result<Metadata> {
        reach::open_from(dir, Path::new(name_of(entry)), OFlags::PATH, 0)?.metadata()
    }

    fn is_dir(&self) -> bool {
        Metadata::is_dir(self)
    }
}

/// What kind a file is, which most file systems say with its name.
struct Kind(rustix::fs::FileType);

impl Look for Kind {
    fn at(dir: BorrowedFd<'_>, entry: &DirEntry) -> io::Result<Kind> {
        let kind = match entry.file_type() {
            rustix::fs::FileType::Unknown => {
                let found = rustix::fs::statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                rustix::fs::FileType::from_raw_mode(found.st_mode)
            }
            kind => kind,
        };
        Ok(Kind(kind))
    }

    fn is_dir(&self) -> bool {
        self.0.is_dir()
    }
}

struct Found<L> {
    relative: PathBuf,
    seen: L,
}

/// Calls with all that is below a directory, in order.
fn below<L: Look>(dir: &Utf8Path, mut each: impl FnMut(Found<L>) -> Result<()>) -> Result<()> {
    let top = dir.as_std_path();
    let opened = reach::open(top, reach::DIRECTORY, 0).at("list", dir)?;
    let mut left = entries::<L>(opened, Path::new("")).at("list", dir)?;
    while let Some(found) = left.pop() {
        let inner = found.seen.is_dir().then(|| found.relative.clone());
        each(found)?;
        if let Some(relative) = inner {
            let path = top.join(&relative);
            let listed = reach::open(&path, reach::DIRECTORY, 0).and_then(|opened| entries(opened, &relative));
            left.extend(listed.at("list", &lossy(&path))?);
        }
    }
    Ok(())
}

/// What is in an open directory, the last first.
fn entries<L: Look>(dir: File, relative: &Path) -> io::Result<Vec<Found<L>>> {
    let mut found = Vec::new();
    let mut dir = Dir::new(dir)?;
    while let Some(entry) = dir.read() {
        let entry = entry?;
        if !is_dots(name_of(&entry)) {
            found.push(Found { relative: relative.join(name_of(&entry)), seen: L::at(dir.fd()?, &entry)? });
        }
    }
    found.sort_unstable_by(|a, b| b.relative.file_name().cmp(&a.relative.file_name()));
    Ok(found)
}

fn name_of(entry: &DirEntry) -> &OsStr {
    OsStr::from_bytes(entry.file_name().to_bytes())
}

/// Whether a name in a directory is one of the two that every directory has.
pub(super) fn is_dots(name: &OsStr) -> bool {
    matches!(name.as_bytes(), b"." | b"..")
}

impl Disk {
    /// Opens up every directory below `dir`, so that a walk can read it and a rename can move it.
    pub fn open_up_tree(&self, dir: &Path) -> Result<()> {
        let mut left = vec![dir.to_owned()];
        while let Some(dir) = left.pop() {
            let metadata = reach::metadata(&dir).at("read", &lossy(&dir))?;
            self.open_up(&dir, &metadata)?;
            let opened = reach::open(&dir, reach::DIRECTORY, 0).at("list", &lossy(&dir))?;
            let inner = entries::<Kind>(opened, &dir).at("list", &lossy(&dir))?;
            left.extend(inner.into_iter().filter(|found| found.seen.is_dir()).map(|found| found.relative));
        }
        Ok(())
    }
}

/// The directories of a walk, each after those that it holds: a sync of one finds the names below it synced.
pub(crate) fn bottom_up(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().rev().filter(|entry| entry.kind.is_dir())
}
