//! Making a builder's file one that nobody can change any more.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::thread;

use camino::{Utf8Path, Utf8PathBuf};

use super::copy::{Advance, hash, hash_and_find};
use super::holes::{Punched, RUN};
use super::read::FileId;
use super::writer::{Writer, lasting_writer, writer_of};
use super::{Disk, Result, read, with_unique_name};
use crate::error::At;
use crate::format::{Durability, SEALED_MODE, SEALED_MTIME};
use crate::id::Digest;

/// Bytes from which on a file is synced while it is hashed.
const WORTH_A_THREAD: u64 = 1024 * 1024;

/// Bytes from which on a copy costs more than to wait until a process that is being started has closed the file.
const WORTH_A_PAUSE: u64 = 64 * 1024;

/// A file after it was sealed: read-only, hashed and durable under whatever name it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedFile {
    pub digest: Digest,
    pub size: u64,
    pub inode: FileId,
    /// Extended attributes that it had.
    pub dropped: Vec<String>,
    /// Why the builder's inode could not be kept, if it could not.
    pub copied: Option<&'static str>,
}

/// Whether the metadata is that of a sealed file of this size.
pub(crate) fn looks_sealed(metadata: &Metadata, size: u64) -> bool {
    metadata.is_file() && metadata.len() == size && metadata.mtime() == SEALED_MTIME && metadata.mode() & 0o222 == 0
}

/// Why a file's inode can't be kept as the sealed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    OtherName,
    OtherOwner,
    Written,
    /// The system can't say whether it is written to.
    Unknown,
    Changed,
}

/// The digest and size of a file that was sealed where it is, or why it can't be.
type InPlace = std::result::Result<(Digest, u64), Unfit>;

impl Unfit {
    fn text(self) -> &'static str {
        match self {
            Unfit::OtherName => "it has another name, which stays as it is",
            Unfit::OtherOwner => "it belongs to another user",
            Unfit::Written => "a process still has it open for writing",
            Unfit::Unknown => "the system can't tell whether a process still writes to it",
            Unfit::Changed => "it was changed while it was hashed",
        }
    }
}

impl Disk {
    /// Seals the file at `path`, with half-done work in `staging`.
    ///
    /// The builder's inode is kept if nobody else can reach it; else its bytes go to a fresh one, which takes
    /// its name. Another name of the inode, and what is behind it, is never changed. Long runs of zeros become holes.
    /// A crash leaves the file or its sealed form under the name, and at most a part of a copy in `staging`.
    pub fn seal_file(&self, path: &Utf8Path, staging: &Utf8Path, advance: Advance) -> Result<SealedFile> {
        self.make_readable(path)?;
        let mut file = read::open(path)?;
        let dropped = read::xattrs(&file, path)?;
        let in_place = match self.shut(&file, path, &dropped)? {
            None => {
                let sealed;
                (file, sealed) = self.seal_in_place(file, path, advance)?;
                sealed
            }
            Some(reason) => Err(reason),
        };
        match in_place {
            Ok((digest, size)) => {
                let inode = FileId::of(&file.metadata().at("read", path)?);
                Ok(SealedFile { digest, size, inode, dropped, copied: None })
            }
            Err(reason) => {
                let (staged, digest, size) = self.sealed_copy(&file, path, staging, advance)?;
                let inode = FileId::of(&read::metadata(&staged)?);
                self.rename(&staged, path)?;
                Ok(SealedFile { digest, size, inode, dropped, copied: Some(reason.text()) })
            }
        }
    }

    /// As [`seal_file`](Disk::seal_file), for a file whose user may come back at any time: one that is written to
    /// keeps its inode, its bytes and its mode, and the answer is `None`.
    ///
    /// Who opens it in the moment between the last look and the rename of a copy writes to an inode without a name;
    /// where no copy is needed, there is no such moment.
    pub fn seal_unless_written(
        &self,
        path: &Utf8Path,
        staging: &Utf8Path,
        advance: Advance,
    ) -> Result<Option<SealedFile>> {
        let mut file = read::open(path)?;
        if lasting_writer(&file) != Writer::None {
            return Ok(None);
        }
        let before = file.metadata().at("read", path)?;
        let dropped = read::xattrs(&file, path)?;
        let shut = self.shut(&file, path, &dropped)?;
        let reason = shut.filter(|&reason| reason != Unfit::Written || lasting_writer(&file) != Writer::None);
        let sealed = match reason {
            None => {
                let sealed;
                (file, sealed) = self.seal_in_place(file, path, advance)?;
                sealed.ok().filter(|_| lasting_writer(&file) == Writer::None)
            }
            Some(Unfit::OtherName | Unfit::OtherOwner) => self.replace_by_copy(&file, path, staging, advance)?,
            Some(_) => None,
        };
        if sealed.is_none() && reason != Some(Unfit::OtherName) && reason != Some(Unfit::OtherOwner) {
            self.chmod_file(&file, path, before.mode() & 0o7777)?;
        }
        let copied = reason.map(Unfit::text);
        let Some((digest, size)) = sealed else { return Ok(None) };
        let inode = FileId::of(&read::metadata(path)?);
        Ok(Some(SealedFile { digest, size, inode, dropped, copied }))
    }

    /// A builder may leave a file that its own user may not read; one with another name is not changed.
    fn make_readable(&self, path: &Utf8Path) -> Result<()> {
        let metadata = read::metadata(path)?;
        let ours = metadata.is_file() && metadata.uid() == read::user() && metadata.nlink() == 1;
        if ours && metadata.mode() & 0o400 == 0 { self.chmod(path, 0o600) } else { Ok(()) }
    }

