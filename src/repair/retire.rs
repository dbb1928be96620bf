//! Revisions that nothing can mend: marked, so that nobody is given them, and moved when nobody needs them.

use super::Repair;
use crate::activation;
use crate::damage;
use crate::error::{Error, Result};
use crate::format::Problem;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::pins;
use crate::progress::Note;
use crate::removal::{self, Removal};
use crate::template;
use crate::verify::Finding;

impl Repair<'_> {
    /// Marks a revision: from here on, nobody is given it.
    pub(super) fn mark(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        if !self.is_there(template, id) || damage::is_marked(self.core, template, id)? {
            return Ok(());
        }
        let errors = self.errors(template, id);
        let problem = |finding: &Finding| Problem {
            path: self.below_root(&finding.path),
            problem: format!("{}: {}", finding.kind, finding.detail),
        };
        damage::mark(self.core, template, id, errors.iter().map(problem).collect())
    }

    fn is_there(&self, template: &TemplateId, id: &RevisionId) -> bool {
        matches!(read::metadata(&self.core.layout.revision(template, id)), Ok(found) if found.is_dir())
    }

    /// Moves a marked revision to `damaged/`, if it is neither current nor leased nor pinned.
    ///
    /// A crash leaves it where it was, or in `damaged/`.
    pub(super) fn retire(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        let (core, dir) = (self.core, self.core.layout.revision(template, id));
        if !self.is_there(template, id) || !damage::is_marked(core, template, id)? || self.was_refused(&dir) {
            return Ok(());
        }
        let _lock = template::lock(core, template)?;
        let lease = match removal::exclusive(core, template, id, Removal::Unused) {
            Err(Error::InUse { .. }) => None,
            lease => lease?,
        };
        let is_current = activation::current(core, template)?.revision() == Some(id);
        // A pin that can't be read may be the one that keeps it.
        let is_pinned = !matches!(pins::keeping(core, template, id), Ok(None));
        if lease.is_none() || is_current || is_pinned {
            self.progress.note(Note::RevisionLost { template: template.clone(), revision: id.clone(), path: dir });
            return Ok(());
        }
        // `current` lasts before what it left is gone.
        activation::settle(core, template)?;
        pins::settle(core)?;
        let errors = self.errors(template, id);
        let moved = self.move_into(&dir, &core.layout.damaged(), &format!("{template}@{id}-"))?;
        // The mark would speak of the next revision with this id.
        core.disk.rename(
            &core.layout.damage_mark(template, id),
            &moved.with_file_name(format!("{}.why", moved.file_name().unwrap_or_default())),
        )?;
        core.disk.fsync_dir(&core.layout.damaged())?;
        for finding in errors {
            let detail = format!("{}; nothing could mend it, and the revision is at {moved} now", finding.detail);
            self.lost.push(Finding { detail, ..finding });
        }
        self.progress.note(Note::RevisionLost { template: template.clone(), revision: id.clone(), path: moved });
        Ok(())
    }

    pub(super) fn clear_mark(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        damage::clear(self.core, template, id)?;
        let what = if self.is_there(template, id) { "intact" } else { "gone" };
        self.done(self.core.layout.damage_mark(template, id), format!("removed: the revision is {what}"));
        Ok(())
    }
}
