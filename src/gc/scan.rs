//! The light pass over a store: of each revision the few facts that decide about it, and what the dead left behind.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::io::ErrorKind::PermissionDenied;
use std::thread;

use camino::Utf8Path;
use jiff::Timestamp;
use rayon::prelude::*;
use serde::Deserialize;

use super::inventory::{CurrentState, DiskSpace, Inventory, Line, RevisionState, Standing, TemplateState};
use super::leftovers;
use super::measure::Meter;
use crate::activation::{self, Current};
use crate::catalog::Catalog;
use crate::core::Core;
use crate::damage;
use crate::error::Result;
use crate::format::{ActivationLog, CatalogLine, RevisionSummary, Sizes};
use crate::fs::handle::Handle;
use crate::fs::lock::{BackOff, FORK_TIME, Flock, Mode, Patience};
use crate::fs::process;
use crate::fs::read::{self, Name};
use crate::id::{CacheKey, RevisionId, TemplateId};
use crate::instance;
use crate::inventory;
use crate::layout::REVISION_JSON;
use crate::leases;
use crate::pins;

/// Reads what a plan needs, but for the bytes of revisions.
pub(crate) fn scan(core: &Core) -> Result<(Inventory, Meter<'_>)> {
    let ids = inventory::templates(core)?;
    let catalog = Catalog::read(core);
    // The system is asked for its locks meanwhile: it sleeps over the answer.
    let (templates, locked) = thread::scope(|scope| {
        let locked = scope.spawn(process::locked_inodes);
        let templates: Result<Vec<TemplateState>> =
            ids.into_par_iter().map(|id| template(core, &catalog, &id)).collect();
        (templates, locked.join().ok().flatten())
    });
    let mut templates = templates?;
    let marked = damage::marked(core)?;
    note_damage(&marked, &mut templates);
    let mut inventory = Inventory { templates, pins: pins::all(core)?, ..Inventory::default() };
    let (total, available) = read::space(core.layout.root())?;
    inventory.disk = DiskSpace { total, available, store: 0 };
    find_holders(core, &mut inventory, locked.unwrap_or_default())?;
    let instances = instance::known(core)?;
    let mut meter = Meter::new(core, key_counts(&inventory), instance::links(&instances))?;
    inventory.kept_of_inode = meter.kept_of_inode();
    leftovers::find(core, &mut inventory, &mut meter, &instances, &marked)?;
    Ok((inventory, meter))
}

/// Notes which revisions are marked as damaged.
fn note_damage(marked: &[(TemplateId, RevisionId)], templates: &mut [TemplateState]) {
    for (template, revision) in marked {
        let Ok(at) = templates.binary_search_by(|state| state.id.cmp(template)) else { continue };
        templates[at].revisions.iter_mut().filter(|state| state.id == *revision).for_each(|state| state.damaged = true);
    }
}

/// What there is of a template. `current` and the revisions are read one after the other: who swaps and removes between
/// the two must not look like a `current` that dangles.
fn template(core: &Core, catalog: &Catalog, id: &TemplateId) -> Result<TemplateState> {
    loop {
        let state = look(core, catalog, id)?;
        if state.current != CurrentState::Dangling || activation::dangles(core, id)? {
            return Ok(state);
        }
    }
}

/// A template of which something can't be read loses nothing, and keeps no other from being collected.
fn look(core: &Core, catalog: &Catalog, id: &TemplateId) -> Result<TemplateState> {
    let mut template = TemplateState::new(id.clone());
    let found = match read::list(&core.layout.artifacts(id)) {
        Ok(found) => found,
        Err(error) => return Ok(unreadable(template, &error)),
    };
    let heads = heads(core, id);
    let used = heads.as_ref().map(|(_, log)| last_uses(log)).unwrap_or_default();
    template.revisions = revisions(core, catalog, id, found, &used)?;
    let (current, log) = match heads {
        Ok(heads) => heads,
        Err(error) => return Ok(unreadable(template, &error)),
    };
    let ids: HashSet<&RevisionId> = template.revisions.iter().map(|state| &state.id).collect();
    let exists = |revision: &RevisionId| ids.contains(revision);
    template.rollback = match log.entries.is_empty() {
        false => rollback_targets(&log, current.revision(), usize::MAX, exists),
        true => published_before(&template.revisions, current.revision()),
    };
    template.current = match current {
        Current::Unset => CurrentState::Unset,
        Current::Revision(revision) if exists(&revision) => CurrentState::Revision(revision),
        _ => CurrentState::Dangling,
    };
    Ok(template)
}

