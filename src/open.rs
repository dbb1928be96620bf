//! Opening and making stores.

use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::{Core, Standing};
use crate::error::{Error, Result};
use crate::format::{Durability, StoreFormat};
use crate::fs::atomic::{Lasting, parent_of};
use crate::fs::read::FileId;
use crate::fs::{Disk, read};
use crate::layout::Layout;
use crate::options::StoreOptions;

/// What is in a directory.
#[derive(Debug)]
enum Found {
    Store(StoreFormat),
    /// Nothing, or a store whose making was cut short.
    Nothing,
    /// A data directory of mvm.
    Mvm,
    Other,
}

pub(crate) fn open(root: &Utf8Path, options: &StoreOptions) -> Result<Core> {
    let layout = Layout::new(resolved(root));
    match look(&layout)? {
        Found::Store(format) => made(layout, options, format.durability),
        Found::Mvm => ready(layout, options, Durability::Full, Standing::NotAdopted),
        Found::Nothing => Err(Error::NoStore { path: root.to_owned() }),
        Found::Other => Err(Error::NotAStore { path: root.to_owned() }),
    }
}

pub(crate) fn init(root: &Utf8Path, options: &StoreOptions) -> Result<Core> {
    let layout = Layout::new(resolved(root));
    match look(&layout)? {
        Found::Store(format) if options.durability.is_some_and(|wanted| wanted != format.durability) => {
            Err(Error::DurabilityFixed { path: root.to_owned(), durability: format.durability })
        }
        Found::Store(format) => made(layout, options, format.durability),
        Found::Mvm => Err(Error::NotAdopted { path: root.to_owned() }),
        Found::Other => Err(Error::NotAStore { path: root.to_owned() }),
        Found::Nothing => {
            let durability = options.durability.unwrap_or_default();
            let disk = Disk::new(options.observer.clone(), durability);
            make_root(&disk, layout.root())?;
            let layout = Layout::new(resolved(root));
            let core = ready(layout, options, durability, Standing::Writable)?;
            make(&core, durability)?;
            Ok(core)
        }
    }
}

fn ready(layout: Layout, options: &StoreOptions, durability: Durability, standing: Standing) -> Result<Core> {
    if let (Some(name), false) = (read::network_file_system(layout.root())?, options.network_fs) {
        return Err(Error::NetworkFileSystem { path: layout.root().to_owned(), name });
    }
    Ok(Core::new(layout, Disk::new(options.observer.clone(), durability), standing))
}

/// A store that has its format: whoever made it may have died before that was durable.
fn made(layout: Layout, options: &StoreOptions, durability: Durability) -> Result<Core> {
    let core = ready(layout, options, durability, Standing::Writable)?;
    if read::exists(&core.layout.locks())? {
        return Ok(core);
    }
    match finish(&core) {
        // It can still be read.
        Err(Error::Io(error)) if matches!(error.kind(), ReadOnlyFilesystem | PermissionDenied) => Ok(core),
        finished => finished.map(|()| core),
    }
}

/// Makes all names durable, and then the directory that says so.
fn finish(core: &Core) -> Result<()> {
    sync_above(&core.disk, core.layout.root())?;
    core.disk.fsync_dir(&core.layout.private())?;
    Ok(core.disk.ensure_dir(&core.layout.locks())?)
}

fn look(layout: &Layout) -> Result<Found> {
    let path = layout.format_json();
    if let Some(bytes) = read::bytes_if_there(&path)? {
        let format = StoreFormat::from_json(&bytes).map_err(|source| Error::Format { path, source })?;
        return Ok(Found::Store(format));
    }
    let Some(metadata) = read::metadata_if_there(layout.root())? else { return Ok(Found::Nothing) };
    if !metadata.is_dir() {
        return Ok(Found::Other);
    }
    // A new file system has a `lost+found`; `.store` without its format is a beginning of ours.
    let names = read::names(layout.root())?;
    let has = |name: &str| names.iter().any(|found| found == name);
    let empty = names.iter().all(|name| ["lost+found", "templates", ".store"].contains(&name.as_str()));
    Ok(match () {
        () if empty && (has(".store") || read::names(&layout.templates())?.is_empty()) => Found::Nothing,
        () if has("templates") => Found::Mvm,
        () => Found::Other,
    })
}

/// Makes the directory and those above it.
fn make_root(disk: &Disk, root: &Utf8Path) -> Result<()> {
    if root.as_str().is_empty() || read::exists(root)? {
        return Ok(());
    }
    make_root(disk, parent_of(root))?;
    Ok(disk.ensure_dir(root)?)
}

/// Makes the names of a directory and of those above it durable, up to the root of the file system.
///
/// What this user may not read, this user did not make.
fn sync_above(disk: &Disk, dir: &Utf8Path) -> Result<()> {
    let device = |dir: &Utf8Path| read::metadata(dir).map(|metadata| FileId::of(&metadata));
    for (dir, parent) in dir.ancestors().zip(dir.ancestors().skip(1)) {
        if !device(dir)?.same_file_system(device(parent)?) {
            break;
        }
        match disk.fsync_dir(parent) {
            Err(error) if error.kind() == PermissionDenied => break,
            synced => synced?,
        }
    }
    Ok(())
}

/// Makes what a store consists of. A store that has `format.json` is whole, and one that has `locks/` is durable.
fn make(core: &Core, durability: Durability) -> Result<()> {
    let (layout, disk) = (&core.layout, &core.disk);
    disk.ensure_dir(&layout.private())?;
    let inner = [layout.objects(), layout.keys(), layout.drafts(), layout.trash(), layout.pins(), layout.leases()];
    for dir in inner {
        disk.ensure_dir(&dir)?;
    }
    disk.ensure_dir(&layout.templates())?;
    disk.fsync_dir(layout.root())?;
    sync_above(disk, layout.root())?;
    let format = StoreFormat::new(durability, core.now()).to_json();
    disk.write_file(&layout.drafts(), &layout.format_json(), &format, Lasting::Durable)?;
    Ok(disk.ensure_dir(&layout.locks())?)
}

/// The path with its links followed, or as it is when it does not exist.
pub(crate) fn resolved(path: &Utf8Path) -> Utf8PathBuf {
    read::canonical(path).unwrap_or_else(|_| path.to_owned())
}
