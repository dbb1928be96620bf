//! `keys/`: which revisions were made from a cache key. Hints: whoever uses one looks at the revision.

use crate::core::Core;
use crate::error::Result;
use crate::format::{KeyEntry, KeyHint, RevisionRecord};
use crate::fs::atomic::{Lasting, parent_of};
use crate::fs::read;
use crate::id::CacheKey;
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
    let mut found = Vec::new();
    for (template, revision) in inventory::revisions(core)? {
        let bytes = read::bytes(&core.layout.revision_json(&template, &revision)).unwrap_or_default();
        let Ok(record) = RevisionRecord::from_json(&bytes) else { continue };
        for made in record.made_from().filter(|made| made.key() == *key) {
            let hint =
                KeyHint { template: template.clone(), revision: revision.clone(), source_hash: made.source_hash };
            found.push((record.published_at, hint));
        }
    }
    found.sort_by_key(|(published, _)| std::cmp::Reverse(*published));
    Ok(found.into_iter().map(|(_, hint)| hint).collect())
}

/// Puts a revision first.
///
/// Two writers at once may lose one of the two hints, a crash may lose or damage the entry: it costs a build or
/// a search, never data.
pub(crate) fn record(core: &Core, key: &CacheKey, hint: KeyHint) -> Result<()> {
    let revisions = hints(core, key)?;
    if revisions.first() == Some(&hint) {
        return Ok(());
    }
    let mut entry = KeyEntry { key: *key, revisions };
    entry.put(hint);
    let path = core.layout.key(key);
    core.disk.ensure_dir(parent_of(&path))?;
    Ok(core.disk.write_file(&core.layout.drafts(), &path, &entry.to_json(), Lasting::Hint)?)
}
