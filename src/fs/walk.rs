//! Looking at all that is below a directory that somebody else may change meanwhile.
//!
//! Each directory is opened over real directories only, and what is in it is looked at through what was opened.

use std::ffi::{OsStr, OsString};
use std::fs::{File, FileType, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;
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
    below(dir, |found| {
        let relative = Utf8PathBuf::from_path_buf(found.relative).map_err(|relative| PathError {
            doing: "use",
            path: lossy(&dir.as_std_path().join(relative)),
            source: io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8; rename it"),
        })?;
        let (path, metadata) = (dir.join(&relative), found.metadata);
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
    below(dir, |found| {
        if !found.metadata.is_dir() {
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

struct Found {
    relative: PathBuf,
    metadata: Metadata,
}

/// Calls with all that is below a directory, in order.
fn below(dir: &Utf8Path, mut each: impl FnMut(Found) -> Result<()>) -> Result<()> {
    let top = dir.as_std_path();
    let opened = reach::open(top, reach::DIRECTORY, 0).at("list", dir)?;
    let mut left = entries(opened, Path::new("")).at("list", dir)?;
    while let Some(found) = left.pop() {
        let inner = found.metadata.is_dir().then(|| found.relative.clone());
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
fn entries(dir: File, relative: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for name in names(&dir)? {
        let metadata = reach::open_from(dir.as_fd(), Path::new(&name), OFlags::PATH, 0)?.metadata()?;
        found.push(Found { relative: relative.join(name), metadata });
    }
    found.sort_unstable_by(|a, b| b.relative.file_name().cmp(&a.relative.file_name()));
    Ok(found)
}

fn names(dir: &File) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
        if !is_dots(&name) {
            names.push(name);
        }
    }
    Ok(names)
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
            let inner = entries(opened, &dir).at("list", &lossy(&dir))?;
            left.extend(inner.into_iter().filter(|found| found.metadata.is_dir()).map(|found| found.relative));
        }
        Ok(())
    }
}

/// The directories of a walk, each after those that it holds: a sync of one finds the names below it synced.
pub(crate) fn bottom_up(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().rev().filter(|entry| entry.kind.is_dir())
}
