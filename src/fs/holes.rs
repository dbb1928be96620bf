//! Zeros that need no blocks: found page by page, left out of copies, punched out of files.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use camino::Utf8Path;
use rustix::fs::{FallocateFlags, OFlags};

use super::ioctl::{hold_alone, let_in};
use super::read::{self, FileId};
use super::seal::looks_sealed;
use super::{Disk, Op, Result, reach};
use crate::error::At;
use crate::format::SEALED_MODE;

/// Zeros are looked for in pages of this many bytes, which is what the usual file systems give blocks for.
pub(crate) const PAGE: u64 = 4096;

/// The shortest run of zeros that is worth a hole in a file that has blocks already: each hole splits an extent.
pub(crate) const RUN: u64 = 64 * 1024;

/// Whether holes were made in a file that somebody else made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Punched {
    /// Nobody wrote to it since it was sealed: its bytes are what they were, and it is sealed again.
    Sealed,
    /// Somebody wrote to it in the moment in which that was possible; the runs that he left alone are holes.
    Written,
    /// Somebody has it open, or the file system makes no holes.
    No,
    /// The name is that of another file by now.
    Replaced,
}

/// Runs of zeros in a file that is read from its start to its end.
#[derive(Debug)]
pub(super) struct Zeros {
    at_least: u64,
    runs: Vec<Range<u64>>,
}

impl Zeros {
    /// Finds runs of at least so many bytes.
    pub fn new(at_least: u64) -> Zeros {
        Zeros { at_least, runs: Vec::new() }
    }

    /// Adds the next run.
    pub fn add(&mut self, run: Range<u64>) {
        match self.runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            last => {
                if last.is_some_and(|last| last.end - last.start < self.at_least) {
                    self.runs.pop();
                }
                self.runs.push(run);
            }
        }
    }

    /// The runs of a file of this size.
    pub fn finish(mut self, size: u64) -> Vec<Range<u64>> {
        self.runs.retain(|run| run.end - run.start >= self.at_least);
        // A block that the end of the file is in is given back only when all of it is punched.
        match self.runs.last_mut() {
            Some(last) if last.end == size => last.end = size.next_multiple_of(PAGE),
            _ => {}
        }
        self.runs
    }
}

/// Splits bytes that are at this place of a file into parts: those whose pages are all zero, and those where none is.
pub(super) fn for_each_part(
    bytes: &[u8],
    at: u64,
    mut each: impl FnMut(bool, Range<usize>) -> Result<()>,
) -> Result<()> {
    let mut part: Option<(bool, Range<usize>)> = None;
    let mut start = 0;
    while start < bytes.len() {
        let left_of_page = PAGE - (at + start as u64) % PAGE;
        let end = bytes.len().min(start + left_of_page as usize);
        let is_zero = is_zero(&bytes[start..end]);
        match &mut part {
            Some((kind, range)) if *kind == is_zero => range.end = end,
            _ => {
                if let Some((kind, range)) = part.replace((is_zero, start..end)) {
                    each(kind, range)?;
                }
            }
        }
        start = end;
    }
    part.map_or(Ok(()), |(kind, range)| each(kind, range))
}

/// Whether a page, or a part of one, is all zeros.
fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];
    bytes == &ZEROS[..bytes.len()]
}

impl Disk {
    /// Takes the blocks of a range away; it reads as zeros.
    pub fn punch_hole(&self, file: &File, path: &Utf8Path, start: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = || rustix::fs::fallocate(file, flags, start, len).map_err(std::io::Error::from);
        self.step(|| Op::PunchHole { path: path.into(), start, len }, punch).at("make a hole in", path)
    }

    /// Gives a file that nobody else can reach holes in place of these runs of zeros; `false` when the file system makes
    /// none: they only save space.
    pub(super) fn punch(&self, file: &File, path: &Utf8Path, runs: &[Range<u64>]) -> Result<bool> {
        for run in runs {
            match self.punch_hole(file, path, run.start, run.end - run.start) {
                Err(error) if matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => return Ok(false),
                punched => punched?,
            }
        }
        Ok(true)
    }

    /// Keeps everybody else from opening a file, as soon as those are gone who have it for no longer than a fork takes.
    fn hold_alone(&self, file: &File) -> bool {
        let mut held = Ok(false);
        self.starting.wait_while(|| {
            held = hold_alone(file);
            matches!(held, Ok(false))
        });
        held.unwrap_or(false)
    }

    /// Makes holes while nobody else can open the file. Whoever wrote to it before set its time.
    fn punch_alone(&self, file: &File, path: &Utf8Path, runs: &[Range<u64>]) -> Result<Punched> {
        let metadata = file.metadata().at("read", path)?;
        if !looks_sealed(&metadata, metadata.len()) {
            return Ok(if self.punch_what_is_zero(file, path, runs)? { Punched::Written } else { Punched::No });
        }
        let made = self.punch(file, path, runs)?;
        self.set_sealed_mtime(file, path)?;
        Ok(if made { Punched::Sealed } else { Punched::No })
    }

    fn punch_what_is_zero(&self, file: &File, path: &Utf8Path, runs: &[Range<u64>]) -> Result<bool> {
        let mut zeros = Vec::new();
        for run in runs {
            zeros.extend(still_zero(file, path, run)?.then(|| run.clone()));
        }
        Ok(!zeros.is_empty() && self.punch(file, path, &zeros)?)
    }

