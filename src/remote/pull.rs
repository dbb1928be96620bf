//! Pulling: the manifest is checked before anything is written, each file before it is published.

use std::collections::HashMap;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use super::backend::Backend;
use super::documents::{FileEntry, Manifest};
use super::download::download;
use super::error::RemoteError;
use super::pointers::{IfDamaged, template_pointer};
use super::{Remote, SMALL, WithSnapshot, file_parents, several, snapshots};
use crate::activation;
use crate::compare::first_difference;
use crate::core::Core;
use crate::damage;
use crate::draft::Draft;
use crate::error::{Error, Result};
use crate::format::{Content, OBJECT_MIN_SIZE, RevisionRecord, TemplateSpec, derived_id};
use crate::fs::atomic::needs_copy;
use crate::fs::copy::Advance;
use crate::fs::read;
use crate::fs::seal::{holds, looks_sealed};
use crate::id::{ArtifactPath, Digest, RevisionId, TemplateId};
use crate::inventory;
use crate::objects;
use crate::options::{ArtifactNames, Known, PublishOptions, SealOptions, setters};
use crate::progress::{Progress, Stage};
use crate::publish::Outcome;
use crate::revision::Revision;
use crate::seal::in_parallel;
use crate::sealed::{Published, remember_others};
use crate::work::{DraftDir, Imported, Purpose, Work};

/// How a revision is pulled.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PullOptions {
    pub(crate) publish: PublishOptions,
    pub(crate) snapshot: WithSnapshot,
}

impl PullOptions {
    setters! {
        /// Whether it becomes current here, and what must be current for that.
        publish: PublishOptions,
        /// Whether its snapshot is fetched as well, if the remote has one.
        snapshot: WithSnapshot,
    }
}

/// What a pull did.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Pulled {
    /// The revision, with its lease.
    pub revision: Revision,
    /// Whether it is new here.
    pub outcome: Outcome,
    /// Files that came from the remote, and how many bytes they have.
    pub files_fetched: usize,
    /// Bytes of those files, holes included.
    pub bytes_fetched: u64,
    /// Files that some revision of this store had.
    pub files_known: usize,
}

/// Files that were put into a draft.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Fetched {
    pub files: usize,
    pub bytes: u64,
    pub known: usize,
}

/// Pulls a revision; without an id, the one that is current at the remote.
pub(super) fn pull(
    core: &Arc<Core>,
    remote: &Remote,
    template: &TemplateId,
    revision: Option<&RevisionId>,
    options: &PullOptions,
    progress: &mut dyn Progress,
) -> Result<Pulled> {
    let backend = &remote.backend;
    drop(core.begin_change()?);
    let (pointer, _) = backend.wait(template_pointer(backend, template, IfDamaged::Refuse))?;
    let missing = |what: String| Error::from(RemoteError::NotFound { remote: backend.url.clone(), what });
    let id = match (revision, &pointer.current) {
        (Some(id), _) | (None, Some(id)) => id,
        (None, None) if pointer.revisions.is_empty() => return Err(missing(format!("template {template}"))),
        (None, None) => return Err(missing(format!("current revision of {template}"))),
    };
    let listed = pointer.find(id).ok_or_else(|| missing(format!("revision {template}@{id}")))?;
    let manifest = fetch_manifest(backend, template, id, &listed.manifest)?;
    let snapshot = match (options.snapshot, &listed.snapshot) {
        (WithSnapshot::Yes, Some(digest)) => Some(snapshots::fetch_manifest(backend, (template, id), digest)?),
        _ => None,
    };
    let goods = Goods {
        spec: manifest.template_as(template),
        manifest,
        beside: snapshot.as_ref().map_or(0, |one| room_for(&one.files)),
    };
    let mut pulled = publish(core, backend, goods, &options.publish, progress)?;
    if let Some(snapshot) = snapshot {
        let (files, bytes) = snapshots::pull(core, backend, &pulled.revision, snapshot, progress)?;
        pulled.files_fetched += files;
        pulled.bytes_fetched += bytes;
        pulled.revision = Revision::open(core, template, pulled.revision.id())?;
    }
    Ok(pulled)
}

/// A revision that is about to be fetched.
pub(super) struct Goods {
    pub manifest: Manifest,
    /// The definition of the template that gets it.
    pub spec: TemplateSpec,
    /// Bytes that will be fetched beside it.
    pub beside: u64,
}

impl Goods {
    /// A revision by itself.
    pub fn new(manifest: Manifest, spec: TemplateSpec) -> Goods {
        Goods { manifest, spec, beside: 0 }
    }
}

/// The manifest that a pointer names, checked.
pub(super) fn fetch_manifest(
    backend: &Backend,
    template: &TemplateId,
    revision: &RevisionId,
    digest: &Digest,
) -> Result<Manifest> {
    backend.wait(backend.manifest(digest, |bytes| Manifest::from_json(bytes, template, revision)))
}

