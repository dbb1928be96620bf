//! What the store takes on the disk, and who of it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::gc::{Bound, Footprint, Inventory, RevisionState, SharedKind, TemplateState, alone, held, scan};
use crate::id::{RevisionId, TemplateId};
use crate::store::Store;

/// What the store takes, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// Each template, in the order of their ids.
    pub templates: Vec<TemplateUsage>,
    /// What the store takes in all: each inode counts once, directories, index and leftovers included. Nothing else
    /// on the file system is counted.
    pub on_disk: u64,
    /// The bytes of all files of all revisions, as if nothing were shared and nothing were a hole.
    pub apparent: u64,
    /// The part of `on_disk` that belongs to no revision: definitions, logs, index, drafts, trash, the reserve.
    pub own: u64,
    /// The size of the file system.
    pub disk_total: u64,
    /// What this user can still write to it.
    pub disk_available: u64,
    /// What the bytes that are freed are worth.
    pub bound: Bound,
}

/// What a template takes, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TemplateUsage {
    /// Its id.
    pub template: TemplateId,
    /// All its revisions together: files that they share count once.
    #[serde(flatten)]
    pub bytes: Bytes,
    /// Each of its revisions.
    pub revisions: Vec<RevisionUsage>,
}

/// What a revision takes, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RevisionUsage {
    /// Its id.
    pub revision: RevisionId,
    /// Its bytes.
    #[serde(flatten)]
    pub bytes: Bytes,
}

/// What something takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// The sizes of its files, holes included.
    pub apparent: u64,
    /// The blocks of its files and directories.
    pub on_disk: u64,
    /// The part of `on_disk` that others have as well.
    pub shared: u64,
    /// The part of `on_disk` that nobody else has.
    pub exclusive: u64,
    /// What its removal frees: `exclusive`, but for what the file system keeps of the inodes, and what the index has.
    pub freed_if_removed: u64,
    /// The part of `shared` that only instances have as well: it is freed with the last of those.
    pub held_by_instances: u64,
}

impl Store {
    /// What the store takes on the disk.
    ///
    /// # Errors
    /// An error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// store.publish_dir(&web, &files)?;
    /// let usage = store.usage()?;
    /// assert_eq!(usage.templates[0].revisions.len(), 1);
    /// assert!(usage.on_disk >= usage.templates[0].bytes.exclusive);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn usage(&self) -> Result<Usage> {
        let (mut inventory, mut meter) = scan(&self.core)?;
        let places: Vec<(usize, usize)> = inventory.places().collect();
        let apparent = meter.measure(&mut inventory, &places)?;
        let templates = templates(&inventory, &apparent);
        let all = union(inventory.templates.iter().flat_map(|template| &template.revisions).map(|one| &one.footprint));
        let (revisions, own) = (files(&inventory, &all), meter.rest(&all)?);
        Ok(Usage {
            apparent: apparent.iter().copied().fold(0, u64::saturating_add),
            on_disk: revisions + own,
            own,
            disk_total: inventory.disk.total,
            disk_available: inventory.disk.available,
            bound: inventory.bound,
            templates,
        })
    }
}

fn templates(inventory: &Inventory, apparent: &[u64]) -> Vec<TemplateUsage> {
    let mut apparent = apparent.iter();
    let template = |template: &TemplateState| {
        let revision = |state: &RevisionState| {
            let apparent = *apparent.next().unwrap_or(&0);
            RevisionUsage { revision: state.id.clone(), bytes: bytes(inventory, &state.footprint, apparent) }
        };
        let revisions: Vec<RevisionUsage> = template.revisions.iter().map(revision).collect();
        let all = union(template.revisions.iter().map(|state| &state.footprint));
        let apparent = revisions.iter().map(|revision| revision.bytes.apparent).fold(0, u64::saturating_add);
        TemplateUsage { template: template.id.clone(), bytes: bytes(inventory, &all, apparent), revisions }
    };
    inventory.templates.iter().map(template).collect()
}

fn bytes(inventory: &Inventory, footprint: &Footprint, apparent: u64) -> Bytes {
    let on_disk = files(inventory, footprint);
    let shared = |&(at, names): &(usize, u32)| {
        let shared = &inventory.shared[at];
        if shared.kind == SharedKind::File && names < shared.holders { shared.bytes } else { 0 }
    };
    let shared = footprint.shared.iter().map(shared).sum();
    let exclusive = on_disk - shared;
    Bytes {
        apparent,
        on_disk,
        shared,
        exclusive,
        freed_if_removed: alone(inventory, footprint),
        held_by_instances: held(inventory, footprint),
    }
}

/// What the files and directories take, without the index.
fn files(inventory: &Inventory, footprint: &Footprint) -> u64 {
    let files = footprint.shared.iter().map(|&(at, _)| &inventory.shared[at]);
    footprint.own + files.filter(|shared| shared.kind == SharedKind::File).map(|shared| shared.bytes).sum::<u64>()
}

/// What several have together.
fn union<'a>(footprints: impl Iterator<Item = &'a Footprint>) -> Footprint {
    let mut all = Footprint::default();
    let mut names: BTreeMap<usize, u32> = BTreeMap::new();
    for footprint in footprints {
        all.own += footprint.own;
        all.inodes += footprint.inodes;
        for &(at, count) in &footprint.shared {
            *names.entry(at).or_default() += count;
        }
    }
    all.shared = names.into_iter().collect();
    all
}
