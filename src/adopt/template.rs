//! One template of mvm.

use std::sync::Arc;

use camino::Utf8Path;

use super::{Report, is_dir, revision};
use crate::activation::{self, Current};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::fs::read::{self, Name};
use crate::id::{RevisionId, TemplateId};
use crate::layout::{ALIAS, ARTIFACTS, TEMPLATE_JSON};
use crate::progress::Progress;
use crate::template::{self, TemplateLock};

/// Adopts a template's revisions, and makes its `current` resolve.
///
/// What is done is durable when this returns.
pub(super) fn adopt(core: &Arc<Core>, id: &TemplateId, report: &mut Report, progress: &mut dyn Progress) -> Result<()> {
    match open(core, id, report) {
        Ok(Some((lock, entries))) => {
            revisions(core, id, entries, report, progress)?;
            finish(core, &lock, report).or_else(|error| report.leave_refused(&core.layout.template(id), error))
        }
        Ok(None) => Ok(()),
        Err(error) => report.leave_refused(&core.layout.template(id), error),
    }
}

/// The template's lock, and what is in its `artifacts/`; `None` when it is gone, or left as it is.
fn open(core: &Core, id: &TemplateId, report: &mut Report) -> Result<Option<(TemplateLock, Vec<Name>)>> {
    let leave = |report: &mut Report, reason: String| {
        report.leave(core.layout.template(id), reason);
        Ok(None)
    };
    let lock = match template::lock(core, id) {
        Err(Error::TemplateNotFound { .. }) => return Ok(None),
        Err(Error::Misplaced { path }) => return leave(report, misplaced(&path)),
        lock => lock?,
    };
    match template::spec(core, id) {
        Err(error @ (Error::Damaged { .. } | Error::Format { .. })) => {
            return leave(report, format!("its definition can't be read: {error}"));
        }
        Ok(spec) if spec.template_id != id.as_str() => return leave(report, not_its_own(&spec.template_id)),
        spec => drop(spec?),
    }
    // Before the first change: what can't be read is left without one.
    let entries = read::list(&core.layout.artifacts(id))?;
    match prepare(core, id) {
        Err(error @ Error::AliasTaken { .. }) => leave(report, error.to_string()),
        prepared => prepared.map(|()| Some((lock, entries))),
    }
}

fn misplaced(path: &Utf8Path) -> String {
    let found = read::metadata(path).map(|found| read::describe(path, &found));
    let found = found.unwrap_or_else(|_| "something else".to_owned());
    format!("its {ARTIFACTS} is {found}, not a directory; put the directory itself there, and adopt it again")
}

fn not_its_own(found: &str) -> String {
    format!(
        "its {TEMPLATE_JSON} is the definition of {found:?}; give the directory that name, or write its own name there, and adopt it again"
    )
}

/// Makes what a template of a store has and one of mvm may lack.
fn prepare(core: &Core, id: &TemplateId) -> Result<()> {
    activation::ensure_alias(core, id)?;
    let artifacts = core.layout.artifacts(id);
    if !read::exists(&artifacts)? {
        core.disk.ensure_dir(&artifacts)?;
    }
    let path = core.layout.template_json(id);
    Ok(core.disk.fsync(&read::open(&path)?, &path)?)
}

fn revisions(
    core: &Arc<Core>,
    id: &TemplateId,
    entries: Vec<Name>,
    report: &mut Report,
    progress: &mut dyn Progress,
) -> Result<()> {
    let artifacts = core.layout.artifacts(id);
    for entry in entries {
        let path = artifacts.join(&entry.name);
        match entry.name.parse::<RevisionId>() {
            Ok(name) if entry.is_dir => revision::adopt(core, id, &name, report, progress)?,
            // mvm makes it, and puts nothing there.
            Err(_) if entry.is_dir && entry.name == ALIAS && read::names(&path).is_ok_and(|names| names.is_empty()) => {
            }
            Err(error) if entry.is_dir => report.leave(path, format!("no revision: {error}")),
            _ => report.leave(path, "no revision: it is not a directory"),
        }
    }
    Ok(())
}

fn finish(core: &Core, lock: &TemplateLock, report: &mut Report) -> Result<()> {
    core.disk.fsync_dir(&core.layout.artifacts(&lock.id))?;
    make_current_resolve(core, lock, report)?;
    // Who died before this may have left names that did not last.
    Ok(core.disk.fsync_dir(&core.layout.template(&lock.id))?)
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
