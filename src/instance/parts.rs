//! What an instance is made of.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};

use super::place::Place;
use super::{FC_JSON, INSTANCE_JSON, InstanceOptions, warm};
use crate::error::{Error, Result};
use crate::format::{InstanceParts, for_instance};
use crate::fs::read;
use crate::id::{ArtifactPath, Digest};
use crate::open::resolved;
use crate::options::Resources;
use crate::revision::Revision;
use crate::snapshot::Snapshot;

/// A file that the store has.
#[derive(Debug)]
pub(super) struct Part {
    pub name: ArtifactPath,
    pub source: Utf8PathBuf,
    /// In bytes.
    pub size: u64,
    /// `None` for a file that was never sealed.
    pub blake3: Option<Digest>,
    pub writable: bool,
}

/// What an instance is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub files: Vec<Part>,
    /// What is written for this instance: names and bytes.
    pub documents: Vec<(&'static str, Vec<u8>)>,
    /// The name and size in bytes of an empty disk.
    pub data_disk: Option<(ArtifactPath, u64)>,
}

/// The parts of what was asked for: of a snapshot, if there is one.
pub(super) fn parts(
    revision: &Revision,
    snapshot: Option<&Snapshot>,
    place: &Place,
    options: &InstanceOptions,
) -> Result<Parts> {
    match snapshot {
        None => cold(revision, place, options),
        Some(snapshot) => warm::parts(revision, snapshot, place),
    }
}

/// The parts from which a VM boots.
fn cold(revision: &Revision, place: &Place, options: &InstanceOptions) -> Result<Parts> {
    let mut files = artifacts(revision)?;
    let names: BTreeSet<ArtifactPath> = files.iter().map(|part| part.name.clone()).collect();
    let record = revision.record();
    let mut resources: Resources = record.resources();
    resources.data_disk_mib = options.data_disk_mib.unwrap_or(resources.data_disk_mib);
    let paths = &record.build.artifact_paths;
    let instance = InstanceParts {
        dir: &place.path,
        vmlinux: &paths.vmlinux,
        rootfs: &paths.rootfs,
        initrd: paths.initrd.as_deref(),
        artifacts: &names,
        resources,
    };
    let base = revision.fc_base_config();
    let config =
        for_instance(&read::bytes(&base)?, &instance).map_err(|source| Error::Format { path: base.clone(), source })?;
    for (id, path) in &config.of_host {
        refuse_shared(revision, id, path)?;
    }
    for part in &mut files {
        part.writable = part.name.as_str() == paths.rootfs || config.writable.contains(&part.name);
    }
    let data_disk = config.data_disk.map(|name| (name, u64::from(resources.data_disk_mib) << 20));
    let added: Vec<&str> = [FC_JSON].into_iter().chain(data_disk.as_ref().map(|(name, _)| name.as_str())).collect();
    check_names(revision, &names, &added)?;
    Ok(Parts { files, documents: vec![(FC_JSON, config.bytes)], data_disk })
}

/// The files of the revision; of one that lists none, those that its record names.
fn artifacts(revision: &Revision) -> Result<Vec<Part>> {
    let part = |name: ArtifactPath, size, blake3| Part {
        source: revision.artifact(&name),
        name,
        size,
        blake3,
        writable: false,
    };
    if let Some(contents) = &revision.record().contents {
        let listed = contents.iter().map(|content| part(content.path.clone(), content.size, Some(content.blake3)));
        return Ok(listed.collect());
    }
    let named = revision.record().artifacts();
    let named = named.map_err(|source| Error::Format { path: revision.path(), source })?;
    let mut parts = Vec::new();
    for (_, name) in named {
        let size = read::metadata(&revision.artifact(&name))?.len();
        parts.push(part(name, size, None));
    }
    Ok(parts)
}

/// Refuses a file of the host to which each VM of the template would write. A device may be meant for all, and keeps them
/// apart, or not, in ways of its own.
fn refuse_shared(revision: &Revision, id: &str, path: &Utf8Path) -> Result<()> {
    let root = resolved(revision.core().layout.root());
    let problem = match read::canonical(path) {
        Ok(real) if real.starts_with(&root) => "a file of the store, to which no VM may write",
        Ok(real) if read::is_block_device(&real) => return Ok(()),
        _ => "no block device, and every VM of the template would write to it",
    };
    Err(bad(
        revision,
        format!(
            "its drive {id} is writable and is {path}, which is {problem}; publish the file with the revision and name it \
             by a relative path, or make the drive read-only"
        ),
    ))
}

/// Refuses a revision with an artifact in the place of what an instance adds, and two files that would be one.
pub(super) fn check_names(revision: &Revision, names: &BTreeSet<ArtifactPath>, added: &[&str]) -> Result<()> {
    let clash = |name: &Utf8Path, other: &&str| name.starts_with(other) || Utf8Path::new(other).starts_with(name);
    let added: Vec<&str> = added.iter().chain(&[INSTANCE_JSON]).copied().collect();
    if let Some(name) = names.iter().find(|name| added.iter().any(|other| clash(name.as_path(), other))) {
        let problem =
            format!("its artifact {name} has the name of a file that an instance adds; publish it under another");
        return Err(bad(revision, problem));
    }
    for (at, name) in added.iter().enumerate() {
        if let Some(other) = added[at + 1..].iter().find(|other| clash(Utf8Path::new(name), other)) {
            let problem = format!("its data disk would be in the place of {name} or {other}; name another file for it");
            return Err(bad(revision, problem));
        }
    }
    Ok(())
}

pub(super) fn bad(revision: &Revision, problem: String) -> Error {
    Error::BadForInstance { template: revision.template().clone(), revision: revision.id().clone(), problem }
}
