//! Where a copy of a large file goes.

use std::fs::File;

use camino::Utf8Path;
use rustix::fs::OFlags;

use super::holes::{PAGE, for_each_part};
use super::{Disk, Result, reach};

/// Files from this size on pass the page cache by: the copy is read again when a VM starts, if at all, and writing a GiB
/// through the cache can take seconds of the processor.
const LARGE: u64 = 8 * 1024 * 1024;

/// The shortest piece that is worth a request of its own.
const PIECE: usize = 64 * 1024;

/// A new file that is written to from several threads, each at its own place.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    file: &'a File,
    path: &'a Utf8Path,
    /// The same file, written to without the page cache (`O_DIRECT`, open(2)); not every file system can.
    direct: Option<File>,
}

impl<'a> Target<'a> {
    pub fn new(file: &'a File, path: &'a Utf8Path, size: u64) -> Target<'a> {
        let open = || reach::open(path, OFlags::WRONLY | OFlags::DIRECT, 0).ok();
        Target { file, path, direct: (size >= LARGE).then(open).flatten() }
    }

    /// Writes what is not zero: the file has its length, and is a hole where nothing is written.
    pub fn write(&self, disk: &Disk, bytes: &[u8], at: u64) -> Result<()> {
        for_each_part(bytes, at, |is_zero, part| {
            let start = at + part.start as u64;
            if is_zero { Ok(()) } else { self.write_piece(disk, &bytes[part], start) }
        })
    }

    /// What is no whole page goes through the cache: its page is no other's.
    fn write_piece(&self, disk: &Disk, bytes: &[u8], at: u64) -> Result<()> {
        let pages = bytes.len() - bytes.len() % PAGE as usize;
        let aligned = at.is_multiple_of(PAGE) && bytes.as_ptr().align_offset(PAGE as usize) == 0;
        let Some(direct) = self.direct.as_ref().filter(|_| aligned && pages >= PIECE) else {
            return disk.write_at(self.file, self.path, bytes, at);
        };
        match disk.write_at(direct, self.path, &bytes[..pages], at) {
            // It wants another alignment.
            Err(error) if error.errno() == Some(libc::EINVAL) => disk.write_at(self.file, self.path, bytes, at),
            Ok(()) if pages < bytes.len() => disk.write_at(self.file, self.path, &bytes[pages..], at + pages as u64),
            written => written,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::super::parts::{Seen, Source, read_in_parts};
    use super::*;
    use crate::format::Durability;
    use crate::id::Digest;

    #[test]
    fn a_large_copy_has_every_byte_and_no_blocks_for_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        // Whole parts, parts with zeros in the middle, single bytes in a page, an end that is no whole page.
        let mut bytes: Vec<u8> = (0..20 << 20).map(|at: usize| (at / 7 % 250 + 1) as u8).collect();
        bytes[3 << 20..6 << 20].fill(0);
        bytes[(9 << 20) + 4096..(9 << 20) + 200 * 4096].fill(0);
        (0..100).for_each(|page| bytes[(9 << 20) + page * 8192] = 1);
        bytes.truncate((20 << 20) - 1234);
        let (from, to) = (path.join("from"), path.join("to"));
        std::fs::write(&from, &bytes).unwrap();

        let disk = Disk::new(None, Durability::None);
        let (source, file) = (File::open(&from).unwrap(), disk.create(&to, 0o600).unwrap());
        disk.set_len(&file, &to, bytes.len() as u64).unwrap();
        let target = Target::new(&file, &to, bytes.len() as u64);
        let source = Source { file: &source, path: &from, advance: &|_| () };
        let write = |_: &mut (), bytes: &[u8], at| target.write(&disk, bytes, at);
        let (digest, _) = read_in_parts(source, Seen::Parts, write, |()| ()).unwrap();

        assert_eq!(digest, Digest::of(&bytes));
        assert!(std::fs::read(&to).unwrap() == bytes);
        let taken = file.metadata().unwrap().blocks() * 512;
        assert!(taken < 17 << 20, "{taken} bytes on the disk");
        let mut end = [0; 2];
        file.read_exact_at(&mut end, bytes.len() as u64 - 2).unwrap();
        assert_eq!(end, bytes[bytes.len() - 2..]);
    }
}
