//! Hashing: every inode once, however many names it has.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use camino::Utf8Path;

use super::finding::{Finding, FindingKind, Severity, Subject};
use super::scan::{Scan, Seen};
use super::snapshots::snapshot_record;
use crate::error::Result;
use crate::format::{Content, OBJECT_MIN_SIZE, RevisionRecord, SnapshotRecord};
use crate::fs::copy::{Advance, hash};
use crate::fs::handle::Handle;
use crate::fs::read::{self, FileId, Metadata, Place};
use crate::id::{Digest, RevisionId, TemplateId};
use crate::layout::SNAPSHOT;
use crate::progress::{Progress, Stage};
use crate::seal::in_parallel;

/// When an inode was last changed; with it, its number says which it is.
type Changed = (i64, i64);

/// What an inode held when it was read.
#[derive(Debug, Clone)]
struct Held {
    changed: Changed,
    bytes: Result<Digest, Unread>,
}

/// Why an inode could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unread {
    why: String,
    is_denied: bool,
}

#[derive(Debug, Clone)]
enum State {
    Waiting,
    /// Some thread reads it.
    Busy,
    Done(Held),
}

/// The inodes that are to be hashed.
pub(super) struct Inodes {
    states: Mutex<HashMap<FileId, State>>,
    size: AtomicU64,
    hashed: AtomicU64,
    percent: Option<f64>,
    chance: RandomState,
}

/// The inodes that were hashed, and what they held.
#[derive(Debug, Default)]
pub(crate) struct Hashed(HashMap<FileId, Held>);

impl Hashed {
    /// Whether the inode held these bytes, and was not changed since.
    pub fn proves(&self, metadata: &Metadata, digest: &Digest) -> bool {
        let held = self.0.get(&FileId::of(metadata));
        held.is_some_and(|held| held.changed == changed(metadata) && held.bytes.as_ref() == Ok(digest))
    }
}

fn changed(metadata: &Metadata) -> Changed {
    (metadata.ctime(), metadata.ctime_nsec())
}

/// What a thread is to do about an inode.
enum Claim {
    /// It was not chosen.
    Unwanted,
    Read,
    /// Ask again later.
    Later,
    Known(Held),
}

impl Inodes {
    /// What is `known` is not read again, unless it was changed since.
    pub fn new(percent: Option<f64>, known: Hashed) -> Inodes {
        let states = known.0.into_iter().map(|(id, held)| (id, State::Done(held))).collect();
        let (size, hashed) = Default::default();
        Inodes { states: Mutex::new(states), size, hashed, percent, chance: RandomState::new() }
    }

    fn states(&self) -> MutexGuard<'_, HashMap<FileId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses an inode to be hashed, with the probability that was asked for; says whether it is chosen.
    pub fn choose(&self, metadata: &Metadata) -> bool {
        let id = FileId::of(metadata);
        if !self.is_drawn(id) {
            return false;
        }
        let mut states = self.states();
        match states.get(&id) {
            Some(State::Done(held)) if held.changed == changed(metadata) => {}
            Some(State::Waiting) => {}
            _ => {
                states.insert(id, State::Waiting);
                self.size.fetch_add(metadata.len(), Ordering::Relaxed);
            }
        }
        true
    }

    /// Chooses an inode of which nothing is known yet, for this thread to hash at once; `false` if it is not chosen.
    fn choose_now(&self, metadata: &Metadata) -> bool {
        let id = FileId::of(metadata);
        match self.states().entry(id) {
            Entry::Vacant(unknown) if self.is_drawn(id) => {
                unknown.insert(State::Busy);
                true
            }
            _ => false,
        }
    }

    /// The same for all names of the inode, and another in each run.
    fn is_drawn(&self, id: FileId) -> bool {
        let drawn = self.chance.hash_one(id) as f64 / u64::MAX as f64 * 100.0;
        self.percent.is_none_or(|percent| drawn < percent)
    }

    fn claim(&self, id: FileId) -> Claim {
        match self.states().get_mut(&id) {
            None => Claim::Unwanted,
            Some(State::Busy) => Claim::Later,
            Some(State::Done(held)) => Claim::Known(held.clone()),
            Some(state) => {
                *state = State::Busy;
                Claim::Read
            }
        }
    }

