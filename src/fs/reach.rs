//! The way to a path, on which no link is followed.
//!
//! Who can write to a directory on the way can put a link in its place at any moment, between any two calls of ours: what
//! a path led to when it was looked at does not say where it leads now. So each step reaches what it reads or changes
//! over real directories only, in the call itself, or fails with `ELOOP`. Links in a path that a user named are followed
//! once, before all else ([`trusted`]).

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Result, lossy};
use crate::error::{At, PathError};

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// How a directory is opened, to read what is in it.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Opens what is at a path; a link, also as its last part, is refused.
pub(super) fn open(path: impl AsRef<Path>, flags: OFlags, mode: u32) -> io::Result<File> {
    open_from(CWD, path.as_ref(), flags, mode)
}

/// Opens what is at a path below an open directory.
pub(super) fn open_from(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32) -> io::Result<File> {
    let (flags, mode) = (flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::from_raw_mode(mode));
    let opened = match knows_how() {
        true => rustix::fs::openat2(dir, path, flags, mode, ResolveFlags::NO_SYMLINKS),
        false => open_part_by_part(dir, path, flags, mode),
    };
    match opened {
        // To who wants a directory, a link is none, wherever on the way it is.
        Err(Errno::LOOP) if flags.contains(OFlags::DIRECTORY) => Err(Errno::NOTDIR.into()),
        opened => Ok(opened?.into()),
    }
}

/// Opens a directory of an open one, to read what is in it; what is mounted over it is refused with `EXDEV`.
pub(super) fn open_in_one_mount(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    if !knows_how() {
        let opened = open_from(dir, Path::new(name), DIRECTORY, 0)?;
        return if super::mounts::is_one(&dir, &opened)? { Ok(opened) } else { Err(Errno::XDEV.into()) };
    }
    let flags = DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV) {
        Err(Errno::LOOP) => Err(Errno::NOTDIR.into()),
        opened => Ok(opened?.into()),
    }
}

/// Whether the kernel, and whoever filters its calls, can do all in one.
fn knows_how() -> bool {
    static KNOWS_HOW: OnceLock<bool> = OnceLock::new();
    *KNOWS_HOW.get_or_init(|| {
        rustix::fs::openat2(CWD, "/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS).is_ok()
    })
}

/// The same without `openat2`: one directory after the other.
fn open_part_by_part(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut parts = path.components().peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let from = at.as_ref().map_or(dir, AsFd::as_fd);
        let opened = match parts.peek() {
            None => return rustix::fs::openat(from, part.as_os_str(), flags, mode),
            Some(_) => rustix::fs::openat(from, part.as_os_str(), step, Mode::empty()),
        };
        at = Some(match opened {
            // It tells a link from what is no directory as `openat2` does.
            Err(Errno::NOTDIR) if is_link(from, part.as_os_str()) => return Err(Errno::LOOP),
            opened => opened?,
        });
    }
    Err(Errno::NOENT)
}

fn is_link(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    let found = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    found.is_ok_and(|found| rustix::fs::FileType::from_raw_mode(found.st_mode).is_symlink())
}

/// The directory that holds a path, and the last name of the path.
pub(super) fn holder(path: &Path) -> io::Result<(File, &OsStr)> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((open(parent, OFlags::PATH | OFlags::DIRECTORY, 0)?, name))
}

/// What is at a path itself, not behind a link.
pub(super) fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    open(path, OFlags::PATH, 0)?.metadata()
}

pub(super) fn mkdir(path: &Path, mode: u32) -> io::Result<()> {
    let (dir, name) = holder(path)?;
    Ok(rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

pub(super) fn remove(path: &Path, flags: AtFlags) -> io::Result<()> {
    let (dir, name) = holder(path)?;
    Ok(rustix::fs::unlinkat(dir, name, flags)?)
}

pub(super) fn link(from: &Path, to: &Path) -> io::Result<()> {
    let ((from_dir, from), (to_dir, to)) = (holder(from)?, holder(to)?);
    Ok(rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())?)
}

pub(super) fn symlink(target: &str, path: &Path) -> io::Result<()> {
    let (dir, name) = holder(path)?;
    Ok(rustix::fs::symlinkat(target, dir, name)?)
}

pub(super) fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    let ((from_dir, from), (to_dir, to)) = (holder(from)?, holder(to)?);
    match flags.is_empty() {
        true => rustix::fs::renameat(from_dir, from, to_dir, to)?,
        false => rustix::fs::renameat_with(from_dir, from, to_dir, to, flags)?,
    }
    Ok(())
}

