//! Pushing: files that the remote lacks first, then the manifest, then the pointers. A cut anywhere leaves the old state.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::AddAssign;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;

use super::backend::{Backend, Conditions, Swap, Version};
use super::conditions;
use super::documents::{FileEntry, KeyPointer, Lead, Listed, Manifest, RemoteFormat, TemplatePointer};
use super::error::RemoteError;
use super::frames::{FOOTER, most_object_bytes};
use super::pull::fetch_manifest;
use super::upload::{Outgoing, upload};
use super::{Move, Remote, SMALL, WithSnapshot, several, snapshots};
use crate::compare::first_difference;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Content, Extra, RevisionRecord, TemplateSpec};
use crate::fs::copy::Advance;
use crate::fs::lock::BackOff;
use crate::fs::read;
use crate::fs::receive::holes;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::options::setters;
use crate::progress::{Progress, Stage};
use crate::revision::Revision;
use crate::seal::in_parallel;
use crate::template;

/// How a revision is pushed.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PushOptions {
    pub(crate) moves: Move,
    pub(crate) snapshot: WithSnapshot,
    pub(crate) files: SendFiles,
}

/// Which files of a revision are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SendFiles {
    /// Those that the remote lacks.
    #[default]
    Missing,
    /// All: what the remote has may be damaged.
    All,
}

impl PushOptions {
    setters! {
        /// Whether it becomes the remote's current revision, and what that must be for it.
        moves: Move,
        /// Whether its snapshot is pushed as well.
        snapshot: WithSnapshot,
        /// Which files are sent.
        files: SendFiles,
    }
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pushed {
    /// The template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
    /// Files that the remote did not have, and how many.
    pub files_sent: usize,
    /// Files that it had, or that another file of the revision has the bytes of.
    pub files_known: usize,
    /// Bytes that were sent, as they are packed.
    pub bytes_sent: u64,
    /// Whether the remote's pointer was changed; else it said all this before.
    pub changed: bool,
    /// What is current at the remote now.
    pub current: Option<RevisionId>,
}

/// A revision as it lies in a directory: published, or about to be.
pub(super) struct Goods<'a> {
    pub dir: Utf8PathBuf,
    pub contents: &'a [Content],
    pub template: TemplateSpec,
    pub record: RevisionRecord,
}

/// Files that were sent.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Sent {
    pub files: usize,
    pub known: usize,
    pub bytes: u64,
}

/// Pushes a published revision.
pub(super) fn push(
    core: &Core,
    remote: &Remote,
    revision: &Revision,
    options: &PushOptions,
    progress: &mut dyn Progress,
) -> Result<Pushed> {
    let backend = &remote.backend;
    let (id, template) = (revision.id(), revision.template());
    revision.check()?;
    let goods = Goods {
        dir: revision.path(),
        contents: listed_contents(revision)?,
        template: template::spec(core, template)?,
        record: revision.record().clone(),
    };
    begin(backend)?;
    let was = backend.wait(template_pointer(backend, template))?;
    // Refused before the first byte is sent, if it is to be refused.
    may_move(core, backend, &was.0, id, &options.moves)?;
    let known = known_manifest(backend, &was.0, id, goods.contents)?;
    let (mut lead, mut sent) = send(backend, &goods, options.files, progress)?;
    // What was pushed before stays as it was pushed: others have it.
    lead.manifest = known.unwrap_or(lead.manifest);
    let mut listed = listed(core, &goods, lead.manifest)?;
    if options.snapshot == WithSnapshot::Yes {
        let (manifest, of_snapshot) = snapshots::push(backend, revision, options.files, progress)?;
        listed.snapshot = Some(manifest);
        sent += of_snapshot;
    }
    let (pointer, changed) = move_pointer(core, backend, was, (&listed, goods.contents), &options.moves)?;
    for made in goods.record.made_from() {
        let lead = Lead { source_hash: made.source_hash, ..lead.clone() };
        offer_key(backend, made.key(), &lead)?;
    }
    Ok(Pushed {
        template: template.clone(),
        revision: id.clone(),
        files_sent: sent.files,
        files_known: sent.known,
        bytes_sent: sent.bytes,
        changed,
        current: pointer.current,
    })
}

