//! One template of mvm.

use std::sync::Arc;

use super::{Report, is_dir, revision};
use crate::activation::{self, Current};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::layout::ALIAS;
use crate::progress::Progress;
use crate::template::{self, TemplateLock};

/// Adopts a template's revisions, and makes its `current` resolve.
///
/// What is done is durable when this returns.
pub(super) fn adopt(core: &Arc<Core>, id: &TemplateId, report: &mut Report, progress: &mut dyn Progress) -> Result<()> {
    let lock = match template::lock(core, id) {
        Err(Error::TemplateNotFound { .. }) => return Ok(()),
        lock => lock?,
    };
    let (dir, artifacts) = (core.layout.template(id), core.layout.artifacts(id));
    match prepare(core, id) {
        Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
            report.leave(dir, format!("its definition can't be read: {error}"));
            return Ok(());
        }
        Err(error @ Error::AliasTaken { .. }) => {
            report.leave(dir, error);
            return Ok(());
        }
        prepared => prepared?,
    }
    if !is_dir(&artifacts)? {
        report.leave(artifacts, "it is not a directory");
        return Ok(());
    }
    for entry in read::list(&artifacts)? {
        let path = artifacts.join(&entry.name);
        match entry.name.parse::<RevisionId>() {
            Ok(name) if entry.is_dir => revision::adopt(core, id, &name, report, progress)?,
            // mvm makes it, and puts nothing there.
            Err(_) if entry.is_dir && entry.name == ALIAS && read::names(&path)?.is_empty() => {}
            Err(error) if entry.is_dir => report.leave(path, format!("no revision: {error}")),
            _ => report.leave(path, "no revision: it is not a directory"),
        }
    }
    core.disk.fsync_dir(&artifacts)?;
    make_current_resolve(core, &lock, report)?;
    // Who died before this may have left names that did not last.
    Ok(core.disk.fsync_dir(&dir)?)
}

/// Makes what a template of a store has and one of mvm may lack.
fn prepare(core: &Core, id: &TemplateId) -> Result<()> {
    template::spec(core, id)?;
    activation::ensure_alias(core, id)?;
    let artifacts = core.layout.artifacts(id);
    if !read::exists(&artifacts)? {
        core.disk.ensure_dir(&artifacts)?;
    }
    let path = core.layout.template_json(id);
    Ok(core.disk.fsync(&read::open(&path)?, &path)?)
}

/// Gives `current` the text that mvm reads and that resolves on disk, if the revision that it names is there.
fn make_current_resolve(core: &Core, lock: &TemplateLock, report: &mut Report) -> Result<()> {
    let id = &lock.id;
    let path = core.layout.current(id);
    match read::metadata_if_there(&path)? {
        None => return Ok(()),
        Some(found) if !found.is_symlink() => {
            report.leave(path, "it is not a symbolic link");
            return Ok(());
        }
        Some(_) => {}
    }
    match activation::current(core, id)? {
        Current::Unset => {}
        Current::Revision(revision) if is_dir(&core.layout.revision(id, &revision))? => {
            activation::respell(core, lock, &revision)?;
        }
        Current::Revision(revision) => report.leave(
            path,
            format!("it names {revision}, which does not exist; choose a revision with `template-store activate`"),
        ),
        Current::Strange(text) => report.leave(
            path,
            format!("it points to {text:?}, which is no revision; choose one with `template-store activate`"),
        ),
    }
    Ok(())
}
