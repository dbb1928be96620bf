//! Copies that keep holes and make new ones of zeros, share blocks where the file system can, and hash on the way.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use camino::Utf8Path;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::holes::{Zeros, for_each_part};
use super::parts::{Seen, Source, read_in_parts};
use super::target::Target;
use super::writer::Still;
use super::{Disk, Result};
use crate::error::{At, PathError};
use crate::id::Digest;

/// Bytes that are read, hashed and written at a time.
pub(super) const CHUNK: usize = 1024 * 1024;

/// Called with the number of bytes that were done since the last call; from several threads.
pub(crate) type Advance<'a> = &'a (dyn Fn(u64) + Sync);

/// How a copy came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub digest: Digest,
    pub size: u64,
    /// Whether it shares its blocks with the source.
    pub cloned: bool,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Data { start: u64, len: u64 },
    Hole { len: u64 },
}

impl Disk {
    /// Copies an open file to a new one that only this user can read yet; nothing is synced. Zeros become holes: pages
    /// of them, and in a clone runs of at least `clone_run` bytes. Without that it is never a clone.
    ///
    /// A crash leaves a part of the new file. After an error it is removed.
    pub fn copy_with_holes(
        &self,
        source: (&File, &Utf8Path),
        to: &Utf8Path,
        clone_run: Option<u64>,
        advance: Advance,
    ) -> Result<Copied> {
        let target = self.create(to, 0o600)?;
        let copy = || {
            let Some(clone_run) = clone_run else { return self.copy_data(source, (&target, to), advance) };
            let before = Still::of(source.0, source.1)?;
            match self.clone_file(source, (&target, to)) {
                Ok(()) => {
                    let (digest, size, zeros) = hash_clone(source, before, (&target, to), clone_run, advance)?;
                    self.punch(&target, to, &zeros)?;
                    Ok(Copied { digest, size, cloned: true })
                }
                Err(error) if cannot_clone(&error) => self.copy_data(source, (&target, to), advance),
                Err(error) => Err(error),
            }
        };
        copy().inspect_err(|_| drop(self.unlink(to)))
    }

    /// Whether files in this directory can share the blocks of a file; tried on one that nobody sees. No number tells: parts
    /// of one btrfs have other devices each.
    pub fn can_clone(&self, source: &File, dir: &Utf8Path) -> Result<bool> {
        let clone = tempfile::tempfile_in(dir).at("create a file in", dir)?;
        Ok(rustix::fs::ioctl_ficlone(&clone, source).is_ok())
    }

    fn copy_data(&self, source: (&File, &Utf8Path), target: (&File, &Utf8Path), advance: Advance) -> Result<Copied> {
        let size = source.0.metadata().at("read", source.1)?.len();
        self.set_len(target.0, target.1, size)?;
        let target = Target::new(target.0, target.1, size);
        let source = Source { file: source.0, path: source.1, advance };
        let write = |_: &mut (), bytes: &[u8], at: u64| target.write(self, bytes, at);
        let (digest, size) = read_in_parts(source, Seen::Parts, write, |()| ())?;
        Ok(Copied { digest, size, cloned: false })
    }
}

/// What a clone holds: its digest, its size, and its runs of zeros.
///
/// What was just built is in memory, and its clone is not: so the source is read, if nobody wrote to it since before it was
/// cloned. Else the clone is read: it is what was shared at one moment.
fn hash_clone(
    source: (&File, &Utf8Path),
    before: Option<Still>,
    clone: (&File, &Utf8Path),
    run: u64,
    advance: Advance,
) -> Result<(Digest, u64, Vec<Range<u64>>)> {
    if before.is_some() {
        let found = hash_and_find(source.0, source.1, run, advance);
        if Still::of(source.0, source.1)? == before {
            return found;
        }
        return hash_and_find(clone.0, clone.1, run, &|_| ());
    }
    hash_and_find(clone.0, clone.1, run, advance)
}

/// The digest and size of an open file; holes are not read.
pub(crate) fn hash(file: &File, path: &Utf8Path, advance: Advance) -> Result<(Digest, u64)> {
    read_in_parts(Source { file, path, advance }, Seen::Pieces, |(), _, _| Ok(()), |()| ())
}

/// The digest and size of an open file, and the runs of zeros in it that have blocks, of at least so many bytes.
pub(super) fn hash_and_find(
    file: &File,
    path: &Utf8Path,
    at_least: u64,
    advance: Advance,
) -> Result<(Digest, u64, Vec<Range<u64>>)> {
    let look = |found: &mut Vec<Range<u64>>, bytes: &[u8], at: u64| {
        for_each_part(bytes, at, |is_zero, part| {
            if is_zero {
                found.push(at + part.start as u64..at + part.end as u64);
            }
            Ok(())
        })
    };
    let mut zeros = Zeros::new(at_least);
    let take = |found: Vec<Range<u64>>| found.into_iter().for_each(|run| zeros.add(run));
    let (digest, size) = read_in_parts(Source { file, path, advance }, Seen::Pieces, look, take)?;
    Ok((digest, size, zeros.finish(size)))
}

