//! The JSON of a remote: bytes in, values out, and back. What comes from a remote is checked here before anything is
//! done with it; `docs/remote-format.md` is the contract.

use std::collections::HashSet;
use std::ops::Range;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::frames::LARGEST_FILE;
use super::preamble::{LARGEST_DOCUMENT, Preamble, checked, document, with_check};
use crate::format::{
    Content, Extra, FormatError, MEM, RevisionRecord, SnapshotRecord, TemplateSpec, VMSTATE, check_listing, pretty,
};
use crate::id::{ArtifactPath, CacheKey, Digest, RevisionId, TemplateId};

/// Holes of a file that a manifest tells of.
pub(super) const MOST_HOLES: usize = 1000;

/// A pointer keeps so many activations; a template is pushed for years before the oldest are dropped.
const MOST_HISTORY: usize = 10_000;

/// A file of a revision, as a manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    #[serde(flatten)]
    pub content: Content,
    /// Parts that are zeros and take no room: start and length in bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holes: Vec<(u64, u64)>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl FileEntry {
    pub fn new(content: Content, holes: &[Range<u64>]) -> FileEntry {
        let holes = holes.iter().map(|hole| (hole.start, hole.end - hole.start)).collect();
        FileEntry { content, holes, extra: Extra::new() }
    }

    /// Bytes that are no holes.
    pub fn data_bytes(&self) -> u64 {
        let holes = self.holes.iter().map(|(_, len)| *len).fold(0, u64::saturating_add);
        self.content.size.saturating_sub(holes)
    }
}

/// All of one revision: what it is, and which files it has. It never changes, and its name is the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    #[serde(flatten)]
    preamble: Preamble,
    /// `template.json` as it was when the revision was pushed.
    pub template: TemplateSpec,
    /// `revision.json`.
    pub revision: RevisionRecord,
    pub files: Vec<FileEntry>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Manifest {
    pub fn new(template: TemplateSpec, revision: RevisionRecord, files: Vec<FileEntry>) -> Manifest {
        Manifest { preamble: Preamble::ours(), template, revision, files, extra: Extra::new() }
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Reads a manifest that is to be of this revision.
    ///
    /// # Errors
    /// Another revision's; files that a revision can't have, or that are not those of its record.
    pub fn from_json(bytes: &[u8], template: &TemplateId, revision: &RevisionId) -> Result<Manifest, FormatError> {
        let invalid = |reason: &str| Err(FormatError::invalid("manifest", reason));
        let manifest: Manifest = document("manifest", bytes)?;
        let named = (manifest.template.template_id.as_str(), manifest.revision.build.revision_hash.as_str());
        if named != (template.as_str(), revision.as_str()) {
            return invalid(&format!("it is of {}@{}", named.0, named.1));
        }
        check_record(&manifest.template, &manifest.revision)?;
        let listed: Vec<Content> = manifest.files.iter().map(|file| file.content.clone()).collect();
        check_listing(&listed)?;
        if manifest.revision.contents.as_ref() != Some(&listed) {
            return invalid("its files are not those of its revision.json");
        }
        let names: HashSet<&ArtifactPath> = listed.iter().map(|content| &content.path).collect();
        match manifest.revision.artifacts() {
            Ok(artifacts) if artifacts.iter().all(|(_, name)| names.contains(name)) => {}
            Ok(_) => return invalid("its revision.json names an artifact that is not among its files"),
            Err(error) => return Err(error),
        }
        check_files(&manifest.files)?;
        Ok(manifest)
    }
}

/// A snapshot of a revision: `snapshot.json`, and its files, whose paths are below the snapshot's directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SnapshotManifest {
    #[serde(flatten)]
    preamble: Preamble,
    pub template: TemplateId,
    pub revision: RevisionId,
    pub snapshot: SnapshotRecord,
    pub files: Vec<FileEntry>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl SnapshotManifest {
    pub fn new(
        template: TemplateId,
        revision: RevisionId,
        snapshot: SnapshotRecord,
        files: Vec<FileEntry>,
    ) -> SnapshotManifest {
        SnapshotManifest { preamble: Preamble::ours(), template, revision, snapshot, files, extra: Extra::new() }
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// Reads the manifest of a snapshot that is to be of this revision.
    ///
    /// # Errors
    /// Another revision's; files that a snapshot can't have, or that are not those of its `snapshot.json`.
    pub fn from_json(
        bytes: &[u8],
        template: &TemplateId,
        revision: &RevisionId,
    ) -> Result<SnapshotManifest, FormatError> {
        let invalid = |reason: String| Err(FormatError::invalid("snapshot manifest", reason));
        let manifest: SnapshotManifest = document("snapshot manifest", bytes)?;
        if (&manifest.template, &manifest.revision) != (template, revision) {
            return invalid(format!("it is of {}@{}", manifest.template, manifest.revision));
        }
        // What it says is checked as what lies on a disk is.
        SnapshotRecord::from_json(&manifest.snapshot.to_json())?;
        let listed: Vec<&Content> = manifest.files.iter().map(|file| &file.content).collect();
        if listed != manifest.snapshot.contents.iter().collect::<Vec<_>>() {
            return invalid("its files are not those of its snapshot.json".into());
        }
        let known = |path: &str| {
            [VMSTATE, MEM].contains(&path) || manifest.snapshot.drives.iter().any(|drive| drive.path().as_str() == path)
        };
        if let Some(other) = listed.iter().find(|content| !known(content.path.as_str())) {
            return invalid(format!("{:?} is no file of a snapshot", other.path.as_str()));
        }
        check_files(&manifest.files)?;
        Ok(manifest)
    }
}

impl Manifest {
    /// The template's definition, for a template of this name.
    pub fn template_as(&self, template: &TemplateId) -> TemplateSpec {
        TemplateSpec { template_id: template.to_string(), ..self.template.clone() }
    }
}

/// Other inputs that a revision of a remote may have been made from. Each is a file on the host that pulls it.
pub(super) const MOST_MADE_FROM: usize = 1000;

/// Refuses what would not be read again on the host that pulls it: it is checked as what lies on a disk is.
pub(super) fn check_record(template: &TemplateSpec, record: &RevisionRecord) -> Result<(), FormatError> {
    for (what, bytes) in [("template.json", pretty(template)), ("revision.json", record.to_json())] {
        if bytes.len() as u64 > LARGEST_DOCUMENT {
            let reason = format!("it would have {} bytes on the disk, and may have {LARGEST_DOCUMENT}", bytes.len());
            return Err(FormatError::invalid(what, reason));
        }
        match what {
            "template.json" => TemplateSpec::from_json(&bytes).map(drop)?,
            _ => RevisionRecord::from_json(&bytes).map(drop)?,
        }
    }
    if record.also_made_from.len() > MOST_MADE_FROM {
        let reason =
            format!("it was made from {} inputs, and may be from {MOST_MADE_FROM}", record.also_made_from.len());
        return Err(FormatError::invalid("revision.json", reason));
    }
    Ok(())
}

/// Refuses sizes that files can't have, also all together, and holes that are not in order, or not in their file.
fn check_files(files: &[FileEntry]) -> Result<(), FormatError> {
    let total = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.content.size));
    if total.is_none_or(|total| i64::try_from(total).is_err()) || !files.iter().all(holes_fit) {
        return Err(FormatError::invalid("manifest", "its files have impossible sizes"));
    }
    if let Some(file) = files.iter().find(|file| file.content.size > LARGEST_FILE) {
        let reason = format!("{:?} has {} bytes, and may have {LARGEST_FILE}", file.content.path, file.content.size);
        return Err(FormatError::invalid("manifest", reason));
    }
    match files.iter().find(|file| file.holes.len() > MOST_HOLES) {
        None => Ok(()),
        Some(file) => {
            let reason = format!("{:?} has {} holes, and may have {MOST_HOLES}", file.content.path, file.holes.len());
            Err(FormatError::invalid("manifest", reason))
        }
    }
}

