//! Removing an instance: out of sight first, then for good.

use camino::Utf8Path;

use super::place::{HALF_DONE, Place};
use super::{INSTANCE_JSON, records};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{InstanceRecord, Strategy};
use crate::fs::with_unique_name;
use crate::fs::writer::{Writer, writer};
use crate::fs::{mounts, read};
use crate::objects;
use crate::removal::Removal;

/// Removes the instance at `dest`, and the objects that only it had.
pub(super) fn remove(core: &Core, dest: &Utf8Path, how: Removal) -> Result<()> {
    let _change = core.begin_change()?;
    let place = Place::of(core, dest)?;
    let record = check(core, &place)?;
    if how == Removal::Unused {
        refuse_if_used(&place, &record)?;
    }
    refuse_if_mounted(&place)?;
    let disk = &core.disk;
    // Whoever finds it under the other name knows by the mark that it is to go.
    disk.chmod(&place.path, HALF_DONE)?;
    let beside = with_unique_name(&place.parent, &place.prefix(), |name| disk.rename_noreplace(&place.path, name))?;
    // A power cut must not bring back a part of it under its name.
    disk.fsync_dir(&place.parent)?;
    disk.remove_tree(&beside)?;
    records::erase(core, &place.path)?;
    for file in record.files.iter().filter(|file| file.strategy == Strategy::HardLink) {
        if let Some(digest) = &file.blake3 {
            objects::release(core, digest)?;
        }
    }
    Ok(())
}

/// Refuses while something is mounted in it: that is somebody else's, and would be emptied.
fn refuse_if_mounted(place: &Place) -> Result<()> {
    match mounts::at_or_below(&place.path) {
        Some(path) => Err(Error::InstanceHasMount { path }),
        None => Ok(()),
    }
}

fn check(core: &Core, place: &Place) -> Result<InstanceRecord> {
    let refuse = |problem: String| Error::NotAnInstance { path: place.path.clone(), problem };
    match read::metadata_if_there(&place.path)? {
        None => return Err(Error::InstanceNotFound { path: place.path.clone() }),
        Some(found) if !found.is_dir() => {
            return Err(refuse(format!("it is {}", read::describe(&place.path, &found))));
        }
        Some(_) => {}
    }
    match records::record(core, &place.path)? {
        Some(record) => Ok(record),
        None if read::exists(&place.path.join(INSTANCE_JSON))? => {
            Err(refuse(format!("its {INSTANCE_JSON} names another store; name that one with --store")))
        }
        None => Err(refuse(format!("it has no {INSTANCE_JSON}"))),
    }
}

/// Refuses while somebody has a disk of it open for writing, as far as the system tells.
fn refuse_if_used(place: &Place, record: &InstanceRecord) -> Result<()> {
    for file in record.files.iter().filter(|file| file.writable) {
        let path = place.path.join(file.path.as_path());
        match writer(&path) {
            Ok(Writer::Some) => return Err(Error::InstanceInUse { path }),
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
