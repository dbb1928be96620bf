//! Pushing: files that the remote lacks first, then the manifest, then the pointers. A cut anywhere leaves the old state.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use camino::{Utf8Path, Utf8PathBuf};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::backend::{Backend, Conditions, Found, Version};
use super::conditions;
use super::documents::{FileEntry, Lead, Listed, MOST_HOLES, MOST_MADE_FROM, Manifest, TemplatePointer};
use super::error::RemoteError;
use super::frames;
use super::pointers::{Pointer, offer_key};
use super::preamble::{RemoteFormat, check_cost};
use super::pull::fetch_manifest;
use super::upload::{Outgoing, upload};
use super::{Move, Remote, SMALL, WithSnapshot, several, snapshots};
use crate::compare::first_difference;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Content, Extra, RevisionRecord, TemplateSpec};
use crate::fs::copy::Advance;
use crate::fs::read;
use crate::fs::receive::holes;
use crate::id::{Digest, RevisionId, TemplateId};
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
pub(super) struct ToSend<'a> {
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
    let goods = ToSend {
        dir: revision.path(),
        contents: listed_contents(revision)?,
        template: template::spec(core, template)?,
        record: revision.record().clone(),
    };
    begin(backend, options.files)?;
    let pointer = Pointer { core, backend, template, if_damaged: options.files.into() };
    let was = pointer.read()?;
    // Refused before the first byte is sent, if it is to be refused.
    pointer.may_move(&was.0, id, &options.moves)?;
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
    let (pointer, changed) = pointer.add(was, (&listed, goods.contents), &options.moves)?;
    for made in shared_record(&goods).made_from() {
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

/// Makes sure that this is a remote of ours, and that two who push at once are kept apart. Who sends all again replaces
/// what is damaged.
pub(super) fn begin(backend: &Backend, which: SendFiles) -> Result<()> {
    backend.check_writable()?;
    backend.wait(async {
        let was = match (backend.format().await?, which) {
            (Found::Sound((), _), _) => None,
            (Found::Absent, _) => Some(Version::Absent),
            (Found::Damaged(_, version), SendFiles::All) => Some(version),
            (Found::Damaged(error, _), SendFiles::Missing) => return Err(error),
        };
        if let Some(was) = was {
            backend.swap(&backend.names.format(), &was, &RemoteFormat::ours()).await?;
        }
        match backend.conditions {
            Conditions::Server => conditions::prove(backend).await,
            _ => Ok(()),
        }
    })
}

/// The manifest of a revision that the remote has already, which must have the same contents; one that is damaged counts for
/// nothing.
pub(super) fn known_manifest(
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
    goods: &ToSend,
    which: SendFiles,
    progress: &mut dyn Progress,
) -> Result<(Lead, Sent)> {
    let manifest = manifest(goods)?;
    let sent = send_files(backend, &goods.dir, goods.contents, which, progress)?;
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
        let is_there = found.is_some_and(|len| frames::can_be_of(len, content.size));
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

/// The record, but for what is only true of this host, and for more inputs than a manifest may have.
fn shared_record(goods: &ToSend) -> RevisionRecord {
    let mut record = goods.record.clone();
    (record.published_at, record.adopted_at, record.reused_from) = (None, None, None);
    record.build.snapshot = None;
    record.also_made_from.truncate(MOST_MADE_FROM);
    record
}

fn manifest(goods: &ToSend) -> Result<Vec<u8>> {
    let files = file_entries(&goods.dir, goods.contents)?;
    let manifest = Manifest::new(goods.template.clone(), shared_record(goods), files).to_json();
    // Nobody would read it.
    check_cost("manifest", &manifest).map_err(|error| RemoteError::CannotPush {
        what: format!("{}@{}", goods.template.template_id, goods.record.build.revision_hash),
        problem: format!("{error}; put the files into fewer ones"),
    })?;
    Ok(manifest)
}

pub(super) fn listed(core: &Core, goods: &ToSend, manifest: Digest) -> Result<Listed> {
    Ok(Listed {
        revision: goods.record.build.revision_hash.parse()?,
        manifest,
        bytes: goods.contents.iter().map(|content| content.size).fold(0, u64::saturating_add),
        pushed_at: core.now(),
        snapshot: None,
        extra: Extra::new(),
    })
}
