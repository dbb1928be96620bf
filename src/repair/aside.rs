//! `.store/damaged/`: where goes what is replaced. Nothing is deleted.

use camino::{Utf8Path, Utf8PathBuf};

use super::Repair;
use crate::error::Result;
use crate::fs::atomic::{needs_copy, parent_of};
use crate::fs::read::{self, FileId};
use crate::fs::with_unique_name;
use crate::id::{RevisionId, TemplateId};
use crate::verify::{Finding, FindingKind, Severity};

impl Repair<'_> {
    /// The directory for what was taken out of a revision, a template, or the store itself.
    fn place_for(&self, template: Option<&TemplateId>, id: Option<&RevisionId>) -> Result<Utf8PathBuf> {
        let (core, damaged) = (self.core, self.core.layout.damaged());
        // No other name there ends so: marks are `….json`, and a revision's own directory ends in what tells it apart.
        let name = match (template, id) {
            (Some(template), Some(id)) => format!("{template}@{id}.files"),
            (Some(template), None) => format!("{template}.files"),
            // No template's id begins so.
            _ => "_store.files".to_owned(),
        };
        let place = damaged.join(name);
        if !read::exists(&place)? {
            core.disk.ensure_dir(&damaged)?;
            core.disk.fsync_dir(&core.layout.private())?;
            core.disk.ensure_dir(&place)?;
        }
        core.disk.fsync_dir(&damaged)?;
        Ok(place)
    }

    /// Moves something out of the way; it is durable where it is now when this returns.
    ///
    /// A crash leaves it under the old name or the new one.
    pub(super) fn set_aside(
        &self,
        path: &Utf8Path,
        template: Option<&TemplateId>,
        id: Option<&RevisionId>,
    ) -> Result<Utf8PathBuf> {
        let place = self.place_for(template, id)?;
        self.move_into(path, &place, &format!("{}-", path.file_name().unwrap_or_default()))
    }

    pub(super) fn move_into(&self, path: &Utf8Path, place: &Utf8Path, prefix: &str) -> Result<Utf8PathBuf> {
        let disk = &self.core.disk;
        let (metadata, parent) = (read::metadata(path)?, parent_of(path));
        let holder = read::metadata(parent)?;
        // Directories that a build tool made read-only can't be moved, and nothing can be moved out of them.
        disk.open_up(parent, &holder)?;
        if metadata.is_dir() {
            disk.open_up(path, &metadata)?;
        }
        let moved = with_unique_name(place, prefix, |name| disk.rename_noreplace(path, name));
        disk.restore_mode(parent, &holder);
        let moved = moved?;
        if metadata.is_dir() {
            disk.restore_mode(&moved, &metadata);
        }
        disk.fsync_dir(place)?;
        disk.fsync_dir(parent)?;
        Ok(moved)
    }

    /// Gives the inode of a file that is about to be replaced a name that stays. Where it can have no second one, it
    /// is moved.
    pub(super) fn keep(
        &mut self,
        path: &Utf8Path,
        template: Option<&TemplateId>,
        id: Option<&RevisionId>,
    ) -> Result<()> {
        let Some(metadata) = read::metadata_if_there(path)? else { return Ok(()) };
        if !metadata.is_file() {
            return self.set_aside(path, template, id).map(drop);
        }
        if self.kept.contains(&FileId::of(&metadata)) {
            return Ok(());
        }
        let place = self.place_for(template, id)?;
        let prefix = format!("{}-", path.file_name().unwrap_or_default());
        match with_unique_name(&place, &prefix, |name| self.core.disk.link(path, name)) {
            Err(error) if needs_copy(error.kind()) => drop(self.set_aside(path, template, id)?),
            linked => {
                linked?;
                self.core.disk.fsync_dir(&place)?;
            }
        }
        self.kept.insert(FileId::of(&metadata));
        Ok(())
    }

    /// Something that is not the store's, or that took the place of a template or a revision.
    pub(super) fn stranger(&mut self, finding: &Finding) -> Result<()> {
        let moved = self.set_aside(&finding.path, finding.template.as_ref(), finding.revision.as_ref())?;
        match finding.severity {
            // What it took the place of is gone.
            Severity::Error => {
                let detail = format!("{}; that is at {moved} now, and what was there before is lost", finding.detail);
                self.lost.push(Finding { detail, ..finding.clone() });
            }
            _ => self.done(&finding.path, format!("moved to {moved}")),
        }
        Ok(())
    }

    /// A directory that the store needs, and that is gone or something else.
    pub(super) fn make_directory(&mut self, finding: &Finding) -> Result<()> {
        let (core, path) = (self.core, &finding.path);
        let mut how = "made again".to_owned();
        if finding.kind == FindingKind::Swapped {
            let moved = match *path == core.layout.damaged() {
                true => self.move_into(path, &core.layout.private(), "damaged-")?,
                false => self.set_aside(path, finding.template.as_ref(), None)?,
            };
            how = format!("made again; what was in its place is at {moved} now");
        }
        core.disk.ensure_dir(path)?;
        core.disk.fsync_dir(parent_of(path))?;
        let held_data = *path == core.layout.templates() || finding.template.is_some();
        match held_data {
            true => {
                let detail = format!("{}; it was {how}, and what it held is lost", finding.detail);
                self.lost.push(Finding { detail, ..finding.clone() });
            }
            false => self.done(path, how),
        }
        Ok(())
    }
}
