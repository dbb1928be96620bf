//! What every operation needs: where things are, the door to the disk, and the leases of this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use crate::error::{Error, PathError, Result};
use crate::fs::lock::{Flock, Mode};
use crate::fs::{Disk, with_unique_name};
use crate::layout::Layout;

/// What may be done to an open store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Writable,
    /// A data directory of mvm.
    NotAdopted,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub layout: Layout,
    pub disk: Disk,
    standing: Standing,
    /// One descriptor for each revision that this process uses.
    leases: Mutex<HashMap<Utf8PathBuf, Weak<Flock>>>,
}

impl Core {
    pub fn new(layout: Layout, disk: Disk, standing: Standing) -> Core {
        Core { layout, disk, standing, leases: Mutex::default() }
    }

    /// Begins an operation that changes the store: no repair runs until the guard is dropped.
    pub fn begin_change(&self) -> Result<Flock> {
        let path = self.layout.root().to_owned();
        match self.standing {
            Standing::NotAdopted => Err(Error::NotAdopted { path }),
            Standing::Writable => Ok(Flock::wait_for(&self.layout.private(), Mode::Shared)?),
        }
    }

    /// Marks a directory as used by this process, for as long as somebody has the result.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory (any more).
    pub fn lease(&self, dir: &Utf8Path) -> Result<Arc<Flock>> {
        let held = self.leases().get(dir).and_then(Weak::upgrade);
        if let Some(lease) = held
            && lease.still_named()?
        {
            return Ok(lease);
        }
        Ok(self.share_lease(Flock::wait_for(dir, Mode::Shared)?))
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
        loop {
            let drafts = self.layout.drafts();
            let dir = match with_unique_name(&drafts, "", |path| self.disk.mkdir(path, 0o700)) {
                // Somebody cleaned up too well.
                Err(error) if error.is_not_found() => {
                    self.disk.ensure_dir(&drafts)?;
                    continue;
                }
                made => made?,
            };
            // Between the two calls, a sweep may have taken the directory for one that nobody needs.
            match Flock::take(&dir, Mode::Shared, crate::fs::lock::Patience::None) {
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
        let templates = crate::fs::read::metadata(&self.layout.templates())?;
        Ok(templates.permissions().mode() & 0o7777)
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
