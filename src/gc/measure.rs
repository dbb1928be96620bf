//! What revisions take on the disk, and what of it they share.

use std::collections::{HashMap, HashSet};

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;

use super::inventory::{Bound, Footprint, Inventory, Shard, Shared, SharedKind};
use crate::core::Core;
use crate::error::{PathError, Result};
use crate::format::OBJECT_MIN_SIZE;
use crate::fs::read::{self, FileId, InodeSize, Metadata, Sharing};
use crate::fs::size::{self, Counted, Found};
use crate::id::CacheKey;

/// Measures trees, and remembers what was seen of what they share.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    core: &'a Core,
    sharing: Sharing,
    inode: InodeSize,
    /// How many names each file has in instances.
    instances: HashMap<FileId, u32>,
    /// The directory of each object, by the object's inode.
    objects: HashMap<u64, usize>,
    /// How many revisions have each key.
    key_counts: HashMap<CacheKey, u32>,
    files: HashMap<FileId, usize>,
    keys: HashMap<CacheKey, Option<usize>>,
    /// The directories of the revisions that were measured.
    measured: HashSet<FileId>,
}

/// What the whole store takes.
pub(crate) fn whole(core: &Core) -> Result<u64> {
    Ok(size::of_trees(&trees(core), read::inode_size(core.layout.root())?.taken, Counted::default())?)
}

fn trees(core: &Core) -> [Utf8PathBuf; 2] {
    [core.layout.templates(), core.layout.private()]
}

/// What a walk saw.
#[derive(Debug, Default)]
struct Seen {
    /// What it began with.
    top: Option<FileId>,
    own: u64,
    inodes: u64,
    apparent: u64,
    /// Files with several names: inode, bytes, names.
    shared: Vec<(FileId, u64, u32)>,
    clones: bool,
}

impl Seen {
    fn take(&mut self, bytes: u64) {
        self.own += bytes;
        self.inodes += 1;
    }
}

