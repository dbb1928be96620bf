//! What every operation needs: where things are, the door to the disk, and the leases of this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use crate::error::{Error, PathError, Result};
use crate::fs::lock::{BackOff, FORK_TIME, Flock, Mode, Patience};
use crate::fs::{Disk, read, with_unique_name};
use crate::layout::{INSTANCES, Layout, REPAIRING};

/// What may be done to an open store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Writable,
    /// A data directory of mvm.
    NotAdopted,
}

/// The right to repair. Dropped without an end, it leaves the mark by which others know that a repair was cut short.
#[derive(Debug)]
pub(crate) struct Repairing<'a> {
    disk: &'a Disk,
    mark: Utf8PathBuf,
    _alone: Flock,
}

impl Repairing<'_> {
    /// All that was mended lasts.
    pub fn end(self) -> Result<()> {
        Ok(self.disk.unlink_if_there(&self.mark)?)
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    pub layout: Layout,
    pub disk: Disk,
    /// So many revisions make a catalog pay.
    pub catalog_from: usize,
    standing: Standing,
    /// One descriptor for each revision that this process uses.
    leases: Mutex<HashMap<Utf8PathBuf, Weak<Flock>>>,
}

impl Core {
    pub fn new(layout: Layout, disk: Disk, catalog_from: usize, standing: Standing) -> Core {
        Core { layout, disk, catalog_from, standing, leases: Mutex::default() }
    }

    /// Begins an operation that changes the store: no repair runs until the guard is dropped.
    pub fn begin_change(&self) -> Result<Flock> {
        self.check_adopted()?;
        let change = Flock::wait_for(&self.layout.private(), Mode::Shared)?;
        self.check_private()?;
        Ok(change)
    }

    /// Refuses a data directory of mvm.
    pub fn check_adopted(&self) -> Result<()> {
        match self.standing {
            Standing::NotAdopted => Err(Error::NotAdopted { path: self.layout.root().to_owned() }),
            Standing::Writable => Ok(()),
        }
    }

    /// Refuses to work through a link: what is behind one is not the store's.
    fn check_private(&self) -> Result<()> {
        let private = self.layout.private();
        let directories =
            ["objects", "keys", "drafts", "trash", "pins", "leases", "locks", "damaged", "samples", INSTANCES];
        for entry in read::list(&private)?.into_iter().filter(|entry| !entry.is_dir) {
            if directories.contains(&entry.name.as_str()) {
                return Err(Error::Misplaced { path: private.join(entry.name) });
            }
            if entry.name == REPAIRING {
                self.settle_repair()?;
            }
        }
        Ok(())
    }

    /// Begins a repair: nobody else changes the store until the guard is dropped.
    pub fn begin_repair(&self) -> Result<Repairing<'_>> {
        self.check_adopted()?;
        let alone = Flock::wait_for(&self.layout.private(), Mode::Exclusive)?;
        self.settle_repair()?;
        // It need not last: it only tells processes that outlive this one.
        let mark = self.layout.repairing();
        self.disk.create(&mark, 0o666)?;
        Ok(Repairing { disk: &self.disk, mark, _alone: alone })
    }

    /// Makes last what a repair that died has mended: who finds it intact must not tell before.
    pub fn settle_dead_repair(&self) -> Result<()> {
        let _change = Flock::wait_for(&self.layout.private(), Mode::Shared)?;
        self.settle_repair()
    }

    fn settle_repair(&self) -> Result<()> {
        let mark = self.layout.repairing();
        if read::exists(&mark)? {
            self.disk.sync_file_system(self.layout.root())?;
            self.disk.unlink_if_there(&mark)?;
        }
        Ok(())
    }

    /// Whether this is a store of ours, and no data directory of mvm.
    pub fn is_adopted(&self) -> bool {
        self.standing == Standing::Writable
    }

    /// Keeps others from changing the store, if nobody does so just now.
    pub fn try_alone(&self) -> Option<Flock> {
        let mut pauses = BackOff::new(Some(FORK_TIME));
        loop {
            match Flock::take(&self.layout.private(), Mode::Exclusive, Patience::None) {
                Ok(None) if pauses.pause() => {}
                taken => return taken.ok().flatten(),
            }
        }
    }

    /// Marks a directory as used by this process, for as long as somebody has the result.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory (any more).
    pub fn lease(&self, dir: &Utf8Path) -> Result<Arc<Flock>> {
        match self.held_lease(dir)? {
            Some(lease) => Ok(lease),
            None => Ok(self.share_lease(Flock::wait_for(dir, Mode::Shared)?)),
        }
    }

    /// As [`lease`](Core::lease), but waits only so long; `None` when somebody held it alone for all that time.
    pub fn lease_within(&self, dir: &Utf8Path, limit: Duration) -> Result<Option<Arc<Flock>>> {
        match self.held_lease(dir)? {
            Some(lease) => Ok(Some(lease)),
            None => Ok(Flock::take(dir, Mode::Shared, Patience::For(limit))?.map(|lease| self.share_lease(lease))),
        }
    }

    fn held_lease(&self, dir: &Utf8Path) -> Result<Option<Arc<Flock>>> {
        match self.leases().get(dir).and_then(Weak::upgrade) {
            Some(lease) if lease.still_named()? => Ok(Some(lease)),
            _ => Ok(None),
        }
    }

    /// Whether this process uses a directory.
    pub fn holds(&self, dir: &Utf8Path) -> bool {
        self.leases().get(dir).is_some_and(|lease| lease.strong_count() > 0)
    }

    /// Lets others of this process use a lease that one of them took.
    pub fn share_lease(&self, lease: Flock) -> Arc<Flock> {
        let lease = Arc::new(lease);
        let mut leases = self.leases();
        leases.retain(|_, lease| lease.strong_count() > 0);
        leases.insert(lease.path().to_owned(), Arc::downgrade(&lease));
        lease
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<Utf8PathBuf, Weak<Flock>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new private directory below `drafts/`, and the lock that says that somebody works in it.
    pub fn new_draft_dir(&self) -> Result<Flock> {
        self.new_private_dir(&self.layout.drafts(), "", 0o700)
    }

    /// A new directory that nobody else may look into, and the lock that says that somebody works in it. Its name begins
    /// with the prefix.
    pub fn new_private_dir(&self, parent: &Utf8Path, prefix: &str, mode: u32) -> Result<Flock> {
        loop {
            let dir = match with_unique_name(parent, prefix, |path| self.disk.mkdir(path, mode)) {
                // Somebody cleaned up too well.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    self.disk.ensure_dir(parent)?;
                    continue;
                }
                made => made?,
            };
            // Between the two calls, a sweep may have taken the directory for one that nobody needs.
            match Flock::take(&dir, Mode::Shared, Patience::None) {
                Ok(Some(lock)) => return Ok(lock),
                Ok(None) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The mode of a directory that others may see: what this user's umask left of the store's own.
    pub fn public_mode(&self) -> Result<u32, PathError> {
        use std::os::unix::fs::PermissionsExt;
        let templates = read::metadata(&self.layout.templates())?;
        Ok(templates.permissions().mode() & 0o7777)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
