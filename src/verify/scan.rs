//! One pass over a store: what it looks at, in which order, and what it remembers.
//!
//! Others publish, remove and collect meanwhile. A revision is looked at under its lease. What only a change that
//! is under way may explain (a file that is no object yet, a key without an entry, a draft without an owner) is
//! suspected first, and looked at again in the end.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rayon::prelude::*;

use super::content::{Hashed, Inodes};
use super::finding::{Finding, FindingKind, Report, Severity, Subject};
use super::{Depth, VerifyOptions};
use crate::core::Core;
use crate::error::Result;
use crate::format::MadeFrom;
use crate::fs::read::{self, FileId};
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::instance;
use crate::progress::{Progress, Stage};
use crate::seal::in_parallel;

/// What is hashed. All that is not an artifact is always looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// What the options say.
    Everything,
    /// What a first look found wrong, while a repair keeps others from changing the store.
    Only(&'a Suspects),
}

/// What a repair looks at again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Suspects {
    pub revisions: HashSet<(TemplateId, RevisionId)>,
    pub objects: HashSet<Digest>,
}

impl Suspects {
    pub fn of(findings: &[Finding]) -> Suspects {
        let mut suspects = Suspects::default();
        suspects.extend(findings);
        suspects
    }

    pub fn extend(&mut self, findings: &[Finding]) {
        let doubted = |finding: &&Finding| {
            use FindingKind::{DanglingPin, ExpiredPin, MissingKey, Twin, Unlisted, Unshared};
            !matches!(finding.kind, DanglingPin | ExpiredPin | MissingKey | Twin | Unlisted | Unshared)
        };
        self.revisions.extend(findings.iter().filter(doubted).filter_map(Finding::place));
        let object = |finding: &Finding| match finding.subject {
            Subject::Object(digest) => Some(digest),
            _ => None,
        };
        self.objects.extend(findings.iter().filter_map(object));
    }
}

/// A revision that was looked at.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub template: TemplateId,
    pub revision: RevisionId,
    pub published_at: Option<Timestamp>,
    pub made_from: Vec<(CacheKey, Option<Digest>)>,
    /// Its record can be read, and lists its files.
    pub is_listed: bool,
    /// It has files that were chosen to be hashed.
    pub is_to_be_hashed: bool,
}

impl Seen {
    pub fn key_of(made: &MadeFrom) -> (CacheKey, Option<Digest>) {
        (made.key(), made.source_hash)
    }
}

/// Something that may be a change under way.
#[derive(Debug)]
pub(super) struct Suspect {
    pub finding: Finding,
    pub doubt: Doubt,
}

#[derive(Debug)]
pub(super) enum Doubt {
    /// The file of this digest is no object.
    NoObject(Digest),
    /// Nothing in the index leads to the revision.
    NoHint(CacheKey, Option<Digest>),
    /// Nobody holds this directory.
    NotHeld(FileId),
    /// No revision has this object.
    Unused(FileId),
    /// Nobody is making the instance that this link leads to.
    NoInstance,
    /// The two documents that tell of a snapshot differ.
    SnapshotField,
}

/// A pass over the store.
pub(super) struct Scan<'a> {
    pub core: &'a Arc<Core>,
    pub options: &'a VerifyOptions,
    pub scope: Scope<'a>,
    pub inodes: Inodes,
    found: Mutex<Vec<Finding>>,
    suspects: Mutex<Vec<Suspect>>,
}

/// What a pass over the store gave.
pub(crate) struct Scanned {
    pub report: Report,
    pub seen: Vec<Seen>,
    pub hashed: Hashed,
}

/// Looks at everything; see [`Store::verify`](crate::Store::verify).
pub(crate) fn scan(
    core: &Arc<Core>,
    options: &VerifyOptions,
    scope: Scope<'_>,
    known: Hashed,
    progress: &mut dyn Progress,
) -> Result<Scanned> {
    // A repair looks at all that was found, whatever was sampled.
    let percent = options.sample.filter(|_| matches!(scope, Scope::Everything));
    let inodes = Inodes::new(percent, known);
    let scan = Scan { core, options, scope, inodes, found: Mutex::default(), suspects: Mutex::default() };
    let adopted = core.is_adopted();
    if adopted {
        scan.directories();
        scan.leftovers();
        scan.catalog();
    }
    let templates = scan.templates()?;
    let (seen, files) = in_parallel(Stage::Looking, templates.len() as u64, progress, |advance| {
        let looked = templates.par_iter().map(|id| scan.template(id)).inspect(|_| advance(1));
        Ok(looked.reduce(Default::default, |mut a, b| {
            a.0.extend(b.0);
            (a.0, a.1 + b.1)
        }))
    })?;
    let objects = if adopted { scan.objects() } else { Default::default() };
    let bytes_hashed = scan.hash(&seen, &objects.names, progress)?;
    if adopted {
        scan.keys(&seen);
        scan.pins();
        scan.instances();
        scan.marks(&seen);
        scan.rights(&templates);
        scan.settle(objects.is_empty);
    }
    let Scan { found, inodes, .. } = scan;
    let findings = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut report = Report { findings, revisions: seen.len(), files, bytes_hashed };
    report.sort();
    Ok(Scanned { report, seen, hashed: inodes.finish() })
}

