//! Reads. Nothing here changes the disk.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;
use walkdir::WalkDir;

use super::Result;
use crate::error::{At, PathError};

/// Documents larger than this were not written by a template store.
const LARGEST_DOCUMENT: u64 = 64 * 1024 * 1024;

/// What tells two inodes apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub fn of(metadata: &Metadata) -> FileId {
        FileId { device: metadata.dev(), inode: metadata.ino() }
    }

    pub fn same_file_system(self, other: FileId) -> bool {
        self.device == other.device
    }
}

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

/// Opens a regular file for reading; a symbolic link is refused, and a pipe does not block.
pub(crate) fn open(path: &Utf8Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).at("open", path)?;
    if file.metadata().at("read", path)?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file")).at("open", path)
    }
}

/// The bytes of a small file of the store.
pub(crate) fn bytes(path: &Utf8Path) -> Result<Vec<u8>> {
    bytes_of(open(path)?, path)
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
    if size > LARGEST_DOCUMENT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is too large for what it should be"))
            .at("read", path);
    }
    let mut bytes = Vec::with_capacity(size as usize);
    file.take(LARGEST_DOCUMENT).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

/// The bytes of a small file that may not be there.
pub(crate) fn bytes_if_there(path: &Utf8Path) -> Result<Option<Vec<u8>>> {
    if_there(bytes(path))
}

/// What is at the path itself, not behind a link.
pub(crate) fn metadata(path: &Utf8Path) -> Result<Metadata> {
    fs::symlink_metadata(path).at("read", path)
}

pub(crate) fn metadata_if_there(path: &Utf8Path) -> Result<Option<Metadata>> {
    if_there(metadata(path))
}

pub(crate) fn exists(path: &Utf8Path) -> Result<bool> {
    Ok(metadata_if_there(path)?.is_some())
}

fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
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

/// The names in a directory that may not be there, sorted; those that are not UTF-8 are not ours.
pub(crate) fn names(dir: &Utf8Path) -> Result<Vec<String>> {
    let Some(entries) = if_there(fs::read_dir(dir).at("list", dir))? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.at("list", dir)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// All that is below a directory, each directory before what it holds, sorted; links are not followed.
///
/// # Errors
/// A name that is not UTF-8 is one.
pub(crate) fn walk(dir: &Utf8Path) -> Result<Vec<Entry>> {
    let walker = WalkDir::new(dir).min_depth(1).sort_by_file_name().follow_links(false);
    walker.into_iter().map(|entry| entry_of(dir, entry)).collect()
}

fn entry_of(dir: &Utf8Path, entry: walkdir::Result<walkdir::DirEntry>) -> Result<Entry> {
    let entry = entry.at("list", dir)?;
    let kind = entry.file_type();
    let metadata = entry.metadata().at("list", dir)?;
    let path = Utf8PathBuf::from_path_buf(entry.into_path()).map_err(|path| PathError {
        doing: "use",
        path: path.to_string_lossy().into_owned().into(),
        source: io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8; rename it"),
    })?;
    let relative = path.strip_prefix(dir).expect("a walk stays below its root").to_owned();
    Ok(Entry { relative, path, kind, metadata })
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

/// Whether this user may share an inode: nobody who could change it later is anybody else than this user or root.
pub(crate) fn can_share(metadata: &Metadata) -> bool {
    [0, user()].contains(&metadata.uid())
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
