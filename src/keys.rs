//! `keys/`: which revisions were made from a cache key. Hints: whoever uses one looks at the revision.

use std::collections::{HashMap, HashSet};

use camino::Utf8Path;

use crate::core::Core;
use crate::error::Result;
use crate::format::{KeyEntry, KeyHint, RevisionRecord};
use crate::fs::atomic::{Lasting, parent_of};
use crate::fs::lock::{Flock, Mode};
use crate::fs::read;
use crate::fs::remove::Removed;
use crate::id::{CacheKey, RevisionId, TemplateId};
use crate::inventory;

/// The revisions that the index has for a key, the newest first.
///
/// An entry that a power cut has damaged is made again from the revisions: that one is missing where one was
/// tells that there is something to find.
pub(crate) fn hints(core: &Core, key: &CacheKey) -> Result<Vec<KeyHint>> {
    let Some(bytes) = read::bytes_if_there(&core.layout.key(key))? else { return Ok(Vec::new()) };
    match KeyEntry::from_json(&bytes).ok().filter(|entry| entry.key == *key) {
        Some(entry) => Ok(entry.revisions),
        None => search(core, key),
    }
}

/// All revisions that were made from a key, by their own records.
fn search(core: &Core, key: &CacheKey) -> Result<Vec<KeyHint>> {
    Ok(search_all(core, &HashSet::from([*key]))?.remove(key).unwrap_or_default())
}

/// All revisions that were made from one of these keys, by their own records; for each key the newest first.
pub(crate) fn search_all(core: &Core, keys: &HashSet<CacheKey>) -> Result<HashMap<CacheKey, Vec<KeyHint>>> {
    if keys.is_empty() { Ok(HashMap::new()) } else { search_in(core, inventory::revisions(core)?, keys) }
}

/// Those of these revisions that were made from one of the keys; for each key the newest first.
pub(crate) fn search_in(
    core: &Core,
    revisions: Vec<(TemplateId, RevisionId)>,
    keys: &HashSet<CacheKey>,
) -> Result<HashMap<CacheKey, Vec<KeyHint>>> {
    let mut found: HashMap<CacheKey, Vec<_>> = HashMap::new();
    for (template, revision) in revisions {
        let bytes = read::bytes(&core.layout.revision_json(&template, &revision)).unwrap_or_default();
        let Ok(record) = RevisionRecord::from_json(&bytes) else { continue };
        for made in record.made_from().filter(|made| keys.contains(&made.key())) {
            let hint =
                KeyHint { template: template.clone(), revision: revision.clone(), source_hash: made.source_hash };
            found.entry(made.key()).or_default().push((record.published_at, hint));
        }
    }
    let newest_first = |mut hints: Vec<(Option<_>, KeyHint)>| {
        hints.sort_by_key(|(published, _)| std::cmp::Reverse(*published));
        hints.into_iter().map(|(_, hint)| hint).collect()
    };
    Ok(found.into_iter().map(|(key, hints)| (key, newest_first(hints))).collect())
}

/// Puts a revision first.
///
/// Under the shard's lock even where the hint is there already: who removes another revision of that name may be about
/// to take it away, and looks there for the revision first.
///
/// A crash may lose or damage the entry: it costs a build or a search, never data.
pub(crate) fn record(core: &Core, key: &CacheKey, hint: KeyHint) -> Result<()> {
    change(core, key, |mut entry| {
        entry.put(hint);
        entry
    })
    .map(drop)
}

/// Adds a revision to those that were made from a key, if the entry has none of the same template and sources.
pub(crate) fn offer(core: &Core, key: &CacheKey, hint: KeyHint) -> Result<()> {
    change(core, key, |mut entry| {
        entry.offer(hint);
        entry
    })
    .map(drop)
}

