//! Reads. Nothing here changes the disk.

use std::fs;
pub(crate) use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Result, reach};
use crate::error::{At, PathError};

/// Documents larger than this were not written by a template store.
const LARGEST_DOCUMENT: u64 = 64 * 1024 * 1024;

/// A catalog has some 300 bytes for each revision, and takes up to four times its size of memory while it is read. A
/// store with more revisions than fit has none.
pub(crate) const LARGEST_CATALOG: u64 = 128 * 1024 * 1024;

/// What tells two inodes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Of nothing that exists.
    pub const NONE: FileId = FileId { device: u64::MAX, inode: u64::MAX };

    pub fn of(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }

    pub(super) fn of_stat(stat: &rustix::fs::Stat) -> FileId {
        FileId { device: stat.st_dev, inode: stat.st_ino }
    }

    /// Its number on its file system.
    pub fn inode(self) -> u64 {
        self.inode
    }

    pub fn same_file_system(self, other: FileId) -> bool {
        self.device == other.device
    }
}

/// Opens a regular file for reading; a symbolic link is refused, and a pipe does not block.
pub(crate) fn open(path: &Utf8Path) -> Result<File> {
    Ok(open_with_metadata(path)?.0)
}

fn open_with_metadata(path: &Utf8Path) -> Result<(File, Metadata)> {
    let file = reach::open(path, OFlags::RDONLY | OFlags::NONBLOCK, 0).at("open", path)?;
    let metadata = file.metadata().at("read", path)?;
    if metadata.is_file() {
        Ok((file, metadata))
    } else {
        Err(io::Error::other("it is not a regular file")).at("open", path)
    }
}

/// The size of an open file.
pub(crate) fn size(file: &File, path: &Utf8Path) -> Result<u64> {
    Ok(file.metadata().at("read", path)?.len())
}

/// Bytes in the middle of an open file; fewer where it ends.
pub(crate) fn piece(file: &File, path: &Utf8Path, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let filled = super::copy::read_full((file, path), &mut bytes, at)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// The lines that begin in the last bytes of a file, at most so many bytes, with the number of those before them.
pub(crate) fn last_lines_if_there(path: &Utf8Path, most: u64) -> Result<Option<(u64, Vec<u8>)>> {
    let Some((file, metadata)) = if_there(open_with_metadata(path))? else { return Ok(None) };
    let before = metadata.len().saturating_sub(most);
    let mut bytes = piece(&file, path, before, (metadata.len() - before) as usize)?;
    // The first one began before.
    let rest =
        if before == 0 { 0 } else { bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |at| at + 1) };
    bytes.drain(..rest);
    Ok(Some((before + rest as u64, bytes)))
}

/// The bytes of a small file of the store.
pub(crate) fn bytes(path: &Utf8Path) -> Result<Vec<u8>> {
    bytes_up_to(path, LARGEST_DOCUMENT)
}

/// The bytes of a file of the store that may have so many.
pub(crate) fn bytes_up_to(path: &Utf8Path, most: u64) -> Result<Vec<u8>> {
    let (file, metadata) = open_with_metadata(path)?;
    bytes_of_size(&file, (metadata.len(), most), path)
}

/// The bytes of a small file that the user named; links are followed.
pub(crate) fn user_bytes(path: &Utf8Path) -> Result<Vec<u8>> {
    bytes_of(File::open(path).at("open", path)?, path)
}

pub(crate) fn user_bytes_if_there(path: &Utf8Path) -> Result<Option<Vec<u8>>> {
    if_there(user_bytes(path))
}

fn bytes_of(file: File, path: &Utf8Path) -> Result<Vec<u8>> {
    let size = file.metadata().at("read", path)?.len();
    bytes_of_size(&file, (size, LARGEST_DOCUMENT), path)
}