fn heads(core: &Core, id: &TemplateId) -> Result<(Current, ActivationLog)> {
    let current = activation::current(core, id)?;
    let log = activation::log(core, id, &current)?;
    Ok((current, log))
}

fn unreadable(mut template: TemplateState, error: &dyn Display) -> TemplateState {
    tracing::warn!("nothing is collected in template {}: {error}", template.id);
    template.current = CurrentState::Unreadable;
    template
}

fn revisions(
    core: &Core,
    catalog: &Catalog,
    id: &TemplateId,
    found: Vec<Name>,
    used: &HashMap<&RevisionId, Timestamp>,
) -> Result<Vec<RevisionState>> {
    let artifacts = core.layout.artifacts(id);
    let found = found.into_par_iter().filter(|entry| entry.is_dir);
    let found = found.filter_map(|entry| Some((entry.name.parse::<RevisionId>().ok()?, entry.inode)));
    let directory = read::Directory::open(&artifacts)?;
    let record = |revision: &RevisionId| {
        let below = Utf8Path::new(revision.as_str()).join(REVISION_JSON);
        directory.as_ref()?.bytes_if_there(&below).ok().flatten()
    };
    let revisions = found.map(|(revision, inode)| {
        let last_used = used.get(&revision).copied();
        let line = directory.as_ref().and_then(|directory| catalog.find(directory, id, &revision));
        if let Some(line) = line.filter(|line| line.inode == inode) {
            return Ok(Some(known(line, last_used)));
        }
        if let Some(bytes) = record(&revision) {
            return Ok(Some(state(revision, inode, Some(bytes), last_used)));
        }
        let again = look_again(&artifacts.join(revision.as_str()), inode)?;
        Ok(again.map(|(inode, bytes)| state(revision, inode, bytes, last_used)))
    });
    revisions.filter_map(Result::transpose).collect()
}

/// What takes the place of the targets of rollbacks where the log is lost: what was published last, but for `current`.
fn published_before(revisions: &[RevisionState], current: Option<&RevisionId>) -> Vec<RevisionId> {
    let Some(current) = current else { return Vec::new() };
    let mut newest_first: Vec<_> = revisions.iter().filter(|state| state.id != *current).collect();
    newest_first.sort_by(|a, b| (b.published_at, &b.id).cmp(&(a.published_at, &a.id)));
    newest_first.into_iter().map(|state| state.id.clone()).collect()
}

/// The second look at a revision whose record was not found: the number of its inode, and the record.
///
/// Whoever removes it meanwhile removes it from the plan, and may make it again. It has no record if one and the same
/// directory had none, before and after.
fn look_again(dir: &Utf8Path, inode: u64) -> Result<Option<(u64, Option<Vec<u8>>)>> {
    loop {
        let named = match Handle::of(dir) {
            Err(error) if error.kind() == PermissionDenied => return Ok(Some((inode, None))),
            named => named?,
        };
        let Some(named) = named else { return Ok(None) };
        let bytes = read::bytes_if_there(&dir.join(REVISION_JSON)).ok().flatten();
        if bytes.is_some() || named.still_named()? {
            return Ok(Some((named.inode()?, bytes)));
        }
    }
}

/// What the nearest rollbacks go back to, at most so many.
pub(super) fn rollback_targets(
    log: &ActivationLog,
    current: Option<&RevisionId>,
    most: usize,
    exists: impl Fn(&RevisionId) -> bool,
) -> Vec<RevisionId> {
    let mut seen: HashSet<&RevisionId> = current.into_iter().collect();
    let nearest_first = log.stack().into_iter().rev();
    nearest_first.filter(|revision| seen.insert(revision) && exists(revision)).take(most).cloned().collect()
}

/// When each revision became current, or stopped being so, the last time.
fn last_uses(log: &ActivationLog) -> HashMap<&RevisionId, Timestamp> {
    let mut uses = HashMap::new();
    let mut before = None;
    for entry in &log.entries {
        uses.insert(&entry.revision, entry.at);
        before.map(|before| uses.insert(before, entry.at));
        before = Some(&entry.revision);
    }
    uses
}

/// What the catalog says, as if the record had been read.
fn known(line: &CatalogLine, last_used: Option<Timestamp>) -> RevisionState {
    let mut state = RevisionState::new(line.revision.clone(), Timestamp::UNIX_EPOCH);
    state.inode = line.inode;
    state.published_at = line.published_at.or(line.adopted_at);
    state.last_used = last_used.max(state.published_at);
    state.build_seconds = line.build_seconds;
    state.keys.clone_from(&line.keys);
    state.standing = if line.published_at.is_some() { Standing::Published } else { Standing::Adopted };
    state.line = Some(Line { built_at: line.built_at.clone(), bytes: line.bytes, from_catalog: true });
    state
}