/// Whether the holes are in the file, in order, and none in another.
fn holes_fit(file: &FileEntry) -> bool {
    let mut end = 0;
    file.holes.iter().all(|&(start, len)| {
        let fits = start >= end && start.checked_add(len).is_some_and(|stop| stop <= file.content.size);
        end = start.saturating_add(len);
        fits
    })
}

/// A revision that a template has in a remote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Listed {
    pub revision: RevisionId,
    /// The name of its manifest.
    pub manifest: Digest,
    /// Bytes of its files, holes included.
    pub bytes: u64,
    pub pushed_at: Timestamp,
    /// The name of the manifest of its snapshot, if one was pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Digest>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Listed {
    /// Whether it says all that a push has to say; one without a snapshot says nothing of one.
    fn says(&self, pushed: &Listed) -> bool {
        self.manifest == pushed.manifest && (pushed.snapshot.is_none() || self.snapshot == pushed.snapshot)
    }
}

/// One activation in a remote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Moved {
    pub revision: RevisionId,
    pub at: Timestamp,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `templates/<id>.json`: which revisions a template has, which is current, and which were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TemplatePointer {
    #[serde(flatten)]
    preamble: Preamble,
    pub template: TemplateId,
    pub current: Option<RevisionId>,
    pub revisions: Vec<Listed>,
    /// Who was current, the oldest first.
    pub history: Vec<Moved>,
    /// Another for each write, so that a writer whose answer was lost knows its own again.
    pub write: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl TemplatePointer {
    pub fn new(template: TemplateId) -> TemplatePointer {
        TemplatePointer {
            preamble: Preamble::ours(),
            template,
            current: None,
            revisions: Vec::new(),
            history: Vec::new(),
            write: String::new(),
            extra: Extra::new(),
        }
    }

    pub fn from_json(bytes: &[u8], template: &TemplateId) -> Result<TemplatePointer, FormatError> {
        let mut pointer: TemplatePointer = checked("template pointer", bytes)?;
        // It is made anew with each write.
        pointer.extra.remove("check");
        if pointer.template != *template {
            let reason = format!("it is of template {}", pointer.template);
            return Err(FormatError::invalid("template pointer", reason));
        }
        match &pointer.current {
            Some(current) if pointer.find(current).is_none() => {
                Err(FormatError::invalid("template pointer", format!("{current} is current, and not listed")))
            }
            _ => Ok(pointer),
        }
    }

    pub fn to_json(&self) -> Vec<u8> {
        with_check(&pretty(self)).expect("it is an object")
    }

    pub fn find(&self, revision: &RevisionId) -> Option<&Listed> {
        self.revisions.iter().find(|listed| listed.revision == *revision)
    }

    /// The pointer with a revision more, current if it is to be; `None` if nothing changes.
    pub fn with(&self, listed: &Listed, activate: bool, now: Timestamp, write: &str) -> Option<TemplatePointer> {
        let known = self.find(&listed.revision);
        let is_listed = known.is_some_and(|known| known.says(listed));
        let moves = activate && self.current.as_ref() != Some(&listed.revision);
        if is_listed && !moves {
            return None;
        }
        let mut new = self.clone();
        if !is_listed {
            let snapshot = listed.snapshot.or_else(|| known.and_then(|known| known.snapshot));
            new.revisions.retain(|known| known.revision != listed.revision);
            new.revisions.push(Listed { snapshot, ..listed.clone() });
        }
        if moves {
            new.current = Some(listed.revision.clone());
            new.history.push(Moved { revision: listed.revision.clone(), at: now, extra: Extra::new() });
            let surplus = new.history.len().saturating_sub(MOST_HISTORY);
            new.history.drain(..surplus);
        }
        write.clone_into(&mut new.write);
        Some(new)
    }
}

/// A revision to which a cache key leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Lead {
    pub template: TemplateId,
    pub revision: RevisionId,
    pub manifest: Digest,
    /// The hash of the sources beside the lock file, if they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_hash: Option<Digest>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// `keys/ab/<62 hex digits>.json`: the revisions that were made from a cache key, the first that was pushed first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct KeyPointer {
    #[serde(flatten)]
    preamble: Preamble,
    pub key: CacheKey,
    pub revisions: Vec<Lead>,
    /// As in [`TemplatePointer`].
    pub write: String,
    #[serde(flatten)]
    pub extra: Extra,
}

