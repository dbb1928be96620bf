//! `keys/`: which revisions were made from a cache key. Hints: whoever uses one looks at the revision.

use crate::core::Core;
use crate::error::Result;
use crate::format::{KeyEntry, KeyHint};
use crate::fs::atomic::{Lasting, parent_of};
use crate::fs::read;
use crate::id::CacheKey;

/// The revisions that the index has for a key, the newest first. An entry that can't be read is no entry.
pub(crate) fn hints(core: &Core, key: &CacheKey) -> Result<Vec<KeyHint>> {
    let Some(bytes) = read::bytes_if_there(&core.layout.key(key))? else { return Ok(Vec::new()) };
    let entry = KeyEntry::from_json(&bytes).ok().filter(|entry| entry.key == *key);
    Ok(entry.map(|entry| entry.revisions).unwrap_or_default())
}

/// Puts a revision first.
///
/// Two writers at once may lose one of the two hints, a crash may lose or damage the entry: it costs a
/// look-up, never data.
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