impl<'a> Meter<'a> {
    pub fn new(
        core: &'a Core,
        key_counts: HashMap<CacheKey, u32>,
        instances: HashMap<FileId, u32>,
    ) -> Result<Meter<'a>> {
        let sharing = read::sharing(core.layout.root())?;
        let inode = read::inode_size(core.layout.root())?;
        let (objects, files, keys, measured) = Default::default();
        Ok(Meter { core, sharing, inode, instances, objects, key_counts, files, keys, measured })
    }

    /// What the file system keeps of an inode that goes.
    pub fn kept_of_inode(&self) -> u64 {
        self.inode.taken - self.inode.freed
    }

    pub fn has_key(&self, key: &CacheKey) -> bool {
        self.key_counts.contains_key(key)
    }

    /// Notes a directory of objects, with their inodes; gives its place.
    pub fn add_shard(&mut self, inventory: &mut Inventory, bytes: u64, objects: impl Iterator<Item = u64>) -> usize {
        let at = inventory.shards.len();
        let before = self.objects.len();
        self.objects.extend(objects.map(|inode| (inode, at)));
        inventory.shards.push(Shard { bytes, entries: (self.objects.len() - before) as u32 });
        at
    }

    /// What the whole store takes beside the revisions that were measured; `all` is what those take together.
    pub fn rest(self, all: &Footprint) -> Result<u64> {
        let theirs: HashSet<usize> = all.shared.iter().map(|&(at, _)| at).collect();
        // What leftovers share with nobody but objects is counted with the rest.
        let files = self.files.into_iter().filter(|(_, at)| theirs.contains(at)).map(|(file, _)| file).collect();
        Ok(size::of_trees(&trees(self.core), self.inode.taken, Counted { dirs: self.measured, files })?)
    }

    /// What one thing takes that nothing else holds.
    pub fn one(&self, metadata: &Metadata) -> Footprint {
        Footprint { own: self.bytes(metadata), inodes: 1, shared: Vec::new() }
    }

    /// What a file or directory takes.
    pub fn bytes(&self, metadata: &Metadata) -> u64 {
        read::bytes_on_disk(metadata) + self.inode.taken
    }

    /// Measures these revisions: the place of the template, and of the revision in it. Gives the sizes of their files.
    pub fn measure(&mut self, inventory: &mut Inventory, places: &[(usize, usize)]) -> Result<Vec<u64>> {
        let layout = &self.core.layout;
        let dir = |&(t, r): &(usize, usize)| {
            let template = &inventory.templates[t];
            layout.revision(&template.id, &template.revisions[r].id)
        };
        let dirs: Vec<_> = places.iter().map(dir).collect();
        let seen: Vec<Seen> = dirs.par_iter().map(|dir| self.walk(dir)).collect::<Result<_, _>>()?;
        let apparent = seen.iter().map(|seen| seen.apparent).collect();
        for (&(t, r), seen) in places.iter().zip(seen) {
            self.measured.extend(seen.top);
            let mut footprint = self.merge(inventory, seen);
            for key in std::mem::take(&mut inventory.templates[t].revisions[r].keys) {
                footprint.shared.extend(self.key(inventory, &key)?.map(|at| (at, 1)));
                inventory.templates[t].revisions[r].keys.push(key);
            }
            inventory.templates[t].revisions[r].footprint = footprint;
        }
        Ok(apparent)
    }

    /// Measures a tree that is no revision any more, or not yet.
    pub fn tree(&mut self, inventory: &mut Inventory, path: &Utf8Path) -> Result<Footprint> {
        let seen = self.walk(path)?;
        Ok(self.merge(inventory, seen))
    }

    fn merge(&mut self, inventory: &mut Inventory, seen: Seen) -> Footprint {
        if seen.clones || self.sharing == Sharing::Always {
            inventory.bound = Bound::AtMost;
        }
        let (mut footprint, mut places) =
            (Footprint { own: seen.own, inodes: seen.inodes, shared: Vec::new() }, HashMap::new());
        for (file, bytes, names) in seen.shared {
            let at = *self.files.entry(file).or_insert_with(|| {
                let shard = self.objects.get(&file.inode()).copied();
                let holders = names - u32::from(shard.is_some());
                let instances = self.instances.get(&file).copied().unwrap_or_default();
                inventory.shared.push(Shared { kind: SharedKind::File, bytes, holders, instances, shard });
                inventory.shared.len() - 1
            });
            let place = *places.entry(at).or_insert(footprint.shared.len());
            match footprint.shared.get_mut(place) {
                Some((_, names)) => *names += 1,
                None => footprint.shared.push((at, 1)),
            }
        }
        footprint
    }

    /// The entry of a key, as something that the revisions with this key share.
    fn key(&mut self, inventory: &mut Inventory, key: &CacheKey) -> Result<Option<usize>> {
        if let Some(&known) = self.keys.get(key) {
            return Ok(known);
        }
        let at = read::metadata_if_there(&self.core.layout.key(key))?.map(|metadata| {
            let holders = self.key_counts.get(key).copied().unwrap_or(1);
            let bytes = self.bytes(&metadata);
            inventory.shared.push(Shared { kind: SharedKind::Key, bytes, holders, instances: 0, shard: None });
            inventory.shared.len() - 1
        });
        self.keys.insert(*key, at);
        Ok(at)
    }

    /// Adds up a tree; nothing if it is gone.
    fn walk(&self, path: &Utf8Path) -> Result<Seen, PathError> {
        let mut seen = Seen::default();
        size::each(path, |path, found| {
            seen.top.get_or_insert(found.id);
            match found.is_dir {
                true => seen.take(found.on_disk + self.inode.taken),
                false => self.file(path, found, &mut seen),
            }
        })?;
        Ok(seen)
    }

    fn file(&self, path: &Utf8Path, found: &Found, seen: &mut Seen) {
        seen.apparent = seen.apparent.saturating_add(found.size);
        if self.sharing == Sharing::Possible && found.is_file && found.size >= OBJECT_MIN_SIZE && !seen.clones {
            // What can't be asked may be shared.
            seen.clones = read::has_shared_extents(path).unwrap_or(true);
        }
        let bytes = found.on_disk + self.inode.taken;
        match found.names {
            1 => seen.take(bytes),
            names => seen.shared.push((found.id, bytes, names)),
        }
    }
}
