//! Opening and making stores.

use std::io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};

use camino::{Utf8Path, Utf8PathBuf};

use crate::catalog;
use crate::core::{Core, Standing};
use crate::error::{Error, Result};
use crate::format::{Durability, StoreFormat};
use crate::fs::atomic::{Lasting, parent_of};
use crate::fs::read::FileId;
use crate::fs::{Disk, read};
use crate::layout::Layout;
use crate::options::StoreOptions;
use crate::reserve;

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
    let disk = Disk::new(options.observer.clone(), durability);
    Ok(Core::new(layout, disk, options.catalog_from.unwrap_or(catalog::FROM_REVISIONS), standing))
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
    let format = read::bytes_if_there(&path);
    if let Ok(Some(bytes)) = &format {
        let format = StoreFormat::from_json(bytes).map_err(|source| Error::Format { path, source })?;
        return Ok(Found::Store(format));
    }
    // What is behind a link is not the store's, and without it the rest looks like a directory of mvm.
    let path = layout.private();
    if read::metadata_if_there(&path)?.is_some_and(|found| !found.is_dir()) {
        return Err(Error::PrivateSwapped { path });
    }
    format?;
    let Some(metadata) = read::metadata_if_there(layout.root())? else { return Ok(Found::Nothing) };
    if !metadata.is_dir() {
        return Ok(Found::Other);
    }
    // A new file system has a `lost+found`.
    let names = read::names(layout.root())?;
    let empty = names.iter().all(|name| ["lost+found", "templates", ".store"].contains(&name.as_str()));
    Ok(match () {
        () if empty && (read::names(&layout.templates())?.is_empty() || is_our_beginning(layout)?) => Found::Nothing,
        () if names.iter().any(|name| name == "templates") => Found::Mvm,
        () => Found::Other,
    })
}

/// Whether `.store/` without its format is a store whose making was cut short, and not an mvm directory whose
/// adoption was: that one begins with an empty `.store/`, and with its mark in it from then on.
fn is_our_beginning(layout: &Layout) -> Result<bool> {
    Ok(!read::names(&layout.private())?.is_empty() && !read::exists(&layout.adopting())?)
}

/// What there is to adopt.
#[derive(Debug)]
pub(crate) enum ToAdopt {
    Store(Core),
    /// A data directory of mvm, and the durability of the store that it is to become.
    Mvm(Core, Durability),
}

/// Opens a data directory of mvm, adopted or not.
pub(crate) fn to_adopt(root: &Utf8Path, options: &StoreOptions) -> Result<ToAdopt> {
    let layout = Layout::new(resolved(root));
    let path = root.to_owned();
    match look(&layout)? {
        Found::Store(format) if options.durability.is_some_and(|wanted| wanted != format.durability) => {
            Err(Error::DurabilityFixed { path, durability: format.durability })
        }
        Found::Store(format) => Ok(ToAdopt::Store(made(layout, options, format.durability)?)),
        Found::Mvm => {
            let durability = options.durability.unwrap_or_default();
            Ok(ToAdopt::Mvm(ready(layout, options, durability, Standing::Writable)?, durability))
        }
        Found::Nothing | Found::Other => Err(Error::NotMvm { path }),
    }
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
///
/// Nobody makes up for what is left out after the format: the next one finds a store.
pub(crate) fn make(core: &Core, durability: Durability) -> Result<()> {
    let (layout, disk) = (&core.layout, &core.disk);
    disk.ensure_dir(&layout.private())?;
    let inner = [
        layout.objects(),
        layout.keys(),
        layout.drafts(),
        layout.trash(),
        layout.pins(),
        layout.leases(),
        layout.instances(),
    ];
    for dir in inner {
        disk.ensure_dir(&dir)?;
    }
    disk.ensure_dir(&layout.templates())?;
    disk.fsync_dir(layout.root())?;
    sync_above(disk, layout.root())?;
    reserve::restore(core);
    let format = StoreFormat::new(durability, core.now()).to_json();
    disk.write_file(&layout.drafts(), &layout.format_json(), &format, Lasting::Durable)?;
    disk.ensure_dir(&layout.locks())?;
    if core.public_mode()? & 0o002 != 0 {
        let root = layout.root();
        tracing::warn!("every user of the machine can change this store; take that right away: chmod -R o-w {root}");
    }
    Ok(())
}

/// The path with its links followed, as far as it exists.
pub(crate) fn resolved(path: &Utf8Path) -> Utf8PathBuf {
    let beyond = || match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => resolved(parent).join(name),
        _ => path.to_owned(),
    };
    read::canonical(path).unwrap_or_else(|_| beyond())
}
