//! Making a builder's file one that nobody can change any more.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;

use super::copy::{Advance, hash};
use super::ioctl::has_writer;
use super::{Disk, Result, read, with_unique_name};
use crate::error::At;
use crate::format::{SEALED_MODE, SEALED_MTIME};
use crate::id::Digest;

/// A file after it was sealed: read-only, hashed and durable under whatever name it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedFile {
    pub digest: Digest,
    pub size: u64,
    /// Extended attributes that it had.
    pub dropped: Vec<String>,
    /// Why the builder's inode could not be kept, if it could not.
    pub copied: Option<&'static str>,
}

/// Whether the metadata is that of a sealed file of this size.
pub(crate) fn looks_sealed(metadata: &Metadata, size: u64) -> bool {
    metadata.is_file() && metadata.len() == size && metadata.mtime() == SEALED_MTIME && metadata.mode() & 0o222 == 0
}

impl Disk {
    /// Seals the file at `path`, with half-done work in `staging`.
    ///
    /// The builder's inode is kept if nobody else can reach it; else its bytes go to a fresh one, which takes
    /// its name. Another name of the inode, and what is behind it, is never changed.
    /// A crash leaves the file or its sealed form under the name, and at most a part of a copy in `staging`.
    pub fn seal_file(&self, path: &Utf8Path, staging: &Utf8Path, advance: Advance) -> Result<SealedFile> {
        self.make_readable(path)?;
        let file = read::open(path)?;
        let dropped = read::xattrs(&file, path)?;
        let in_place = match self.shut(&file, path, &dropped)? {
            None => self.seal_in_place(&file, path, advance)?.ok_or("it was changed while it was hashed"),
            Some(reason) => Err(reason),
        };
        match in_place {
            Ok((digest, size)) => Ok(SealedFile { digest, size, dropped, copied: None }),
            Err(reason) => {
                let (digest, size) = self.seal_copy(&file, path, staging, advance)?;
                Ok(SealedFile { digest, size, dropped, copied: Some(reason) })
            }
        }
    }

    /// A builder may leave a file that its own user may not read; one with another name is not changed.
    fn make_readable(&self, path: &Utf8Path) -> Result<()> {
        let metadata = read::metadata(path)?;
        let ours = metadata.is_file() && metadata.uid() == read::user() && metadata.nlink() == 1;
        if ours && metadata.mode() & 0o400 == 0 { self.chmod(path, 0o600) } else { Ok(()) }
    }

    /// Takes away the ways to write to a file; says why when there is one that can't be taken away.
    fn shut(&self, file: &File, path: &Utf8Path, xattrs: &[String]) -> Result<Option<&'static str>> {
        let metadata = file.metadata().at("read", path)?;
        if metadata.nlink() != 1 {
            return Ok(Some("it has another name outside the draft"));
        }
        if metadata.uid() != read::user() {
            return Ok(Some("it belongs to another user"));
        }
        // Attributes go while the file is writable: without that, only root may remove them.
        if !xattrs.is_empty() {
            self.chmod_file(file, path, 0o600)?;
        }
        for name in xattrs {
            self.remove_xattr(file, path, name)?;
        }
        // First the mode, so that no new writer comes; then the question whether one is left.
        self.chmod_file(file, path, SEALED_MODE)?;
        Ok(match has_writer(file) {
            Ok(false) => None,
            Ok(true) => Some("a process still has it open for writing"),
            Err(_) => Some("the system can't tell whether a process still writes to it"),
        })
    }

    /// `None` when the file was changed meanwhile.
    fn seal_in_place(&self, file: &File, path: &Utf8Path, advance: Advance) -> Result<Option<(Digest, u64)>> {
        self.set_sealed_mtime(file, path)?;
        let (digest, size) = hash(file, path, advance)?;
        self.fsync(file, path)?;
        let after = file.metadata().at("read", path)?;
        let unchanged = looks_sealed(&after, size) && after.nlink() == 1;
        Ok(unchanged.then_some((digest, size)))
    }

    fn seal_copy(&self, file: &File, path: &Utf8Path, staging: &Utf8Path, advance: Advance) -> Result<(Digest, u64)> {
        let mut copied = None;
        let staged = with_unique_name(staging, ".copy-", |name| {
            copied = Some(self.copy_sealed((file, path), name, advance)?);
            Ok(())
        })?;
        self.rename(&staged, path)?;
        Ok(copied.expect("a name was found, so a copy was made"))
    }

    /// Copies a file to a new, sealed and durable one; its name is not durable yet.
    pub fn copy_sealed(&self, source: (&File, &Utf8Path), to: &Utf8Path, advance: Advance) -> Result<(Digest, u64)> {
        let copied = self.copy(source, to, advance)?;
        let file = read::open(to)?;
        self.chmod_file(&file, to, SEALED_MODE)?;
        self.set_sealed_mtime(&file, to)?;
        self.fsync(&file, to)?;
        Ok((copied.digest, copied.size))
    }

    /// A sealed file of these bytes.
    pub fn write_sealed(&self, path: &Utf8Path, bytes: &[u8]) -> Result<()> {
        let file = self.create(path, 0o600)?;
        self.write(&file, path, bytes)?;
        self.chmod_file(&file, path, SEALED_MODE)?;
        self.set_sealed_mtime(&file, path)?;
        self.fsync(&file, path)
    }
}

/// Whether a file holds the bytes of this digest; `false` when it can't be read to the end.
pub(crate) fn holds(path: &Utf8Path, digest: &Digest) -> Result<bool> {
    match read::open(path).and_then(|file| hash(&file, path, &|_| ())) {
        Ok((found, _)) => Ok(found == *digest),
        Err(error) if error.errno() == Some(libc::EIO) || error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}
