//! Where else the store has the bytes of a digest.

use std::collections::{HashMap, HashSet};

use camino::{Utf8Path, Utf8PathBuf};

use super::Repair;
use crate::error::Result;
use crate::format::{RevisionRecord, SnapshotRecord};
use crate::fs::read::{self, FileId, Place};
use crate::fs::seal::holds;
use crate::id::Digest;
use crate::instance::{self, Known};
use crate::inventory;
use crate::verify::snapshot_record;

/// The names of all files that the revisions and their snapshots list, by digest; read once, when the first copy is looked for.
#[derive(Debug, Default)]
pub(super) struct Copies {
    paths: Option<HashMap<Digest, Vec<Utf8PathBuf>>>,
    /// Inodes that were read, and what they hold.
    intact: HashSet<(FileId, Digest)>,
}

impl Repair<'_> {
    /// A file with the bytes of this digest that is not the one at `but`.
    pub(super) fn copy_of(
        &mut self,
        digest: &Digest,
        size: Option<u64>,
        but: &Utf8Path,
    ) -> Result<Option<Utf8PathBuf>> {
        if self.copies.paths.is_none() {
            self.copies.paths = Some(self.index()?);
        }
        let listed = self.copies.paths.as_ref().and_then(|paths| paths.get(digest)).cloned().unwrap_or_default();
        let object = self.core.layout.object(digest);
        for path in [object].into_iter().chain(listed).filter(|path| path != but) {
            if self.is_intact(&path, digest, size) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// A read-only file of an instance with the bytes of this digest. Whoever has the instance may change it, so it is
    /// copied, and never linked to.
    pub(super) fn copy_in_instances(&self, digest: &Digest, size: u64) -> Result<Option<Utf8PathBuf>> {
        for instance in instance::known(self.core)?.into_iter().filter_map(Known::into_instance) {
            for file in instance.files().iter().filter(|file| file.blake3.as_ref() == Some(digest)) {
                let found = read::place(instance.path(), file.path.as_path());
                let path = instance.path().join(file.path.as_path());
                let has_size = matches!(found, Ok(Place::At(found)) if found.is_file() && found.len() == size);
                if has_size && holds(&path, digest).unwrap_or(false) {
                    return Ok(Some(path));
                }
            }
        }
        Ok(None)
    }

    fn index(&self) -> Result<HashMap<Digest, Vec<Utf8PathBuf>>> {
        let mut paths: HashMap<Digest, Vec<Utf8PathBuf>> = HashMap::new();
        for (template, id) in inventory::revisions(self.core)? {
            let bytes = read::bytes(&self.core.layout.revision_json(&template, &id)).unwrap_or_default();
            let Ok(record) = RevisionRecord::from_json(&bytes) else { continue };
            let snapshot = snapshot_record(self.core, &template, &id);
            let snapshot: Vec<_> = snapshot.iter().flat_map(SnapshotRecord::contents_in_revision).collect();
            for content in record.contents.into_iter().flatten().chain(snapshot) {
                paths.entry(content.blake3).or_default().push(self.core.layout.artifact(&template, &id, &content.path));
            }
        }
        Ok(paths)
    }

    /// Whether a file is there, reached through real directories, with these bytes.
    pub(super) fn is_intact(&mut self, path: &Utf8Path, digest: &Digest, size: Option<u64>) -> bool {
        let root = self.core.layout.root();
        let Ok(below) = path.strip_prefix(root) else { return false };
        let Ok(Place::At(metadata)) = read::place(root, below) else { return false };
        if !metadata.is_file() || size.is_some_and(|size| size != metadata.len()) {
            return false;
        }
        let known =
            self.copies.intact.contains(&(FileId::of(&metadata), *digest)) || self.now.hashed.proves(&metadata, digest);
        let intact = known || holds(path, digest).unwrap_or(false);
        if intact {
            self.copies.intact.insert((FileId::of(&metadata), *digest));
        }
        intact
    }
}
