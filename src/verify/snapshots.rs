//! The snapshot of a revision: its document, what each of its files looks like, and what `revision.json` says of it.

use camino::{Utf8Path, Utf8PathBuf};

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::revisions::{Look, misread, readable, unread};
use super::scan::{Doubt, Scan};
use crate::format::{Content, MEM, RevisionRecord, SnapshotInfo, SnapshotRecord, VMSTATE};
use crate::fs::handle::Handle;
use crate::fs::read;
use crate::fs::seal::looks_sealed;
use crate::id::{RevisionId, TemplateId};
use crate::layout::{SNAPSHOT, SNAPSHOT_JSON};

impl Look<'_> {
    /// Looks at the snapshot; gives its files, by their paths below the revision's directory, if it lists them.
    ///
    /// Another snapshot may take its place at any moment: then all is looked at again.
    pub(super) fn snapshot(&mut self, record: &RevisionRecord, hashes: bool) -> Option<Vec<Content>> {
        let dir = self.dir.join(SNAPSHOT);
        let before = self.found.len();
        loop {
            let opened = match read::metadata_if_there(&dir) {
                Ok(Some(found)) if found.is_dir() => match Handle::of(&dir) {
                    Ok(Some(opened)) => opened,
                    Ok(None) => continue,
                    Err(error) => return self.no_snapshot(dir, FindingKind::Unreadable, error.source.to_string()),
                },
                Ok(Some(found)) => {
                    let detail = format!("it is {}, not a directory", read::describe(&dir, &found));
                    return self.no_snapshot(dir, FindingKind::Swapped, detail);
                }
                Ok(None) => {
                    // What mvm says of a snapshot that it did not finish, or has removed, is not for us to say.
                    if let (Some(field), Some(_)) = (&record.build.snapshot, &record.published_at) {
                        self.field(Some(field), None);
                    }
                    return None;
                }
                Err(error) => return self.no_snapshot(dir, FindingKind::Unreadable, error.source.to_string()),
            };
            let contents = self.snapshot_in(&dir, record, hashes);
            if opened.still_named().unwrap_or(true) {
                return contents;
            }
            self.found.truncate(before);
        }
    }

    fn no_snapshot(&mut self, dir: Utf8PathBuf, kind: FindingKind, detail: String) -> Option<Vec<Content>> {
        let subject = if kind == FindingKind::Swapped { Subject::Snapshot } else { Subject::Denied };
        self.add(kind, Severity::Error, dir, detail, subject);
        None
    }

    fn snapshot_in(&mut self, dir: &Utf8Path, record: &RevisionRecord, hashes: bool) -> Option<Vec<Content>> {
        let snapshot = self.snapshot_record(dir)?;
        self.field(record.build.snapshot.as_ref(), Some(&snapshot));
        let contents: Vec<Content> = snapshot.contents_in_revision().collect();
        for content in &contents {
            if let Some(metadata) = self.file(content)
                && hashes
            {
                self.scan.inodes.choose(&metadata);
            }
        }
        let known = snapshot.contents.iter().map(|content| content.path.as_path()).collect();
        self.strangers_in(dir, &known, &[SNAPSHOT_JSON], "it is not a file of the snapshot");
        Some(contents)
    }

    fn snapshot_record(&mut self, dir: &Utf8Path) -> Option<SnapshotRecord> {
        let path = dir.join(SNAPSHOT_JSON);
        let bytes = match read::bytes(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() && !is_ours(dir) => {
                let detail = "mvm made it: what its files should hold is not known".to_owned();
                self.add(FindingKind::Unlisted, Severity::Note, dir.to_owned(), detail, Subject::Nothing);
                return None;
            }
            Err(error) => {
                let (kind, detail, subject) = unread(&path, &error, Subject::Snapshot);
                self.add(kind, Severity::Error, path, detail, readable(&error, subject));
                return None;
            }
        };
        match SnapshotRecord::from_json(&bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                let (kind, severity) = misread(&error);
                let subject = if kind == FindingKind::Newer { Subject::Nothing } else { Subject::Snapshot };
                self.add(kind, severity, path, error.to_string(), subject);
                None
            }
        }
    }

    /// Whether `revision.json` says the same of the snapshot as the snapshot itself.
    fn field(&self, field: Option<&SnapshotInfo>, snapshot: Option<&SnapshotRecord>) {
        let agree = snapshot.map_or(field.is_none(), |snapshot| snapshot.agrees_with(field));
        if agree {
            return;
        }
        // Who died while a snapshot was attached may have left the field as it was: the snapshot is whole all the same.
        let (severity, detail) = match (snapshot, field) {
            (None, _) => (Severity::Warning, "it names a snapshot, and there is none"),
            (_, None) => (Severity::Note, "it names no snapshot, and there is one"),
            _ => (Severity::Note, "it does not say of the snapshot what snapshot.json says"),
        };
        let path = self.scan.core.layout.revision_json(self.template, self.id);
        let finding = Finding::new(FindingKind::WrongField, severity, path, detail);
        let finding = finding.in_revision(self.template, self.id).about(Subject::SnapshotField);
        self.scan.suspect(finding, Doubt::SnapshotField);
    }
}

/// Whether the store made the files of a snapshot that no document describes: mvm seals nothing.
fn is_ours(dir: &Utf8Path) -> bool {
    let sealed = |name| read::metadata(&dir.join(name)).is_ok_and(|found| looks_sealed(&found, found.len()));
    sealed(MEM) || sealed(VMSTATE)
}

/// What the snapshot of a revision says, if there is one that can be understood.
pub(crate) fn snapshot_record(
    core: &crate::core::Core,
    template: &TemplateId,
    id: &RevisionId,
) -> Option<SnapshotRecord> {
    let bytes = read::bytes(&core.layout.snapshot(template, id).join(SNAPSHOT_JSON)).ok()?;
    SnapshotRecord::from_json(&bytes).ok()
}

impl Scan<'_> {
    /// Whether the two documents of a revision still say different things of its snapshot.
    pub(super) fn fields_differ(&self, template: &TemplateId, id: &RevisionId) -> bool {
        let Ok(bytes) = read::bytes(&self.core.layout.revision_json(template, id)) else { return false };
        let Ok(record) = RevisionRecord::from_json(&bytes) else { return false };
        let field = record.build.snapshot.as_ref();
        match snapshot_record(self.core, template, id) {
            Some(snapshot) => !snapshot.agrees_with(field),
            None => field.is_some() && matches!(read::exists(&self.core.layout.snapshot(template, id)), Ok(false)),
        }
    }
}
