//! `current` and its log.

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::{Error, PathError, Result};
use crate::format::{Action, Activation, ActivationLog, LogEnd};
use crate::fs::handle::Handle;
use crate::fs::read::{self, Place};
use crate::id::{RevisionId, TemplateId};
use crate::layout::{ARTIFACTS, current_target, revision_of_path, revision_of_target};
use crate::options::Expect;
use crate::template::TemplateLock;

/// What `current` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Current {
    Unset,
    Revision(RevisionId),
    /// A text that names no revision.
    Strange(String),
}

impl Current {
    /// What the log knows it as.
    fn text(&self) -> Option<&str> {
        match self {
            Current::Unset => None,
            Current::Revision(revision) => Some(revision.as_str()),
            Current::Strange(text) => Some(text),
        }
    }

    pub fn revision(&self) -> Option<&RevisionId> {
        match self {
            Current::Revision(revision) => Some(revision),
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Current::Unset => "not set".into(),
            Current::Revision(revision) => revision.to_string(),
            Current::Strange(text) => format!("{text:?}"),
        }
    }
}

pub(crate) fn current(core: &Core, id: &TemplateId) -> Result<Current> {
    Ok(match read::link_if_there(&core.layout.current(id))? {
        None => Current::Unset,
        Some(target) => match named_by(core, id, &target) {
            Some(revision) => Current::Revision(revision),
            None => Current::Strange(target),
        },
    })
}

/// The revision that the text of a template's `current` names. An absolute text counts as long as it leads to the
/// template's own directory, through whatever links.
fn named_by(core: &Core, id: &TemplateId, target: &str) -> Option<RevisionId> {
    let template = core.layout.template(id);
    let is_it = |dir: &Utf8Path| dir == template || read::canonical(dir).is_ok_and(|dir| dir == template);
    revision_of_target(target).or_else(|| revision_of_path(target, is_it))
}

/// Bytes at the end of a log that are looked at, however long it is: half a million lines.
const LOOKED_AT: u64 = 64 * 1024 * 1024;

/// The lines of a log that are looked at, with the number of bytes before them.
pub(crate) fn lines(core: &Core, id: &TemplateId) -> Result<(u64, Vec<u8>), PathError> {
    read::last_lines_if_there(&core.layout.activations(id), LOOKED_AT).map(Option::unwrap_or_default)
}

pub(crate) fn log(core: &Core, id: &TemplateId, current: &Current) -> Result<ActivationLog> {
    let (before, lines) = lines(core, id)?;
    Ok(ActivationLog::parse_after(before, &lines, current.text()))
}

/// Bytes at the end of a log in which the line that names `current` mostly is: hundreds of lines.
const TAIL: u64 = 64 * 1024;

/// Where the log ends, and how many bytes it has; `None` when there is none.
fn end_of_log(core: &Core, id: &TemplateId, current: &Current) -> Result<Option<(LogEnd, u64)>> {
    let found = read::last_lines_if_there(&core.layout.activations(id), TAIL)?;
    let Some((before, lines)) = found else { return Ok(None) };
    let end = match LogEnd::in_last_lines(before, &lines, current.text()) {
        Some(end) => end,
        None => log(core, id, current)?.into(),
    };
    Ok(Some((end, before + lines.len() as u64)))
}

/// Refuses when `current` is not what the caller expects.
///
/// It counts only under the template's lock; before, it spares work that would be thrown away.
pub(crate) fn check(core: &Core, id: &TemplateId, expect: &Expect) -> Result<()> {
    let found = current(core, id)?;
    let (met, expected) = match expect {
        Expect::Any => return Ok(()),
        Expect::Absent => (found == Current::Unset, "not set".to_owned()),
        Expect::Current(revision) => (found.revision() == Some(revision), revision.to_string()),
    };
    if met {
        return Ok(());
    }
    Err(Error::CurrentMoved { template: id.clone(), expected, found: found.describe() })
}

/// Makes a revision current, durably; the revision is durable, and its lease is held.
///
/// The log is written first: the line that names what `current` names is the last one that counts, so a
/// crash between the two leaves the old `current` and its history. `current` is never absent once set.
pub(crate) fn activate(core: &Core, lock: &TemplateLock, revision: &RevisionId, action: Action) -> Result<()> {
    let id = &lock.id;
    let before = current(core, id)?;
    if before.revision() == Some(revision) {
        return settle(core, id);
    }
    ensure_alias(core, id)?;
    append(core, id, &before, &Activation::new(revision.clone(), core.now(), action))?;
    mark(core, id)?;
    core.disk.swap_link(&core.layout.template(id), "current", &current_target(revision))?;
    unmark(core, id)
}