    pub fn finish(self) -> Hashed {
        let states = self.states.into_inner().unwrap_or_else(PoisonError::into_inner);
        let done = states.into_iter().filter_map(|(id, state)| match state {
            State::Done(held) => Some((id, held)),
            _ => None,
        });
        Hashed(done.collect())
    }
}

/// One name of an inode, and what it should hold.
#[derive(Debug, Clone)]
enum Name {
    File(TemplateId, RevisionId, Content),
    Object(Digest),
}

/// Does work in as many threads as the machine has cores. Rayon would begin one file in the midst of another, each
/// with a buffer of its own, without an end.
fn in_threads<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..cores.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

impl Scan<'_> {
    /// Hashes what was chosen, and compares it under each of its names; gives the bytes that were read.
    pub fn hash(&self, seen: &[Seen], objects: &[Digest], progress: &mut dyn Progress) -> Result<u64> {
        if self.inodes.states().is_empty() {
            return Ok(0);
        }
        let total = self.inodes.size.load(Ordering::Relaxed);
        in_parallel(Stage::Verifying, total, progress, |advance| {
            let later: Mutex<Vec<Name>> = Mutex::default();
            let put_off = |names: Vec<Name>| later.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
            in_threads(seen, |seen| put_off(self.hash_revision(seen, advance)));
            in_threads(objects, |digest| put_off(self.hash_name(Name::Object(*digest), advance).into_iter().collect()));
            // Nobody is busy any more.
            for name in later.into_inner().unwrap_or_else(PoisonError::into_inner) {
                let lease = match &name {
                    Name::File(template, id, _) => self.core.lease(&self.core.layout.revision(template, id)).ok(),
                    Name::Object(_) => None,
                };
                self.hash_name(name, advance);
                drop(lease);
            }
            Ok(())
        })?;
        Ok(self.inodes.hashed.load(Ordering::Relaxed))
    }

    /// Hashes a file of a revision that is held, and compares it, or chooses it for later; says whether it is for later.
    ///
    /// A small file that shares its bytes with nothing is read with its revision: to come back for it would take longer
    /// than to read it.
    pub fn hash_or_choose(
        &self,
        template: &TemplateId,
        id: &RevisionId,
        content: &Content,
        metadata: &Metadata,
    ) -> bool {
        let is_alone = metadata.len() < OBJECT_MIN_SIZE && metadata.nlink() == 1;
        if is_alone && self.inodes.choose_now(metadata) {
            let path = self.core.layout.revision(template, id).join(content.path.as_path());
            let held = self.read(&path, metadata, &|_| ());
            self.compare(&Name::File(template.clone(), id.clone(), content.clone()), &path, metadata, &held);
            return false;
        }
        self.inodes.choose(metadata)
    }

    /// Hashes the files of a revision; gives those that another thread has in hand.
    fn hash_revision(&self, seen: &Seen, advance: Advance) -> Vec<Name> {
        let (template, id) = (&seen.template, &seen.revision);
        if !seen.is_to_be_hashed {
            return Vec::new();
        }
        // What is wrong with the directory or the record was said when they were looked at.
        let Ok(_lease) = self.core.lease(&self.core.layout.revision(template, id)) else { return Vec::new() };
        let Ok(bytes) = read::bytes(&self.core.layout.revision_json(template, id)) else { return Vec::new() };
        let Ok(record) = RevisionRecord::from_json(&bytes) else { return Vec::new() };
        // Whatever is another file by now was not chosen, and is not read. What was read with its revision is compared once
        // more, and what was found then is found again: a report says it once.
        let snapshot = snapshot_record(self.core, template, id);
        let snapshot: Vec<Content> = snapshot.iter().flat_map(SnapshotRecord::contents_in_revision).collect();
        let names = record.contents.into_iter().flatten().chain(snapshot);
        let names = names.map(|content| Name::File(template.clone(), id.clone(), content));
        names.filter_map(|name| self.hash_name(name, advance)).collect()
    }

    /// Compares what a name has with what it should have; gives it back when another thread reads the inode.
    fn hash_name(&self, name: Name, advance: Advance) -> Option<Name> {
        let layout = &self.core.layout;
        let (path, metadata) = match &name {
            Name::File(template, id, content) => {
                let dir = layout.revision(template, id);
                let Ok(Place::At(metadata)) = read::place(&dir, content.path.as_path()) else { return None };
                if metadata.len() != content.size {
                    return None;
                }
                (dir.join(content.path.as_path()), metadata)
            }
            Name::Object(digest) => (layout.object(digest), read::metadata(&layout.object(digest)).ok()?),
        };
        if !metadata.is_file() {
            return None;
        }
        let held = match self.inodes.claim(FileId::of(&metadata)) {
            Claim::Unwanted => return None,
            Claim::Later => return Some(name),
            Claim::Read => self.read(&path, &metadata, advance),
            // The number may be that of another inode by now.
            Claim::Known(held) if held.bytes.as_ref() != Ok(name.digest()) && held.changed != changed(&metadata) => {
                self.read(&path, &metadata, advance)
            }
            Claim::Known(held) => held,
        };
        self.compare(&name, &path, &metadata, &held);
        None
    }

    fn read(&self, path: &Utf8Path, metadata: &Metadata, advance: Advance) -> Held {
        let hashed = read::open(path).and_then(|file| hash(&file, path, advance));
        let bytes = match hashed {
            Ok((digest, size)) => {
                self.inodes.hashed.fetch_add(size, Ordering::Relaxed);
                Ok(digest)
            }
            Err(error) => {
                let is_denied = error.kind() == std::io::ErrorKind::PermissionDenied;
                Err(Unread { why: error.source.to_string(), is_denied })
            }
        };
        let held = Held { changed: changed(metadata), bytes };
        self.inodes.states().insert(FileId::of(metadata), State::Done(held.clone()));
        held
    }

    fn compare(&self, name: &Name, path: &Utf8Path, metadata: &Metadata, held: &Held) {
        let finding = |kind, detail: String| Finding::new(kind, Severity::Error, path.to_owned(), detail);
        let finding = match &held.bytes {
            Ok(digest) if digest == name.digest() => return,
            Ok(digest) => finding(name.differs(), format!("its bytes have the digest {digest}")),
            Err(unread) => finding(FindingKind::Unreadable, unread.why.clone()),
        };
        // It may have been replaced or removed meanwhile.
        if !self.is_still(name, path, metadata) {
            return;
        }
        let is_denied = matches!(&held.bytes, Err(unread) if unread.is_denied);
        let subject = |subject| if is_denied { Subject::Denied } else { subject };
        self.report(match name {
            Name::File(template, id, content) => {
                finding.in_revision(template, id).about(subject(Subject::File(content.clone())))
            }
            Name::Object(digest) => finding.about(subject(Subject::Object(*digest))),
        });
    }
}

