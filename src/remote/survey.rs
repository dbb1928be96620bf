//! Looking through a remote: what it has, and whether all of it is there.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;

use super::backend::Backend;
use super::documents::{KeyPointer, Manifest, TemplatePointer};
use super::download::read_through;
use super::error::RemoteError;
use super::pointers::{IfDamaged, template_pointer};
use super::pull::fetch_manifest;
use super::snapshots;
use crate::error::{Error, Result};
use crate::format::Content;
use crate::id::{Digest, RevisionId, TemplateId};
use crate::progress::{Progress, Stage};
use crate::seal::in_parallel;

/// A template of a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteTemplate {
    /// Its id.
    pub template: TemplateId,
    /// Why its pointer can't be read; then nothing else is known of it.
    pub problem: Option<String>,
    /// What is current there.
    pub current: Option<RevisionId>,
    /// Its revisions, the first that was pushed first.
    pub revisions: Vec<RemoteRevision>,
    /// Who was current and since when, the oldest first.
    pub history: Vec<(RevisionId, Timestamp)>,
}

/// A revision of a remote.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteRevision {
    /// Its id.
    pub revision: RevisionId,
    /// Bytes of its files, holes included.
    pub bytes: u64,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// Whether its snapshot was pushed as well.
    pub has_snapshot: bool,
}

/// What a look through a remote found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteReport {
    /// Templates, keys, revisions and files that were looked at.
    pub templates: usize,
    /// Pointers of cache keys.
    pub keys: usize,
    /// Manifests.
    pub revisions: usize,
    /// Files; each counts once.
    pub files: usize,
    /// What is wrong.
    pub findings: Vec<RemoteFinding>,
}

/// Something in a remote that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteFinding {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Requests that are on their way at once, where each is small.
const AT_ONCE: usize = 16;

async fn template_ids(backend: &Backend) -> Result<Vec<TemplateId>> {
    let found = backend.list(&backend.names.templates()).await?;
    let mut ids: Vec<TemplateId> = found.iter().filter_map(|path| backend.names.template_of(path)).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// All templates, sorted by their ids.
pub(super) async fn templates(backend: &Backend) -> Result<Vec<RemoteTemplate>> {
    let ids = template_ids(backend).await?;
    let read = |id: TemplateId| async move {
        match template_pointer(backend, &id, IfDamaged::Refuse).await {
            Ok((pointer, _)) => Ok(described(pointer)),
            Err(error) => match flaw(error) {
                Ok(finding) => {
                    Ok(RemoteTemplate { problem: Some(finding.problem), ..described(TemplatePointer::new(id)) })
                }
                Err(error) => Err(error),
            },
        }
    };
    stream::iter(ids).map(read).buffered(AT_ONCE).try_collect().await
}

fn described(pointer: TemplatePointer) -> RemoteTemplate {
    let revision = |listed: super::documents::Listed| RemoteRevision {
        revision: listed.revision,
        bytes: listed.bytes,
        pushed_at: listed.pushed_at,
        has_snapshot: listed.snapshot.is_some(),
    };
    RemoteTemplate {
        template: pointer.template,
        current: pointer.current,
        problem: None,
        revisions: pointer.revisions.into_iter().map(revision).collect(),
        history: pointer.history.into_iter().map(|moved| (moved.revision, moved.at)).collect(),
    }
}

/// A manifest that a pointer names.
type Named = (TemplateId, RevisionId, Digest);

/// Looks through everything that pointers lead to.
pub(super) fn verify(backend: &Backend, data: bool, progress: &mut dyn Progress) -> Result<RemoteReport> {
    let mut report = RemoteReport::default();
    let mut named: BTreeSet<Named> = BTreeSet::new();
    let mut snapshots: BTreeSet<Named> = BTreeSet::new();
    for id in backend.wait(template_ids(backend))? {
        report.templates += 1;
        if let Some((pointer, _)) = sound(&mut report, backend.wait(template_pointer(backend, &id, IfDamaged::Refuse)))?
        {
            for listed in pointer.revisions {
                let snapshot = listed.snapshot.map(|digest| (id.clone(), listed.revision.clone(), digest));
                snapshots.extend(snapshot);
                named.insert((id.clone(), listed.revision, listed.manifest));
            }
        }
    }
    for pointer in backend.wait(keys(backend))? {
        report.keys += 1;
        if let Some(pointer) = sound(&mut report, pointer)? {
            named.extend(pointer.revisions.into_iter().map(|lead| (lead.template, lead.revision, lead.manifest)));
        }
    }
    let mut files: BTreeMap<Digest, Content> = BTreeMap::new();
    for (template, revision, digest) in named {
        report.revisions += 1;
        let manifest: Option<Manifest> = sound(&mut report, fetch_manifest(backend, &template, &revision, &digest))?;
        files
            .extend(manifest.into_iter().flat_map(|found| found.files).map(|file| (file.content.blake3, file.content)));
    }
    for (template, revision, digest) in snapshots {
        let manifest = sound(&mut report, snapshots::fetch_manifest(backend, (&template, &revision), &digest))?;
        files
            .extend(manifest.into_iter().flat_map(|found| found.files).map(|file| (file.content.blake3, file.content)));
    }
    report.files = files.len();
    check_files(backend, files.into_values().collect(), data, &mut report, progress)?;
    Ok(report)
}

/// What was read, or `None` and a finding if it is damaged.
fn sound<T>(report: &mut RemoteReport, read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) => {
            report.findings.push(flaw(error)?);
            Ok(None)
        }
    }
}

