//! Replacing damaged files by an intact inode, in every revision that has them.

use camino::Utf8Path;

use crate::core::Core;
use crate::error::{PathError, Result};
use crate::format::{Content, RevisionRecord};
use crate::fs::atomic::{needs_copy, parent_of};
use crate::fs::read::{self, FileId};
use crate::fs::seal::{holds, looks_sealed};
use crate::fs::with_unique_name;
use crate::id::{RevisionId, TemplateId};
use crate::inventory;
use crate::progress::{Note, Progress};

/// Gives `good` to all revisions that have the rotten inode in its place, as far as that can be done.
pub(crate) fn everywhere(
    core: &Core,
    content: &Content,
    rotten: FileId,
    good: &Utf8Path,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<()> {
    for (template, revision) in inventory::revisions(core)? {
        // While a collector has it, this waits; if it is gone then, there is nothing to heal.
        let Ok(_lease) = core.lease(&core.layout.revision(&template, &revision)) else { continue };
        for damaged in listed(core, &template, &revision).iter().filter(|other| other.blake3 == content.blake3) {
            let path = core.layout.artifact(&template, &revision, &damaged.path);
            if !matches!(read::metadata(&path), Ok(found) if FileId::of(&found) == rotten) {
                continue;
            }
            progress.note(match replace(core, good, &path, staging) {
                Ok(()) => Note::Healed { path },
                Err(error) => Note::NotHealed { path, reason: error.to_string() },
            });
        }
    }
    Ok(())
}

/// The files of a revision, if its record can be read.
fn listed(core: &Core, template: &TemplateId, revision: &RevisionId) -> Vec<Content> {
    let bytes = read::bytes(&core.layout.revision_json(template, revision)).unwrap_or_default();
    RevisionRecord::from_json(&bytes).ok().and_then(|record| record.contents).unwrap_or_default()
}

/// Gives a published file the inode of `good` unless it is intact; both are to hold the same bytes.
///
/// # Errors
/// It is damaged and could not be replaced.
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
    if shared || found.is_some_and(|found| looks_sealed(&found, content.size)) && holds(path, &content.blake3)? {
        return Ok(());
    }
    make_parents(core, path, content)?;
    replace(core, good, path, staging)?;
    progress.note(Note::Healed { path: path.to_owned() });
    Ok(())
}

/// Makes the directories below the revision that the file needs; somebody may have deleted them.
fn make_parents(core: &Core, path: &Utf8Path, content: &Content) -> Result<(), PathError> {
    let depth = content.path.as_path().components().count();
    let parents: Vec<&Utf8Path> = path.ancestors().skip(1).take(depth - 1).collect();
    for parent in parents.into_iter().rev() {
        if !read::exists(parent)? {
            core.disk.mkdir(parent, 0o755)?;
            core.disk.fsync_dir(parent_of(parent))?;
        }
    }
    Ok(())
}

/// Replaces a file by a link to `good`, or by a copy where no link can be; durable when this returns.
pub(crate) fn replace(core: &Core, good: &Utf8Path, path: &Utf8Path, staging: &Utf8Path) -> Result<(), PathError> {
    match core.disk.replace_by_link(staging, good, path) {
        Err(error) if needs_copy(error.kind()) => replace_by_copy(core, good, path, staging),
        replaced => {
            replaced?;
            core.disk.fsync_dir(parent_of(path))
        }
    }
}

/// Replaces a file by a sealed copy of `good`, which may be the file itself; durable when this returns.
pub(crate) fn replace_by_copy(
    core: &Core,
    good: &Utf8Path,
    path: &Utf8Path,
    staging: &Utf8Path,
) -> Result<(), PathError> {
    let source = read::open(good)?;
    let copy =
        with_unique_name(staging, ".heal-", |name| core.disk.copy_sealed((&source, good), name, &|_| ()).map(drop))?;
    core.disk.rename(&copy, path)?;
    core.disk.fsync_dir(parent_of(path))
}
