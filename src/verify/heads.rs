//! Templates: what they are, which revisions they have, and which of them is current.

use std::io::ErrorKind::PermissionDenied;

use camino::Utf8PathBuf;
use rayon::prelude::*;

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::revisions::{misread, readable, unread};
use super::scan::{Scan, Seen};
use crate::activation::{self, Current};
use crate::error::Result;
use crate::format::{ActivationLog, RevisionRecord, TemplateSpec};
use crate::fs::handle::Handle;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::layout::ARTIFACTS;

/// A template that is being looked at.
struct Look<'a> {
    scan: &'a Scan<'a>,
    id: &'a TemplateId,
    found: Vec<Finding>,
}

impl Scan<'_> {
    /// The ids of all templates that are directories.
    pub fn templates(&self) -> Result<Vec<TemplateId>> {
        let mut ids = Vec::new();
        for entry in read::list(&self.core.layout.templates())? {
            let Ok(id) = entry.name.parse::<TemplateId>() else { continue };
            if entry.is_dir {
                ids.push(id);
                continue;
            }
            let path = self.core.layout.template(&id);
            if let Some((kind, severity, detail, subject)) = no_directory(&path, false) {
                self.report(Finding::new(kind, severity, path, detail).of(&id).about(subject));
            }
        }
        Ok(ids)
    }

    /// Looks at a template and its revisions; also gives how many files these list.
    pub fn template(&self, id: &TemplateId) -> (Vec<Seen>, u64) {
        let dir = self.core.layout.template(id);
        let before = match Handle::of(&dir) {
            Ok(Some(before)) => before,
            Ok(None) => return Default::default(),
            Err(error) => {
                let found = Finding::new(FindingKind::Unreadable, Severity::Error, dir, error.source.to_string());
                self.report(found.of(id).about(Subject::Denied));
                return Default::default();
            }
        };
        let mut look = Look { scan: self, id, found: Vec::new() };
        let revisions = look.all();
        let revisions = revisions.par_iter().filter_map(|revision| self.revision(id, revision));
        let seen: Vec<(Seen, u64)> = revisions.collect();
        // One that was removed meanwhile had nothing any more, piece by piece.
        if before.still_named().unwrap_or(true) {
            self.report_all(look.found);
        }
        let files = seen.iter().map(|(_, files)| files).sum();
        (seen.into_iter().map(|(seen, _)| seen).collect(), files)
    }
}

/// What to say of something in the place of a directory; `None` when it is one, or gone.
fn no_directory(path: &camino::Utf8Path, was: bool) -> Option<(FindingKind, Severity, String, Subject)> {
    let found = read::metadata_if_there(path).ok().flatten().filter(|found| !found.is_dir())?;
    let is = read::describe(path, &found);
    Some(match was || found.is_symlink() {
        true => (FindingKind::Swapped, Severity::Error, format!("it is {is}, not a directory"), Subject::Whole),
        false => (FindingKind::Foreign, Severity::Note, format!("it is {is}, and not the store's"), Subject::Nothing),
    })
}

/// What is wrong with a template of mvm is no damage of the store, and a repair leaves it alone.
fn leave_to_mvm(finding: &mut Finding) {
    if finding.kind != FindingKind::Unreadable {
        finding.severity = Severity::Note;
        finding.subject = Subject::Nothing;
        finding.detail += "; the template is mvm's, and was not adopted (`template-store adopt` says why)";
    }
}