fn state(id: RevisionId, inode: u64, record: Option<Vec<u8>>, last_used: Option<Timestamp>) -> RevisionState {
    let mut state = RevisionState::new(id, Timestamp::UNIX_EPOCH);
    state.inode = inode;
    (state.published_at, state.last_used) = (None, last_used);
    let Some(Ok(summary)) = record.as_deref().map(RevisionSummary::<Sizes>::from_json) else {
        state.standing = Standing::Unreadable;
        return state;
    };
    state.published_at = summary.published_at.or(summary.adopted_at);
    state.last_used = state.last_used.max(state.published_at);
    state.build_seconds = summary.build_seconds;
    state.keys = summary.keys();
    state.line = Some(Line { built_at: summary.built_at.to_string(), bytes: summary.bytes(), from_catalog: false });
    state.standing = standing(&summary);
    state
}

/// Where a revision comes from, by its record.
pub(super) fn standing<'a, C: Deserialize<'a>>(summary: &RevisionSummary<'a, C>) -> Standing {
    match (summary.has_contents(), summary.published_at, summary.adopted_at) {
        (false, ..) | (true, None, None) => Standing::NotOurs,
        (true, None, Some(_)) => Standing::Adopted,
        (true, Some(_), _) => Standing::Published,
    }
}

/// Asks about those revisions on which the system shows a lock, or for which there are notes.
fn find_holders(core: &Core, inventory: &mut Inventory, locked: Vec<u64>) -> Result<()> {
    let noted: HashSet<String> = read::names(&core.layout.leases())?.into_iter().collect();
    let locked: HashSet<u64> = locked.into_iter().collect();
    let mut places = Vec::new();
    for (t, template) in inventory.templates.iter().enumerate() {
        for (r, state) in template.revisions.iter().enumerate() {
            if locked.contains(&state.inode) || noted.contains(&format!("{}@{}", template.id, state.id)) {
                places.push((t, r));
            }
        }
    }
    ask(core, inventory, &places)
}

/// Finds out who holds these revisions: the template's place, and the revision's in it.
pub(super) fn ask(core: &Core, inventory: &mut Inventory, places: &[(usize, usize)]) -> Result<()> {
    let mut places = places.to_vec();
    let mut pauses = BackOff::new(Some(FORK_TIME));
    loop {
        let held = held(core, inventory, &places)?;
        let names: Vec<_> = held.iter().map(|&(t, r)| name(inventory, (t, r))).collect();
        let mut unseen = Vec::new();
        for ((t, r), holders) in held.into_iter().zip(leases::holders(core, &names)?) {
            if holders.is_empty() {
                unseen.push((t, r));
            }
            inventory.templates[t].revisions[r].holders = Some(holders);
        }
        // Who can't be seen may be a copy of our own question, in a process that has just been started.
        if unseen.is_empty() || !pauses.pause() {
            return Ok(());
        }
        for &(t, r) in &unseen {
            inventory.templates[t].revisions[r].holders = None;
        }
        places = unseen;
    }
}

fn name(inventory: &Inventory, (t, r): (usize, usize)) -> (TemplateId, RevisionId) {
    (inventory.templates[t].id.clone(), inventory.templates[t].revisions[r].id.clone())
}

/// Those of the places that somebody holds, or that a living process has noted.
fn held(core: &Core, inventory: &Inventory, places: &[(usize, usize)]) -> Result<Vec<(usize, usize)>> {
    let mut held = Vec::new();
    for &(t, r) in places {
        let (template, revision) = (&inventory.templates[t].id, &inventory.templates[t].revisions[r].id);
        if is_held(core, template, revision)? || leases::is_noted(core, template, revision)? {
            held.push((t, r));
        }
    }
    Ok(held)
}

/// Whether somebody holds a revision at this moment. A collector is not asked: it takes what nobody holds.
fn is_held(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<bool> {
    match Flock::take(&core.layout.revision(template, revision), Mode::Exclusive, Patience::None) {
        Ok(lock) => Ok(lock.is_none()),
        Err(error) if error.is_not_found() => Ok(false),
        // Who can't ask must take it for held.
        Err(error) if error.kind() == PermissionDenied => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// How many revisions have each key.
fn key_counts(inventory: &Inventory) -> HashMap<CacheKey, u32> {
    let mut counts = HashMap::new();
    for key in inventory.templates.iter().flat_map(|template| &template.revisions).flat_map(|state| &state.keys) {
        *counts.entry(*key).or_default() += 1;
    }
    counts
}
