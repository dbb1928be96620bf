//! `objects/` and `keys/`, made again from the revisions.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;
use jiff::Timestamp;

use super::Repair;
use super::plan::Extent;
use crate::error::Result;
use crate::format::{Content, KeyEntry, KeyHint, OBJECT_MIN_SIZE, RevisionRecord};
use crate::fs::atomic::parent_of;
use crate::fs::read::{self, FileId, Place};
use crate::fs::seal::looks_sealed;
use crate::id::CacheKey;
use crate::inventory;
use crate::keys;
use crate::objects::{self, Interned};
use crate::verify::can_link;

/// What the revisions say of a key, the newest first.
type Hints = HashMap<CacheKey, Vec<(Option<Timestamp>, KeyHint)>>;

impl Repair<'_> {
    /// Makes every large file an object, or a link to the one that has its bytes.
    pub(super) fn share(&mut self, extent: Extent) -> Result<()> {
        let mut made = 0;
        for (template, id) in inventory::revisions(self.core)? {
            if !self.errors(&template, &id).is_empty() {
                continue;
            }
            let dir = self.core.layout.revision(&template, &id);
            for content in self.contents(&dir).iter().filter(|content| content.size >= OBJECT_MIN_SIZE) {
                let path = dir.join(content.path.as_path());
                match self.share_file(&dir, content) {
                    Ok(None) => {}
                    Ok(Some(_)) if extent == Extent::Whole => made += 1,
                    Ok(Some(how)) => self.done(path, how),
                    Err(error) => self.fail(path, error.to_string()),
                }
            }
        }
        if made > 0 {
            self.done(self.core.layout.objects(), format!("built again from {made} files"));
        }
        Ok(())
    }

    fn contents(&self, dir: &Utf8Path) -> Vec<Content> {
        let bytes = read::bytes(&dir.join(crate::layout::REVISION_JSON)).unwrap_or_default();
        RevisionRecord::from_json(&bytes).ok().and_then(|record| record.contents).unwrap_or_default()
    }

    /// Says what was done, if something was.
    fn share_file(&mut self, dir: &Utf8Path, content: &Content) -> Result<Option<&'static str>> {
        let path = dir.join(content.path.as_path());
        let Place::At(ours) = read::place(dir, content.path.as_path())? else { return Ok(None) };
        if !looks_sealed(&ours, content.size) || !can_link(&ours) {
            return Ok(None);
        }
        let object = self.core.layout.object(&content.blake3);
        match read::metadata_if_there(&object)? {
            Some(theirs) if FileId::of(&theirs) == FileId::of(&ours) || theirs.uid() != ours.uid() => return Ok(None),
            // What is not what its name says is replaced, and must not be lost with its name.
            Some(_) if !self.is_intact(&object, &content.blake3, Some(content.size)) => {
                self.keep(&object, None, None)?;
            }
            _ => {}
        }
        // What becomes an object is given to all who have these bytes: it was read, or it is now.
        let proven = self.first.proves(&ours, &content.blake3);
        if !proven && !self.is_intact(&path, &content.blake3, Some(content.size)) {
            return Ok(None);
        }
        let staging = self.staging()?;
        match objects::intern(self.core, &path, content, &staging)? {
            Interned::New => Ok(Some("is an object again")),
            Interned::Shared => {
                self.core.disk.fsync_dir(parent_of(&path))?;
                Ok(Some("shares the blocks of the object with its bytes"))
            }
            Interned::Replaced { .. } => Ok(Some("took the place of an object that had rotted")),
            Interned::Private { reason } => {
                tracing::debug!("{path} has blocks of its own: {reason}");
                Ok(None)
            }
        }
    }

    /// Makes the entries of these keys, or of all, what the revisions say.
    pub(super) fn keys(&mut self, only: Option<&[CacheKey]>) -> Result<()> {
        let hints = self.hints()?;
        let all: Vec<CacheKey> = hints.keys().copied().collect();
        let keys = only.unwrap_or(&all);
        for key in keys {
            let path = self.core.layout.key(key);
            if let Err(error) = self.key(key, hints.get(key).map_or(&[], Vec::as_slice)) {
                self.fail(path, error.to_string());
            } else if only.is_some() {
                self.done(path, "written again from the revisions");
            }
        }
        if only.is_none() {
            self.done(self.core.layout.keys(), format!("built again with {} entries", keys.len()));
        }
        Ok(())
    }

    fn key(&mut self, key: &CacheKey, hints: &[(Option<Timestamp>, KeyHint)]) -> Result<()> {
        let path = self.core.layout.key(key);
        if matches!(read::metadata_if_there(&path)?, Some(found) if !found.is_file()) {
            self.set_aside(&path, None, None)?;
        }
        keys::change(self.core, key, |mut entry: KeyEntry| {
            entry.revisions.retain(|old| hints.iter().any(|(_, hint)| hint == old));
            for (_, hint) in hints {
                entry.offer(hint.clone());
            }
            entry
        })?;
        Ok(())
    }

    fn hints(&self) -> Result<Hints> {
        let mut hints: Hints = HashMap::new();
        for (template, revision) in inventory::revisions(self.core)? {
            let bytes = read::bytes(&self.core.layout.revision_json(&template, &revision)).unwrap_or_default();
            let Ok(record) = RevisionRecord::from_json(&bytes) else { continue };
            for made in record.made_from() {
                let (template, revision) = (template.clone(), revision.clone());
                let hint = KeyHint { template, revision, source_hash: made.source_hash };
                hints.entry(made.key()).or_default().push((record.published_at, hint));
            }
        }
        for hints in hints.values_mut() {
            hints.sort_by_key(|(published, _)| std::cmp::Reverse(*published));
        }
        Ok(hints)
    }
}
