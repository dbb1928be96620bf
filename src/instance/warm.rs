//! What a VM goes on from: the memory and the disks of a snapshot, all of one moment.

use std::collections::BTreeSet;

use camino::Utf8Path;
use serde_json::json;

use super::parts::{Part, Parts, bad, check_names};
use super::place::Place;
use crate::error::{Error, Result};
use crate::format::{Content, DATA_DISK, FcDrive, MEM, SnapshotDrive, VMSTATE, drive_path, pretty};
use crate::fs::read;
use crate::fs::seal::looks_sealed;
use crate::id::ArtifactPath;
use crate::revision::Revision;
use crate::snapshot::Snapshot;

/// The body of Firecracker's `PUT /snapshot/load`.
pub(crate) const LOAD_JSON: &str = "snapshot-load.json";

/// The revision's snapshot, which must have one.
pub(super) fn snapshot(revision: &Revision) -> Result<Snapshot> {
    let (template, id) = (revision.template().clone(), revision.id().clone());
    revision.snapshot()?.ok_or(Error::NoSnapshot { template, revision: id })
}

/// The parts of a snapshot, which may be replaced meanwhile: whoever uses them asks afterwards, also after an error.
pub(super) fn parts(revision: &Revision, snapshot: &Snapshot, place: &Place) -> Result<Parts> {
    let mut files = Vec::new();
    for name in [VMSTATE, MEM] {
        files.push(part(snapshot, name, name.parse()?, false)?);
    }
    let known = revision.drives()?;
    for drive in &snapshot.record().drives {
        let of_it = known.iter().find(|known| known.id == drive.id);
        let name = name_of(revision, drive, of_it);
        let writable = of_it.is_none_or(|drive| !drive.is_read_only);
        files.push(part(snapshot, drive_path(&drive.id).as_str(), name, writable)?);
    }
    files.extend(read_only_drives(revision, snapshot, &known)?);
    let mut names = BTreeSet::new();
    if let Some(twice) = files.iter().map(|part| &part.name).find(|name| !names.insert((*name).clone())) {
        let problem = format!("two files of its snapshot would be {twice}; attach it with other paths of its drives");
        return Err(bad(revision, problem));
    }
    check_names(revision, &names, &[LOAD_JSON])?;
    let load = json!({
        "snapshot_path": place.path.join(VMSTATE),
        "mem_backend": { "backend_type": "File", "backend_path": place.path.join(MEM) },
        // The VM goes on when it was told where its disks are.
        "resume_vm": false,
    });
    Ok(Parts { files, documents: vec![(LOAD_JSON, pretty(&load))], data_disk: None })
}

fn part(snapshot: &Snapshot, path: &str, name: ArtifactPath, writable: bool) -> Result<Part> {
    let listed = snapshot.contents().iter().find(|content| content.path.as_str() == path);
    let Content { size, blake3, .. } = listed.expect("a record that lists less is refused when it is read");
    let source = snapshot.path().join(path);
    let problem = match read::metadata_if_there(&source)? {
        Some(found) if looks_sealed(&found, *size) => {
            return Ok(Part { name, source, size: *size, blake3: Some(*blake3), writable });
        }
        Some(_) => "it was changed after it was attached",
        None => "it is missing",
    };
    Err(Error::SnapshotDamaged { path: source, problem: problem.to_owned() })
}

/// Where a VM that goes on looks for a drive, below the directory in which it runs: where it had it. Of a path that is
/// absolute nothing can be made here; then it has the name that it has in an instance that boots.
fn name_of(revision: &Revision, drive: &SnapshotDrive, of_it: Option<&FcDrive>) -> ArtifactPath {
    let booted = match of_it {
        Some(of_it) if of_it.is_root => Some(revision.build().artifact_paths.rootfs.as_str()),
        Some(of_it) if of_it.is_data && of_it.path_on_host.is_none() => Some(DATA_DISK),
        Some(of_it) => of_it.path_on_host.as_deref(),
        // The data disk of a VM that was given one where the template has none.
        None if drive.id.as_str() == "data" => Some(DATA_DISK),
        None => None,
    };
    let below = |path: &str| path.strip_prefix("./").unwrap_or(path).parse().ok();
    let named = drive.path_on_host.as_deref().and_then(below);
    named.or_else(|| booted.and_then(below)).unwrap_or_else(|| drive_path(&drive.id))
}

/// Drives that the snapshot does not need to have: nobody writes to them, so they are what they were.
fn read_only_drives(revision: &Revision, snapshot: &Snapshot, known: &[FcDrive]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for drive in known.iter().filter(|drive| !drive.needs_snapshot() && snapshot.drive(&drive.id).is_none()) {
        let rootfs = || revision.build().artifact_paths.rootfs.clone();
        let path = if drive.is_root { Some(rootfs()) } else { drive.path_on_host.clone() };
        let Some(path) = path.filter(|path| Utf8Path::new(path).is_relative()) else { continue };
        let Ok(name) = path.strip_prefix("./").unwrap_or(&path).parse::<ArtifactPath>() else { continue };
        let Some(content) = revision.contents().iter().find(|content| content.path == name) else { continue };
        let source = revision.artifact(&name);
        parts.push(Part { name, source, size: content.size, blake3: Some(content.blake3), writable: false });
    }
    Ok(parts)
}
