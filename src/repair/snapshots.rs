//! Snapshots: what a revision says of its own, and those that nothing could mend.

use super::Repair;
use crate::error::Result;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::progress::Note;
use crate::snapshot;
use crate::template;
use crate::verify::{Finding, snapshot_record};

impl Repair<'_> {
    /// Writes into `revision.json` what the snapshot itself says.
    pub(super) fn derive_field(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        let _lock = template::lock(self.core, template)?;
        let record = snapshot_record(self.core, template, id);
        if record.is_none() && read::exists(&self.core.layout.snapshot(template, id))? {
            return Ok(()); // what can't be understood says nothing
        }
        let staging = self.staging()?;
        snapshot::derive(self.core, template, id, record.as_ref(), &staging)?;
        let how = match record {
            Some(_) => "says of the snapshot what snapshot.json says",
            None => "names no snapshot any more: there is none",
        };
        self.done(self.core.layout.revision_json(template, id), how);
        Ok(())
    }

    /// Moves a snapshot that nothing could mend to `damaged/`; its revision stays, and is offered as before.
    ///
    /// A crash leaves it where it was, or in `damaged/`, perhaps with a field in `revision.json` that the next repair takes
    /// away. Who has its files open or mapped keeps them.
    pub(super) fn retire_snapshot(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        let dir = self.core.layout.snapshot(template, id);
        if !read::exists(&dir)? || self.was_refused(&dir) {
            return Ok(());
        }
        let _lock = template::lock(self.core, template)?;
        let of_it = |finding: &&Finding| {
            finding.is_error()
                && finding.is_of_snapshot()
                && finding.place().as_ref() == Some(&(template.clone(), id.clone()))
        };
        let errors: Vec<Finding> = self.now.report.findings.iter().filter(of_it).cloned().collect();
        let moved = self.set_aside(&dir, Some(template), Some(id))?;
        for finding in errors {
            let detail = format!("{}; nothing could mend it, and the snapshot is at {moved} now", finding.detail);
            self.lost.push(Finding { detail, ..finding });
        }
        let note = Note::SnapshotLost { template: template.clone(), revision: id.clone(), path: moved };
        self.progress.note(note);
        let staging = self.staging()?;
        snapshot::derive(self.core, template, id, None, &staging)
    }
}
