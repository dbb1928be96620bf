//! What trees take on the disk.
//!
//! What is in a directory is looked at through the directory, once that is open: the way to it costs most.

use std::collections::HashSet;
use std::io::ErrorKind::PermissionDenied;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;

use super::read::{FileId, Metadata, bytes_on_disk, if_there, metadata_if_there};
use super::{Result, reach};
use crate::error::At;

/// A file or directory, as far as it counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub id: FileId,
    pub is_dir: bool,
    pub is_file: bool,
    /// Its bytes, holes included.
    pub size: u64,
    /// Its blocks, in bytes.
    pub on_disk: u64,
    pub names: u32,
}

impl From<&Metadata> for Found {
    fn from(metadata: &Metadata) -> Found {
        Found {
            id: FileId::of(metadata),
            is_dir: metadata.is_dir(),
            is_file: metadata.is_file(),
            size: metadata.len(),
            on_disk: bytes_on_disk(metadata),
            names: metadata.nlink() as u32,
        }
    }
}

impl From<Stat> for Found {
    fn from(stat: Stat) -> Found {
        let kind = FileType::from_raw_mode(stat.st_mode);
        Found {
            id: FileId::of_stat(&stat),
            is_dir: kind == FileType::Directory,
            is_file: kind == FileType::RegularFile,
            size: stat.st_size as u64,
            on_disk: stat.st_blocks as u64 * 512,
            names: stat.st_nlink as u32,
        }
    }
}

/// Calls with what is at a path, and with all below it, each directory before what it holds; links are not followed.
///
/// What is gone meanwhile is left out, and so is what lies deeper than a path can say, or where this user may not look: a
/// builder made the tree.
pub(crate) fn each(top: &Utf8Path, mut see: impl FnMut(&Utf8Path, &Found)) -> Result<()> {
    let Some(found) = sayable(metadata_if_there(top))?.flatten() else { return Ok(()) };
    see(top, &Found::from(&found));
    let mut left: Vec<Utf8PathBuf> = found.is_dir().then(|| top.to_owned()).into_iter().collect();
    while let Some(dir) = left.pop() {
        for (name, found) in look_in(&dir)? {
            let path = dir.join(name);
            see(&path, &found);
            if found.is_dir {
                left.push(path);
            }
        }
    }
    Ok(())
}

/// What is counted already.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// Directories, with all below them.
    pub dirs: HashSet<FileId>,
    /// Files with several names.
    pub files: HashSet<FileId>,
}

/// What directories and all below them take on the disk, in bytes, beside what is counted already; each inode counts
/// once, and takes `inode` more.
pub(crate) fn of_trees(dirs: &[Utf8PathBuf], inode: u64, counted: Counted) -> Result<u64> {
    let tally = Tally { inode, counted, seen: Mutex::default() };
    let mut bytes = 0;
    for dir in dirs {
        bytes += metadata_if_there(dir)?.map_or(0, |found| tally.take(&Found::from(&found)));
    }
    // All that is as far down at once: threads share it out.
    let mut level = dirs.to_vec();
    while !level.is_empty() {
        let taken = level.par_iter().map(|dir| tally.take_all_in(dir)).collect::<Result<Vec<_>>>()?;
        level.clear();
        for (in_dir, below) in taken {
            bytes += in_dir;
            level.extend(below);
        }
    }
    Ok(bytes)
}

struct Tally {
    inode: u64,
    counted: Counted,
    /// Files with several names of which one was found.
    seen: Mutex<HashSet<FileId>>,
}

impl Tally {
    /// What is in a directory takes, and the directories in it.
    fn take_all_in(&self, dir: &Utf8Path) -> Result<(u64, Vec<Utf8PathBuf>)> {
        let (mut bytes, mut below) = (0, Vec::new());
        for (name, found) in look_in(dir)?.into_iter().filter(|(_, found)| !self.counted.dirs.contains(&found.id)) {
            bytes += self.take(&found);
            if found.is_dir {
                below.push(dir.join(name));
            }
        }
        Ok((bytes, below))
    }

