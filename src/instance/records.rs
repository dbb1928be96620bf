//! `.store/instances/`: links to the instances on the store's file system.
//!
//! A link is there before its instance, durably, so that no instance is missed; one that leads to no instance of this
//! store is a leftover. Its text is the way from there to the instance: the file system of both may be mounted elsewhere
//! the next time. Its name follows from the text, so that two who make an instance at one place make the same link.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rayon::prelude::*;

use super::{INSTANCE_JSON, Instance};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{InstanceRecord, StoreFormat, Strategy};
use crate::fs::atomic::parent_of;
use crate::fs::lock::{Flock, Mode, Patience};
use crate::fs::read::{self, FileId};
use crate::id::Digest;
use crate::layout::Layout;
use crate::open::resolved;

/// A link to an instance.
#[derive(Debug)]
pub(crate) struct Known {
    pub link: Utf8PathBuf,
    pub dir: Utf8PathBuf,
    pub what: What,
}

/// What a link leads to.
#[derive(Debug)]
pub(crate) enum What {
    Instance(Box<InstanceRecord>),
    /// Something that this user may not read, or that can't be understood: it may be an instance.
    Unknown,
    Nothing,
}

impl Known {
    pub fn is_gone(&self) -> bool {
        matches!(self.what, What::Nothing)
    }

    pub fn into_instance(self) -> Option<Instance> {
        match self.what {
            What::Instance(record) => Some(Instance { path: self.dir, record: *record }),
            _ => None,
        }
    }
}

/// Notes an instance that is about to be visible; while the guard lives, nobody takes the note for a leftover.
pub(super) fn note(core: &Core, dir: &Utf8Path) -> Result<Flock> {
    let layout = layout(core);
    let instances = layout.instances();
    let guard = loop {
        match Flock::wait_for(&instances, Mode::Shared) {
            Err(error) if error.is_not_found() => {
                core.disk.ensure_dir(&instances)?;
                core.disk.fsync_dir(&layout.private())?;
            }
            locked => break locked?,
        }
    };
    match core.disk.symlink(layout.way_to(dir).as_str(), &layout.instance(dir)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    core.disk.fsync_dir(&instances)?;
    Ok(guard)
}

/// Paths without links: the way from one to another leads over their real parts.
fn layout(core: &Core) -> Layout {
    Layout::new(resolved(core.layout.root()))
}

/// Removes the link to an instance that is gone, unless another one is there by now. It need not last: one that comes
/// back is a leftover.
pub(super) fn erase(core: &Core, dir: &Utf8Path) -> Result<()> {
    let layout = layout(core);
    // Who makes another one has it already, or has not looked for its link.
    let _alone = match Flock::wait_for(&layout.instances(), Mode::Exclusive) {
        Err(error) if error.is_not_found() => return Ok(()),
        locked => locked?,
    };
    let link = layout.instance(dir);
    if look(core, &link).is_some_and(|known| known.is_gone()) {
        core.disk.unlink_if_there(&link)?;
    }
    Ok(())
}

/// All links, with the instances that they lead to.
pub(crate) fn known(core: &Core) -> Result<Vec<Known>> {
    let instances = core.layout.instances();
    let names = read::names(&instances)?;
    Ok(names.into_par_iter().filter_map(|name| look(core, &instances.join(name))).collect())
}

/// What a link leads to; `None` if it is gone, or none.
pub(crate) fn look(core: &Core, link: &Utf8Path) -> Option<Known> {
    let way = read::link_if_there(link).ok().flatten()?;
    let dir = layout(core).instance_at(Utf8Path::new(&way));
    let what = match record(core, &dir) {
        Ok(Some(record)) => What::Instance(Box::new(record)),
        // What can't be seen from here may be there: the file system may be mounted otherwise.
        Ok(None) if read::exists(parent_of(&dir)).unwrap_or(false) => What::Nothing,
        _ => What::Unknown,
    };
    Some(Known { link: link.to_owned(), dir, what })
}

/// How many names files of the store have in these instances.
pub(crate) fn links(known: &[Known]) -> HashMap<FileId, u32> {
    let of_one = |known: &Known| {
        let What::Instance(record) = &known.what else { return Vec::new() };
        let linked = record.files.iter().filter(|file| file.strategy == Strategy::HardLink);
        let found = linked.filter_map(|file| read::metadata(&known.dir.join(file.path.as_path())).ok());
        found.map(|metadata| FileId::of(&metadata)).collect()
    };
    let mut names = HashMap::new();
    for file in known.par_iter().flat_map_iter(of_one).collect::<Vec<FileId>>() {
        *names.entry(file).or_default() += 1;
    }
    names
}

/// The bytes of files with these digests that instances have, and nothing else but `objects/`.
pub(crate) fn held(core: &Core, digests: &HashSet<Digest>) -> Result<u64> {
    let known = known(core)?;
    let (names, mut seen, mut bytes) = (links(&known), HashSet::new(), 0);
    for one in &known {
        let What::Instance(record) = &one.what else { continue };
        for file in record.files.iter().filter(|file| file.strategy == Strategy::HardLink) {
            let Some(digest) = file.blake3.filter(|digest| digests.contains(digest)) else { continue };
            let Ok(found) = read::metadata(&one.dir.join(file.path.as_path())) else { continue };
            let id = FileId::of(&found);
            let object = read::metadata_if_there(&core.layout.object(&digest))?;
            let is_object = object.is_some_and(|object| FileId::of(&object) == id);
            let others = u64::from(names.get(&id).copied().unwrap_or_default()) + u64::from(is_object);
            if seen.insert(id) && found.nlink() <= others {
                bytes += read::bytes_on_disk(&found);
            }
        }
    }
    Ok(bytes)
}

/// What a directory says it came from; `None` if it is no instance of this store. One that can't be read may be one.
pub(super) fn record(core: &Core, dir: &Utf8Path) -> Result<Option<InstanceRecord>> {
    if !matches!(read::metadata_if_there(dir)?, Some(found) if found.is_dir()) {
        return Ok(None);
    }
    let path = dir.join(INSTANCE_JSON);
    let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(None) };
    let record = InstanceRecord::from_json(&bytes).map_err(|source| Error::Format { path, source })?;
    let is_ours = record.store_made_at == made_at(core)?;
    Ok(is_ours.then_some(record))
}

/// What tells this store from others, wherever it is.
pub(super) fn made_at(core: &Core) -> Result<Timestamp> {
    let path = core.layout.format_json();
    let format = StoreFormat::from_json(&read::bytes(&path)?).map_err(|source| Error::Format { path, source })?;
    Ok(format.created_at)
}

/// Removes a link, if it leads to nothing and nobody is about to make what it leads to. Says whether it is gone.
pub(crate) fn forget(core: &Core, link: &Utf8Path) -> Result<bool> {
    let Some(_alone) = Flock::take(&core.layout.instances(), Mode::Exclusive, Patience::None)? else {
        return Ok(false);
    };
    let Some(known) = look(core, link).filter(Known::is_gone) else { return Ok(false) };
    // Who removed it may have died before that was durable: an instance that comes back finds its note.
    core.disk.fsync_dir(parent_of(&known.dir))?;
    core.disk.unlink_if_there(link)?;
    Ok(true)
}
