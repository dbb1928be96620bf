//! Snapshots on their way: their files are blobs as all others, and a manifest of its own says what they are.

use std::sync::Arc;

use super::backend::Backend;
use super::documents::{FileEntry, SnapshotManifest};
use super::download::download;
use super::file_parents;
use super::pull::fetch_all;
use super::push::{SendFiles, Sent, file_entries, put_manifest, send_files};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{MEM, VMSTATE};
use crate::id::Digest;
use crate::progress::Progress;
use crate::revision::Revision;
use crate::snapshot::{SnapshotFiles, SnapshotOptions};
use crate::work::DraftDir;

/// Sends the snapshot of a revision; gives the name of its manifest.
pub(super) fn push(
    backend: &Backend,
    revision: &Revision,
    which: SendFiles,
    progress: &mut dyn Progress,
) -> Result<(Digest, Sent)> {
    let Some(snapshot) = revision.snapshot()? else {
        return Err(Error::NoSnapshot { template: revision.template().clone(), revision: revision.id().clone() });
    };
    let (dir, record) = (snapshot.path(), snapshot.record().clone());
    let sent = send_files(backend, dir, &record.contents, which, progress)?;
    let files = file_entries(dir, &record.contents)?;
    let manifest = SnapshotManifest::new(revision.template().clone(), revision.id().clone(), record, files).to_json();
    let digest = Digest::of(&manifest);
    backend.wait(put_manifest(backend, &digest, &manifest))?;
    Ok((digest, sent))
}

/// The manifest that a pointer names, checked.
pub(super) fn fetch_manifest(
    backend: &Backend,
    (template, revision): (&crate::id::TemplateId, &crate::id::RevisionId),
    digest: &Digest,
) -> Result<SnapshotManifest> {
    backend.wait(backend.manifest(digest, |bytes| SnapshotManifest::from_json(bytes, template, revision)))
}

/// Fetches a snapshot and attaches it, as if a VM had been paused here; gives how many files and bytes came.
///
/// A crash leaves the snapshot that was there before, or this one.
pub(super) fn pull(
    core: &Arc<Core>,
    backend: &Backend,
    revision: &Revision,
    manifest: SnapshotManifest,
    progress: &mut dyn Progress,
) -> Result<(usize, u64)> {
    if revision.snapshot()?.is_some_and(|ours| ours.record().contents == manifest.snapshot.contents) {
        return Ok((0, 0));
    }
    let draft = DraftDir::new(core)?;
    for parent in file_parents(&manifest.files) {
        core.disk.mkdir(&draft.path().join(parent), 0o700)?;
    }
    let wanted: Vec<&FileEntry> = manifest.files.iter().collect();
    let fetched = fetch_all(core, &wanted, progress, |file, advance| {
        let to = draft.path().join(file.content.path.as_path());
        download(backend, &core.disk, (&file.content, &file.holes), &to, advance)
    })?;
    let at = |name: &str| draft.path().join(name);
    let record = &manifest.snapshot;
    // They are linked, not copied: nobody else has them.
    let mut files = SnapshotFiles::new(at(VMSTATE), at(MEM)).sealed(&record.contents);
    let mut options = SnapshotOptions::default()
        .created_at(record.info.created_at.clone())
        .boot_args(record.info.boot_args.clone())
        .vcpus(record.info.vcpus)
        .mem_mib(record.info.mem_mib)
        .platform(record.platform.clone());
    for drive in &record.drives {
        files = files.drive(drive.id.clone(), at(drive.path().as_str()));
        if let Some(path) = &drive.path_on_host {
            options = options.drive_path(drive.id.clone(), path);
        }
    }
    revision.attach_snapshot(&files, &options, progress)?;
    draft.discard()?;
    Ok((fetched.len(), wanted.iter().map(|file| file.content.size).fold(0, u64::saturating_add)))
}
