//! `.store/`: its directories, what processes left in them, pins and marks.

use std::collections::HashSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::revisions::unread;
use super::scan::{Doubt, Scan, Scope, Seen};
use crate::catalog;
use crate::damage;
use crate::error::Error;
use crate::format::Pin;
use crate::fs::handle::Handle;
use crate::fs::read::{self, FileId, Metadata, Name};
use crate::id::{RevisionId, TemplateId};
use crate::instance::{self, Known};
use crate::pins;

impl Scan<'_> {
    /// Every directory that a store has is there, and is one.
    pub fn directories(&self) {
        let layout = &self.core.layout;
        let data = "it is not there, and with it all templates";
        let index = "it is not there; it follows from the revisions";
        let work = "it is not there; it is made again when it is needed";
        let needed = [
            (layout.templates(), Severity::Error, data),
            (layout.objects(), Severity::Warning, index),
            (layout.keys(), Severity::Warning, index),
            (layout.drafts(), Severity::Note, work),
            (layout.trash(), Severity::Note, work),
            (layout.pins(), Severity::Note, work),
            (layout.leases(), Severity::Note, work),
            (layout.instances(), Severity::Note, work),
            (layout.locks(), Severity::Note, work),
        ];
        for (path, severity, missing) in needed {
            match read::metadata_if_there(&path) {
                Ok(None) => {
                    let finding = Finding::new(FindingKind::Missing, severity, path, missing);
                    self.report(finding.about(Subject::Directory));
                }
                found => self.directory(path, found),
            }
        }
        for path in [layout.private(), layout.damaged(), layout.samples()] {
            let found = read::metadata_if_there(&path);
            self.directory(path, found);
        }
    }

    /// What is in a directory of the store's own; one that is no directory was found to be none.
    pub fn list(&self, dir: &Utf8Path) -> Vec<Name> {
        let listed = read::list(dir);
        if let Err(error) = &listed
            && is_real(dir)
        {
            let finding =
                Finding::new(FindingKind::Unreadable, Severity::Error, dir.to_owned(), error.source.to_string());
            self.report(finding.about(Subject::Denied));
        }
        listed.unwrap_or_default()
    }

    /// What is in the place of a directory, if it is none.
    fn directory(&self, path: Utf8PathBuf, found: Result<Option<Metadata>, crate::PathError>) {
        let finding = match found {
            Ok(Some(found)) if !found.is_dir() => {
                let detail = format!("it is {}, not a directory", read::describe(&path, &found));
                Finding::new(FindingKind::Swapped, Severity::Error, path, detail).about(Subject::Directory)
            }
            Ok(_) => return,
            Err(error) => Finding::new(FindingKind::Unreadable, Severity::Error, path, error.source.to_string()),
        };
        self.report(finding);
    }

    /// What processes that died left behind.
    pub fn leftovers(&self) {
        let layout = &self.core.layout;
        for (dir, kind, detail) in [
            (layout.drafts(), FindingKind::DeadDraft, "who wrote it is dead; a collection removes it"),
            (layout.trash(), FindingKind::HalfDeletion, "who deleted it is dead; a collection goes on"),
        ] {
            for entry in self.list(&dir) {
                let path = dir.join(&entry.name);
                let Ok(Some(found)) = read::metadata_if_there(&path) else { continue };
                let finding = Finding::new(kind, Severity::Note, path, detail);
                self.suspect(finding, Doubt::NotHeld(FileId::of(&found)));
            }
        }
    }

    /// The catalog only saves time: one that is damaged is not used, and a repair puts it out of the way.
    pub fn catalog(&self) {
        let Some(problem) = catalog::problem(self.core) else { return };
        let detail = format!("{problem}; it is not used, and the next collection of many revisions writes it again");
        let finding = Finding::new(FindingKind::Invalid, Severity::Note, self.core.layout.catalog(), detail);
        self.report(finding.about(Subject::Stranger));
    }

    pub fn pins(&self) {
        for name in self.list(&self.core.layout.pins()).iter().filter_map(|entry| pins::name_of(&entry.name)) {
            let path = self.core.layout.pin(&name);
            let file = Handle::of(&path).ok().flatten();
            match pins::by_name(self.core, &name) {
                Ok(None) => {}
                Ok(Some(pin)) => self.pin(path, file, &pin),
                Err(Error::Io(error)) => {
                    let (kind, detail, _) = unread(&path, &error, Subject::Nothing);
                    self.report(Finding::new(kind, Severity::Error, path, detail));
                }
                Err(error) => {
                    let detail = format!("{error}; what it keeps is not known: pin it again, or remove it");
                    self.report(Finding::new(FindingKind::Invalid, Severity::Error, path, detail));
                }
            }
        }
    }

    fn pin(&self, path: Utf8PathBuf, file: Option<Handle>, pin: &Pin) {
        let of = |kind, severity, detail: String| {
            Finding::new(kind, severity, path.clone(), detail).in_revision(&pin.template, &pin.revision)
        };
        if !pin.holds_at(self.core.now()) {
            let detail = format!("it kept {}@{} until it expired", pin.template, pin.revision);
            return self.report(of(FindingKind::ExpiredPin, Severity::Note, detail));
        }
        let dir = self.core.layout.revision(&pin.template, &pin.revision);
        let is_there = matches!(read::metadata_if_there(&dir), Ok(Some(found)) if found.is_dir());
        // It may have been unpinned and removed meanwhile.
        if !is_there && file.is_some_and(|file| file.still_named().unwrap_or(false)) {
            let detail = format!("it keeps {}@{}, which is not there", pin.template, pin.revision);
            self.report(of(FindingKind::DanglingPin, Severity::Warning, detail));
        }
    }

    /// Notes of instances that are gone.
    pub fn instances(&self) {
        for known in instance::known(self.core).unwrap_or_default().into_iter().filter(Known::is_gone) {
            let detail =
                format!("it leads to {}, which is no instance of this store; a collection removes it", known.dir);
            let finding = Finding::new(FindingKind::StaleInstance, Severity::Note, known.link, detail);
            self.suspect(finding, Doubt::NoInstance);
        }
    }

    /// Marks on revisions that need none, and those that say what this look could not see.
    pub fn marks(&self, seen: &[Seen]) {
        let there: HashSet<(&TemplateId, &RevisionId)> =
            seen.iter().map(|seen| (&seen.template, &seen.revision)).collect();
        let read_all: HashSet<(&TemplateId, &RevisionId)> = seen
            .iter()
            .filter(|seen| seen.is_listed && self.reads_all(seen))
            .map(|seen| (&seen.template, &seen.revision))
            .collect();
        for (template, id) in damage::marked(self.core).unwrap_or_default() {
            let path = self.core.layout.damage_mark(&template, &id);
            let of = |kind, severity, detail: &str| {
                self.report(
                    Finding::new(kind, severity, path.clone(), detail).in_revision(&template, &id).about(Subject::Mark),
                );
            };
            match (there.contains(&(&template, &id)), self.has_error(&template, &id)) {
                (false, _) if !self.is_revision(&template, &id) => {
                    of(FindingKind::StaleMark, Severity::Note, "its revision is gone");
                }
                (_, true) | (false, _) => {}
                (true, false) if read_all.contains(&(&template, &id)) => {
                    of(FindingKind::StaleMark, Severity::Note, "its revision is intact");
                }
                (true, false) => {
                    let problems = damage::problems(self.core, &template, &id).unwrap_or_default();
                    let problems: Vec<String> =
                        problems.iter().map(|problem| format!("{} ({})", problem.path, problem.problem)).collect();
                    let detail = format!("its revision was found damaged: {}", problems.join(", "));
                    of(FindingKind::Marked, Severity::Error, &detail);
                }
            }
        }
    }

    fn is_revision(&self, template: &TemplateId, id: &RevisionId) -> bool {
        matches!(read::metadata(&self.core.layout.revision(template, id)), Ok(found) if found.is_dir())
    }

    /// Whether each file of the revision is hashed in this pass.
    fn reads_all(&self, seen: &Seen) -> bool {
        match self.scope {
            Scope::Only(suspects) => suspects.revisions.contains(&(seen.template.clone(), seen.revision.clone())),
            Scope::Everything => self.options.is_complete(),
        }
    }
}

/// Whether a directory of the store can be looked into: a link in its place is not followed.
pub(super) fn is_real(dir: &Utf8Path) -> bool {
    matches!(read::metadata(dir), Ok(found) if found.is_dir())
}
