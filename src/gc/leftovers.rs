//! What dead processes left behind. Looking for it changes nothing: the sweep asks again before it takes anything.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;

use super::inventory::{CurrentState, Footprint, Inventory, Leftover, LeftoverKind};
use super::measure::Meter;
use super::plan::PlannedLeftover;
use crate::core::Core;
use crate::error::Result;
use crate::format::LeaseNote;
use crate::fs::lock::{BackOff, FORK_TIME, Flock, Mode, Patience};
use crate::fs::process::{self, Identity};
use crate::fs::read::{self, Metadata, Name};
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::instance::Known;
use crate::keys;
use crate::leases;

/// Finds all of it, and where the objects are.
pub(super) fn find(
    core: &Core,
    inventory: &mut Inventory,
    meter: &mut Meter,
    instances: &[Known],
    marked: &[(TemplateId, RevisionId)],
) -> Result<()> {
    // The objects first: what the others free depends on who else has a name for it.
    let mut found = objects(core, inventory, meter)?;
    for path in unheld(&core.layout.trash())? {
        let footprint = meter.tree(inventory, &path)?;
        found.push(leftover(core, LeftoverKind::Trash, &path, footprint));
    }
    for path in unheld(&core.layout.drafts())? {
        let footprint = meter.tree(inventory, &path)?;
        found.push(leftover(core, LeftoverKind::Draft, &path, footprint));
    }
    let unknown = keys(core, inventory, |key| !meter.has_key(key))?;
    // Who deletes revisions by hand leaves these behind. Otherwise nobody looks into every entry.
    if !unknown.is_empty() || found.iter().any(|leftover| leftover.kind == LeftoverKind::Object) {
        let there = revisions(inventory);
        let is_there = |template: &TemplateId, revision: &RevisionId| there.contains(&(template, revision));
        let dangling = keys(core, inventory, |key| meter.has_key(key) && keys::dangles(core, key, is_there))?;
        found.extend(dangling.iter().map(|path| leftover(core, LeftoverKind::Key, path, Footprint::default())));
    }
    let small = [
        (LeftoverKind::Key, unknown),
        (LeftoverKind::Lock, locks(core)?),
        (LeftoverKind::Lease, dead_notes(core)?),
        (LeftoverKind::Pin, expired_pins(core, inventory)),
        (LeftoverKind::Mark, marks_of_nothing(core, marked)),
        (
            LeftoverKind::Instance,
            instances.iter().filter(|known| known.is_gone()).map(|known| known.link.clone()).collect(),
        ),
    ];
    for (kind, paths) in small {
        for path in paths {
            let Some(metadata) = read::metadata_if_there(&path)? else { continue };
            let footprint = meter.one(&metadata);
            found.push(leftover(core, kind, &path, footprint));
        }
    }
    inventory.leftovers = found;
    Ok(())
}

fn leftover(core: &Core, kind: LeftoverKind, path: &Utf8Path, footprint: Footprint) -> Leftover {
    let path = path.strip_prefix(core.layout.root()).unwrap_or(path).to_string();
    Leftover { kind, path, footprint, shard: None }
}

/// What is in a directory and held by nobody.
pub(super) fn unheld(dir: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let (mut found, mut shut) = (Vec::new(), Vec::new());
    for name in read::names(dir)? {
        let path = dir.join(name);
        match take_unheld(&path)? {
            Some(_) => found.push(path),
            None => shut.extend(read::metadata_if_there(&path)?.filter(is_shut).map(|metadata| (metadata.ino(), path))),
        }
    }
    // Of those, the system says whether somebody has the lock; the sweep opens them up, and asks itself.
    if !shut.is_empty()
        && let Some(locked) = process::locked_inodes()
    {
        found.extend(shut.into_iter().filter(|(inode, _)| !locked.contains(inode)).map(|(_, path)| path));
    }
    Ok(found)
}

/// Whether it is a directory of this user's that nobody can open: a builder has taken its own rights away.
pub(super) fn is_shut(metadata: &Metadata) -> bool {
    let user = read::user();
    metadata.is_dir() && metadata.uid() == user && metadata.mode() & 0o400 == 0 && user != 0
}

/// The locks of builds that are over. A directory there is nobody's lock, and stays.
fn locks(core: &Core) -> Result<Vec<Utf8PathBuf>> {
    let mut found = unheld(&core.layout.locks())?;
    found.retain(|path| !matches!(read::metadata(path), Ok(found) if found.is_dir()));
    Ok(found)
}

