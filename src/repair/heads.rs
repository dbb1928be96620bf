//! `current`, and the alias through which it resolves.

use super::Repair;
use crate::activation::{self, Current};
use crate::damage;
use crate::error::Result;
use crate::format::Action;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::progress::Note;
use crate::template;

impl Repair<'_> {
    /// Makes the last intact revision current that was so before, or else the newest intact one.
    pub(super) fn current(&mut self, id: &TemplateId) -> Result<()> {
        let path = self.core.layout.current(id);
        let lock = template::lock(self.core, id)?;
        let found = activation::current(self.core, id);
        // It is no link: that can't be swapped by a rename.
        if found.is_err() && read::exists(&path)? {
            self.set_aside(&path, Some(id), None)?;
        }
        let before = found.unwrap_or(Current::Unset);
        if let Some(revision) = before.revision()
            && self.was_refused(&self.core.layout.revision(id, revision))
        {
            return Ok(());
        }
        let Some((target, action)) = self.successor(id, &before)? else {
            self.failed.insert(path, "no revision of the template is intact".into());
            return Ok(());
        };
        // Whoever published it may have died before its name was durable.
        self.core.disk.fsync_dir(&self.core.layout.artifacts(id))?;
        activation::activate(self.core, &lock, &target, action)?;
        let from = match before {
            Current::Unset => "what it held".to_owned(),
            Current::Revision(revision) => revision.to_string(),
            Current::Strange(text) => format!("{text:?}"),
        };
        self.progress.note(Note::CurrentMoved { template: id.clone(), from: from.clone(), to: target.clone() });
        self.done(path, format!("names {target} now; {from} is damaged or gone"));
        Ok(())
    }

    fn successor(&self, id: &TemplateId, before: &Current) -> Result<Option<(RevisionId, Action)>> {
        let log = activation::log(self.core, id, before)?;
        for revision in log.stack().into_iter().rev() {
            if self.is_good(id, revision)? {
                return Ok(Some((revision.clone(), Action::Rollback)));
            }
        }
        let mut others: Vec<_> = self.now.seen.iter().filter(|seen| seen.template == *id).collect();
        others.sort_by_key(|seen| std::cmp::Reverse(seen.published_at));
        for seen in others {
            if self.is_good(id, &seen.revision)? {
                return Ok(Some((seen.revision.clone(), Action::Activate)));
            }
        }
        Ok(None)
    }

    /// Whether a revision is there, without an error or a mark.
    fn is_good(&self, template: &TemplateId, id: &RevisionId) -> Result<bool> {
        let is_there = self.now.seen.iter().any(|seen| seen.template == *template && seen.revision == *id);
        Ok(is_there && self.errors(template, id).is_empty() && !damage::is_marked(self.core, template, id)?)
    }

    pub(super) fn alias(&mut self, id: &TemplateId) -> Result<()> {
        let path = self.core.layout.alias(id);
        let _lock = template::lock(self.core, id)?;
        if read::exists(&path)? {
            self.set_aside(&path, Some(id), None)?;
        }
        activation::ensure_alias(self.core, id)?;
        self.done(path, "made again");
        Ok(())
    }
}
