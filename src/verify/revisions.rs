//! Revisions, without their bytes: the directory, the record, and what each file looks like.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::scan::{Doubt, Scan, Seen};
use crate::error::{Error, PathError};
use crate::format::{Content, FormatError, OBJECT_MIN_SIZE, RevisionRecord, SEALED_MODE, SEALED_MTIME};
use crate::fs::read::{self, FileId, Metadata, Place};
use crate::fs::seal::looks_sealed;
use crate::fs::walk::files_below;
use crate::id::{RevisionId, TemplateId};
use crate::layout::{REVISION_JSON, SNAPSHOT};

/// A revision that is being looked at.
pub(super) struct Look<'a> {
    pub scan: &'a Scan<'a>,
    pub template: &'a TemplateId,
    pub id: &'a RevisionId,
    pub dir: Utf8PathBuf,
    pub found: Vec<Finding>,
}

/// Why something could not be read: it is not there, it is something else, or the system says so.
pub(super) fn unread(path: &Utf8Path, error: &PathError, subject: Subject) -> (FindingKind, String, Subject) {
    match read::metadata_if_there(path) {
        Ok(None) => (FindingKind::Missing, "it is not there".into(), subject),
        Ok(Some(found)) if !found.is_file() => {
            (FindingKind::Swapped, format!("it is {}, not a file", read::describe(path, &found)), subject)
        }
        _ => (FindingKind::Unreadable, error.source.to_string(), readable(error, subject)),
    }
}

/// What a repair may do about something that could not be read.
pub(super) fn readable(error: &PathError, subject: Subject) -> Subject {
    if error.kind() == std::io::ErrorKind::PermissionDenied { Subject::Denied } else { subject }
}

/// What a document is that can't be understood.
pub(super) fn misread(error: &FormatError) -> (FindingKind, Severity) {
    match error {
        FormatError::Invalid { .. } => (FindingKind::Invalid, Severity::Error),
        _ => (FindingKind::Newer, Severity::Warning),
    }
}

impl Scan<'_> {
    /// Looks at a revision under its lease; also gives how many files it lists. `None`: it went meanwhile.
    pub fn revision(&self, template: &TemplateId, id: &RevisionId) -> Option<(Seen, u64)> {
        let dir = self.core.layout.revision(template, id);
        let lease = match self.core.lease(&dir) {
            Ok(lease) => lease,
            Err(Error::Io(error)) if error.is_not_found() => return None,
            Err(error) => {
                let found = Finding::new(FindingKind::Unreadable, Severity::Error, dir, error.to_string());
                self.report(found.in_revision(template, id).about(Subject::Denied));
                return Some((Seen::unknown(template, id), 0));
            }
        };
        let mut look = Look { scan: self, template, id, dir, found: Vec::new() };
        let seen = look.all();
        // Whoever removes by force does not ask who holds it.
        if !lease.still_named().unwrap_or(false) {
            return None;
        }
        self.report_all(look.found);
        Some(seen)
    }
}

impl Seen {
    /// A revision of which nothing but the name is known.
    fn unknown(template: &TemplateId, id: &RevisionId) -> Seen {
        let (template, revision) = (template.clone(), id.clone());
        Seen { template, revision, published_at: None, made_from: Vec::new(), is_listed: false, is_to_be_hashed: false }
    }
}

