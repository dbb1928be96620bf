//! The same work in plain system calls, on one thread: what there is to read or remove must be read or removed.
//!
//! The floor parses nothing, takes no lock, waits for no disk, and is told which revisions go.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::path::Arg;

/// Reads the record of each revision.
pub fn records(root: &Utf8Path) {
    let mut buffer = vec![0; 64 * 1024];
    each_revision(root, |artifacts, name| read(artifacts, &below(name, c"revision.json"), &mut buffer, |_| ()));
}

/// Reads each record, and looks at the files of those revisions that are old.
pub fn plan(root: &Utf8Path, is_old: impl Fn(&CStr) -> bool) {
    let mut buffer = vec![0; 64 * 1024];
    each_revision(root, |artifacts, name| {
        read(artifacts, &below(name, c"revision.json"), &mut buffer, |_| ());
        if is_old(name) {
            look(artifacts, name);
        }
    });
}

/// Reads each record, and removes those revisions that are old with these entries of the index.
pub fn collect(root: &Utf8Path, is_old: impl Fn(&CStr) -> bool, keys: &[Utf8PathBuf]) {
    let mut buffer = vec![0; 64 * 1024];
    each_revision(root, |artifacts, name| {
        read(artifacts, &below(name, c"revision.json"), &mut buffer, |_| ());
        if is_old(name) {
            let dir = open_dir(artifacts, name);
            for (file, _) in list(&dir) {
                unlinkat(&dir, &file, AtFlags::empty()).unwrap();
            }
            unlinkat(artifacts, name, AtFlags::REMOVEDIR).unwrap();
        }
    });
    for key in keys {
        unlinkat(CWD, key.as_std_path(), AtFlags::empty()).unwrap();
    }
}

/// Looks at each file and directory.
pub fn sizes(root: &Utf8Path) {
    each_file(root, |dir, name| {
        statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    });
}

/// Reads each record, and looks at all files beside it.
pub fn looks(root: &Utf8Path) {
    plan(root, |_| true);
}

/// Reads each record and each entry of the index, and looks at all files.
pub fn documents(root: &Utf8Path) {
    looks(root);
    let mut buffer = vec![0; 64 * 1024];
    each_file(&root.join(".store/keys"), |dir, name| read(dir, name, &mut buffer, |_| ()));
}

/// Reads and hashes each file, entries of the index as well.
pub fn bytes(root: &Utf8Path) {
    let mut buffer = vec![0; 64 * 1024];
    for dir in ["templates", ".store/keys", ".store/objects"] {
        each_file(&root.join(dir), |dir, name| {
            let mut hasher = blake3::Hasher::new();
            read(dir, name, &mut buffer, |bytes| _ = hasher.update(bytes));
            hasher.finalize();
        });
    }
}

fn each_revision(root: &Utf8Path, mut work: impl FnMut(&OwnedFd, &CStr)) {
    let templates = open_dir(CWD, root.join("templates").as_std_path());
    for (template, _) in list(&templates) {
        let artifacts = open_dir(&templates, below(&template, c"artifacts"));
        for (revision, _) in list(&artifacts) {
            work(&artifacts, &revision);
        }
    }
}

/// Every file below a directory; links are not followed.
fn each_file(dir: &Utf8Path, mut work: impl FnMut(&OwnedFd, &CStr)) {
    fn below(dir: &OwnedFd, work: &mut impl FnMut(&OwnedFd, &CStr)) {
        for (name, kind) in list(dir) {
            match kind {
                FileType::Directory => below(&open_dir(dir, &name), work),
                FileType::Symlink => {}
                _ => work(dir, &name),
            }
        }
    }
    below(&open_dir(CWD, dir.as_std_path()), &mut work);
}

fn look(dir: &OwnedFd, name: &CStr) {
    let dir = open_dir(dir, name);
    for (file, _) in list(&dir) {
        statat(&dir, &file, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Reads to the end, which the size tells.
fn read(dir: &OwnedFd, name: &CStr, buffer: &mut [u8], mut each: impl FnMut(&[u8])) {
    let file = openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut left = fstat(&file).unwrap().st_size as usize;
    while left > 0 {
        let read = rustix::io::read(&file, &mut *buffer).unwrap();
        each(&buffer[..read]);
        left -= read;
    }
}

fn open_dir(dir: impl AsFd, name: impl Arg) -> OwnedFd {
    openat(dir, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn list(dir: &OwnedFd) -> Vec<(CString, FileType)> {
    let entries = Dir::read_from(dir).unwrap().map(Result::unwrap);
    let named = entries.filter(|entry| ![c".", c".."].contains(&entry.file_name()));
    named.map(|entry| (entry.file_name().to_owned(), entry.file_type())).collect()
}

fn below(dir: &CStr, name: &CStr) -> CString {
    CString::new([dir.to_bytes(), b"/", name.to_bytes()].concat()).unwrap()
}