    /// Gives a sealed file of a builder holes in place of these runs of zeros, if nobody else has it open. Gives back
    /// the file, opened again.
    ///
    /// While holes are made, nobody can open the file. If it was written to since the runs were found, each is looked at once
    /// more then, so that nothing is lost. A crash leaves the file with all its bytes; its owner may write to it.
    pub(super) fn punch_in_place(&self, file: File, path: &Utf8Path, runs: &[Range<u64>]) -> Result<(File, Punched)> {
        let id = FileId::of(&file.metadata().at("read", path)?);
        self.chmod_file(&file, path, SEALED_MODE | 0o200)?;
        // Only who has the one descriptor of a file can keep all others out.
        drop(file);
        let opened = reach::open(path, OFlags::RDWR, 0).at("open", path)?;
        let mut punched = Punched::Replaced;
        if FileId::of(&opened.metadata().at("read", path)?) == id {
            self.chmod_file(&opened, path, SEALED_MODE)?;
            let alone = self.hold_alone(&opened);
            let made = if alone { self.punch_alone(&opened, path, runs) } else { Ok(Punched::No) };
            if alone {
                let_in(&opened).at("let others open", path)?;
            }
            punched = made?;
        }
        drop(opened);
        let file = read::open(path)?;
        match FileId::of(&file.metadata().at("read", path)?) == id {
            true => Ok((file, punched)),
            false => Ok((file, Punched::Replaced)),
        }
    }
}

/// Whether a range holds nothing but zeros; what is behind the end of the file counts as zeros.
fn still_zero(file: &File, path: &Utf8Path, run: &Range<u64>) -> Result<bool> {
    let mut buffer = vec![0; RUN as usize];
    let mut at = run.start;
    while at < run.end {
        let want = (run.end - at).min(RUN) as usize;
        match file.read_at(&mut buffer[..want], at) {
            Ok(0) => break,
            Ok(read) if buffer[..read].iter().any(|&byte| byte != 0) => return Ok(false),
            Ok(read) => at += read as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("read", path),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use crate::format::Durability;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn parts(bytes: &[u8], at: u64) -> Vec<(bool, Range<usize>)> {
        let mut parts = Vec::new();
        for_each_part(bytes, at, |is_zero, part| {
            parts.push((is_zero, part));
            Ok(())
        })
        .unwrap();
        parts
    }

    #[test]
    fn pages_are_those_of_the_file_and_not_of_the_buffer() {
        let mut bytes = vec![0; 10_000];
        assert_eq!(parts(&bytes, 0), [(true, 0..10_000)]);
        bytes[5000] = 1;
        assert_eq!(parts(&bytes, 0), [(true, 0..4096), (false, 4096..8192), (true, 8192..10_000)]);
        assert_eq!(parts(&bytes, 96), [(true, 0..4000), (false, 4000..8096), (true, 8096..10_000)]);
        assert_eq!(parts(&[], 7), []);
    }

    #[test]
    fn runs_go_on_from_one_buffer_to_the_next() {
        let mut zeros = Zeros::new(8192);
        for run in [0..4096, 4096..8192, 3 * 4096..4 * 4096, 5 * 4096..7 * 4096, 7 * 4096..7 * 4096 + 100] {
            zeros.add(run);
        }
        assert_eq!(zeros.finish(7 * 4096 + 100), [0..8192, 5 * 4096..8 * 4096]);
    }

    fn dense(size: usize) -> (tempfile::TempDir, camino::Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(dir.path().join("file")).unwrap();
        std::fs::write(&path, vec![0; size]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        Disk::new(None, Durability::None).set_sealed_mtime(&File::open(&path).unwrap(), &path).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_that_somebody_has_open_gets_no_holes() {
        let disk = Disk::new(None, Durability::None);
        let (_dir, path) = dense(1 << 20);
        let whole = 0..1 << 20;
        let reader = File::open(&path).unwrap();
        let (file, punched) =
            disk.punch_in_place(File::open(&path).unwrap(), &path, std::slice::from_ref(&whole)).unwrap();
        assert_eq!((punched, file.metadata().unwrap().mode() & 0o777), (Punched::No, 0o444));
        drop(reader);
        let (file, punched) = disk.punch_in_place(file, &path, &[whole]).unwrap();
        assert_eq!((punched, file.metadata().unwrap().mode() & 0o777), (Punched::Sealed, 0o444));
        assert!(looks_sealed(&file.metadata().unwrap(), 1 << 20));
        assert!(file.metadata().unwrap().blocks() < 16);
    }

    #[test]
    fn who_has_a_file_open_for_a_moment_only_is_waited_for() {
        let disk = Disk::new(None, Durability::None);
        let (_dir, path) = dense(1 << 20);
        let (whole, reader) = (0..1 << 20, File::open(&path).unwrap());
        let (_, punched) = std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                drop(reader);
            });
            disk.punch_in_place(File::open(&path).unwrap(), &path, &[whole]).unwrap()
        });
        assert_eq!(punched, Punched::Sealed);
    }

    #[test]
    fn a_copy_of_the_descriptor_in_a_process_that_was_just_started_keeps_nobody_out() {
        let (_dir, path) = dense(4096);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(hold_alone(&file).unwrap());
        let _copy = file.try_clone().unwrap();
        assert_eq!(read::open(&path).unwrap_err().errno(), Some(libc::EAGAIN), "nobody gets in before");
        let_in(&file).unwrap();
        drop(file);
        read::open(&path).unwrap();
    }

    #[test]
    fn what_was_written_since_the_zeros_were_found_is_not_lost() {
        let disk = Disk::new(None, Durability::None);
        let (_dir, path) = dense(1 << 20);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"new", 100_000).unwrap();
        let runs = [0..512 << 10, 512 << 10..1 << 20];
        let (_, punched) = disk.punch_in_place(File::open(&path).unwrap(), &path, &runs).unwrap();
        assert_eq!(punched, Punched::Written, "the run in which nobody wrote is a hole");
        assert_eq!(&std::fs::read(&path).unwrap()[100_000..100_003], b"new");
    }
}
