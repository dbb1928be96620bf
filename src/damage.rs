//! Marks on damaged revisions: what has one is never offered.

use crate::core::Core;
use crate::error::Result;
use crate::format::{DamageMark, Problem};
use crate::fs::atomic::Lasting;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};

/// Whether the revision is known to be damaged.
pub(crate) fn is_marked(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<bool> {
    Ok(read::exists(&core.layout.damage_mark(template, revision))?)
}

/// Notes that a revision is damaged, durably.
pub(crate) fn mark(core: &Core, template: &TemplateId, revision: &RevisionId, problems: Vec<Problem>) -> Result<()> {
    let mark = DamageMark { found_at: core.now(), problems };
    core.disk.ensure_dir(&core.layout.damaged())?;
    core.disk.fsync_dir(&core.layout.private())?;
    let path = core.layout.damage_mark(template, revision);
    Ok(core.disk.write_file(&core.layout.drafts(), &path, &mark.to_json(), Lasting::Durable)?)
}

/// What the mark says; a mark that can't be read says nothing, and is one all the same.
pub(crate) fn problems(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<Vec<Problem>> {
    let bytes = read::bytes_if_there(&core.layout.damage_mark(template, revision))?.unwrap_or_default();
    Ok(DamageMark::from_json(&bytes).map(|mark| mark.problems).unwrap_or_default())
}

/// All revisions that have a mark, whether or not they are there.
pub(crate) fn marked(core: &Core) -> Result<Vec<(TemplateId, RevisionId)>> {
    let revision = |name: &String| {
        let (template, revision) = name.strip_suffix(".json")?.split_once('@')?;
        Some((template.parse().ok()?, revision.parse().ok()?))
    };
    Ok(read::names(&core.layout.damaged())?.iter().filter_map(revision).collect())
}

/// Whether any revision has a mark.
pub(crate) fn is_any(core: &Core) -> Result<bool> {
    Ok(!marked(core)?.is_empty())
}

/// Takes the mark off, durably: the revision is intact, or gone.
pub(crate) fn clear(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<()> {
    let path = core.layout.damage_mark(template, revision);
    if !read::exists(&path)? {
        return Ok(());
    }
    core.disk.unlink_if_there(&path)?;
    Ok(core.disk.fsync_dir(&core.layout.damaged())?)
}