impl KeyPointer {
    pub fn new(key: CacheKey) -> KeyPointer {
        let (preamble, extra) = (Preamble::ours(), Extra::new());
        KeyPointer { preamble, key, revisions: Vec::new(), write: String::new(), extra }
    }

    pub fn from_json(bytes: &[u8], key: &CacheKey) -> Result<KeyPointer, FormatError> {
        let mut pointer: KeyPointer = checked("key pointer", bytes)?;
        // It is made anew with each write.
        pointer.extra.remove("check");
        match pointer.key == *key {
            true => Ok(pointer),
            false => Err(FormatError::invalid("key pointer", format!("it is of key {}", pointer.key))),
        }
    }

    pub fn to_json(&self) -> Vec<u8> {
        with_check(&pretty(self)).expect("it is an object")
    }

    /// What was made from the same sources, as far as both sides know them.
    pub fn same_sources(&self, source_hash: Option<Digest>) -> impl Iterator<Item = &Lead> {
        let differ = move |lead: &Lead| matches!((lead.source_hash, source_hash), (Some(a), Some(b)) if a != b);
        self.revisions.iter().filter(move |lead| !differ(lead))
    }

    /// The pointer with a lead more; `None` if it has it.
    pub fn with(&self, lead: &Lead, write: &str) -> Option<KeyPointer> {
        if self.revisions.contains(lead) {
            return None;
        }
        let mut new = self.clone();
        let is_same = |known: &Lead| (&known.template, &known.revision) == (&lead.template, &lead.revision);
        match new.revisions.iter_mut().find(|known| is_same(known)) {
            // What a revision is does not change; what it was made from may become known.
            Some(known) if known.source_hash.is_some() || lead.source_hash.is_none() => return None,
            Some(known) => known.source_hash = lead.source_hash,
            None => new.revisions.push(lead.clone()),
        }
        write.clone_into(&mut new.write);
        Some(new)
    }

    /// The pointer with a lead in the place of those to manifests of which something is damaged; `None` if nothing changes,
    /// as when the lead itself is to one of them, all of which was sent again.
    pub fn instead_of(&self, damaged: &[Digest], lead: &Lead, write: &str) -> Option<KeyPointer> {
        let is_damaged = |known: &Lead| known.manifest != lead.manifest && damaged.contains(&known.manifest);
        let Some(at) = self.revisions.iter().position(is_damaged) else { return self.with(lead, write) };
        let mut new = self.clone();
        new.revisions[at] = lead.clone();
        let mut is_first = true;
        new.revisions.retain(|known| !is_damaged(known) && (known != lead || std::mem::take(&mut is_first)));
        write.clone_into(&mut new.write);
        Some(new)
    }
}
