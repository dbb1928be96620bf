//! Removing what dead processes left behind: each thing is asked about again before it goes.

use std::collections::HashSet;
use std::io::ErrorKind::DirectoryNotEmpty;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::IgnoredAny;

use super::inventory::LeftoverKind;
use super::leftovers::{digest_of, is_dead, is_held, is_shut, key_of, revision_of, take_abandoned};
use super::plan::PlannedLeftover;
use super::report::{FailedSweep, Swept};
use crate::core::Core;
use crate::error::Result;
use crate::format::RevisionSummary;
use crate::fs::process;
use crate::fs::read;
use crate::fs::remove::Removed;
use crate::fs::size;
use crate::id::{PinName, TemplateId};
use crate::instance;
use crate::keys;
use crate::layout::{ARTIFACTS, REVISION_JSON};
use crate::leases;
use crate::objects;
use crate::pins;
use crate::trash::{self, Heirs};

/// Removes what a plan found left behind, as far as nobody has taken it up since, and the objects that only it had.
pub(super) fn sweep(
    core: &Core,
    leftovers: &[PlannedLeftover],
    heirs: &Heirs,
) -> Result<(Vec<Swept>, Vec<FailedSweep>)> {
    let inode = read::inode_size(core.layout.root())?.freed;
    let (mut swept, mut failed) = (Vec::new(), Vec::new());
    let mut orphans = HashSet::new();
    for leftover in leftovers {
        let Some(path) = Place::of(core, leftover) else { continue };
        match one(core, path, heirs, &mut orphans) {
            Ok(None) => {}
            Ok(Some(removed)) => {
                let freed = removed.bytes + removed.inodes * inode;
                swept.push(Swept { kind: leftover.kind, path: leftover.path.clone(), freed });
            }
            // One that can't be removed must not keep the others.
            Err(error) => failed.push(FailedSweep { path: leftover.path.clone(), error: error.to_string() }),
        }
    }
    if !orphans.is_empty() {
        for (path, removed) in release_orphans(core, &orphans)? {
            let freed = removed.bytes + removed.inodes * inode;
            swept.push(Swept { kind: LeftoverKind::Object, path, freed });
        }
    }
    Ok((swept, failed))
}

/// A path of a plan, after it was checked that it is one of the store's: a plan may come from anywhere.
struct Place<'a> {
    kind: LeftoverKind,
    path: Utf8PathBuf,
    /// What comes after the directory in which things of its kind are.
    parts: Vec<&'a str>,
}

impl Place<'_> {
    fn of<'a>(core: &Core, leftover: &'a PlannedLeftover) -> Option<Place<'a>> {
        let layout = &core.layout;
        let (dir, depth) = match leftover.kind {
            LeftoverKind::Trash => (layout.trash(), 1..=1),
            LeftoverKind::Draft => (layout.drafts(), 1..=1),
            LeftoverKind::Object => (layout.objects(), 2..=2),
            LeftoverKind::Key => (layout.keys(), 2..=2),
            LeftoverKind::Lock => (layout.locks(), 1..=1),
            LeftoverKind::Lease => (layout.leases(), 1..=2),
            LeftoverKind::Pin => (layout.pins(), 1..=1),
            LeftoverKind::Mark => (layout.damaged(), 1..=1),
            LeftoverKind::Instance => (layout.instances(), 1..=1),
        };
        let below = dir.strip_prefix(layout.root()).ok()?;
        let rest = Utf8Path::new(&leftover.path).strip_prefix(below).ok()?;
        let parts: Vec<&str> = rest.as_str().split('/').collect();
        let plain = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
        let inside = plain && depth.contains(&parts.len());
        inside.then(|| Place { kind: leftover.kind, path: dir.join(rest), parts })
    }
}