/// The bytes of a file that was just seen to have this size, and may have so many.
fn bytes_of_size(mut file: &File, (size, most): (u64, u64), path: &Utf8Path) -> Result<Vec<u8>> {
    if size > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for what it should be"))
            .at("read", path);
    }
    // One byte more than it has: a read that leaves room has seen the end.
    let mut bytes = vec![0; size as usize + 1];
    let mut filled = 0;
    loop {
        match file.read(&mut bytes[filled..]) {
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).at("read", path),
        }
        if filled < bytes.len() {
            bytes.truncate(filled);
            return Ok(bytes);
        }
        // It grew meanwhile.
        if filled as u64 > most {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for what it should be"))
                .at("read", path);
        }
        bytes.resize(filled * 2, 0);
    }
}

/// The bytes of a small file that may not be there.
pub(crate) fn bytes_if_there(path: &Utf8Path) -> Result<Option<Vec<u8>>> {
    if_there(bytes(path))
}

/// A directory that is open: what is below it is found without the way to it.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: File,
    path: Utf8PathBuf,
}

impl Directory {
    /// `None` if there is nothing. A symbolic link is no directory.
    pub fn open(path: &Utf8Path) -> Result<Option<Directory>> {
        let opened = if_there(reach::open(path, reach::DIRECTORY, 0).at("open", path))?;
        Ok(opened.map(|dir| Directory { dir, path: path.to_owned() }))
    }

    /// The state of a directory in it; `None` if there is none.
    pub fn state_of(&self, name: &str) -> Result<Option<DirState>> {
        let found = match rustix::fs::statat(&self.dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).at("read", &self.path.join(name)),
        };
        let is_dir = rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Directory;
        let changed = (found.st_ctime as i64, found.st_ctime_nsec as i64);
        Ok(is_dir.then_some(DirState { inode: found.st_ino, changed }))
    }

    /// The bytes of a small file below it that may not be there.
    pub fn bytes_if_there(&self, below: &Utf8Path) -> Result<Option<Vec<u8>>> {
        // The whole path is for errors only.
        let at = |error: io::Error| PathError { doing: "read", path: self.path.join(below), source: error };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = reach::open_from(self.dir.as_fd(), below.as_std_path(), flags, 0).map_err(at);
        let Some(file) = if_there(opened)? else { return Ok(None) };
        let found = rustix::fs::fstat(&file).map_err(|error| at(error.into()))?;
        match rustix::fs::FileType::from_raw_mode(found.st_mode) {
            rustix::fs::FileType::RegularFile => {
                bytes_of_size(&file, (found.st_size as u64, LARGEST_DOCUMENT), below).map(Some)
            }
            _ => Err(io::Error::other("it is not a regular file")).at("open", &self.path.join(below)),
        }
    }
}

/// A directory as it is: whatever name in it comes, goes or gets another file changes this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirState {
    pub inode: u64,
    /// Seconds and nanoseconds (`st_ctime`).
    pub changed: (i64, i64),
}

impl DirState {
    /// Whether the last change was before this moment. Where times are whole seconds, as in an old ext4 with small
    /// inodes, it may have been at any time of its second.
    pub fn is_before(self, moment: SystemTime) -> bool {
        let seconds = u64::try_from(self.changed.0).unwrap_or_default();
        let latest = match self.changed.1 {
            0 => Duration::from_secs(seconds.saturating_add(1)),
            nanoseconds => Duration::new(seconds, nanoseconds as u32),
        };
        SystemTime::UNIX_EPOCH.checked_add(latest).is_some_and(|latest| latest < moment)
    }
}

/// What is at the path itself, not behind a link.
pub(crate) fn metadata(path: &Utf8Path) -> Result<Metadata> {
    fs::symlink_metadata(path).at("read", path)
}

/// What a path leads to, links followed.
#[cfg(feature = "remote")]
pub(crate) fn metadata_behind_links(path: &Utf8Path) -> Result<Metadata> {
    fs::metadata(path).at("read", path)
}

pub(crate) fn metadata_if_there(path: &Utf8Path) -> Result<Option<Metadata>> {
    if_there(metadata(path))
}