impl Scan<'_> {
    /// Whether a path still has the inode, and a file of a snapshot still should hold what its name says.
    ///
    /// Another snapshot may have taken the place, with the number of an inode that was chosen: the document and the file
    /// are of one and the same directory if that is there before and after.
    fn is_still(&self, name: &Name, path: &Utf8Path, metadata: &Metadata) -> bool {
        let is_there = || matches!(read::metadata(path), Ok(now) if FileId::of(&now) == FileId::of(metadata));
        let Name::File(template, id, content) = name else { return is_there() };
        if !content.path.as_path().starts_with(SNAPSHOT) {
            return is_there();
        }
        let Ok(Some(dir)) = Handle::of(&self.core.layout.snapshot(template, id)) else { return false };
        let Some(record) = snapshot_record(self.core, template, id) else { return false };
        let is_listed = record.contents_in_revision().any(|listed| listed == *content);
        let is_same = matches!(read::metadata(path), Ok(now) if changed(&now) == changed(metadata));
        is_listed && is_same && is_there() && matches!(dir.still_named(), Ok(true))
    }
}

impl Name {
    fn digest(&self) -> &Digest {
        match self {
            Name::File(_, _, content) => &content.blake3,
            Name::Object(digest) => digest,
        }
    }

    fn differs(&self) -> FindingKind {
        match self {
            Name::File(..) => FindingKind::Corrupt,
            Name::Object(_) => FindingKind::ObjectDiffers,
        }
    }
}