/// Gives `current` the text that resolves on disk, and a line in the log, durably; it goes on naming the same revision,
/// which is there.
///
/// A crash leaves the old text or the new one. Says whether there was anything to do.
pub(crate) fn respell(core: &Core, lock: &TemplateLock, revision: &RevisionId) -> Result<bool> {
    let id = &lock.id;
    let target = current_target(revision);
    ensure_alias(core, id)?;
    let now = Current::Revision(revision.clone());
    // After a crash, the line may be there already; whoever wrote it may have died before it was synced.
    let log = core.layout.activations(id);
    match end_of_log(core, id, &now)?.and_then(|(end, _)| end.last).as_ref() == Some(revision) {
        true => core.disk.fsync(&read::open(&log)?, &log)?,
        false => append(core, id, &now, &Activation::new(revision.clone(), core.now(), Action::Other))?,
    }
    if read::link_if_there(&core.layout.current(id))?.as_ref() == Some(&target) {
        core.disk.fsync_dir(&core.layout.template(id))?;
        unmark(core, id)?;
        return Ok(false);
    }
    mark(core, id)?;
    core.disk.swap_link(&core.layout.template(id), "current", &target)?;
    unmark(core, id)?;
    Ok(true)
}

/// Whether the `current` that everybody sees is known to last.
pub(crate) fn is_settled(core: &Core, id: &TemplateId) -> Result<bool> {
    Ok(!read::exists(&core.layout.activating(id))?)
}

/// Makes the `current` that everybody sees last: whoever swapped it may have died before it was synced.
pub(crate) fn settle(core: &Core, id: &TemplateId) -> Result<()> {
    if is_settled(core, id)? {
        return Ok(());
    }
    core.disk.fsync_dir(&core.layout.template(id))?;
    unmark(core, id)
}

/// The mark is there from before the swap until the swap is durable. It need not be durable itself: it only
/// tells processes that outlive the one that swaps.
fn mark(core: &Core, id: &TemplateId) -> Result<()> {
    let path = core.layout.activating(id);
    if !read::exists(&path)? {
        core.disk.create(&path, 0o666)?;
    }
    Ok(())
}

fn unmark(core: &Core, id: &TemplateId) -> Result<()> {
    Ok(core.disk.unlink_if_there(&core.layout.activating(id))?)
}

/// `current` goes through the alias, so the alias is durable first. A directory that mvm made has none.
///
/// # Errors
/// [`Error::AliasTaken`]: something else has its name.
pub(crate) fn ensure_alias(core: &Core, id: &TemplateId) -> Result<()> {
    let alias = core.layout.alias(id);
    match read::metadata_if_there(&alias)? {
        None => {
            core.disk.symlink(ARTIFACTS, &alias)?;
            Ok(core.disk.fsync_dir(&core.layout.template(id))?)
        }
        Some(found) if found.is_symlink() && read::link_if_there(&alias)?.as_deref() == Some(ARTIFACTS) => Ok(()),
        Some(_) => Err(Error::AliasTaken { path: alias }),
    }
}

/// Adds a line, after what a crash left behind is cut.
fn append(core: &Core, id: &TemplateId, before: &Current, line: &Activation) -> Result<()> {
    let path = core.layout.activations(id);
    let last = match end_of_log(core, id, before)? {
        None => {
            core.disk.write_new(&path, b"")?;
            None
        }
        Some((end, size)) => {
            if size > end.len {
                core.disk.truncate(&path, end.len)?;
            }
            end.last
        }
    };
    // Where the log was lost, or somebody else moved `current`, what it was is noted for a rollback.
    let mut lines = Vec::new();
    if let Some(unlogged) =
        before.revision().filter(|&before| *before != line.revision).filter(|&before| last.as_ref() != Some(before))
    {
        lines = Activation::new(unlogged.clone(), line.at, Action::Other).to_line();
    }
    lines.extend(line.to_line());
    core.disk.append(&path, &lines)?;
    Ok(core.disk.fsync(&read::open(&path)?, &path)?)
}

/// The revision that a rollback goes back to: the last one before the current that is still there.
pub(crate) fn rollback_target(core: &Core, id: &TemplateId) -> Result<RevisionId> {
    let now = current(core, id)?;
    let log = log(core, id, &now)?;
    let mut stack = log.stack();
    if stack.last().copied() == now.revision() {
        stack.pop();
    }
    let exists = |revision: &&&RevisionId| read::exists(&core.layout.revision_json(id, revision)).unwrap_or(false);
    let earlier = stack.iter().rev().filter(|&&revision| Some(revision) != now.revision()).find(exists);
    earlier.map(|&revision| revision.clone()).ok_or_else(|| Error::NothingToRollBack { template: id.clone() })
}

/// Whether `current` names nothing that is there.
///
/// A look at the link and one at the revision don't tell: between the two, `current` may be swapped and the revision
/// removed, and both may come back. It dangles if one and the same link did, before and after.
pub(crate) fn dangles(core: &Core, id: &TemplateId) -> Result<bool> {
    let Some(link) = Handle::of(&core.layout.current(id))? else { return Ok(false) };
    let resolves = match current(core, id)? {
        Current::Unset => return Ok(false),
        Current::Strange(_) => false,
        Current::Revision(revision) => {
            // Not through a link on the way: who lists the revisions does not go there either.
            let below = Utf8Path::new(ARTIFACTS).join(revision.as_str());
            matches!(read::place(&core.layout.template(id), &below)?, Place::At(found) if found.is_dir())
        }
    };
    Ok(!resolves && link.still_named()?)
}

/// The error of a `current` that does not resolve.
pub(crate) fn dangling(core: &Core, id: &TemplateId) -> Result<Error> {
    let path: Utf8PathBuf = core.layout.current(id);
    let target = read::link_if_there(&path)?.unwrap_or_default();
    Ok(Error::DanglingCurrent { path, target })
}