/// Refuses what could not be published under this id, before it is fetched or sent.
pub(super) fn check_publishable(
    core: &Arc<Core>,
    template: &TemplateId,
    id: &RevisionId,
    contents: &[Content],
    options: &PublishOptions,
) -> Result<()> {
    activation::check(core, template, &options.expect)?;
    let there = match Revision::open(core, template, id) {
        Ok(there) => there,
        Err(Error::RevisionNotFound { .. } | Error::TemplateNotFound { .. }) => return Ok(()),
        // The id says what it held: it will be healed.
        Err(Error::Damaged { .. }) if *id == derived_id(contents) => return Ok(()),
        Err(error) => return Err(error),
    };
    // What mvm made can only be compared with what came.
    match there.record().contents.as_deref().and_then(|ours| first_difference(ours, contents)) {
        None => Ok(()),
        Some(path) => {
            let (template, revision) = (template.clone(), id.clone());
            Err(Error::RevisionDiffers { template, revision, path: path.to_string() })
        }
    }
}

/// Publishes a revision of a remote, as it was pushed, in the template of this definition, which is made if it is new.
pub(super) fn publish(
    core: &Arc<Core>,
    backend: &Backend,
    Goods { manifest, spec, beside }: Goods,
    options: &PublishOptions,
    progress: &mut dyn Progress,
) -> Result<Pulled> {
    let command = format!("pull from {}", backend.url);
    let template: TemplateId = spec.template_id.parse()?;
    let id = manifest.revision.build.revision_hash.parse()?;
    check_publishable(core, &template, &id, manifest.revision.contents.as_deref().unwrap_or_default(), options)?;
    let purpose = Purpose { template, spec, inputs: None, known: Known::Reuse, command };
    let mut work = Work::in_dir(core, DraftDir::new(core)?, Box::new(purpose));
    let fetched = fill(&mut work, backend, (&manifest, beside), progress)?;
    let published = seal_and_publish(Draft { work }, manifest.revision, options, progress)?;
    Ok(Pulled {
        revision: published.revision,
        outcome: published.outcome,
        files_fetched: fetched.files,
        bytes_fetched: fetched.bytes,
        files_known: fetched.known,
    })
}

/// Publishes a draft that was filled from a remote under the id of its record.
pub(super) fn seal_and_publish(
    mut draft: Draft,
    record: RevisionRecord,
    options: &PublishOptions,
    progress: &mut dyn Progress,
) -> Result<Published> {
    let seal =
        SealOptions::default().names(names(&record)?).revision(record.build.revision_hash.parse::<RevisionId>()?);
    let core = draft.work.core.clone();
    draft.work.pulled = Some(Box::new(record));
    let published = draft.seal_with(&seal, progress)?.publish_with(options, progress)?;
    remember_others(&core, &published.revision);
    Ok(published)
}

/// The names that the artifacts of a revision have.
pub(super) fn names(record: &RevisionRecord) -> Result<ArtifactNames> {
    let paths = &record.build.artifact_paths;
    let mut names = ArtifactNames::default()
        .vmlinux(paths.vmlinux.parse::<ArtifactPath>()?)
        .rootfs(paths.rootfs.parse::<ArtifactPath>()?)
        .fc_base_config(paths.fc_base_config.parse::<ArtifactPath>()?);
    if let Some(initrd) = &paths.initrd {
        names = names.initrd(initrd.parse::<ArtifactPath>()?);
    }
    Ok(names)
}

/// Puts all files of a manifest into a draft: those that some revision has as links, the others from the remote.
///
/// What is fetched is an object at once: after an error, or a kill, the next pull finds it, and a collection takes what no
/// pull wants.
pub(super) fn fill(
    work: &mut Work,
    backend: &Backend,
    (manifest, beside): (&Manifest, u64),
    progress: &mut dyn Progress,
) -> Result<Fetched> {
    let core = work.core.clone();
    let local = Local::of(&core, &work.purpose.template, manifest)?;
    let (known, wanted): (Vec<&FileEntry>, Vec<_>) =
        manifest.files.iter().partition(|file| local.has(&core, &file.content));
    let beside = beside.saturating_add(room_for_keys(&manifest.revision));
    check_space(&core, room_for(wanted.iter().copied()).saturating_add(beside))?;
    for parent in file_parents(&manifest.files) {
        core.disk.mkdir(&work.path().join(parent), 0o700)?;
    }
    let dir = work.path().to_owned();
    let mut imported = HashMap::new();
    let mut fetched = Fetched::default();
    let mut left = wanted;
    for file in known {
        match local.link(&core, &dir, &file.content)? {
            Some(is_object) => {
                fetched.known += 1;
                imported.insert(file.content.path.clone(), Imported { content: file.content.clone(), is_object });
            }
            // It went since it was seen.
            None => left.push(file),
        }
    }
    let bytes = left.iter().map(|file| file.content.size).fold(0, u64::saturating_add);
    let got = fetch_all(&core, &left, progress, |file, advance| fetch(&core, backend, &dir, file, advance))?;
    (fetched.files, fetched.bytes) = (got.len(), bytes);
    imported.extend(got.into_iter().map(|one| (one.content.path.clone(), one)));
    work.imported = imported;
    Ok(fetched)
}

