//! A file whose bytes come from elsewhere, one part after the other.

use std::fs::File;
use std::ops::Range;

use camino::{Utf8Path, Utf8PathBuf};

use super::copy::{Extent, for_each_extent};
use super::target::Target;
use super::{Disk, Result};
use crate::error::At;
use crate::format::SEALED_MODE;
use crate::id::Digest;

/// A new file that is hashed while it comes.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    path: Utf8PathBuf,
    size: u64,
    at: u64,
    hasher: blake3::Hasher,
}

impl Disk {
    /// Begins a file of this size that only this user can read yet; it is a hole where zeros come.
    ///
    /// A crash leaves a part of it.
    pub fn receive(&self, path: &Utf8Path, size: u64) -> Result<Incoming> {
        let file = self.create(path, 0o600)?;
        self.set_len(&file, path, size)?;
        Ok(Incoming { file, path: path.to_owned(), size, at: 0, hasher: blake3::Hasher::new() })
    }
}

impl Incoming {
    /// Adds the next bytes.
    pub fn add(&mut self, disk: &Disk, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.size - self.at {
            return Err(std::io::Error::other("more bytes came than it has")).at("write", &self.path);
        }
        self.hasher.update(bytes);
        Target::new(&self.file, &self.path, 0).write(disk, bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Seals the file, durably, if all of it came and it is what it was to be; else it is removed.
    pub fn finish(self, disk: &Disk, digest: &Digest) -> Result<bool> {
        if self.at != self.size || Digest::from(*self.hasher.finalize().as_bytes()) != *digest {
            disk.unlink(&self.path)?;
            return Ok(false);
        }
        disk.chmod_file(&self.file, &self.path, SEALED_MODE)?;
        disk.set_sealed_mtime(&self.file, &self.path)?;
        disk.fsync(&self.file, &self.path)?;
        Ok(true)
    }
}

/// The parts of a file that are zeros and take no room, as far as the file system knows.
pub(crate) fn holes(file: &File, path: &Utf8Path, size: u64) -> Result<Vec<Range<u64>>> {
    let (mut holes, mut at) = (Vec::new(), 0);
    for_each_extent((file, path), 0..size, |extent| {
        at += match extent {
            Extent::Hole { len } => {
                holes.push(at..at + len);
                len
            }
            Extent::Data { len, .. } => len,
        };
        Ok(())
    })?;
    Ok(holes)
}