impl Look<'_> {
    fn all(&mut self) -> (Seen, u64) {
        let mut seen = Seen::unknown(self.template, self.id);
        let Some(record) = self.record() else { return (seen, 0) };
        seen.published_at = record.published_at.or(record.adopted_at);
        seen.made_from = record.made_from().map(|made| Seen::key_of(&made)).collect();
        seen.is_listed = record.contents.is_some();
        let hashes = self.scan.hashes_revision(self.template, self.id, seen.published_at);
        let snapshot = self.snapshot(&record, hashes);
        let later = match &record.contents {
            Some(contents) => self.contents(contents, hashes),
            None => {
                self.unlisted(&record);
                false
            }
        };
        seen.is_to_be_hashed = hashes && (later || snapshot.is_some());
        let files = record.contents.iter().chain(&snapshot).map(|contents| contents.len() as u64).sum();
        (seen, files)
    }

    /// Looks at the artifacts; says whether some are left to be hashed.
    fn contents(&mut self, contents: &[Content], hashes: bool) -> bool {
        let mut later = false;
        for content in contents {
            if let Some(metadata) = self.file(content) {
                later |= hashes && self.scan.hash_or_choose(self.template, self.id, content, &metadata);
                self.sharing(content, &metadata);
            }
        }
        self.strangers(contents);
        later
    }

    pub fn add(&mut self, kind: FindingKind, severity: Severity, path: Utf8PathBuf, detail: String, subject: Subject) {
        let finding = Finding::new(kind, severity, path, detail);
        self.found.push(finding.in_revision(self.template, self.id).about(subject));
    }

    fn record(&mut self) -> Option<RevisionRecord> {
        let path = self.dir.join(REVISION_JSON);
        let bytes = match read::bytes(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let (kind, detail, subject) = unread(&path, &error, Subject::Record);
                self.add(kind, Severity::Error, path, detail, subject);
                return None;
            }
        };
        match RevisionRecord::from_json(&bytes) {
            Ok(record) if record.contents.is_some() && record.build.revision_hash != self.id.as_str() => {
                let detail = format!("it is the record of {:?}", record.build.revision_hash);
                self.add(FindingKind::Invalid, Severity::Error, path, detail, Subject::Record);
                None
            }
            Ok(record) => Some(record),
            Err(error) => {
                let (kind, severity) = misread(&error);
                self.add(kind, severity, path, error.to_string(), Subject::Record);
                None
            }
        }
    }

    /// A revision of mvm: what it names must be there.
    fn unlisted(&mut self, record: &RevisionRecord) {
        let detail = "this store did not publish it: what its files should hold is not known".to_owned();
        self.add(FindingKind::Unlisted, Severity::Note, self.dir.clone(), detail, Subject::Nothing);
        for (_, name) in record.artifacts().unwrap_or_default() {
            let path = self.dir.join(name.as_path());
            let (kind, detail) = match read::place(&self.dir, name.as_path()) {
                Ok(Place::At(metadata)) if metadata.is_file() => continue,
                Ok(Place::At(metadata)) => {
                    (FindingKind::Swapped, format!("it is {}", read::describe(&path, &metadata)))
                }
                Ok(Place::Missing) => (FindingKind::Missing, "it is not there".into()),
                Ok(Place::Swapped { path, is }) => (FindingKind::Swapped, format!("{path} is {is}")),
                Err(error) => (FindingKind::Unreadable, error.source.to_string()),
            };
            self.add(kind, Severity::Error, path, detail, Subject::Nothing);
        }
    }

    /// Looks at a file; gives what it is if its bytes are worth reading.
    pub fn file(&mut self, content: &Content) -> Option<Metadata> {
        let path = self.dir.join(content.path.as_path());
        let mut subject = Subject::File(content.clone());
        let (kind, detail) = match read::place(&self.dir, content.path.as_path()) {
            Err(error) => {
                subject = readable(&error, subject);
                (FindingKind::Unreadable, error.source.to_string())
            }
            Ok(Place::Missing) => (FindingKind::Missing, "it is not there".into()),
            Ok(Place::Swapped { path, is }) => (FindingKind::Swapped, format!("{path} is {is}")),
            Ok(Place::At(found)) if !found.is_file() => {
                (FindingKind::Swapped, format!("it is {}", read::describe(&path, &found)))
            }
            Ok(Place::At(found)) if found.len() != content.size => {
                let kind = if found.len() < content.size { FindingKind::Truncated } else { FindingKind::Corrupt };
                (kind, format!("it has {} bytes, and {} were published", found.len(), content.size))
            }
            Ok(Place::At(found)) => {
                self.seal(content, path, &found);
                return Some(found);
            }
        };
        self.add(kind, Severity::Error, path, detail, subject);
        None
    }

    /// Nobody but who wrote to a file, or wants to, changes its mode and time.
    fn seal(&mut self, content: &Content, path: Utf8PathBuf, found: &Metadata) {
        let mode = found.mode() & 0o7777;
        let subject = || Subject::File(content.clone());
        if mode != SEALED_MODE {
            let detail = format!("its mode is {mode:04o}, not {SEALED_MODE:04o}");
            self.add(FindingKind::WrongMode, Severity::Warning, path.clone(), detail, subject());
        }
        if (found.mtime(), found.mtime_nsec()) != (SEALED_MTIME, 0) {
            let detail = format!("its modification time is not {SEALED_MTIME}: somebody touched it");
            self.add(FindingKind::WrongTime, Severity::Warning, path, detail, subject());
        }
    }

    /// Whether a large file is the object of its digest, as far as this user could make it one.
    fn sharing(&mut self, content: &Content, found: &Metadata) {
        if content.size < OBJECT_MIN_SIZE || !self.scan.core.is_adopted() || !can_link(found) {
            return;
        }
        let path = self.dir.join(content.path.as_path());
        let finding = |kind, severity, detail: &str| {
            let finding = Finding::new(kind, severity, path.clone(), detail);
            finding.in_revision(self.template, self.id).about(Subject::File(content.clone()))
        };
        match read::metadata_if_there(&self.scan.core.layout.object(&content.blake3)) {
            Ok(None) => {
                let detail = "no object has its bytes: the next file with them will not share its blocks";
                // Where several users publish, the object may have been another's, who has removed the revision.
                let by_many = self.scan.core.public_mode().is_ok_and(|mode| mode & 0o020 != 0);
                let severity = if by_many { Severity::Note } else { Severity::Warning };
                let finding = finding(FindingKind::Unshared, severity, detail);
                self.scan.suspect(finding, Doubt::NoObject(content.blake3));
            }
            Ok(Some(object))
                if FileId::of(&object) != FileId::of(found)
                    && looks_sealed(&object, content.size)
                    && object.uid() == found.uid() =>
            {
                let detail = "it has blocks of its own, although an object has the same bytes";
                let finding = finding(FindingKind::Twin, Severity::Note, detail);
                self.found.push(finding);
            }
            _ => {}
        }
    }

    /// What nobody published.
    fn strangers(&mut self, contents: &[Content]) {
        let known = contents.iter().map(|content| content.path.as_path()).collect();
        self.strangers_in(&self.dir.clone(), &known, &[REVISION_JSON, SNAPSHOT], "it was not published");
    }

    /// What is below a directory, is none of these files, and is not below one of these names.
    pub fn strangers_in(&mut self, dir: &Utf8Path, known: &HashSet<&Utf8Path>, ours: &[&str], detail: &str) {
        let files = match files_below(dir) {
            Ok(files) => files,
            Err(error) => {
                let detail = error.source.to_string();
                let subject = readable(&error, Subject::Nothing);
                return self.add(FindingKind::Unreadable, Severity::Error, error.path, detail, subject);
            }
        };
        // A directory that became something else is in the way of what it held, and was said to be.
        let parents: HashSet<&Utf8Path> = known.iter().flat_map(|path| path.ancestors().skip(1)).collect();
        let is_ours = |path: &Utf8Path| ours.iter().any(|name| path.starts_with(name));
        for path in
            files.iter().filter(|path| !is_ours(path) && !known.contains(&***path) && !parents.contains(&***path))
        {
            self.add(FindingKind::Foreign, Severity::Warning, dir.join(path), detail.to_owned(), Subject::Stranger);
        }
    }
}

/// Whether this user may give the inode another name (`fs.protected_hardlinks`).
pub(crate) fn can_link(metadata: &Metadata) -> bool {
    [0, metadata.uid()].contains(&read::user())
}