pub(crate) fn exists(path: &Utf8Path) -> Result<bool> {
    Ok(metadata_if_there(path)?.is_some())
}

/// What a file or directory takes on its file system (`st_blocks`, stat(2)), in bytes.
pub(crate) fn bytes_on_disk(metadata: &Metadata) -> u64 {
    metadata.blocks() * 512
}

pub(super) fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The text of a symbolic link that may not be there.
pub(crate) fn link_if_there(path: &Utf8Path) -> Result<Option<String>> {
    let Some(target) = if_there(fs::read_link(path).at("read link", path))? else { return Ok(None) };
    Ok(Some(target.to_string_lossy().into_owned()))
}

/// The path with every link followed.
pub(crate) fn canonical(path: &Utf8Path) -> Result<Utf8PathBuf> {
    path.canonicalize_utf8().at("find", path)
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub name: String,
    pub inode: u64,
    pub is_dir: bool,
}

/// The names in a directory that may not be there, sorted; those that are not UTF-8 are not ours.
pub(crate) fn names(dir: &Utf8Path) -> Result<Vec<String>> {
    Ok(list(dir)?.into_iter().map(|entry| entry.name).collect())
}

/// What is in a directory that may not be there, sorted by name. A symbolic link in its place is no directory, and
/// neither is one in it.
pub(crate) fn list(dir: &Utf8Path) -> Result<Vec<Name>> {
    let Some(opened) = if_there(reach::open(dir, reach::DIRECTORY, 0).at("list", dir))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(opened).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let is_dir = match entry.file_type() {
            rustix::fs::FileType::Directory => true,
            // A file system that does not say.
            rustix::fs::FileType::Unknown => metadata_if_there(&dir.join(name))?.is_some_and(|found| found.is_dir()),
            _ => false,
        };
        names.push(Name { name: name.to_owned(), inode: entry.ino(), is_dir });
    }
    names.sort_unstable();
    Ok(names)
}

/// What is at a path below a directory.
#[derive(Debug)]
pub(crate) enum Place {
    Missing,
    /// On the way there is something that is no directory.
    Swapped {
        path: Utf8PathBuf,
        is: String,
    },
    At(Metadata),
}

/// Looks at a path below a directory without following a link on the way.
pub(crate) fn place(base: &Utf8Path, relative: &Utf8Path) -> Result<Place> {
    let mut at = base.to_owned();
    let mut parts = relative.components().peekable();
    while let Some(part) = parts.next() {
        at.push(part);
        match metadata_if_there(&at)? {
            None => return Ok(Place::Missing),
            Some(metadata) if parts.peek().is_none() => return Ok(Place::At(metadata)),
            Some(metadata) if metadata.is_dir() => {}
            Some(metadata) => return Ok(Place::Swapped { is: describe(&at, &metadata), path: at }),
        }
    }
    Ok(Place::At(metadata(base)?))
}

/// Whether a path leads to a block device.
pub(crate) fn is_block_device(path: &Utf8Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// What something is, for people.
pub(crate) fn describe(path: &Utf8Path, metadata: &Metadata) -> String {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    match () {
        () if kind.is_symlink() => {
            let target = link_if_there(path).ok().flatten().unwrap_or_default();
            format!("a symbolic link to {target:?}")
        }
        () if kind.is_file() && metadata.len() == 0 => "an empty file".into(),
        () if kind.is_file() => "a file".into(),
        () if kind.is_dir() => "a directory".into(),
        () if kind.is_fifo() => "a pipe".into(),
        () if kind.is_socket() => "a socket".into(),
        () => "a device".into(),
    }
}

/// The names of a file's extended attributes, but for those that the system keeps on every file.
pub(crate) fn xattrs(file: &File, path: &Utf8Path) -> Result<Vec<String>> {
    let mut names = vec![0u8; 64 * 1024];
    let len = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error).at("list the attributes of", path),
    };
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8_lossy(name).into_owned());
    Ok(names.filter(|name| !["security.selinux", "security.SMACK64"].contains(&name.as_str())).collect())
}