/// The lock of something that nobody holds; `None` if somebody does, or if it is gone. A link or device in its place
/// is nobody's either, and has no lock.
pub(super) fn take_unheld(path: &Utf8Path) -> Result<Option<Unheld>> {
    let Some(metadata) = read::metadata_if_there(path)? else { return Ok(None) };
    if !metadata.is_dir() && !metadata.is_file() {
        return Ok(Some(Unheld { _lock: None }));
    }
    match Flock::take(path, Mode::Exclusive, Patience::None) {
        Ok(lock) => Ok(lock.map(|lock| Unheld { _lock: Some(lock) })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The lock of something that nobody held a moment ago; whoever seems to hold it now may be a copy of that question,
/// in a process that has just been started.
pub(super) fn take_abandoned(path: &Utf8Path) -> Result<Option<Unheld>> {
    let mut pauses = BackOff::new(Some(FORK_TIME));
    loop {
        match take_unheld(path)? {
            None if read::exists(path)? && pauses.pause() => {}
            taken => return Ok(taken),
        }
    }
}

/// Something that nobody else holds while this lives.
#[derive(Debug)]
pub(super) struct Unheld {
    _lock: Option<Flock>,
}

/// Objects that no revision has, and where all objects are.
fn objects(core: &Core, inventory: &mut Inventory, meter: &mut Meter) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for shard in read::list(&core.layout.objects())?.into_iter().filter(|entry| entry.is_dir) {
        let dir = core.layout.objects().join(&shard.name);
        let objects = read::list(&dir)?;
        let Some(metadata) = read::metadata_if_there(&dir)? else { continue };
        let at = meter.add_shard(inventory, meter.bytes(&metadata), objects.iter().map(|object| object.inode));
        for object in objects.iter().filter(|object| digest_of(&shard.name, &object.name).is_some()) {
            let path = dir.join(&object.name);
            let Some(metadata) = read::metadata_if_there(&path)? else { continue };
            if is_unused(&metadata) {
                let footprint = meter.one(&metadata);
                found.push(Leftover { shard: Some(at), ..leftover(core, LeftoverKind::Object, &path, footprint) });
            }
        }
    }
    Ok(found)
}

pub(super) fn is_unused(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.nlink() == 1
}

/// The digest that an object's name says.
pub(super) fn digest_of(shard: &str, name: &str) -> Option<Digest> {
    format!("{shard}{name}").parse().ok()
}

/// The entries of such keys; none where not all revisions can be seen.
fn keys(core: &Core, inventory: &Inventory, is_such: impl Fn(&CacheKey) -> bool + Sync) -> Result<Vec<Utf8PathBuf>> {
    if inventory.templates.iter().any(|template| template.current == CurrentState::Unreadable) {
        return Ok(Vec::new());
    }
    let such = |shard: Name| {
        let dir = core.layout.keys().join(&shard.name);
        let is_such = |name: &String| key_of(&shard.name, name).is_some_and(|key| is_such(&key));
        Ok(read::names(&dir)?.into_iter().filter(is_such).map(|name| dir.join(name)).collect())
    };
    let shards = read::list(&core.layout.keys())?.into_par_iter().filter(|entry| entry.is_dir);
    Ok(shards.map(such).collect::<Result<Vec<Vec<_>>>>()?.concat())
}

fn revisions(inventory: &Inventory) -> HashSet<(&TemplateId, &RevisionId)> {
    let templates = inventory.templates.iter();
    templates.flat_map(|template| template.revisions.iter().map(|state| (&template.id, &state.id))).collect()
}

/// The keys of the entries among what was left behind.
pub(super) fn keys_of<'a>(core: &Core, leftovers: impl Iterator<Item = &'a PlannedLeftover>) -> Vec<CacheKey> {
    let dir = core.layout.keys();
    let of = |leftover: &PlannedLeftover| {
        let path = core.layout.root().join(&leftover.path);
        let (shard, name) = path.strip_prefix(&dir).ok()?.as_str().split_once('/')?;
        key_of(shard, name)
    };
    leftovers.filter(|leftover| leftover.kind == LeftoverKind::Key).filter_map(of).collect()
}

/// The key that an entry's name says.
pub(super) fn key_of(shard: &str, name: &str) -> Option<CacheKey> {
    format!("{shard}{}", name.strip_suffix(".json")?).parse().ok()
}

/// Notes of processes that are gone, or of revisions that nobody uses.
fn dead_notes(core: &Core) -> Result<Vec<Utf8PathBuf>> {
    let here = process::identity();
    let mut found = Vec::new();
    for entry in read::list(&core.layout.leases())?.into_iter().filter(|entry| entry.is_dir) {
        let dir = core.layout.leases().join(&entry.name);
        let names = read::names(&dir)?;
        let held = is_held(core, &entry.name)?;
        let is_over = |note: &Utf8Path| if held { is_dead(note, &here) } else { !leases::is_of_living(note, &here) };
        let dead = names.iter().filter(|name| is_over(&dir.join(name)));
        let before = found.len();
        found.extend(dead.map(|name| dir.join(name)));
        if found.len() - before == names.len() {
            found.push(dir);
        }
    }
    Ok(found)
}

/// Whether a process holds the revision that a directory of notes is named after.
pub(super) fn is_held(core: &Core, name: &str) -> Result<bool> {
    let Some((template, revision)) = revision_of(name) else { return Ok(false) };
    let dir = core.layout.revision(&template, &revision);
    // Where this user may not look, somebody may.
    let is_there = || read::exists(&dir).unwrap_or(true);
    Ok(is_there() && take_unheld(&dir)?.is_none() && is_there())
}

pub(super) fn is_dead(note: &Utf8Path, here: &Identity) -> bool {
    let note = read::bytes(note).ok().and_then(|bytes| LeaseNote::from_json(&bytes).ok());
    // One that can't be read is being written, or of no use; it goes when nobody holds the revision any more.
    note.is_some_and(|note| leases::is_alive(&note, here) == Some(false))
}

/// `<template>@<revision>`, as files in `.store/` are named.
pub(super) fn revision_of(name: &str) -> Option<(TemplateId, RevisionId)> {
    let (template, revision) = name.split_once('@')?;
    Some((template.parse().ok()?, revision.parse().ok()?))
}

fn expired_pins(core: &Core, inventory: &Inventory) -> Vec<Utf8PathBuf> {
    let expired = inventory.pins.iter().filter(|pin| !pin.holds_at(core.now()));
    expired.filter_map(|pin| pin.name.as_ref().map(|name| core.layout.pin(name))).collect()
}

/// Marks on revisions that are gone.
fn marks_of_nothing(core: &Core, marked: &[(TemplateId, RevisionId)]) -> Vec<Utf8PathBuf> {
    let is_gone = |(template, revision): &&(TemplateId, RevisionId)| {
        !read::exists(&core.layout.revision(template, revision)).unwrap_or(true)
    };
    marked.iter().filter(is_gone).map(|(template, revision)| core.layout.damage_mark(template, revision)).collect()
}
