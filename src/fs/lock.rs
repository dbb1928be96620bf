//! Locks: `flock(2)` on files and directories, through fs2, which gives up when a signal arrives; we do not.
//!
//! | lock on | shared | exclusive |
//! |---|---|---|
//! | `.store/locks/<key>` | | who builds the key, from the first question to the publication |
//! | `.store/` | each operation that changes the store, while it does | repair, upgrade, the first adoption |
//! | `.store/pins/` | | who makes, changes or sweeps a pin |
//! | `templates/<id>/` | | who moves `current`, adds or removes a revision |
//! | a revision, a draft, a directory of the trash | who uses it: the lease | who is about to remove it |
//! | `.store/instances/` | who makes an instance visible | who removes the records of those that are gone |
//! | `.store/objects/ab/` | who links to objects | who sweeps them |
//! | `.store/keys/ab/` | | who changes an entry |
//!
//! They are taken in this order, and given back by the kernel when their holder dies. Between opening and
//! locking, the name may come to mean another inode; so after each lock the two are compared, and all begins
//! anew when they differ.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::OFlags;

use super::read::{FileId, metadata_if_there};
use super::{Result, reach, uninterrupted};
use crate::error::At;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// How long to wait for a lock.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Take it now or not at all.
    None,
    /// Ask again and again for so long.
    For(Duration),
    Forever,
}

/// Between fork and exec, the child of a process that starts programs has a copy of each lock. That is no use.
pub(crate) const FORK_TIME: Duration = Duration::from_millis(500);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Flock {
    file: File,
    path: Utf8PathBuf,
}

impl Flock {
    /// Locks a directory or file that exists, as long as the path names it; `None` when somebody else holds it.
    pub fn take(path: &Utf8Path, mode: Mode, patience: Patience) -> Result<Option<Flock>> {
        loop {
            let lock = Flock::open(path, OFlags::RDONLY)?;
            match patience {
                Patience::None if !lock.try_lock(mode)? => return Ok(None),
                Patience::For(limit) if !lock.try_for(mode, limit)? => return Ok(None),
                Patience::None | Patience::For(_) => {}
                Patience::Forever => lock.wait(mode)?,
            }
            if lock.still_named()? {
                return Ok(Some(lock));
            }
        }
    }

    /// Locks a directory that exists, however long it takes.
    pub fn wait_for(path: &Utf8Path, mode: Mode) -> Result<Flock> {
        match Flock::take(path, mode, Patience::Forever)? {
            Some(lock) => Ok(lock),
            None => unreachable!("who waits for ever gets the lock"),
        }
    }

    /// Opens, without locking, a lock file that is made when it is missing.
    pub fn open_or_create(path: &Utf8Path) -> Result<Flock> {
        Flock::open(path, OFlags::RDWR | OFlags::CREATE)
    }

    fn open(path: &Utf8Path, flags: OFlags) -> Result<Flock> {
        let mode = if flags.contains(OFlags::CREATE) { 0o666 } else { 0 };
        let file = reach::open(path, flags, mode).at("open", path)?;
        Ok(Flock { file, path: path.to_owned() })
    }

    pub fn try_lock(&self, mode: Mode) -> Result<bool> {
        let lock = match mode {
            Mode::Shared => fs2::FileExt::try_lock_shared,
            Mode::Exclusive => fs2::FileExt::try_lock_exclusive,
        };
        match uninterrupted(|| lock(&self.file)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error).at("lock", &self.path),
        }
    }

    fn try_for(&self, mode: Mode, limit: Duration) -> Result<bool> {
        let mut pauses = BackOff::new(Some(limit));
        loop {
            match self.try_lock(mode)? {
                true => return Ok(true),
                false if pauses.pause() => {}
                false => return Ok(false),
            }
        }
    }

    fn wait(&self, mode: Mode) -> Result<()> {
        let lock = match mode {
            Mode::Shared => fs2::FileExt::lock_shared,
            Mode::Exclusive => fs2::FileExt::lock_exclusive,
        };
        uninterrupted(|| lock(&self.file)).at("lock", &self.path)
    }

    /// What is locked.
    pub fn id(&self) -> Result<FileId> {
        Ok(FileId::of(&self.file.metadata().at("read", &self.path)?))
    }

    /// Whether the path still names the inode that is locked.
    pub fn still_named(&self) -> Result<bool> {
        let ours = self.id()?;
        Ok(metadata_if_there(&self.path)?.is_some_and(|named| FileId::of(&named) == ours))
    }

    /// The same lock, after its directory was moved.
    pub fn moved_to(mut self, path: &Utf8Path) -> Flock {
        self.path = path.to_owned();
        self
    }

    /// A second descriptor of the same lock, which programs that are started inherit.
    pub fn for_child(&self) -> Result<OwnedFd> {
        rustix::io::dup(&self.file).at("duplicate the lock of", &self.path)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> &Utf8Path {
        &self.path
    }
}

/// Marks a new file as being written, until it is closed.
pub(super) fn share(file: &File, path: &Utf8Path) -> Result<()> {
    uninterrupted(|| fs2::FileExt::lock_shared(file)).at("lock", path)
}

/// Pauses that grow from a millisecond to 50, until a deadline.
#[derive(Debug)]
pub(crate) struct BackOff {
    pause: Duration,
    since: Instant,
    limit: Option<Duration>,
}

impl BackOff {
    pub fn new(limit: Option<Duration>) -> BackOff {
        BackOff { pause: Duration::from_millis(1), since: Instant::now(), limit }
    }

    /// Sleeps; `false` when the time is over.
    pub fn pause(&mut self) -> bool {
        let left = self.limit.map(|limit| limit.saturating_sub(self.since.elapsed()));
        if left == Some(Duration::ZERO) {
            return false;
        }
        thread::sleep(left.map_or(self.pause, |left| left.min(self.pause)));
        self.pause = (self.pause * 2).min(Duration::from_millis(50));
        true
    }

    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }
}

/// Lock files of builders are rewritten in place: the file's inode is the lock.
pub(crate) fn read_lock_file(lock: &Flock) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    // JSON may take six bytes for one, and a lock file has two texts of 16 KiB.
    let mut bytes = vec![0; 256 * 1024];
    let mut filled = 0;
    loop {
        match lock.file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).at("read", &lock.path),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