/// What is wrong with an object; an error that says nothing of one stays an error.
fn flaw(error: Error) -> Result<RemoteFinding> {
    match error {
        Error::Remote(RemoteError::Damaged { object, problem, .. }) => Ok(RemoteFinding { object, problem }),
        Error::Remote(RemoteError::Format { object, source, .. }) => {
            Ok(RemoteFinding { object, problem: source.to_string() })
        }
        error => Err(error),
    }
}

async fn keys(backend: &Backend) -> Result<Vec<Result<KeyPointer>>> {
    let found = backend.list(&backend.names.keys()).await?;
    let read = |path: object_store::path::Path| async move {
        let Some(key) = backend.names.key_of(&path) else { return Ok(None) };
        // One that went since it was listed is none.
        let found = backend.document(&path, |bytes| KeyPointer::from_json(bytes, &key)).await?;
        Ok::<_, Error>(found.map(|(pointer, _)| pointer))
    };
    let read: Vec<Result<Option<KeyPointer>>> = stream::iter(found).map(read).buffered(AT_ONCE).collect().await;
    Ok(read.into_iter().filter_map(Result::transpose).collect())
}

fn check_files(
    backend: &Backend,
    files: Vec<Content>,
    data: bool,
    report: &mut RemoteReport,
    progress: &mut dyn Progress,
) -> Result<()> {
    if !data {
        let look = |content: Content| async move {
            let path = backend.names.blob(&content.blake3);
            match backend.len(&path).await? {
                Some(len) if super::frames::can_be_of(len, content.size) => Ok(()),
                Some(len) => Err(backend.damaged(&path, format!("it has {len} bytes for a file of {}", content.size))),
                None => Err(backend.damaged(&path, "it is missing".into())),
            }
        };
        let looked: Vec<Result<()>> = backend.wait(stream::iter(files).map(look).buffered(AT_ONCE).collect());
        return looked.into_iter().try_for_each(|looked| sound(report, looked).map(drop));
    }
    let bytes = files.iter().map(|content| content.size).fold(0, u64::saturating_add);
    let read = in_parallel(Stage::Verifying, bytes, progress, |advance| {
        Ok(files.iter().map(|content| read_through(backend, content, advance)).collect::<Vec<_>>())
    })?;
    read.into_iter().try_for_each(|read| sound(report, read).map(drop))
}
