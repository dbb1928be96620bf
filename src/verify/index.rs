//! `objects/` and `keys/`: what follows from the revisions, compared with them.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;

use camino::Utf8PathBuf;

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::private::is_real;
use super::revisions::unread;
use super::scan::{Doubt, Scan, Seen};
use crate::format::{KeyEntry, KeyHint, RevisionRecord};
use crate::fs::read::{self, FileId};
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};

/// The objects that there are.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub names: Vec<Digest>,
    pub is_empty: bool,
}

/// What a key leads to, in one template and from one source.
type Way = (CacheKey, TemplateId, Option<Digest>);

impl Scan<'_> {
    /// Looks at each object; gives those whose bytes are to be compared with their names.
    pub fn objects(&self) -> Objects {
        let mut objects = Objects { names: Vec::new(), is_empty: true };
        for (path, digest) in self.sharded(self.core.layout.objects(), "") {
            let Some(digest) = digest.and_then(|hex| hex.parse::<Digest>().ok()) else {
                self.foreign(path);
                continue;
            };
            objects.is_empty = false;
            let Ok(Some(found)) = read::metadata_if_there(&path) else { continue };
            if !found.is_file() {
                let detail = format!("it is {}, not a file", read::describe(&path, &found));
                let finding = Finding::new(FindingKind::Swapped, Severity::Error, path, detail);
                self.report(finding.about(Subject::Object(digest)));
                continue;
            }
            if self.hashes_object(&digest) {
                self.inodes.choose(&found);
            }
            if found.nlink() == 1 {
                let detail = "no revision has it; a collection removes it";
                let finding = Finding::new(FindingKind::UnusedObject, Severity::Note, path, detail);
                self.suspect(finding, Doubt::Unused(FileId::of(&found)));
            }
            objects.names.push(digest);
        }
        objects
    }

    /// The names in the shards of a directory, and the 64 hex digits that each stands for, if it does.
    fn sharded(&self, dir: Utf8PathBuf, suffix: &str) -> Vec<(Utf8PathBuf, Option<String>)> {
        let mut found = Vec::new();
        if !is_real(&dir) {
            return found;
        }
        let is_hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        for shard in self.list(&dir) {
            let path = dir.join(&shard.name);
            if shard.name.len() != 2 || !is_hex(&shard.name) {
                found.push((path, None));
                continue;
            }
            if !shard.is_dir {
                // An empty one is removed with the last name in it.
                if let Ok(Some(metadata)) = read::metadata_if_there(&path)
                    && !metadata.is_dir()
                {
                    let detail = format!("it is {}, not a directory", read::describe(&path, &metadata));
                    let finding = Finding::new(FindingKind::Swapped, Severity::Error, path, detail);
                    self.report(finding.about(Subject::Directory));
                }
                continue;
            }
            for name in self.list(&path) {
                let rest = name.name.strip_suffix(suffix).filter(|rest| rest.len() == 62 && is_hex(rest));
                let hex = rest.map(|rest| format!("{}{rest}", shard.name));
                found.push((path.join(&name.name), hex));
            }
        }
        found
    }

    fn foreign(&self, path: Utf8PathBuf) {
        // A name that came and went belongs to a change that was under way.
        let Ok(Some(found)) = read::metadata_if_there(&path) else { return };
        let detail = format!("it is {}, and not the store's", read::describe(&path, &found));
        self.report(Finding::new(FindingKind::Foreign, Severity::Warning, path, detail).about(Subject::Stranger));
    }

    /// Compares the index of keys with the revisions.
    pub fn keys(&self, seen: &[Seen]) {
        let there: HashMap<(&TemplateId, &RevisionId), &Seen> =
            seen.iter().map(|seen| ((&seen.template, &seen.revision), seen)).collect();
        let mut ways: HashSet<Way> = HashSet::new();
        let mut entries = 0;
        for (path, hex) in self.sharded(self.core.layout.keys(), ".json") {
            let Some(key) = hex.and_then(|hex| hex.parse::<CacheKey>().ok()) else {
                self.foreign(path);
                continue;
            };
            entries += 1;
            let Some(entry) = self.entry(&path, &key) else { continue };
            for hint in entry.revisions {
                let way = (key, hint.template.clone(), hint.source_hash);
                if self.leads(&there, &key, &hint) {
                    ways.insert(way);
                } else {
                    let detail = format!("{}@{} was not made from it", hint.template, hint.revision);
                    let finding = Finding::new(FindingKind::StaleKey, Severity::Note, path.clone(), detail);
                    self.report(finding.about(Subject::Key(key)));
                }
            }
        }
        self.missing_keys(seen, &ways, entries);
    }

    /// An entry, if it can be read.
    fn entry(&self, path: &Utf8PathBuf, key: &CacheKey) -> Option<KeyEntry> {
        let (kind, detail, subject) = match read::bytes_if_there(path) {
            Ok(None) => return None,
            Ok(Some(bytes)) => match KeyEntry::from_json(&bytes) {
                Ok(entry) if entry.key == *key => return Some(entry),
                Ok(entry) => (FindingKind::Invalid, format!("it is the entry of {}", entry.key), Subject::Key(*key)),
                Err(error) => (FindingKind::Invalid, error.to_string(), Subject::Key(*key)),
            },
            Err(error) => unread(path, &error, Subject::Key(*key)),
        };
        self.report(Finding::new(kind, Severity::Warning, path.clone(), detail).about(subject));
        None
    }

    /// Whether a hint leads to a revision that was made from the key.
    fn leads(&self, there: &HashMap<(&TemplateId, &RevisionId), &Seen>, key: &CacheKey, hint: &KeyHint) -> bool {
        if let Some(seen) = there.get(&(&hint.template, &hint.revision))
            && seen.made_from.contains(&(*key, hint.source_hash))
        {
            return true;
        }
        // It may be newer than what was seen of it.
        let bytes = read::bytes(&self.core.layout.revision_json(&hint.template, &hint.revision)).unwrap_or_default();
        let record = RevisionRecord::from_json(&bytes);
        record.is_ok_and(|record| record.made_from().any(|made| Seen::key_of(&made) == (*key, hint.source_hash)))
    }

    fn missing_keys(&self, seen: &[Seen], ways: &HashSet<Way>, entries: usize) {
        let lacks =
            |seen: &Seen, made: &(CacheKey, Option<Digest>)| !ways.contains(&(made.0, seen.template.clone(), made.1));
        let mut said = HashSet::new();
        for seen in seen {
            for made in seen.made_from.iter().filter(|made| lacks(seen, made)) {
                // One of several revisions with the same inputs has the entry.
                if !said.insert((made.0, &seen.template, made.1)) {
                    continue;
                }
                let (template, id) = (&seen.template, &seen.revision);
                let detail = format!("nothing leads from it to {template}@{id}, which was made from it");
                let severity = if entries == 0 { Severity::Warning } else { Severity::Note };
                let finding = Finding::new(FindingKind::MissingKey, severity, self.core.layout.key(&made.0), detail);
                let finding = finding.in_revision(template, id).about(Subject::Key(made.0));
                self.suspect(finding, Doubt::NoHint(made.0, made.1));
            }
        }
    }

    /// Whether the index still lacks what a finding says.
    pub fn lacks_hint(&self, finding: &Finding, key: &CacheKey, source: Option<Digest>) -> bool {
        let Some((template, id)) = finding.place() else { return false };
        if !is_real(&self.core.layout.revision(&template, &id)) {
            return false;
        }
        let bytes = read::bytes(&self.core.layout.key(key)).unwrap_or_default();
        let Ok(entry) = KeyEntry::from_json(&bytes) else { return true };
        let leads = |hint: &KeyHint| hint.template == template && hint.source_hash == source;
        !entry.is_full() && !entry.revisions.iter().any(leads)
    }

    /// One finding for all that is missing, where all is missing.
    pub fn summed_up(&self, mut findings: Vec<Finding>, no_objects: bool) -> Vec<Finding> {
        let layout = &self.core.layout;
        let lost_objects = no_objects && findings.iter().any(|finding| finding.kind == FindingKind::Unshared);
        if lost_objects {
            let worst = worst(&findings, FindingKind::Unshared);
            let count = findings.iter().filter(|finding| finding.kind == FindingKind::Unshared).count();
            findings.retain(|finding| finding.kind != FindingKind::Unshared);
            if is_real(&layout.objects()) {
                let detail = format!("it is empty, and {count} files should be in it");
                let finding = Finding::new(FindingKind::Unshared, worst, layout.objects(), detail);
                findings.push(finding.about(Subject::Objects));
            }
        }
        let lost = |finding: &Finding| finding.kind == FindingKind::MissingKey && finding.counts();
        if findings.iter().any(lost) {
            let count = findings.iter().filter(|finding| lost(finding)).count();
            findings.retain(|finding| !lost(finding));
            if is_real(&layout.keys()) {
                let detail = format!("it is empty, and {count} entries should be in it");
                let finding = Finding::new(FindingKind::MissingKey, Severity::Warning, layout.keys(), detail);
                findings.push(finding.about(Subject::Keys));
            }
        }
        findings
    }
}

fn worst(findings: &[Finding], kind: FindingKind) -> Severity {
    let severities = findings.iter().filter(|finding| finding.kind == kind).map(|finding| finding.severity);
    severities.max().unwrap_or(Severity::Note)
}