fn listed_contents(revision: &Revision) -> Result<&[Content]> {
    match &revision.record().contents {
        Some(contents) => Ok(contents),
        None => {
            let what = format!("{}@{}", revision.template(), revision.id());
            let problem = "its digests are not known; publish it again with this store".to_owned();
            Err(RemoteError::CannotPush { what, problem }.into())
        }
    }
}

/// Makes sure that this is a remote of ours, and that two who push at once are kept apart.
pub(super) fn begin(backend: &Backend) -> Result<()> {
    backend.check_writable()?;
    backend.wait(async {
        let path = backend.names.format();
        if backend.document(&path, RemoteFormat::check).await?.is_none() {
            backend.swap(&path, &Version::Absent, &RemoteFormat::ours()).await?;
        }
        match backend.conditions {
            Conditions::Server => conditions::prove(backend).await,
            _ => Ok(()),
        }
    })
}

/// The pointer of a template, and what it is; an empty one if there is none.
pub(super) async fn template_pointer(backend: &Backend, id: &TemplateId) -> Result<(TemplatePointer, Version)> {
    let found = backend.document(&backend.names.template(id), |bytes| TemplatePointer::from_json(bytes, id)).await?;
    Ok(found.unwrap_or_else(|| (TemplatePointer::new(id.clone()), Version::Absent)))
}

/// The pointer of a key, and what it is; an empty one if there is none.
pub(super) async fn key_pointer(backend: &Backend, key: &CacheKey) -> Result<(KeyPointer, Version)> {
    let found = backend.document(&backend.names.key(key), |bytes| KeyPointer::from_json(bytes, key)).await?;
    Ok(found.unwrap_or_else(|| (KeyPointer::new(*key), Version::Absent)))
}

/// The manifest of a revision that the remote has already, which must have the same contents; one that is damaged counts for
/// nothing.
fn known_manifest(
    backend: &Backend,
    pointer: &TemplatePointer,
    id: &RevisionId,
    contents: &[Content],
) -> Result<Option<Digest>> {
    let Some(known) = pointer.find(id) else { return Ok(None) };
    let manifest = match fetch_manifest(backend, &pointer.template, id, &known.manifest) {
        Ok(manifest) => manifest,
        // What a newer program wrote is not damaged: it stays.
        Err(error) if error.kind() == ErrorKind::Damaged => return Ok(None),
        Err(error) => return Err(error),
    };
    match first_difference(manifest.revision.contents.as_deref().unwrap_or_default(), contents) {
        None => Ok(Some(known.manifest)),
        Some(path) => Err(RemoteError::Differs {
            remote: backend.url.clone(),
            template: pointer.template.clone(),
            revision: id.clone(),
            path: path.to_string(),
        }
        .into()),
    }
}

/// Whether a revision becomes current; an error where it was to, in the place of one that the caller does not know of.
fn may_move(
    core: &Core,
    backend: &Backend,
    pointer: &TemplatePointer,
    revision: &RevisionId,
    moves: &Move,
) -> Result<bool> {
    let current = pointer.current.as_ref();
    let expected = match moves {
        Move::No => return Ok(false),
        _ if current == Some(revision) => return Ok(true),
        Move::Forward | Move::ForwardOrStay => match current {
            None => return Ok(true),
            Some(theirs) if read::exists(&core.layout.revision(&pointer.template, theirs))? => return Ok(true),
            Some(_) if *moves == Move::ForwardOrStay => return Ok(false),
            Some(_) => "a revision that this store has".to_owned(),
        },
        Move::FromAbsent if current.is_none() => return Ok(true),
        Move::From(expected) if current == Some(expected) => return Ok(true),
        Move::FromAbsent => "none".to_owned(),
        Move::From(expected) => expected.to_string(),
    };
    Err(moved(backend, &pointer.template, expected, current))
}

fn moved(backend: &Backend, template: &TemplateId, expected: String, found: Option<&RevisionId>) -> Error {
    let found = found.map_or_else(|| "none".to_owned(), RevisionId::to_string);
    RemoteError::Moved { remote: backend.url.clone(), template: template.clone(), expected, found }.into()
}