pub(super) fn chown(path: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    let found = open(path, OFlags::PATH, 0)?;
    Ok(rustix::fs::chownat(found, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Sets the mode of a file or directory, also of one that can't be opened for reading.
pub(super) fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    chmod_from(CWD, path, mode)
}

/// As [`chmod`], from an open directory.
pub(super) fn chmod_from(dir: BorrowedFd<'_>, path: &Path, mode: u32) -> io::Result<()> {
    let found = open_from(dir, path, OFlags::PATH, 0)?;
    if found.metadata()?.is_symlink() {
        return Err(Errno::LOOP.into());
    }
    // No older call takes such a descriptor. What the kernel has under this name is the inode itself, whatever has the
    // path by now.
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), mode) {
        // Without /proc.
        Err(Errno::NOENT) => {
            let readable = open_from(dir, path, OFlags::RDONLY | OFlags::NONBLOCK, 0)?;
            Ok(rustix::fs::fchmod(readable, mode)?)
        }
        done => Ok(done?),
    }
}

/// A path that somebody named, with its links followed: those of this user and of root. Who else can make a link there
/// would say where we read, write and delete.
pub(crate) fn trusted(path: &Utf8Path) -> Result<Utf8PathBuf> {
    let mut at = match path.is_absolute() {
        true => PathBuf::from("/"),
        false => std::env::current_dir().at("find", path)?,
    };
    let mut left: VecDeque<OsString> = parts(path.as_std_path());
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&part);
        let found = open(&next, OFlags::PATH, 0).at("find", path)?;
        let metadata = found.metadata().at("find", path)?;
        if !metadata.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::from(Errno::LOOP)).at("find", path);
        }
        if ![0, super::read::user()].contains(&metadata.uid()) {
            return Err(of_somebody_else(&next, metadata.uid()));
        }
        let target = rustix::fs::readlinkat(&found, "", Vec::new()).at("find", path)?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        left = parts(&target).into_iter().chain(left).collect();
    }
    super::utf8(&at).map(Utf8Path::to_owned)
}

fn of_somebody_else(link: &Path, uid: u32) -> PathError {
    let problem =
        format!("it is a symbolic link of user {uid}, who could let it lead elsewhere; name what it leads to");
    PathError { doing: "follow", path: lossy(link), source: io::Error::other(problem) }
}

/// The names that a path goes through, from where it begins.
fn parts(path: &Path) -> VecDeque<OsString> {
    let part = |part: Component<'_>| match part {
        Component::Normal(_) | Component::ParentDir => Some(OsString::from_vec(part.as_os_str().as_bytes().to_vec())),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    type Open = fn(BorrowedFd<'_>, &Path, OFlags, Mode) -> rustix::io::Result<OwnedFd>;

    fn in_one(dir: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        rustix::fs::openat2(dir, path, flags, mode, ResolveFlags::NO_SYMLINKS)
    }

    #[test]
    fn both_ways_to_open_refuse_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/file"), "x").unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("file", root.join("real/link")).unwrap();
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (path, flags, expected) in [
            ("real/file", read, None),
            ("real", read | OFlags::DIRECTORY, None),
            ("./real/../real/file", read, None),
            ("link/file", read, Some(Errno::LOOP)),
            ("real/link", read, Some(Errno::LOOP)),
            ("link", read | OFlags::DIRECTORY, Some(Errno::NOTDIR)),
            ("link", read | OFlags::PATH, None),
            ("real/file/more", read, Some(Errno::NOTDIR)),
            ("none/file", read, Some(Errno::NOENT)),
            ("", read, Some(Errno::NOENT)),
        ] {
            let ways: [Open; 2] = [in_one, open_part_by_part];
            let found = ways.map(|open| {
                let from = std::fs::File::open(&root).unwrap();
                let absolute = open(CWD, &root.join(path), flags, Mode::empty()).err();
                let below = open(from.as_fd(), Path::new(path), flags, Mode::empty()).err();
                assert!(path.is_empty() || absolute == below, "{path}");
                below
            });
            assert_eq!(found, [expected; 2], "{path}");
        }
    }

    #[test]
    fn the_mode_of_what_a_link_leads_to_is_never_set() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let file = root.join("file");
        std::fs::write(&file, "x").unwrap();
        symlink("file", root.join("link")).unwrap();
        let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        chmod(&file, 0o000).unwrap();
        assert_eq!(mode(), 0);
        chmod(&file, 0o640).unwrap();
        assert!(chmod(&root.join("link"), 0o777).is_err());
        assert_eq!(mode(), 0o640);
    }

    #[test]
    fn links_of_ones_own_are_followed_as_the_kernel_does() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(dir.path().canonicalize().unwrap()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a", root.join("relative")).unwrap();
        symlink(root.join("relative/b"), root.join("absolute")).unwrap();
        symlink("../../absolute/..", root.join("a/b/back")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for path in ["", "a/b", "relative/b", "absolute", "a/b/back/b", "a/b/back/b/../.././relative"] {
            assert_eq!(trusted(&root.join(path)).unwrap(), root.join(path).canonicalize_utf8().unwrap(), "{path}");
        }
        for path in ["loop", "none", "a/none/b"] {
            assert_eq!(
                trusted(&root.join(path)).unwrap_err().kind(),
                root.join(path).canonicalize_utf8().unwrap_err().kind()
            );
        }
    }
}
