//! Removing revisions and templates: out of sight first, durably, then deleted.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;

use crate::activation;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Action, OBJECT_MIN_SIZE, RevisionRecord};
use crate::fs::atomic::parent_of;
use crate::fs::lock::{BackOff, Flock, Mode, Patience};
use crate::fs::{read, with_unique_name};
use crate::id::{Digest, RevisionId, TemplateId};
use crate::inventory;
use crate::objects;
use crate::revision::Revision;
use crate::template::{self, TemplateLock};

/// How far a removal goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Removal {
    /// What is current or in use stays.
    #[default]
    Unused,
    /// What is in use goes as well; if it is current, the template goes back to an earlier revision first.
    Forced,
}

/// Removes one revision.
pub(crate) fn remove_revision(core: &Arc<Core>, id: &TemplateId, revision: &RevisionId, how: Removal) -> Result<()> {
    let _change = core.begin_change()?;
    let lock = template::lock(core, id)?;
    let dir = core.layout.revision(id, revision);
    if !read::exists(&dir)? {
        return Err(Error::RevisionNotFound { template: id.clone(), revision: revision.clone() });
    }
    let _lease = exclusive(core, id, revision, how)?;
    if activation::current(core, id)?.revision() == Some(revision) {
        step_back(core, &lock, revision, how)?;
    }
    // The `current` that everybody sees must last before what it left is gone.
    activation::settle(core, id)?;
    let digests = digests(core, id, revision);
    delete(core, &dir)?;
    release(core, &digests)
}

/// Removes a template with all its revisions.
pub(crate) fn remove_template(core: &Arc<Core>, id: &TemplateId, how: Removal) -> Result<()> {
    let _change = core.begin_change()?;
    let _lock = template::lock(core, id)?;
    let mut leases = Vec::new();
    let mut found = Vec::new();
    for revision in inventory::revisions_of(core, id)? {
        leases.push(exclusive(core, id, &revision, how)?);
        found.extend(digests(core, id, &revision));
    }
    delete(core, &core.layout.template(id))?;
    release(core, &found)
}

/// Between fork and exec, the child of a process that starts programs has a copy of each lease. That is no use.
const FORK_TIME: Duration = Duration::from_millis(500);

/// Takes a revision from those who could use it.
fn exclusive(core: &Core, id: &TemplateId, revision: &RevisionId, how: Removal) -> Result<Option<Flock>> {
    let mut pauses = BackOff::new(Some(FORK_TIME));
    loop {
        let lease = Flock::take(&core.layout.revision(id, revision), Mode::Exclusive, Patience::None)?;
        match (lease, how) {
            (None, Removal::Unused) if pauses.pause() => {}
            (None, Removal::Unused) => {
                return Err(Error::InUse { template: id.clone(), revision: revision.clone() });
            }
            (lease, _) => return Ok(lease),
        }
    }
}

/// Makes another revision current before the one that is goes: `current` always resolves.
fn step_back(core: &Arc<Core>, lock: &TemplateLock, revision: &RevisionId, how: Removal) -> Result<()> {
    let refuse = |advice| Err(Error::IsCurrent { template: lock.id.clone(), revision: revision.clone(), advice });
    if how == Removal::Unused {
        return refuse(", or go back to an earlier one first with --force");
    }
    match activation::rollback_target(core, &lock.id) {
        Ok(earlier) => {
            let earlier = Revision::open(core, &lock.id, &earlier)?;
            earlier.check()?;
            activation::activate(core, lock, earlier.id(), Action::Rollback)
        }
        Err(Error::NothingToRollBack { .. }) => {
            refuse("; there is no earlier one to go back to, so only the whole template can be removed")
        }
        Err(error) => Err(error),
    }
}

/// The objects that a revision links to, as far as it can still tell.
fn digests(core: &Core, id: &TemplateId, revision: &RevisionId) -> Vec<Digest> {
    let bytes = read::bytes_if_there(&core.layout.revision_json(id, revision)).ok().flatten().unwrap_or_default();
    let contents = RevisionRecord::from_json(&bytes).ok().and_then(|record| record.contents).unwrap_or_default();
    contents.into_iter().filter(|content| content.size >= OBJECT_MIN_SIZE).map(|content| content.blake3).collect()
}

/// Moves a directory out of sight, makes that durable, then deletes it.
///
/// A crash leaves it whole where it was, or in the trash, from where a collection removes it.
fn delete(core: &Core, dir: &Utf8Path) -> Result<()> {
    let metadata = read::metadata(dir)?;
    core.disk.open_up(dir, &metadata)?;
    core.disk.ensure_dir(&core.layout.trash())?;
    let moved = with_unique_name(&core.layout.trash(), "", |name| core.disk.rename_noreplace(dir, name));
    if moved.is_err() {
        core.disk.restore_mode(dir, &metadata);
    }
    let trash = moved?;
    core.disk.fsync_dir(parent_of(dir))?;
    Ok(core.disk.remove_tree(trash)?)
}

fn release(core: &Core, digests: &[Digest]) -> Result<()> {
    for digest in digests {
        objects::release(core, digest)?;
    }
    Ok(())
}
