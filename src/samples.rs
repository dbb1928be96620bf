//! `samples/`: which large files are objects already, told by a few of their bytes.
//!
//! Files from outside are copied and hashed at once. For one that is an object already, the copy would be in vain: so
//! one whose sample is known is hashed first. A sample decides nothing else. One that is missing costs a copy that is
//! thrown away, one too many a look at the file before it is copied.

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::Result;
use crate::fs::read::{self, File};

/// Files from this size on have one.
const MIN_SIZE: u64 = 1024 * 1024;

/// Bytes that are looked at in three places: the start, the middle and the end.
const PIECE: u64 = 64 * 1024;

/// Whether an object has the sample of this file.
pub(crate) fn is_known(core: &Core, file: &File, path: &Utf8Path) -> Result<bool> {
    Ok(match sample(core, file, path)? {
        Some(sample) => read::exists(&sample)?,
        None => false,
    })
}

/// Notes that a file is an object from now on. A hint: an error of the disk is not worth failing for.
pub(crate) fn note(core: &Core, path: &Utf8Path, size: u64) {
    if size < MIN_SIZE {
        return;
    }
    if let Err(error) = make(core, path) {
        tracing::warn!(%error, "the sample of a large file could not be noted; its copy may be written in vain");
    }
}

fn make(core: &Core, path: &Utf8Path) -> Result<()> {
    match sample(core, &read::open(path)?, path)? {
        Some(sample) if !read::exists(&sample)? => {
            core.disk.ensure_dir(&core.layout.samples())?;
            Ok(core.disk.create(&sample, 0o666).map(drop)?)
        }
        _ => Ok(()),
    }
}

/// Takes the note away before the object goes.
pub(crate) fn forget(core: &Core, object: &Utf8Path, size: u64) {
    if size < MIN_SIZE {
        return;
    }
    if let Err(error) = remove(core, object) {
        tracing::debug!(%error, "the sample of an object was left behind");
    }
}

fn remove(core: &Core, object: &Utf8Path) -> Result<()> {
    match sample(core, &read::open(object)?, object)? {
        Some(sample) => Ok(core.disk.unlink_if_there(&sample)?),
        None => Ok(()),
    }
}

/// Where the sample of a file is noted: under the first half of the BLAKE3 of its size and of the three pieces.
fn sample(core: &Core, file: &File, path: &Utf8Path) -> Result<Option<Utf8PathBuf>> {
    let size = read::size(file, path)?;
    if size < MIN_SIZE {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&size.to_le_bytes());
    for at in [0, size / 2, size - PIECE] {
        hasher.update(&read::piece(file, path, at, PIECE as usize)?);
    }
    Ok(Some(core.layout.samples().join(&hasher.finalize().to_hex()[..32])))
}
