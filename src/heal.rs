//! Replacing damaged files by an intact inode, in every revision that has them.

use camino::Utf8Path;

use crate::core::Core;
use crate::error::Result;
use crate::format::{Content, RevisionRecord};
use crate::fs::atomic::parent_of;
use crate::fs::read::{self, FileId};
use crate::fs::seal::{holds, looks_sealed};
use crate::id::{RevisionId, TemplateId};
use crate::progress::{Note, Progress};

/// Every revision directory of the store, whether or not it is intact.
pub(crate) fn revisions(core: &Core) -> Result<Vec<(TemplateId, RevisionId)>> {
    let mut found = Vec::new();
    for template in templates(core)? {
        found.extend(revisions_of(core, &template)?.into_iter().map(|revision| (template.clone(), revision)));
    }
    Ok(found)
}

/// The ids of all templates; what else lies in `templates/` is not ours.
pub(crate) fn templates(core: &Core) -> Result<Vec<TemplateId>> {
    let mut ids = Vec::new();
    for id in read::names(&core.layout.templates())?.iter().filter_map(|name| name.parse().ok()) {
        if read::metadata_if_there(&core.layout.template(&id))?.is_some_and(|metadata| metadata.is_dir()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The ids of all revisions of a template.
pub(crate) fn revisions_of(core: &Core, template: &TemplateId) -> Result<Vec<RevisionId>> {
    let mut ids = Vec::new();
    for id in read::names(&core.layout.artifacts(template))?.iter().filter_map(|name| name.parse().ok()) {
        if read::metadata_if_there(&core.layout.revision(template, &id))?.is_some_and(|metadata| metadata.is_dir()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Gives `good` to all revisions that have the rotten inode in its place.
pub(crate) fn everywhere(
    core: &Core,
    content: &Content,
    rotten: FileId,
    good: &Utf8Path,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    for (template, revision) in revisions(core)? {
        // A collector that has the revision is about to remove it.
        let Ok(_lease) = core.lease(&core.layout.revision(&template, &revision)) else { continue };
        let Some(bytes) = read::bytes_if_there(&core.layout.revision_json(&template, &revision))? else { continue };
        let Ok(RevisionRecord { contents: Some(contents), .. }) = RevisionRecord::from_json(&bytes) else { continue };
        for damaged in contents.iter().filter(|other| other.blake3 == content.blake3) {
            let path = core.layout.artifact(&template, &revision, &damaged.path);
            if read::metadata_if_there(&path)?.is_some_and(|found| FileId::of(&found) == rotten) {
                replace(core, good, &path, staging, progress);
            }
        }
    }
    Ok(())
}

/// Gives a published file the inode of `good` unless it is intact; both are to hold the same bytes.
pub(crate) fn one(
    core: &Core,
    content: &Content,
    good: &Utf8Path,
    path: &Utf8Path,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    let found = read::metadata_if_there(path)?;
    let shared = found.as_ref().map(FileId::of) == Some(FileId::of(&read::metadata(good)?));
    let intact =
        shared || (found.is_some_and(|found| looks_sealed(&found, content.size)) && holds(path, &content.blake3)?);
    if !intact {
        replace(core, good, path, staging, progress);
    }
    Ok(())
}

fn replace(core: &Core, good: &Utf8Path, path: &Utf8Path, staging: &Utf8Path, progress: &mut dyn Progress) {
    let replaced = core.disk.replace_by_link(staging, good, path).and_then(|()| core.disk.fsync_dir(parent_of(path)));
    let path = path.to_owned();
    progress.note(match replaced {
        Ok(()) => Note::Healed { path },
        Err(error) => Note::NotHealed { path, reason: error.to_string() },
    });
}
