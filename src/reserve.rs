//! `.store/reserve`: blocks that are given up when the disk is full, so that there is room to remove things.

use std::time::Duration;

use crate::core::Core;
use crate::error::PathError;
use crate::fs::lock::BackOff;
use crate::fs::read;

/// What is set aside where there is much room, in bytes; removing needs a few blocks for names.
const SIZE: u64 = 4 * 1024 * 1024;

/// On a small file system, so small a part of what is free.
const PART: u64 = 8;

/// With less than this there is no use in it.
const LEAST: u64 = 256 * 1024;

/// Sets blocks aside, as far as there are some. A store without them works as well.
pub(crate) fn restore(core: &Core) {
    if let Err(error) = try_restore(core) {
        tracing::debug!(%error, "no blocks are set aside for a full disk");
    }
}

fn try_restore(core: &Core) -> Result<(), PathError> {
    let path = core.layout.reserve();
    match read::metadata_if_there(&path)? {
        Some(metadata) if read::bytes_on_disk(&metadata) >= LEAST => return Ok(()),
        // A power cut took its blocks.
        Some(_) => core.disk.unlink_if_there(&path)?,
        None => {}
    }
    let size = (read::available_space(core.layout.root())? / PART).min(SIZE) / LEAST * LEAST;
    if size == 0 {
        return Ok(());
    }
    let file = core.disk.create(&path, 0o600)?;
    core.disk.allocate(&file, &path, size).inspect_err(|_| drop(core.disk.unlink(&path)))
}

/// Less than this is as good as nothing: XFS has some hundred KiB in it that nobody gets.
const NOTHING: u64 = 1024 * 1024;

/// Gives the blocks back if hardly any others are left.
pub(crate) fn give_up_if_full(core: &Core) {
    let Ok(available) = read::available_space(core.layout.root()) else { return };
    if available < NOTHING {
        give_up(core, available);
    }
}

/// How long a file system may take to give blocks back that nobody has any more.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gives the blocks back, and waits until they are there: XFS frees what is unlinked in its own time.
fn give_up(core: &Core, available: u64) {
    let path = core.layout.reserve();
    let Ok(Some(metadata)) = read::metadata_if_there(&path) else { return };
    if core.disk.unlink_if_there(&path).is_err() {
        return;
    }
    let expected = available + read::bytes_on_disk(&metadata) / 2;
    let mut pauses = BackOff::new(Some(PATIENCE));
    while read::available_space(core.layout.root()).is_ok_and(|now| now < expected) && pauses.pause() {}
}