/// The user who is asked about rights, and who owns what this process makes.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The group of what this process makes.
pub(crate) fn group() -> u32 {
    rustix::process::getegid().as_raw()
}

/// Whether this user may share an inode: nobody who could change it later is anybody else than this user or root.
pub(crate) fn can_share(metadata: &Metadata) -> bool {
    [0, user()].contains(&metadata.uid())
}

/// The bytes of the file system, and those that this user can still write.
pub(crate) fn space(path: &Utf8Path) -> Result<(u64, u64)> {
    let found = fs2::statvfs(path).at("read the free space of", path)?;
    Ok((found.total_space(), found.available_space()))
}

/// Whether files on a file system can have blocks in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Never,
    /// Those of one file can be asked about.
    Possible,
    /// It shares and compresses behind our back: what a file takes is not what its removal frees.
    Always,
}

/// Numbers: `linux/magic.h`.
const XFS: u32 = 0x5846_5342;
const BTRFS: u32 = 0x9123_683E;
const EXT: u32 = 0xEF53;
const TMPFS: u32 = 0x0102_1994;

fn kind(path: &Utf8Path) -> Result<u32> {
    Ok(rustix::fs::statfs(path.as_std_path()).at("read", path)?.f_type as u32)
}

/// The name of a file system that people know; `None` for others.
pub(crate) fn file_system_name(path: &Utf8Path) -> Option<&'static str> {
    match kind(path).ok()? {
        XFS => Some("XFS"),
        BTRFS => Some("btrfs"),
        EXT => Some("ext4"),
        TMPFS => Some("tmpfs"),
        _ => None,
    }
}

pub(crate) fn sharing(path: &Utf8Path) -> Result<Sharing> {
    Ok(match kind(path)? {
        EXT | TMPFS => Sharing::Never,
        XFS => Sharing::Possible,
        BTRFS => Sharing::Always,
        _ => Sharing::Possible,
    })
}

/// Bytes of an inode beside its blocks.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InodeSize {
    pub taken: u64,
    /// What comes back when it goes, as far as can be told.
    pub freed: u64,
}

/// What inodes take on a file system. XFS makes room for them as they are needed; they have 512 bytes unless somebody chose
/// otherwise (mkfs.xfs(8)). It gives them back 64 at a time, when the last of those is gone: which share one with what
/// stays is not known, so half of them are taken to come back. Other file systems have theirs from the start.
pub(crate) fn inode_size(path: &Utf8Path) -> Result<InodeSize> {
    Ok(if kind(path)? == XFS { InodeSize { taken: 512, freed: 256 } } else { InodeSize::default() })
}

/// Whether a file has blocks in common with another one.
pub(crate) fn has_shared_extents(path: &Utf8Path) -> Result<bool> {
    super::ioctl::has_shared_extents(&open(path)?).at("ask about the blocks of", path)
}

/// Bytes that this user can still write to the file system.
pub(crate) fn available_space(path: &Utf8Path) -> Result<u64> {
    fs2::available_space(path).at("read the free space of", path)
}

/// The name of the network file system that the path is on, if it is on one.
///
/// Numbers: `linux/magic.h` and statfs(2).
pub(crate) fn network_file_system(path: &Utf8Path) -> Result<Option<&'static str>> {
    let kind = rustix::fs::statfs(path.as_std_path()).at("read", path)?.f_type as u32;
    Ok(match kind {
        0x6969 => Some("NFS"),
        0x517B => Some("SMB"),
        0xFE53_4D42 => Some("SMB2"),
        0xFF53_4D42 => Some("CIFS"),
        0x0102_1997 => Some("9P"),
        0x00C3_6400 => Some("Ceph"),
        0x5346_414F | 0x6B41_4653 => Some("AFS"),
        0x0BD0_0BD0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        0x6573_5546 => Some("FUSE"),
        _ => None,
    })
}
