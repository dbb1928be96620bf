//! Removing revisions and templates: out of sight first, durably, then deleted.

use std::collections::HashSet;
use std::sync::Arc;

use crate::activation;
use crate::core::Core;
use crate::damage;
use crate::error::{Error, Result};
use crate::format::{Action, RevisionRecord};
use crate::fs::lock::{BackOff, FORK_TIME, Flock, Mode, Patience};
use crate::fs::read;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::instance;
use crate::inventory;
use crate::keys;
use crate::leases;
use crate::pins;
use crate::reserve;
use crate::revision::Revision;
use crate::template::{self, TemplateLock};
use crate::trash::{Grave, Heirs, Release};

/// How far a removal goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Removal {
    /// What is current or in use stays.
    #[default]
    Unused,
    /// What is in use goes as well; if it is current, the template goes back to an earlier revision first.
    Forced,
}

/// What became of something that was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemovalReport {
    /// Bytes that stay on the disk because instances have links to them, and nothing else does. They go with those.
    pub held_by_instances: u64,
}

impl RemovalReport {
    /// Of files with these digests. What can't be looked at is not counted: the removal is done.
    fn of(core: &Core, digests: &HashSet<Digest>) -> RemovalReport {
        let held = if digests.is_empty() { Ok(0) } else { instance::held(core, digests) };
        RemovalReport { held_by_instances: held.unwrap_or_default() }
    }
}

/// Removes one revision.
pub(crate) fn remove_revision(
    core: &Arc<Core>,
    id: &TemplateId,
    revision: &RevisionId,
    how: Removal,
) -> Result<RemovalReport> {
    let _change = core.begin_change()?;
    let lock = template::lock(core, id)?;
    let dir = core.layout.revision(id, revision);
    if !read::exists(&dir)? {
        return Err(Error::RevisionNotFound { template: id.clone(), revision: revision.clone() });
    }
    let _lease = exclusive(core, id, revision, how)?;
    pins::refuse_if_kept(core, id, revision)?;
    reserve::give_up_if_full(core);
    if activation::current(core, id)?.revision() == Some(revision) {
        step_back(core, &lock, revision, how)?;
    }
    // The `current` that everybody sees must last before what it left is gone.
    activation::settle(core, id)?;
    pins::settle(core)?;
    let record = read::bytes_if_there(&core.layout.revision_json(id, revision)).ok().flatten().unwrap_or_default();
    let digests = digests(&record).collect();
    let mut grave = Grave::dig(core)?;
    let release = Release::of(&record);
    let heirs = heirs(core, id, &release)?;
    grave.bury(id, revision, release)?;
    core.disk.fsync_dir(&core.layout.artifacts(id))?;
    damage::clear(core, id, revision)?;
    grave.empty(&heirs)?;
    reserve::restore(core);
    Ok(RemovalReport::of(core, &digests))
}

/// What a `revision.json` says that its files hold; nothing, if it can't be read.
fn digests(record: &[u8]) -> impl Iterator<Item = Digest> + use<> {
    let contents = RevisionRecord::from_json(record).ok().and_then(|record| record.contents);
    contents.into_iter().flatten().map(|content| content.blake3)
}

/// The template's other revisions that have a key of one that is removed. Those of other templates have hints of their own.
fn heirs(core: &Core, id: &TemplateId, release: &Release) -> Result<Heirs> {
    let keys: HashSet<CacheKey> = release.keys().iter().copied().collect();
    if keys.is_empty() {
        return Ok(Heirs::new());
    }
    let others = inventory::revisions_of(core, id)?.into_iter().map(|other| (id.clone(), other)).collect();
    keys::search_in(core, others, &keys)
}

/// Removes a template with all its revisions.
pub(crate) fn remove_template(core: &Arc<Core>, id: &TemplateId, how: Removal) -> Result<RemovalReport> {
    let _change = core.begin_change()?;
    let _lock = template::lock(core, id)?;
    let (mut leases, mut held) = (Vec::new(), HashSet::new());
    for revision in inventory::revisions_of(core, id)? {
        let record = read::bytes_if_there(&core.layout.revision_json(id, &revision)).ok().flatten();
        held.extend(digests(&record.unwrap_or_default()));
        leases.push(exclusive(core, id, &revision, how)?);
        pins::refuse_if_kept(core, id, &revision)?;
    }
    pins::settle(core)?;
    reserve::give_up_if_full(core);
    let grave = Grave::dig(core)?;
    grave.bury_template(id)?;
    core.disk.fsync_dir(&core.layout.templates())?;
    for (_, revision) in damage::marked(core)?.iter().filter(|(of, _)| of == id) {
        damage::clear(core, id, revision)?;
    }
    grave.empty(&Heirs::new())?;
    reserve::restore(core);
    Ok(RemovalReport::of(core, &held))
}

/// Takes a revision from those who could use it.
pub(crate) fn exclusive(core: &Core, id: &TemplateId, revision: &RevisionId, how: Removal) -> Result<Option<Flock>> {
    let mut pauses = BackOff::new(Some(FORK_TIME));
    loop {
        let mut lease = Flock::take(&core.layout.revision(id, revision), Mode::Exclusive, Patience::None)?;
        if how == Removal::Unused && leases::is_noted(core, id, revision)? {
            lease = None;
        }
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
            reserve::give_up_if_full(core);
            activation::activate(core, lock, earlier.id(), Action::Rollback)
        }
        Err(Error::NothingToRollBack { .. }) => {
            refuse("; there is no earlier one to go back to, so only the whole template can be removed")
        }
        Err(error) => Err(error),
    }
}
