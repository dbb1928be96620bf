//! How many bytes go with a set of revisions: an inode is freed with its last name; pure.

use super::inventory::{Footprint, Inventory};

/// What has gone so far, and what that freed.
#[derive(Debug, Clone)]
pub(crate) struct Freed<'a> {
    inventory: &'a Inventory,
    names: Vec<u32>,
    entries: Vec<u32>,
    pub bytes: u64,
    /// What stays on the disk only for instances that have links to it.
    pub held: u64,
}

impl<'a> Freed<'a> {
    pub fn nothing(inventory: &'a Inventory) -> Freed<'a> {
        Freed {
            inventory,
            names: vec![0; inventory.shared.len()],
            entries: vec![0; inventory.shards.len()],
            bytes: 0,
            held: 0,
        }
    }

    /// Takes something away; gives the bytes that are freed with it, after all that went before.
    pub fn take(&mut self, footprint: &Footprint) -> u64 {
        let mut bytes = self.inventory.freed_of(footprint.own, footprint.inodes);
        for &(at, names) in &footprint.shared {
            let shared = &self.inventory.shared[at];
            self.names[at] += names;
            if self.names[at] == shared.holders {
                bytes +=
                    self.inventory.freed_of(shared.bytes, 1) + shared.shard.map_or(0, |shard| self.take_entry(shard));
            } else if self.names[at] + shared.instances == shared.holders {
                self.held += shared.bytes;
            }
        }
        self.bytes += bytes;
        bytes
    }

    /// Takes an entry out of a directory that goes with its last one.
    pub fn take_shard_entry(&mut self, shard: usize) -> u64 {
        let bytes = self.take_entry(shard);
        self.bytes += bytes;
        bytes
    }

    fn take_entry(&mut self, shard: usize) -> u64 {
        self.entries[shard] += 1;
        let Some(directory) = self.inventory.shards.get(shard) else { return 0 };
        if self.entries[shard] == directory.entries { self.inventory.freed_of(directory.bytes, 1) } else { 0 }
    }
}

impl Inventory {
    /// What comes back of what so many inodes take.
    fn freed_of(&self, bytes: u64, inodes: u64) -> u64 {
        bytes.saturating_sub(inodes * self.kept_of_inode)
    }
}

/// The bytes that are freed if this goes and nothing else.
pub(crate) fn alone(inventory: &Inventory, footprint: &Footprint) -> u64 {
    let mut bytes = inventory.freed_of(footprint.own, footprint.inodes);
    let mut shards: Vec<usize> = Vec::new();
    for &(at, names) in &footprint.shared {
        let shared = &inventory.shared[at];
        if names == shared.holders {
            bytes += inventory.freed_of(shared.bytes, 1);
            shards.extend(shared.shard);
        }
    }
    shards.sort_unstable();
    for same in shards.chunk_by(|a, b| a == b) {
        let shard = &inventory.shards[same[0]];
        bytes += if same.len() as u32 == shard.entries { inventory.freed_of(shard.bytes, 1) } else { 0 };
    }
    bytes
}

/// The bytes that stay on the disk only for instances if this goes and nothing else.
pub(crate) fn held(inventory: &Inventory, footprint: &Footprint) -> u64 {
    let held = |&&(at, names): &&(usize, u32)| {
        let shared = &inventory.shared[at];
        shared.instances > 0 && names + shared.instances == shared.holders
    };
    footprint.shared.iter().filter(held).map(|&(at, _)| inventory.shared[at].bytes).sum()
}