impl Scan<'_> {
    pub fn report(&self, finding: Finding) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).push(finding);
    }

    pub fn report_all(&self, findings: impl IntoIterator<Item = Finding>) {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(findings);
    }

    pub fn suspect(&self, finding: Finding, doubt: Doubt) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).push(Suspect { finding, doubt });
    }

    /// Whether something was found so far that makes a revision unfit for use.
    pub fn has_error(&self, template: &TemplateId, revision: &RevisionId) -> bool {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let of_it = |finding: &&Finding| {
            finding.template.as_ref() == Some(template) && finding.revision.as_ref() == Some(revision)
        };
        found.iter().filter(of_it).any(Finding::spoils_revision)
    }

    /// Whether the artifacts of a revision are to be hashed, as far as that is for the revision to say.
    pub fn hashes_revision(&self, template: &TemplateId, id: &RevisionId, published: Option<Timestamp>) -> bool {
        match self.scope {
            Scope::Only(suspects) => suspects.revisions.contains(&(template.clone(), id.clone())),
            Scope::Everything => {
                let since = |since| published.is_none_or(|published| published >= since);
                self.options.depth == Depth::Full && self.options.since.is_none_or(since)
            }
        }
    }

    /// Whether an object is to be hashed for its own sake.
    pub fn hashes_object(&self, digest: &Digest) -> bool {
        match self.scope {
            Scope::Only(suspects) => suspects.objects.contains(digest),
            Scope::Everything => self.options.depth == Depth::Full && self.options.since.is_none(),
        }
    }

    /// Looks again at what a change that was under way may have explained.
    fn settle(&self, no_objects: bool) {
        let suspects = std::mem::take(&mut *self.suspects.lock().unwrap_or_else(PoisonError::into_inner));
        if suspects.is_empty() {
            return;
        }
        // While this is held, nobody changes the store: what is suspected then is certain.
        let guard = match self.scope {
            Scope::Everything => self.core.try_alone(),
            Scope::Only(_) => None,
        };
        let alone = guard.is_some() || matches!(self.scope, Scope::Only(_));
        let confirmed = suspects.into_iter().filter(|suspect| self.confirms(suspect)).map(|suspect| {
            let mut finding = suspect.finding;
            if !alone && finding.counts() {
                finding.severity = Severity::Note;
                finding.detail += "; the store is being changed, which may explain it";
            }
            finding
        });
        self.report_all(self.summed_up(confirmed.collect(), no_objects));
    }

    fn confirms(&self, suspect: &Suspect) -> bool {
        use crate::fs::lock::{Flock, Mode, Patience};
        let path = &suspect.finding.path;
        let same = |id: &FileId| matches!(read::metadata(path), Ok(found) if FileId::of(&found) == *id);
        match &suspect.doubt {
            Doubt::NoObject(digest) => {
                read::exists(path).unwrap_or(false) && !read::exists(&self.core.layout.object(digest)).unwrap_or(true)
            }
            Doubt::NoHint(key, source) => self.lacks_hint(&suspect.finding, key, *source),
            Doubt::NotHeld(id) => same(id) && matches!(Flock::take(path, Mode::Exclusive, Patience::None), Ok(Some(_))),
            Doubt::Unused(id) => {
                matches!(read::metadata(path), Ok(found) if FileId::of(&found) == *id && found.nlink() == 1)
            }
            Doubt::NoInstance => instance::look(self.core, path).is_some_and(|known| known.is_gone()),
            Doubt::SnapshotField => {
                suspect.finding.place().is_some_and(|(template, id)| self.fields_differ(&template, &id))
            }
        }
    }
}