impl AddAssign for Sent {
    fn add_assign(&mut self, other: Sent) {
        self.files += other.files;
        self.known += other.known;
        self.bytes += other.bytes;
    }
}

/// Sends the files that the remote lacks.
pub(super) fn send_files(
    backend: &Backend,
    dir: &Utf8Path,
    contents: &[Content],
    which: SendFiles,
    progress: &mut dyn Progress,
) -> Result<Sent> {
    let by_digest: BTreeMap<Digest, Content> = contents.iter().map(|one| (one.blake3, one.clone())).collect();
    let missing = match which {
        SendFiles::Missing => backend.wait(missing(backend, by_digest.into_values().collect()))?,
        SendFiles::All => by_digest.into_values().collect(),
    };
    let bytes = missing.iter().map(|content| content.size).fold(0, u64::saturating_add);
    let (large, small): (Vec<&Content>, Vec<_>) = missing.iter().partition(|content| content.size > SMALL);
    let sent = in_parallel(Stage::Sending, bytes, progress, |advance| {
        // A large file keeps all threads busy by itself, and has its share of the memory.
        let of_large = large.iter().map(|content| send_file(backend, dir, content, advance));
        let of_large = of_large.sum::<Result<u64>>()?;
        let of_small = several(&small, |content| send_file(backend, dir, content, advance))?;
        Ok(of_large + of_small.iter().sum::<u64>())
    })?;
    Ok(Sent { files: missing.len(), known: contents.len() - missing.len(), bytes: sent })
}

/// Sends the files that the remote lacks, and the manifest.
pub(super) fn send(
    backend: &Backend,
    goods: &Goods,
    which: SendFiles,
    progress: &mut dyn Progress,
) -> Result<(Lead, Sent)> {
    let sent = send_files(backend, &goods.dir, goods.contents, which, progress)?;
    let manifest = manifest(goods)?;
    let digest = Digest::of(&manifest);
    backend.wait(put_manifest(backend, &digest, &manifest))?;
    let lead = Lead {
        template: goods.template.template_id.parse()?,
        revision: goods.record.build.revision_hash.parse()?,
        manifest: digest,
        source_hash: goods.record.source_hash,
        extra: Extra::new(),
    };
    Ok((lead, sent))
}

/// Requests that are on their way at once, where each is small.
const AT_ONCE: usize = 16;