/// Fetches files, the small ones several at a time.
pub(super) fn fetch_all<T: Send>(
    core: &Core,
    files: &[&FileEntry],
    progress: &mut dyn Progress,
    fetch: impl Fn(&FileEntry, Advance) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    check_space(core, room_for(files.iter().copied()))?;
    let bytes = files.iter().map(|file| file.content.size).fold(0, u64::saturating_add);
    let (large, small): (Vec<&FileEntry>, Vec<_>) = files.iter().partition(|file| file.content.size > SMALL);
    in_parallel(Stage::Fetching, bytes, progress, |advance| {
        let one = |file: &FileEntry| fetch(file, advance);
        // A large file keeps all threads busy by itself, and has its share of the memory.
        let mut got = large.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        got.extend(several(&small, |file| one(file))?);
        Ok(got)
    })
}

/// The bytes that a revision takes in the index of keys, where each has a file, which takes a block.
pub(super) fn room_for_keys(record: &RevisionRecord) -> u64 {
    record.made_from().count() as u64 * 4096
}

/// The bytes that files take on the disk.
fn room_for<'a>(files: impl IntoIterator<Item = &'a FileEntry>) -> u64 {
    files.into_iter().map(FileEntry::data_bytes).fold(0, u64::saturating_add)
}

/// Refuses before the first byte what can't fit.
pub(super) fn check_space(core: &Core, needed: u64) -> Result<()> {
    let available = read::available_space(core.layout.root())?;
    if needed <= available {
        return Ok(());
    }
    Err(Error::NoSpace { path: core.layout.root().to_owned(), needed, available })
}

fn fetch(core: &Core, backend: &Backend, dir: &Utf8Path, file: &FileEntry, advance: Advance) -> Result<Imported> {
    let (content, to) = (&file.content, dir.join(file.content.path.as_path()));
    download(backend, &core.disk, (content, &file.holes), &to, advance)?;
    let mut is_object = false;
    // What takes the place of an object that rotted is linked to when all is sealed, with all who have that one.
    if content.size >= OBJECT_MIN_SIZE && !read::exists(&core.layout.object(&content.blake3))? {
        let interned = objects::intern(core, &to, content, dir)?;
        is_object = !matches!(interned, objects::Interned::Private { .. });
    }
    Ok(Imported { content: content.clone(), is_object })
}

/// What this store has of a manifest already.
struct Local {
    /// Files that are too small to be objects, by what they hold.
    small: HashMap<Digest, Utf8PathBuf>,
    /// Something is known to be damaged: what is linked is read first.
    is_damaged: bool,
}

impl Local {
    fn of(core: &Core, template: &TemplateId, manifest: &Manifest) -> Result<Local> {
        let files = &manifest.files;
        let mut small = HashMap::new();
        if files.iter().any(|file| file.content.size < OBJECT_MIN_SIZE) && inventory::exists(core, template)? {
            for id in inventory::revisions_of(core, template)? {
                let bytes = read::bytes(&core.layout.revision_json(template, &id)).unwrap_or_default();
                let Ok(record) = RevisionRecord::from_json(&bytes) else { continue };
                for content in record.contents.iter().flatten().filter(|content| content.size < OBJECT_MIN_SIZE) {
                    small.insert(content.blake3, core.layout.artifact(template, &id, &content.path));
                }
            }
        }
        // Whoever pulls again what is here may do so because it is damaged.
        let id: RevisionId = manifest.revision.build.revision_hash.parse()?;
        let is_here = read::exists(&core.layout.revision(template, &id))?;
        Ok(Local { small, is_damaged: is_here || damage::is_any(core)? })
    }

    fn place(&self, core: &Core, content: &Content) -> Option<Utf8PathBuf> {
        match content.size >= OBJECT_MIN_SIZE {
            true => Some(core.layout.object(&content.blake3)),
            false => self.small.get(&content.blake3).cloned(),
        }
    }

    fn has(&self, core: &Core, content: &Content) -> bool {
        let found = self.place(core, content).and_then(|path| Some((read::metadata_if_there(&path).ok()??, path)));
        found.is_some_and(|(metadata, path)| {
            looks_sealed(&metadata, content.size)
                && read::can_share(&metadata)
                && (!self.is_damaged && content.size >= OBJECT_MIN_SIZE
                    || holds(&path, &content.blake3).unwrap_or(false))
        })
    }

    /// Gives the draft a file that is here; whether it is an object, or `None` if it can't be linked after all.
    fn link(&self, core: &Core, dir: &Utf8Path, content: &Content) -> Result<Option<bool>> {
        let to = dir.join(content.path.as_path());
        if content.size >= OBJECT_MIN_SIZE {
            return Ok(objects::link(core, (&content.blake3, content.size), &to)?.then_some(true));
        }
        let Some(from) = self.place(core, content) else { return Ok(None) };
        match core.disk.link(&from, &to) {
            Ok(()) => Ok(Some(true)),
            Err(error) if error.is_not_found() || needs_copy(error.kind()) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
