//! What an instance is made of.

use std::collections::BTreeSet;

use camino::Utf8PathBuf;

use super::place::Place;
use super::{FC_JSON, INSTANCE_JSON, InstanceOptions, warm};
use crate::error::{Error, Result};
use crate::format::{InstanceParts, Start, for_instance};
use crate::fs::read;
use crate::id::{ArtifactPath, Digest};
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
    pub data_disk: Option<(String, u64)>,
    /// The snapshot that they are of.
    pub snapshot: Option<Snapshot>,
}

/// The parts of what was asked for.
pub(super) fn parts(revision: &Revision, place: &Place, options: &InstanceOptions) -> Result<Parts> {
    match options.start {
        Start::Boot => cold(revision, place, options),
        Start::Snapshot => warm::parts(revision, place),
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
    for part in &mut files {
        part.writable = part.name.as_str() == paths.rootfs || config.writable.contains(&part.name);
    }
    let data_disk = config.data_disk.map(|name| (name, u64::from(resources.data_disk_mib) << 20));
    let added: Vec<&str> = [FC_JSON].into_iter().chain(data_disk.as_ref().map(|(name, _)| name.as_str())).collect();
    check_names(revision, &names, &added)?;
    Ok(Parts { files, documents: vec![(FC_JSON, config.bytes)], data_disk, snapshot: None })
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

/// Refuses a revision with an artifact in the place of what an instance adds.
pub(super) fn check_names(revision: &Revision, names: &BTreeSet<ArtifactPath>, added: &[&str]) -> Result<()> {
    for &added in added.iter().chain(&[INSTANCE_JSON]) {
        let clash = names.iter().find(|name| {
            name.as_str() == added || name.as_path().starts_with(added) || added.starts_with(&format!("{name}/"))
        });
        if let Some(name) = clash {
            return Err(Error::BadForInstance {
                template: revision.template().clone(),
                revision: revision.id().clone(),
                problem: format!(
                    "its artifact {name} has the name of a file that an instance adds; publish it under another"
                ),
            });
        }
    }
    Ok(())
}