/// The ranges `(start, length)` in which two files differ, in blocks of 4 KiB, at most `most` of them.
pub(crate) fn differing_ranges(a: (&File, &Utf8Path), b: (&File, &Utf8Path), most: usize) -> Result<Vec<(u64, u64)>> {
    const BLOCK: usize = 4096;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut at = 0;
    loop {
        let read_left = read_full(a, &mut left, at)?;
        let read_right = read_full(b, &mut right, at)?;
        let longest = read_left.max(read_right);
        if longest == 0 {
            return Ok(ranges);
        }
        for start in (0..longest).step_by(BLOCK) {
            let end = longest.min(start + BLOCK);
            if left[start.min(read_left)..end.min(read_left)] == right[start.min(read_right)..end.min(read_right)] {
                continue;
            }
            let (from, len) = (at + start as u64, (end - start) as u64);
            let full = ranges.len() == most;
            match ranges.last_mut() {
                Some(last) if last.0 + last.1 == from => last.1 += len,
                _ if full => return Ok(ranges),
                _ => ranges.push((from, len)),
            }
        }
        at += longest as u64;
    }
}

/// Errors that say "these two files cannot share blocks", in the words of the file systems that exist.
pub(super) fn cannot_clone(error: &PathError) -> bool {
    let known = [libc::EOPNOTSUPP, libc::EXDEV, libc::EINVAL, libc::ENOTTY, libc::ENOSYS, libc::EPERM, libc::ETXTBSY];
    error.errno().is_some_and(|errno| known.contains(&errno))
}

/// Goes through what is data and what is a hole in a part of a file.
pub(super) fn for_each_extent(
    file: (&File, &Utf8Path),
    range: Range<u64>,
    mut each: impl FnMut(Extent) -> Result<()>,
) -> Result<()> {
    let (mut at, size) = (range.start, range.end);
    while at < size {
        let data = match rustix::fs::seek(file.0, SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => size,
            // The file system does not know where its holes are.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error).at("seek in", file.1),
        };
        if data > at {
            each(Extent::Hole { len: data - at })?;
        }
        let hole = match rustix::fs::seek(file.0, SeekFrom::Hole(data)) {
            Ok(hole) => hole.min(size),
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => size,
            Err(error) => return Err(error).at("seek in", file.1),
        };
        if hole > data {
            each(Extent::Data { start: data, len: hole - data })?;
        }
        at = hole.max(data);
    }
    Ok(())
}

pub(super) fn read_full(file: (&File, &Utf8Path), buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.0.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("read", file.1),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Durability;
    use std::io::{Seek, Write};
    use std::os::unix::fs::MetadataExt;

    fn disk() -> Disk {
        Disk::new(None, Durability::None)
    }

    fn dir() -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap();
        (dir, path)
    }

    #[test]
    fn a_copy_has_the_bytes_the_digest_and_the_holes() {
        let (_dir, path) = dir();
        let from = path.join("from");
        let mut file = File::create_new(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 5_000_000, 40 << 20] {
            file.seek(io::SeekFrom::Start(at)).unwrap();
            file.write_all(&[7; 10_000]).unwrap();
        }
        file.sync_all().unwrap();
        let bytes = std::fs::read(&from).unwrap();

        let source = File::open(&from).unwrap();
        let copied = disk()
            .copy_with_holes((&source, &from), &path.join("to"), Some(super::super::holes::RUN), &|_| ())
            .unwrap();

        assert_eq!((copied.digest, copied.size), (Digest::of(&bytes), 64 << 20));
        assert!(std::fs::read(path.join("to")).unwrap() == bytes);
        let blocks = |name: &str| std::fs::metadata(path.join(name)).unwrap().blocks() * 512;
        assert!(blocks("to") <= blocks("from") + (256 << 10), "{} blocks of {}", blocks("to"), blocks("from"));
        assert_eq!(hash(&source, &from, &|_| ()).unwrap(), (Digest::of(&bytes), 64 << 20));
    }

    #[test]
    fn a_copy_has_no_blocks_for_pages_of_zeros() {
        let (_dir, path) = dir();
        let from = path.join("from");
        let mut bytes = vec![0; (8 << 20) + 100];
        for at in [4095, 1 << 20, 3_000_000, 8 << 20] {
            bytes[at] = 7;
        }
        std::fs::write(&from, &bytes).unwrap();
        let source = File::open(&from).unwrap();
        let copied =
            disk().copy_with_holes((&source, &from), &path.join("to"), Some(super::super::holes::PAGE), &|_| ());
        assert_eq!((copied.as_ref().unwrap().digest, copied.unwrap().size), (Digest::of(&bytes), bytes.len() as u64));
        assert!(std::fs::read(path.join("to")).unwrap() == bytes);
        let metadata = std::fs::metadata(path.join("to")).unwrap();
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks for four pages", metadata.blocks());
    }

    #[test]
    fn differing_ranges_are_merged_blocks() {
        let (_dir, path) = dir();
        let (a, b) = (path.join("a"), path.join("b"));
        let mut bytes = vec![1; 3 << 20];
        std::fs::write(&a, &bytes).unwrap();
        for at in [0, 5000, 2 << 20] {
            bytes[at] = 2;
        }
        bytes.extend([3; 10]);
        std::fs::write(&b, &bytes).unwrap();
        let (left, right) = (File::open(&a).unwrap(), File::open(&b).unwrap());
        let ranges = differing_ranges((&left, &a), (&right, &b), 8).unwrap();
        assert_eq!(ranges, [(0, 8192), (2 << 20, 4096), (3 << 20, 10)]);
    }
}