    /// Takes away the ways to write to a file; says why when there is one that can't be taken away.
    fn shut(&self, file: &File, path: &Utf8Path, xattrs: &[String]) -> Result<Option<Unfit>> {
        let metadata = file.metadata().at("read", path)?;
        if metadata.nlink() != 1 {
            return Ok(Some(Unfit::OtherName));
        }
        if metadata.uid() != read::user() {
            return Ok(Some(Unfit::OtherOwner));
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
        // A small file is copied sooner than a process is started.
        let writer = if metadata.len() < WORTH_A_PAUSE { writer_of(file) } else { self.starting.writer(file) };
        Ok(match writer {
            Writer::None => None,
            Writer::Some => Some(Unfit::Written),
            Writer::Unknown => Some(Unfit::Unknown),
        })
    }

    /// Hashes a file that is shut, and makes it last; also gives back the file, which may have been opened again.
    ///
    /// Long runs of zeros become holes first. The digest is that of the file as it is after it was shut for the last
    /// time.
    fn seal_in_place(&self, mut file: File, path: &Utf8Path, advance: Advance) -> Result<(File, InPlace)> {
        self.set_sealed_mtime(&file, path)?;
        let ((mut digest, mut size, zeros), synced) =
            self.while_syncing(&file, path, || hash_and_find(&file, path, RUN, advance))?;
        if !zeros.is_empty() {
            let punched;
            (file, punched) = self.punch_in_place(file, path, &zeros)?;
            // For a moment its owner could have opened it for writing.
            match (punched, lasting_writer(&file)) {
                (Punched::Replaced, _) => return Ok((file, Err(Unfit::Changed))),
                (_, Writer::Some) => return Ok((file, Err(Unfit::Written))),
                (_, Writer::Unknown) => return Ok((file, Err(Unfit::Unknown))),
                (Punched::No | Punched::Sealed, Writer::None) => {}
                (Punched::Written, Writer::None) => {
                    self.set_sealed_mtime(&file, path)?;
                    (digest, size) = hash(&file, path, &|_| ())?;
                }
            }
        }
        if !synced || !zeros.is_empty() {
            self.fsync(&file, path)?;
        }
        let after = file.metadata().at("read", path)?;
        let unchanged = looks_sealed(&after, size) && after.nlink() == 1;
        Ok((file, if unchanged { Ok((digest, size)) } else { Err(Unfit::Changed) }))
    }

    /// Works on a file while what a builder wrote to it goes to the disk; says whether it was worth a thread.
    fn while_syncing<T>(&self, file: &File, path: &Utf8Path, work: impl FnOnce() -> Result<T>) -> Result<(T, bool)> {
        let large = file.metadata().at("read", path)?.len() >= WORTH_A_THREAD;
        if !large || self.durability == Durability::None {
            return Ok((work()?, false));
        }
        thread::scope(|scope| {
            let sync = thread::Builder::new().spawn_scoped(scope, || self.fsync(file, path));
            let done = work()?;
            let synced = sync.map(|sync| sync.join().expect("a sync does not panic"));
            Ok((done, synced.map_or(Ok(false), |synced| synced.map(|()| true))?))
        })
    }

    /// A sealed copy in `staging`, with its digest and size.
    fn sealed_copy(
        &self,
        file: &File,
        path: &Utf8Path,
        staging: &Utf8Path,
        advance: Advance,
    ) -> Result<(Utf8PathBuf, Digest, u64)> {
        let mut copied = None;
        let staged = with_unique_name(staging, ".copy-", |name| {
            copied = Some(self.copy_sealed((file, path), name, advance)?);
            Ok(())
        })?;
        let (digest, size) = copied.expect("a name was found, so a copy was made");
        Ok((staged, digest, size))
    }

    /// Gives the name to a sealed copy, unless somebody writes to the file or did so meanwhile.
    fn replace_by_copy(
        &self,
        file: &File,
        path: &Utf8Path,
        staging: &Utf8Path,
        advance: Advance,
    ) -> Result<Option<(Digest, u64)>> {
        let state = |file: &File| file.metadata().map(|found| (found.len(), found.mtime(), found.mtime_nsec()));
        let before = state(file).at("read", path)?;
        let (staged, digest, size) = self.sealed_copy(file, path, staging, advance)?;
        if state(file).at("read", path)? != before || lasting_writer(file) != Writer::None {
            self.unlink(&staged)?;
            return Ok(None);
        }
        self.rename(&staged, path)?;
        Ok(Some((digest, size)))
    }

    /// Seals a file again whose mode or time was changed; `false` when that can't be done in place.
    ///
    /// The caller looks at its bytes afterwards: nobody can change them any more.
    pub fn seal_again(&self, path: &Utf8Path) -> Result<bool> {
        // By its name: a file of one's own that one may not read can't be opened.
        match self.chmod(path, SEALED_MODE) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
            changed => changed?,
        }
        let file = read::open(path)?;
        if lasting_writer(&file) != Writer::None {
            return Ok(false);
        }
        self.set_sealed_mtime(&file, path)?;
        self.fsync(&file, path)?;
        Ok(true)
    }

    /// Copies a file to a new, sealed and durable one; its name is not durable yet.
    pub fn copy_sealed(&self, source: (&File, &Utf8Path), to: &Utf8Path, advance: Advance) -> Result<(Digest, u64)> {
        self.copy_sealed_with_holes(source, to, Some(RUN), advance)
    }

    /// As [`copy_sealed`](Disk::copy_sealed); in a clone, runs of zeros of at least `clone_run` bytes become holes.
    pub fn copy_sealed_with_holes(
        &self,
        source: (&File, &Utf8Path),
        to: &Utf8Path,
        clone_run: Option<u64>,
        advance: Advance,
    ) -> Result<(Digest, u64)> {
        let copied = self.copy_with_holes(source, to, clone_run, advance)?;
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