    /// What one file or directory takes, unless it is counted already.
    fn take(&self, found: &Found) -> u64 {
        let is_new = || self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(found.id);
        let counts = !self.counted.files.contains(&found.id) && (found.is_dir || found.names == 1 || is_new());
        if counts { found.on_disk + self.inode } else { 0 }
    }
}

/// What is in a directory, sorted by name; nothing where this user may not look.
fn look_in(dir: &Utf8Path) -> Result<Vec<(String, Found)>> {
    match all_in(dir) {
        Err(error) if error.kind() == PermissionDenied => {
            tracing::warn!("what is in {dir} is not counted: this user may not look into it");
            Ok(Vec::new())
        }
        looked => looked,
    }
}

/// Names that are not UTF-8 are not ours.
fn all_in(dir: &Utf8Path) -> Result<Vec<(String, Found)>> {
    let opened = sayable(if_there(reach::open(dir, reach::DIRECTORY, 0).at("list", dir)))?.flatten();
    let Some(opened) = opened else { return Ok(Vec::new()) };
    let mut entries = Dir::new(opened).at("list", dir)?;
    let mut all = Vec::new();
    while let Some(entry) = entries.read() {
        let entry = entry.at("list", dir)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        match rustix::fs::statat(entries.fd().at("list", dir)?, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => all.push((name.to_owned(), Found::from(found))),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error).at("read", &dir.join(name)),
        }
    }
    all.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

/// Nothing, for a path that is too long for the system.
fn sayable<T>(looked: Result<T>) -> Result<Option<T>> {
    match looked {
        Err(error) if error.errno() == Some(libc::ENAMETOOLONG) => Ok(None),
        looked => looked.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().canonicalize().unwrap()).unwrap();
        for path in ["a/b/c/d", "a/e", "f"] {
            std::fs::create_dir_all(root.join(path)).unwrap();
            std::fs::write(root.join(path).join("file"), vec![1; 10_000]).unwrap();
        }
        std::fs::hard_link(root.join("a/e/file"), root.join("f/link")).unwrap();
        std::os::unix::fs::symlink("/", root.join("f/away")).unwrap();
        (dir, root)
    }

    #[test]
    fn what_is_found_is_the_same_on_both_ways_to_it() {
        let (_dir, root) = tree();
        let mut paths = Vec::new();
        each(&root, |path, found| {
            paths.push(path.strip_prefix(&root).unwrap().to_string());
            let metadata = Found::from(&std::fs::symlink_metadata(path).unwrap());
            assert_eq!(format!("{found:?}"), format!("{metadata:?}"), "{path}");
        })
        .unwrap();
        paths.sort();
        let all =
            ["", "a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/file", "a/e", "a/e/file", "f", "f/away", "f/file", "f/link"];
        assert_eq!(paths, all);
        each(&root.join("none"), |_, _| unreachable!()).unwrap();
    }

    #[test]
    fn what_is_counted_already_is_not_counted_again() {
        let (_dir, root) = tree();
        let (mut all, mut inodes) = (std::collections::HashMap::new(), 0);
        each(&root, |path, found| {
            inodes += u64::from(all.insert(found.id, (path.to_owned(), found.on_disk)).is_none());
        })
        .unwrap();
        let of = |path: &str| Found::from(&std::fs::symlink_metadata(root.join(path)).unwrap());
        let size = |counted| of_trees(std::slice::from_ref(&root), 1, counted).unwrap();
        let whole = all.values().map(|(_, bytes)| bytes).sum::<u64>() + inodes;
        assert_eq!(size(Counted::default()), whole);

        let counted = Counted { dirs: [of("a/b").id].into(), files: [of("f/link").id].into() };
        let below = all.values().filter(|(path, _)| path.starts_with(root.join("a/b")));
        let below = below.map(|(_, bytes)| bytes + 1).sum::<u64>();
        assert_eq!(size(counted), whole - below - (of("f/link").on_disk + 1));
    }
}