/// Removes one thing; `None` if it is of use again, or gone.
fn one(core: &Core, place: Place, heirs: &Heirs, orphans: &mut HashSet<u64>) -> Result<Option<Removed>> {
    let path = place.path.as_path();
    match (place.kind, place.parts.as_slice()) {
        (LeftoverKind::Trash, _) => empty(core, path, orphans),
        (LeftoverKind::Draft, _) => {
            let Some(metadata) = read::metadata_if_there(path)? else { return Ok(None) };
            if is_shut(&metadata) {
                core.disk.open_up(path, &metadata)?;
            }
            let Some(_held) = take_abandoned(path)? else { return Ok(None) };
            settle_exchanges(core, path)?;
            note_objects(path, orphans)?;
            match core.disk.remove_tree(path) {
                // Children of the dead builder still write there; the next collection finds it again.
                Err(error) if error.kind() == DirectoryNotEmpty => Ok(None),
                removed => Ok(Some(removed?)),
            }
        }
        (LeftoverKind::Object, [shard, name]) => match digest_of(shard, name) {
            Some(digest) => some(objects::release(core, &digest)?),
            None => Ok(None),
        },
        (LeftoverKind::Key, [shard, name]) => match key_of(shard, name) {
            Some(key) => some(keys::prune(core, &key, heirs.get(&key).map_or(&[], Vec::as_slice))?),
            None => Ok(None),
        },
        (LeftoverKind::Lock, _) => match take_abandoned(path)? {
            Some(_held) => unlink(core, path),
            None => Ok(None),
        },
        (LeftoverKind::Lease, [name, _]) => {
            let here = process::identity();
            match is_dead(path, &here) || !is_held(core, name)? && !leases::is_of_living(path, &here) {
                true => unlink(core, path),
                false => Ok(None),
            }
        }
        (LeftoverKind::Lease, [_]) => Ok(rmdir(core, path)),
        (LeftoverKind::Pin, [name]) => expired_pin(core, path, name),
        (LeftoverKind::Instance, _) => {
            let Some(metadata) = read::metadata_if_there(path)? else { return Ok(None) };
            Ok(instance::forget(core, path)?.then(|| Removed::name_of(&metadata)))
        }
        (LeftoverKind::Mark, [name]) => match name.strip_suffix(".json").and_then(revision_of) {
            Some((template, revision)) if !read::exists(&core.layout.revision(&template, &revision))? => {
                unlink(core, path)
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// A draft may hold the snapshot that a revision had until somebody exchanged it for a new one, and died. That the new
/// one has its name lasts before the old one is deleted.
fn settle_exchanges(core: &Core, draft: &Utf8Path) -> Result<()> {
    for name in read::names(draft)? {
        let Some((template, revision)) = revision_of(&name) else { continue };
        match core.disk.fsync_dir(&core.layout.revision(&template, &revision)) {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn some(removed: Removed) -> Result<Option<Removed>> {
    Ok((removed.inodes > 0).then_some(removed))
}

fn unlink(core: &Core, path: &Utf8Path) -> Result<Option<Removed>> {
    let Some(metadata) = read::metadata_if_there(path)? else { return Ok(None) };
    match core.disk.unlink(path) {
        Err(error) if error.is_not_found() => Ok(None),
        removed => {
            removed?;
            Ok(Some(Removed::name_of(&metadata)))
        }
    }
}

/// A directory in which somebody has made a new file stays.
fn rmdir(core: &Core, path: &Utf8Path) -> Option<Removed> {
    let metadata = read::metadata(path).ok()?;
    core.disk.rmdir(path).ok().map(|()| Removed::name_of(&metadata))
}

/// Goes on with a deletion that was cut short. That things were moved here lasts before they are deleted.
fn empty(core: &Core, dir: &Utf8Path, orphans: &mut HashSet<u64>) -> Result<Option<Removed>> {
    let Some(_held) = take_abandoned(dir)? else { return Ok(None) };
    let mut removed = Removed::default();
    core.disk.fsync_dir(&core.layout.templates())?;
    let mut synced: HashSet<TemplateId> = HashSet::new();
    for name in read::names(dir)? {
        if let Some((template, _)) = revision_of(&name)
            && read::exists(&core.layout.artifacts(&template))?
            && synced.insert(template.clone())
        {
            core.disk.fsync_dir(&core.layout.artifacts(&template))?;
        }
    }
    note_objects(dir, orphans)?;
    removed += trash::empty(core, dir, &heirs(core, dir)?)?;
    Ok(Some(removed))
}

/// Revisions that have a key of one that was moved here.
fn heirs(core: &Core, dir: &Utf8Path) -> Result<Heirs> {
    let mut keys = HashSet::new();
    for name in read::names(dir)? {
        let moved = dir.join(name);
        let artifacts = read::names(&moved.join(ARTIFACTS))?.into_iter().map(|name| moved.join(ARTIFACTS).join(name));
        for revision in artifacts.chain([moved.clone()]) {
            let bytes = read::bytes_if_there(&revision.join(REVISION_JSON)).ok().flatten().unwrap_or_default();
            keys.extend(RevisionSummary::<IgnoredAny>::from_json(&bytes).iter().flat_map(RevisionSummary::keys));
        }
    }
    keys::search_all(core, &keys)
}

/// Remembers the files of a tree that have one other name: it may be an object's.
fn note_objects(dir: &Utf8Path, orphans: &mut HashSet<u64>) -> Result<()> {
    Ok(size::each(dir, |_, found| {
        if !found.is_dir && found.names > 1 {
            orphans.insert(found.id.inode());
        }
    })?)
}

/// Removes those objects that nobody has any more.
fn release_orphans(core: &Core, orphans: &HashSet<u64>) -> Result<Vec<(String, Removed)>> {
    let mut released = Vec::new();
    for shard in read::list(&core.layout.objects())?.into_iter().filter(|entry| entry.is_dir) {
        let dir = core.layout.objects().join(&shard.name);
        for object in read::list(&dir)?.into_iter().filter(|object| orphans.contains(&object.inode)) {
            let Some(digest) = digest_of(&shard.name, &object.name) else { continue };
            let removed = objects::release(core, &digest)?;
            if removed.inodes > 0 {
                let path = dir.join(&object.name);
                released.push((path.strip_prefix(core.layout.root()).unwrap_or(&path).to_string(), removed));
            }
        }
    }
    Ok(released)
}

/// Removes a pin that has expired. Whoever makes it anew meanwhile has it anew: the name is theirs.
fn expired_pin(core: &Core, path: &Utf8Path, name: &str) -> Result<Option<Removed>> {
    let Some(name) = name.strip_suffix(".json").and_then(|name| name.parse::<PinName>().ok()) else { return Ok(None) };
    let _pins = pins::lock(core)?;
    match pins::by_name(core, &name)? {
        Some(pin) if !pin.holds_at(core.now()) => unlink(core, path),
        _ => Ok(None),
    }
}
