//! The files that a snapshot is made of, before anything of it is in the store.

use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};

use super::{SnapshotFiles, named};
use crate::core::Core;
use crate::error::{At, Error, Result};
use crate::format::{Content, MEM, VMSTATE, drive_path};
use crate::fs::copy::{Advance, hash};
use crate::fs::holes::PAGE;
use crate::fs::read::{self, File, Metadata};
use crate::fs::seal::{holds, looks_sealed};
use crate::id::{ArtifactPath, Digest};
use crate::revision::Revision;

/// What tells that a file was written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    size: u64,
    modified: (i64, i64),
}

impl State {
    fn of(metadata: &Metadata) -> State {
        State { size: metadata.len(), modified: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// A file of a VM, and what it becomes.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    from: Utf8PathBuf,
    /// Below the snapshot's directory.
    to: ArtifactPath,
    state: State,
    /// What it takes on the disk, in bytes.
    blocks: u64,
    /// A sealed file with the same bytes, which may be linked to: one of the revision, or this one.
    twin: Option<(Utf8PathBuf, Digest)>,
}

/// Opens all files; each is there, a regular file, and not empty if it must not be.
pub(super) fn open(files: &SnapshotFiles) -> Result<Vec<Source>> {
    let name = |name: &str| name.parse::<ArtifactPath>().expect("our own names are valid");
    let mut sources = vec![Source::open(&files.vmstate, name(VMSTATE))?, Source::open(&files.mem, name(MEM))?];
    if let Some(empty) = sources.iter().find(|source| source.size() == 0) {
        return Err(empty.refuse("is empty; name the file that the VMM wrote when it took the snapshot"));
    }
    for (id, path) in &files.drives {
        let to = drive_path(id);
        if sources.iter().any(|source| source.to == to) {
            let problem = format!("is given for drive {id}, for which another file is given; name one");
            return Err(Error::BadSnapshot { path: path.clone(), problem });
        }
        sources.push(Source::open(path, to)?);
    }
    for source in &mut sources {
        let sealed = files.sealed.iter().find(|content| content.path == source.to && content.size == source.size());
        source.twin = sealed.map(|content| (source.from.clone(), content.blake3));
    }
    sources.sort_by(|a, b| a.to.cmp(&b.to));
    Ok(sources)
}

impl Source {
    fn open(path: &Utf8Path, to: ArtifactPath) -> Result<Source> {
        let from = named(path)?;
        let file = read::open(&from)?;
        let metadata = file.metadata().at("read", &from)?;
        let (state, blocks) = (State::of(&metadata), read::bytes_on_disk(&metadata));
        Ok(Source { file, from, to, state, blocks, twin: None })
    }

    pub fn size(&self) -> u64 {
        self.state.size
    }

    pub fn is(&self, name: &str) -> bool {
        self.to.as_str() == name
    }

    pub fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::BadSnapshot { path: self.from.clone(), problem: problem.into() }
    }

    /// Looks for a file of the revision with the same bytes; only one with the same size is a reason to read it.
    pub fn find_twin(&mut self, revision: &Revision) -> Result<()> {
        let mut same_size = revision.contents().iter().filter(|content| content.size == self.size()).peekable();
        if self.size() == 0 || same_size.peek().is_none() {
            return Ok(());
        }
        let (digest, _) = hash(&self.file, &self.from, &|_| ())?;
        for content in same_size.filter(|content| content.blake3 == digest) {
            let path = revision.artifact(&content.path);
            // A link to a file that rotted would be a drive that rotted.
            let usable = |found: &Metadata| looks_sealed(found, content.size) && read::can_share(found);
            if read::metadata_if_there(&path)?.as_ref().is_some_and(usable) && holds(&path, &digest)? {
                self.twin = Some((path, digest));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Bytes that have to be written for it if it is no clone.
    pub fn needs(&self) -> u64 {
        if self.twin.is_some() { 0 } else { self.blocks }
    }

    /// Whether a file in this directory can be a clone of it.
    pub fn can_be_cloned(&self, core: &Core, dir: &Utf8Path) -> Result<bool> {
        Ok(core.disk.can_clone(&self.file, dir)?)
    }

    /// Puts it below the directory: a link to its twin, a clone, or a copy. It is sealed and durable; its name is not.
    pub fn put(&self, core: &Core, dir: &Utf8Path, advance: Advance) -> Result<Content> {
        let to = dir.join(self.to.as_path());
        let content = |(blake3, size)| Content { path: self.to.clone(), size, blake3 };
        if let Some((twin, digest)) = &self.twin {
            match core.disk.link(twin, &to) {
                Ok(()) => {
                    advance(self.size());
                    return Ok(content((*digest, self.size())));
                }
                Err(error) if crate::fs::atomic::needs_copy(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // btrfs keeps all of an extent until nobody has any of it: a clone without its zeros would hold their blocks.
        let clones = !self.is(MEM) || read::sharing(dir)? != read::Sharing::Always;
        let run = clones.then_some(PAGE);
        let copied = core.disk.copy_sealed_with_holes((&self.file, &self.from), &to, run, advance)?;
        Ok(content(copied))
    }

    /// Refuses a file that was written to since it was opened: it is not of the moment of the others.
    pub fn check_unchanged(&self) -> Result<()> {
        let now = State::of(&self.file.metadata().at("read", &self.from)?);
        match now == self.state {
            true => Ok(()),
            false => {
                Err(self.refuse("was written to while it was copied; pause the VM until its snapshot is attached"))
            }
        }
    }
}