/// Replaces an entry, while nobody else does; one without hints is removed. Says what this freed.
pub(crate) fn change(core: &Core, key: &CacheKey, change: impl FnOnce(KeyEntry) -> KeyEntry) -> Result<Removed> {
    let path = core.layout.key(key);
    let _shard = lock_shard(core, parent_of(&path))?;
    let old = hints(core, key)?;
    let new = change(KeyEntry { key: *key, revisions: old.clone() });
    match read::metadata_if_there(&path)? {
        Some(metadata) if new.revisions.is_empty() => {
            core.disk.unlink(&path)?;
            Ok(Removed::name_of(&metadata))
        }
        None if new.revisions.is_empty() => Ok(Removed::default()),
        Some(_) if new.revisions == old && is_intact(&path, key)? => Ok(Removed::default()),
        found => {
            core.disk.write_file(&core.layout.drafts(), &path, &new.to_json(), Lasting::Hint)?;
            // An entry of many hints that loses some needs fewer blocks.
            let before = found.as_ref().map_or(0, read::bytes_on_disk);
            Ok(Removed { bytes: before.saturating_sub(read::bytes_on_disk(&read::metadata(&path)?)), inodes: 0 })
        }
    }
}

/// Takes a revision that is gone out of a key's entry, and puts others that have the key in its place.
pub(crate) fn forget(
    core: &Core,
    key: &CacheKey,
    template: &TemplateId,
    revision: &RevisionId,
    heirs: &[KeyHint],
) -> Result<Removed> {
    if !read::exists(&core.layout.key(key))? {
        return Ok(Removed::default());
    }
    let record = core.layout.revision_json(template, revision);
    change(core, key, |mut entry| {
        // Somebody may have published it again meanwhile.
        let gone = !read::exists(&record).unwrap_or(true);
        entry.revisions.retain(|hint| !gone || (&hint.template, &hint.revision) != (template, revision));
        offer_all(core, entry, heirs)
    })
}

/// Takes out of an entry what leads to no revision with this key, and puts others that have the key in its place.
pub(crate) fn prune(core: &Core, key: &CacheKey, heirs: &[KeyHint]) -> Result<Removed> {
    change(core, key, |mut entry| {
        entry.revisions.retain(|hint| leads_to(core, key, hint));
        offer_all(core, entry, heirs)
    })
}

fn offer_all(core: &Core, mut entry: KeyEntry, heirs: &[KeyHint]) -> KeyEntry {
    for heir in heirs {
        // One that somebody removes meanwhile is there as long as its own removal has not come here.
        if !entry.has_one_like(heir) && leads_to(core, &entry.key, heir) {
            entry.offer(heir.clone());
        }
    }
    entry
}

/// Whether an entry has hints that lead to none of these revisions.
pub(crate) fn dangles(core: &Core, key: &CacheKey, is_there: impl Fn(&TemplateId, &RevisionId) -> bool) -> bool {
    let entry = read::bytes(&core.layout.key(key)).ok().and_then(|bytes| KeyEntry::from_json(&bytes).ok());
    entry.is_some_and(|entry| entry.revisions.iter().any(|hint| !is_there(&hint.template, &hint.revision)))
}

fn leads_to(core: &Core, key: &CacheKey, hint: &KeyHint) -> bool {
    let bytes = read::bytes(&core.layout.revision_json(&hint.template, &hint.revision)).unwrap_or_default();
    RevisionRecord::from_json(&bytes).is_ok_and(|record| record.made_from().any(|made| made.key() == *key))
}

fn is_intact(path: &Utf8Path, key: &CacheKey) -> Result<bool> {
    Ok(KeyEntry::from_json(&read::bytes(path)?).is_ok_and(|entry| entry.key == *key))
}

/// Keeps others from changing the entries of a shard, so that no hint is lost between reading and writing.
fn lock_shard(core: &Core, shard: &Utf8Path) -> Result<Flock> {
    loop {
        match Flock::wait_for(shard, Mode::Exclusive) {
            Err(error) if error.is_not_found() => core.disk.ensure_dir(shard)?,
            locked => return Ok(locked?),
        }
    }
}
