//! Deleting revisions and templates: out of sight first, durably, then for good.
//!
//! Whoever deletes has a directory of its own below `trash/`, and holds its lock while it works. A crash leaves what
//! was moved there, under the name of what it was: a collection goes on from there.

use std::collections::HashMap;

use camino::Utf8Path;
use rayon::prelude::*;

use crate::core::Core;
use crate::error::Result;
use crate::format::{KeyHint, ObjectOf, RevisionSummary};
use crate::fs::lock::Flock;
use crate::fs::read;
use crate::fs::remove::Removed;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::keys;
use crate::layout::{ARTIFACTS, REVISION_JSON};
use crate::objects;

/// Other revisions that have a key, for those keys of which one is deleted.
pub(crate) type Heirs = HashMap<CacheKey, Vec<KeyHint>>;

/// What the store has of a revision beside its files.
#[derive(Debug, Default)]
pub(crate) struct Release {
    objects: Vec<Digest>,
    keys: Vec<CacheKey>,
}

impl Release {
    pub fn keys(&self) -> &[CacheKey] {
        &self.keys
    }

    /// What follows from a `revision.json`; nothing, if it can't be read.
    pub fn of(record: &[u8]) -> Release {
        let summary = RevisionSummary::<Vec<ObjectOf>>::from_json(record);
        summary.map(|summary| Release::from(&summary)).unwrap_or_default()
    }
}

impl From<&RevisionSummary<'_, Vec<ObjectOf>>> for Release {
    fn from(summary: &RevisionSummary<'_, Vec<ObjectOf>>) -> Release {
        Release { objects: summary.objects(), keys: summary.keys() }
    }
}

/// A directory below `trash/`, held by who deletes what is in it.
#[derive(Debug)]
pub(crate) struct Grave<'a> {
    core: &'a Core,
    lock: Flock,
    revisions: Vec<(TemplateId, RevisionId, Release)>,
}

impl<'a> Grave<'a> {
    pub fn dig(core: &'a Core) -> Result<Grave<'a>> {
        Ok(Grave { core, lock: core.new_private_dir(&core.layout.trash(), "", 0o700)?, revisions: Vec::new() })
    }

    /// Moves a revision out of sight. The caller holds the template's lock, and makes it durable.
    pub fn bury(&mut self, template: &TemplateId, revision: &RevisionId, release: Release) -> Result<()> {
        self.take(&self.core.layout.revision(template, revision), &name(template, revision))?;
        self.revisions.push((template.clone(), revision.clone(), release));
        Ok(())
    }

    /// Moves a template with all its revisions out of sight.
    pub fn bury_template(&self, template: &TemplateId) -> Result<()> {
        self.take(&self.core.layout.template(template), template.as_str())
    }

    fn take(&self, dir: &Utf8Path, name: &str) -> Result<()> {
        let disk = &self.core.disk;
        let metadata = read::metadata(dir)?;
        disk.open_up(dir, &metadata)?;
        let moved = disk.rename_noreplace(dir, &self.lock.path().join(name));
        if moved.is_err() {
            disk.restore_mode(dir, &metadata);
        }
        Ok(moved?)
    }

    /// Deletes all that was moved here, which is durable by now; gives what went with each revision.
    pub fn empty(self, heirs: &Heirs) -> Result<Vec<(RevisionId, Removed)>> {
        let (core, dir) = (self.core, self.lock.path());
        let destroyed = self.revisions.into_par_iter().map(|(template, revision, release)| {
            let path = dir.join(name(&template, &revision));
            let removed = destroy_revision(core, &path, &template, &revision, release, heirs)?;
            Ok((revision, removed))
        });
        let destroyed = destroyed.collect::<Result<Vec<_>>>()?;
        empty(core, dir, heirs)?;
        Ok(destroyed)
    }
}

fn name(template: &TemplateId, revision: &RevisionId) -> String {
    format!("{template}@{revision}")
}

/// Deletes what is in a directory of the trash, and the directory; that it was moved there lasts already.
pub(crate) fn empty(core: &Core, dir: &Utf8Path, heirs: &Heirs) -> Result<Removed> {
    let mut removed = Removed::default();
    for name in read::names(dir)? {
        removed += destroy(core, &dir.join(&name), &name, heirs)?;
    }
    removed += core.disk.remove_tree(dir)?;
    Ok(removed)
}

/// Deletes something that was moved to the trash under this name.
fn destroy(core: &Core, path: &Utf8Path, name: &str, heirs: &Heirs) -> Result<Removed> {
    if let Some((template, revision)) = name.split_once('@')
        && let (Ok(template), Ok(revision)) = (template.parse(), revision.parse())
    {
        return destroy_revision(core, path, &template, &revision, recorded(path), heirs);
    }
    let mut removed = Removed::default();
    if let Ok(template) = name.parse() {
        let artifacts = path.join(ARTIFACTS);
        for revision in read::names(&artifacts)? {
            let Ok(id) = revision.parse() else { continue };
            let path = artifacts.join(&revision);
            let release = recorded(&path);
            removed += destroy_revision(core, &path, &template, &id, release, heirs)?;
        }
    }
    removed += core.disk.remove_tree(path)?;
    Ok(removed)
}

/// What the record of a revision in the trash says.
fn recorded(dir: &Utf8Path) -> Release {
    Release::of(&read::bytes(&dir.join(REVISION_JSON)).unwrap_or_default())
}

/// Deletes a revision's files, and what the store had of them.
///
/// Its record goes last: what a crash leaves still says which objects and keys are to be released.
fn destroy_revision(
    core: &Core,
    dir: &Utf8Path,
    template: &TemplateId,
    revision: &RevisionId,
    release: Release,
    heirs: &Heirs,
) -> Result<Removed> {
    let mut removed = Removed::default();
    let Some(metadata) = read::metadata_if_there(dir)? else { return Ok(removed) };
    if !metadata.is_dir() {
        return Ok(core.disk.remove_tree(dir)?);
    }
    core.disk.open_up(dir, &metadata)?;
    for entry in read::list(dir)?.into_iter().filter(|entry| entry.name != REVISION_JSON) {
        removed += core.disk.remove_tree(dir.join(entry.name))?;
    }
    for digest in &release.objects {
        removed += objects::release(core, digest)?;
    }
    for key in &release.keys {
        let others = heirs.get(key).map_or(&[][..], Vec::as_slice);
        removed += keys::forget(core, key, template, revision, others)?;
    }
    removed += core.disk.remove_tree(dir.join(REVISION_JSON))?;
    removed += core.disk.remove_dir_or_tree(dir, &metadata)?;
    Ok(removed)
}