async fn missing(backend: &Backend, contents: Vec<Content>) -> Result<Vec<Content>> {
    let look = |content: Content| async move {
        let found = backend.len(&backend.names.blob(&content.blake3)).await?;
        // One that can't hold the file is as good as none.
        let is_there = found.is_some_and(|len| len >= FOOTER && len <= most_object_bytes(content.size));
        Ok::<_, Error>((!is_there).then_some(content))
    };
    let found: Vec<Option<Content>> = stream::iter(contents).map(look).buffered(AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// It is small: who writes it again need not ask whether it is intact.
pub(super) async fn put_manifest(backend: &Backend, digest: &Digest, bytes: &[u8]) -> Result<()> {
    backend.put(&backend.names.manifest(digest), bytes::Bytes::copy_from_slice(bytes)).await
}

fn send_file(backend: &Backend, dir: &Utf8Path, content: &Content, advance: Advance) -> Result<u64> {
    let path = dir.join(content.path.as_path());
    let file = read::open(&path)?;
    let holes = holes(&file, &path, content.size)?;
    upload(backend, &Outgoing { file: &file, path: &path, content, holes: &holes }, advance)
}

/// Holes of less than this are not worth a line of the manifest.
const WORTHWHILE: u64 = 1024 * 1024;
const MOST_HOLES: usize = 1000;

/// The files of a directory, as a manifest has them.
pub(super) fn file_entries(dir: &Utf8Path, contents: &[Content]) -> Result<Vec<FileEntry>> {
    let entry = |content: &Content| -> Result<FileEntry> {
        let path = dir.join(content.path.as_path());
        let mut holes = holes(&read::open(&path)?, &path, content.size)?;
        holes.retain(|hole| hole.end - hole.start >= WORTHWHILE);
        holes.truncate(MOST_HOLES);
        Ok(FileEntry::new(content.clone(), &holes))
    };
    contents.iter().map(entry).collect()
}

fn manifest(goods: &Goods) -> Result<Vec<u8>> {
    let files = file_entries(&goods.dir, goods.contents)?;
    let mut record = goods.record.clone();
    // What is only true of this host stays here.
    (record.published_at, record.adopted_at, record.reused_from) = (None, None, None);
    record.build.snapshot = None;
    Ok(Manifest::new(goods.template.clone(), record, files).to_json())
}

pub(super) fn listed(core: &Core, goods: &Goods, manifest: Digest) -> Result<Listed> {
    Ok(Listed {
        revision: goods.record.build.revision_hash.parse()?,
        manifest,
        bytes: goods.contents.iter().map(|content| content.size).fold(0, u64::saturating_add),
        pushed_at: core.now(),
        snapshot: None,
        extra: Extra::new(),
    })
}

/// Adds a revision to the template's pointer, and moves `current` there if it is to.
pub(super) fn move_pointer(
    core: &Core,
    backend: &Backend,
    (mut pointer, mut version): (TemplatePointer, Version),
    (listed, contents): (&Listed, &[Content]),
    moves: &Move,
) -> Result<(TemplatePointer, bool)> {
    let path = backend.names.template(&pointer.template);
    let (seen, now) = (pointer.current.clone(), core.now());
    let mut activate = may_move(core, backend, &pointer, &listed.revision, moves)?;
    let mut rounds = Rounds::new(backend, &path);
    loop {
        let Some(new) = pointer.with(listed, activate, now, &unique()) else { return Ok((pointer, false)) };
        match backend.wait(backend.swap(&path, &version, &new.to_json()))? {
            Swap::Done => return Ok((new, true)),
            Swap::Lost => rounds.next()?,
        }
        // Somebody else changed it. That is no matter as long as what was current still is.
        (pointer, version) = backend.wait(template_pointer(backend, &pointer.template))?;
        // Our answer may have been lost, and somebody have gone on from there.
        if pointer.history.iter().any(|moved| moved.revision == listed.revision && moved.at == now) {
            return Ok((pointer, true));
        }
        known_manifest(backend, &pointer, &listed.revision, contents)?;
        let is_there = pointer.current.as_ref() == Some(&listed.revision);
        if activate && pointer.current != seen && !is_there {
            if *moves == Move::ForwardOrStay {
                activate = false;
                continue;
            }
            let expected = seen.as_ref().map_or_else(|| "none".to_owned(), RevisionId::to_string);
            return Err(moved(backend, &pointer.template, expected, pointer.current.as_ref()));
        }
    }
}

/// Adds a revision to those that a key leads to, behind those that are there.
pub(super) fn offer_key(backend: &Backend, key: CacheKey, lead: &Lead) -> Result<()> {
    let path = backend.names.key(&key);
    let mut rounds = Rounds::new(backend, &path);
    loop {
        let (pointer, version) = backend.wait(key_pointer(backend, &key))?;
        let Some(new) = pointer.with(lead, &unique()) else { return Ok(()) };
        match backend.wait(backend.swap(&path, &version, &new.to_json()))? {
            Swap::Done => return Ok(()),
            Swap::Lost => rounds.next()?,
        }
    }
}

/// The rounds of those who change one pointer at once; a server with which nobody ever wins must not keep us for ever.
pub(super) struct Rounds<'a> {
    backend: &'a Backend,
    path: &'a Path,
    pauses: BackOff,
}

impl Rounds<'_> {
    pub fn new<'a>(backend: &'a Backend, path: &'a Path) -> Rounds<'a> {
        Rounds { backend, path, pauses: BackOff::new(Some(Duration::from_secs(60))) }
    }

    /// Waits a little before the next.
    pub fn next(&mut self) -> Result<()> {
        if self.pauses.pause() {
            return Ok(());
        }
        let (remote, object) = (self.backend.url.clone(), self.path.to_string());
        let problem = "it was another one each time that it was to be replaced, for a minute".to_owned();
        Err(RemoteError::Failed { remote, doing: "replace", object, problem }.into())
    }
}

/// A text that no other write has.
pub(super) fn unique() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
