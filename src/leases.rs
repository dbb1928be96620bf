//! Who uses a revision, by name. The lock on its directory keeps it. A note tells people, and keeps it too while its
//! process lives: a command may have closed the lock that it was started with, as `sudo` does.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::Result;
use crate::format::{Holder, LeaseNote};
use crate::fs::Disk;
use crate::fs::atomic::Lasting;
use crate::fs::process::{self, Identity};
use crate::fs::read::{self, FileId};
use crate::id::{RevisionId, TemplateId};

/// A note of who uses a revision; dropped, it is removed.
#[derive(Debug)]
#[must_use = "the note is removed when this is dropped"]
pub struct LeaseNoted {
    disk: Disk,
    path: Utf8PathBuf,
}

/// The notes that this process has made and not yet taken away.
static OURS: Mutex<BTreeSet<Utf8PathBuf>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<Utf8PathBuf>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for LeaseNoted {
    fn drop(&mut self) {
        ours().remove(&self.path);
        // What stays is removed by a collection, once its process is gone.
        let _ = self.disk.unlink(&self.path);
        if let Some(dir) = self.path.parent() {
            let _ = self.disk.rmdir(dir);
        }
    }
}

/// Notes that a process uses a revision that the caller holds.
pub(crate) fn note(
    core: &Core,
    template: &TemplateId,
    revision: &RevisionId,
    pid: u32,
    purpose: &str,
) -> Result<LeaseNoted> {
    let _change = core.begin_change()?;
    let Identity { boot_id, pid_namespace } = process::identity();
    let start_time = process::start_time(pid).unwrap_or_default();
    let holder = Holder { pid, command: process::command_line(pid), purpose: purpose.to_owned() };
    let note = LeaseNote { holder, start_time, boot_id, pid_namespace, since: core.now() };
    let dir = core.layout.leases_of(template, revision);
    // The name is this process's alone: whoever removes notes of the dead can't meet a living one.
    let path = dir.join(format!("{pid}-{start_time}.json"));
    loop {
        core.disk.ensure_dir(&dir)?;
        match core.disk.write_file(&core.layout.drafts(), &path, &note.to_json(), Lasting::Hint) {
            // An empty directory is removed, and may be so between the two.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                // On a full disk there may be room for the directory, and none for the note.
                let _ = core.disk.rmdir(&dir);
                return Err(error.into());
            }
            Ok(()) => {
                ours().insert(path.clone());
                return Ok(LeaseNoted { disk: core.disk.clone(), path });
            }
        }
    }
}

/// Whether the process that a note tells of is alive; `None` when that can't be seen from here.
pub(crate) fn is_alive(note: &LeaseNote, here: &Identity) -> Option<bool> {
    if note.boot_id != here.boot_id {
        return Some(false);
    }
    let visible = note.pid_namespace == here.pid_namespace;
    visible.then(|| process::start_time(note.holder.pid) == Some(note.start_time))
}

/// Whether a note tells of a process that is alive for certain; of this one, whether it has not given up what it noted.
pub(crate) fn is_of_living(path: &Utf8Path, here: &Identity) -> bool {
    let note = read::bytes(path).ok().and_then(|bytes| LeaseNote::from_json(&bytes).ok());
    note.is_some_and(|note| {
        let is_ours = note.holder.pid == std::process::id();
        is_alive(&note, here) == Some(true) && (!is_ours || ours().contains(path))
    })
}

/// Whether a living process has noted its use of a revision.
pub(crate) fn is_noted(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<bool> {
    let dir = core.layout.leases_of(template, revision);
    let names = read::names(&dir)?;
    Ok(!names.is_empty() && {
        let here = process::identity();
        names.iter().any(|name| is_of_living(&dir.join(name), &here))
    })
}

/// The living processes that have noted their use of a revision.
pub(crate) fn noted(core: &Core, template: &TemplateId, revision: &RevisionId, here: &Identity) -> Result<Vec<Holder>> {
    let dir = core.layout.leases_of(template, revision);
    let mut holders = Vec::new();
    for name in read::names(&dir)? {
        let Ok(bytes) = read::bytes(&dir.join(name)) else { continue };
        let Ok(note) = LeaseNote::from_json(&bytes) else { continue };
        let alive = is_alive(&note, here);
        if alive == Some(false) {
            continue;
        }
        // It may run another program by now: a shell that became what it was to start.
        let command = if alive == Some(true) { process::command_line(note.holder.pid) } else { String::new() };
        let command = if command.is_empty() { note.holder.command } else { command };
        holders.push(Holder { command, ..note.holder });
    }
    Ok(holders)
}

/// All who use these revisions, as far as it can be seen: by their notes, and by the locks that processes hold.
pub(crate) fn holders(core: &Core, revisions: &[(TemplateId, RevisionId)]) -> Result<Vec<Vec<Holder>>> {
    if revisions.is_empty() {
        return Ok(Vec::new());
    }
    let here = process::identity();
    let mut all = Vec::new();
    let mut dirs = Vec::new();
    for (template, revision) in revisions {
        all.push(noted(core, template, revision, &here)?);
        let found = read::metadata_if_there(&core.layout.revision(template, revision))?;
        dirs.push(found.as_ref().map_or(FileId::NONE, FileId::of));
    }
    let us = std::process::id();
    for (at, pid) in process::lock_holders(&dirs) {
        // A handle of our own is a use; the look itself is none.
        let (template, revision) = &revisions[at];
        let used = pid != us || core.holds(&core.layout.revision(template, revision));
        if used && !all[at].iter().any(|holder| holder.pid == pid) {
            all[at].push(Holder { pid, command: process::command_line(pid), purpose: String::new() });
        }
    }
    Ok(all)
}
