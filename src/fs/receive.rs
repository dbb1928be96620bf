//! A file whose bytes come from elsewhere.

use std::fs::File;
use std::ops::Range;

use camino::{Utf8Path, Utf8PathBuf};

use super::copy::{Extent, for_each_extent};
use super::holes::PAGE;
use super::target::Target;
use super::{Disk, Result};
use crate::format::SEALED_MODE;

/// A new file, whose parts several threads write, each at its own place.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: File,
    path: Utf8PathBuf,
    size: u64,
}

impl Disk {
    /// Begins a file of this size that only this user can read yet; it is a hole where nothing or zeros are written.
    ///
    /// A crash leaves a part of it.
    pub fn receive(&self, path: &Utf8Path, size: u64) -> Result<Incoming> {
        let file = self.create(path, 0o600)?;
        self.set_len(&file, path, size)?;
        Ok(Incoming { file, path: path.to_owned(), size })
    }
}

impl Incoming {
    /// Where its parts are written, past the page cache if it is large and they are in [`Buffer`]s.
    pub fn target(&self) -> Target<'_> {
        Target::new(&self.file, &self.path, self.size)
    }

    /// Seals the file, durably.
    pub fn seal(self, disk: &Disk) -> Result<()> {
        disk.chmod_file(&self.file, &self.path, SEALED_MODE)?;
        disk.set_sealed_mtime(&self.file, &self.path)?;
        disk.fsync(&self.file, &self.path)
    }
}

/// Memory that begins with a page, as writing past the page cache wants it (`O_DIRECT`, open(2)); kept for the next part.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// Room for so many bytes; what was there is gone.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < len + PAGE as usize {
            self.bytes = vec![0; len + PAGE as usize];
        }
        self.start = self.bytes.as_ptr().align_offset(PAGE as usize).min(PAGE as usize);
        self.len = len;
        &mut self.bytes[self.start..self.start + len]
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
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