impl Look<'_> {
    /// Looks at the template itself; gives the revisions that are directories.
    fn all(&mut self) -> Vec<RevisionId> {
        self.definition();
        let log = self.log();
        self.current(&log);
        let revisions = self.revisions(&log);
        if !self.found.is_empty() && self.is_mvms(&revisions) {
            self.found.iter_mut().for_each(leave_to_mvm);
        }
        revisions
    }

    /// Whether an adoption has left the template as it is: it has nothing of what every template of a store has.
    fn is_mvms(&self, revisions: &[RevisionId]) -> bool {
        let layout = &self.scan.core.layout;
        let is_there = |path: Utf8PathBuf, unknown| read::exists(&path).unwrap_or(unknown);
        let has_alias = matches!(read::link_if_there(&layout.alias(self.id)), Ok(Some(target)) if target == ARTIFACTS);
        let is_listed = |revision: &RevisionId| match read::bytes_if_there(&layout.revision_json(self.id, revision)) {
            Ok(None) => false,
            Ok(Some(bytes)) => RevisionRecord::from_json(&bytes).is_ok_and(|record| record.contents.is_some()),
            Err(_) => true,
        };
        !has_alias
            && is_there(layout.artifacts(self.id), false)
            && !is_there(layout.activations(self.id), true)
            && !revisions.iter().any(is_listed)
    }

    fn add(&mut self, kind: FindingKind, severity: Severity, path: Utf8PathBuf, detail: String, subject: Subject) {
        self.found.push(Finding::new(kind, severity, path, detail).of(self.id).about(subject));
    }

    fn definition(&mut self) {
        let path = self.scan.core.layout.template_json(self.id);
        let (kind, severity, detail) = match read::bytes(&path) {
            Ok(bytes) => match TemplateSpec::from_json(&bytes) {
                Ok(spec) if spec.template_id == self.id.as_str() => return,
                Ok(spec) => {
                    let detail = format!("it is the definition of {:?}", spec.template_id);
                    (FindingKind::Invalid, Severity::Error, detail)
                }
                Err(error) => {
                    let (kind, severity) = misread(&error);
                    (kind, severity, error.to_string())
                }
            },
            Err(error) => {
                let (kind, detail, subject) = unread(&path, &error, Subject::Definition);
                return self.add(kind, Severity::Error, path, detail, subject);
            }
        };
        self.add(kind, severity, path, detail, Subject::Definition);
    }

    /// The lines of the log; those that can't be read are said. Where there is none, whoever activates next begins one.
    fn log(&mut self) -> Vec<u8> {
        let path = self.scan.core.layout.activations(self.id);
        let lines = match activation::lines(self.scan.core, self.id) {
            Ok((_, lines)) => lines,
            Err(error) => {
                let (kind, detail, subject) = unread(&path, &error, Subject::Log);
                self.add(kind, Severity::Error, path, detail, subject);
                return Vec::new();
            }
        };
        let bad = ActivationLog::unreadable_lines(&lines);
        if bad > 0 {
            let detail = format!("{bad} of its lines can't be read");
            self.add(FindingKind::Invalid, Severity::Warning, path, detail, Subject::Log);
        }
        lines
    }

    /// The names in `artifacts/`; each is a directory, if it was ever a revision.
    fn revisions(&mut self, log: &[u8]) -> Vec<RevisionId> {
        let dir = self.scan.core.layout.artifacts(self.id);
        match read::metadata_if_there(&dir) {
            Ok(Some(found)) if found.is_dir() => {}
            Ok(Some(found)) => {
                let detail = format!("it is {}, not a directory", read::describe(&dir, &found));
                self.add(FindingKind::Swapped, Severity::Error, dir, detail, Subject::Directory);
                return Vec::new();
            }
            Err(error) => {
                let (detail, subject) = (error.source.to_string(), readable(&error, Subject::Nothing));
                self.add(FindingKind::Unreadable, Severity::Error, dir, detail, subject);
                return Vec::new();
            }
            Ok(None) => {
                let detail = "it is not there, and with it all revisions".to_owned();
                self.add(FindingKind::Missing, Severity::Error, dir, detail, Subject::Directory);
                return Vec::new();
            }
        }
        let names = match read::list(&dir) {
            Ok(names) => names,
            Err(error) => {
                self.add(FindingKind::Unreadable, Severity::Error, dir, error.source.to_string(), Subject::Nothing);
                return Vec::new();
            }
        };
        let mut revisions = Vec::new();
        let log = ActivationLog::parse(log, Some(""));
        for entry in names {
            let Ok(id) = entry.name.parse::<RevisionId>() else { continue };
            if entry.is_dir {
                revisions.push(id);
                continue;
            }
            let path = self.scan.core.layout.revision(self.id, &id);
            let was = log.entries.iter().any(|entry| entry.revision == id);
            if let Some((kind, severity, detail, subject)) = no_directory(&path, was) {
                let finding = Finding::new(kind, severity, path, detail);
                self.found.push(finding.in_revision(self.id, &id).about(subject));
            }
        }
        revisions
    }

    fn current(&mut self, log: &[u8]) {
        let layout = &self.scan.core.layout;
        let path = layout.current(self.id);
        loop {
            let found = match activation::current(self.scan.core, self.id) {
                Ok(found) => found,
                Err(_) => return self.no_link(path),
            };
            let target = match &found {
                Current::Unset => return self.unset(path, log),
                Current::Strange(text) => {
                    let detail = format!("it holds {text:?}, which names no revision");
                    return self.add(FindingKind::StrangeCurrent, Severity::Error, path, detail, Subject::Current);
                }
                Current::Revision(revision) => revision.clone(),
            };
            let dir = layout.revision(self.id, &target);
            match read::metadata_if_there(&dir) {
                Ok(Some(found)) if found.is_dir() => {
                    self.history();
                    return self.alias();
                }
                // Where its directory can't be looked into, that is said of the directory.
                Err(error) if error.kind() == PermissionDenied => return self.alias(),
                _ => {}
            }
            // It may have been swapped and removed between the two.
            if activation::dangles(self.scan.core, self.id).unwrap_or(true) {
                let detail = format!("it names {target}, which is not there");
                self.add(FindingKind::DanglingCurrent, Severity::Error, path, detail, Subject::Current);
                return self.alias();
            }
        }
    }

    /// The line of a revision is there before it is current; only mvm writes none.
    fn history(&mut self) {
        let layout = &self.scan.core.layout;
        let path = layout.activations(self.id);
        let ours = matches!(read::link_if_there(&layout.alias(self.id)), Ok(Some(target)) if target == ARTIFACTS);
        if !ours || self.found.iter().any(|finding| finding.path == path) {
            return;
        }
        let Ok((_, lines)) = activation::lines(self.scan.core, self.id) else { return };
        if ActivationLog::parse(&lines, Some("")).entries.is_empty() {
            let detail = "it says of no revision that it was current: a rollback has nothing to go back to".to_owned();
            self.add(FindingKind::Missing, Severity::Warning, path, detail, Subject::Log);
        }
    }

    /// Something in the place of the link.
    fn no_link(&mut self, path: Utf8PathBuf) {
        let Ok(Some(found)) = read::metadata_if_there(&path) else { return };
        if !found.is_symlink() {
            let detail = format!("it is {}, not a link to a revision", read::describe(&path, &found));
            self.add(FindingKind::StrangeCurrent, Severity::Error, path, detail, Subject::Current);
        }
    }

    fn unset(&mut self, path: Utf8PathBuf, log: &[u8]) {
        let log = ActivationLog::parse(log, None);
        if let Some(last) = log.stack().last() {
            let detail = format!("it is not there, although {last} was made current");
            self.add(FindingKind::MissingCurrent, Severity::Error, path, detail, Subject::Current);
        }
    }

    /// `current` resolves through the alias. A directory of mvm has none.
    fn alias(&mut self) {
        if !self.scan.core.is_adopted() {
            return;
        }
        let path = self.scan.core.layout.alias(self.id);
        let is = match read::metadata_if_there(&path) {
            Ok(Some(found)) if found.is_symlink() => match read::link_if_there(&path) {
                Ok(Some(target)) if target == ARTIFACTS => return,
                _ => read::describe(&path, &found),
            },
            Ok(Some(found)) => read::describe(&path, &found),
            _ => "not there".to_owned(),
        };
        let detail = format!("it is {is}, not a link to {ARTIFACTS:?}: `current` does not resolve");
        self.add(FindingKind::WrongAlias, Severity::Error, path, detail, Subject::Alias);
    }
}
