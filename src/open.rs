//! Opening and making stores.

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::{Core, Standing};
use crate::error::{Error, Result};
use crate::format::{Durability, StoreFormat};
use crate::fs::atomic::parent_of;
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
        Found::Store(format) => ready(layout, options, format.durability, Standing::Writable),
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
        Found::Store(format) => ready(layout, options, format.durability, Standing::Writable),
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

/// Makes the directory and those above it, each durable in the one that holds it.
fn make_root(disk: &Disk, root: &Utf8Path) -> Result<()> {
    if root.as_str().is_empty() || read::exists(root)? {
        return Ok(());
    }
    make_root(disk, parent_of(root))?;
    disk.ensure_dir(root)?;
    Ok(disk.fsync_dir(dir_of(root))?)
}

fn dir_of(path: &Utf8Path) -> &Utf8Path {
    match parent_of(path) {
        parent if parent.as_str().is_empty() => Utf8Path::new("."),
        parent => parent,
    }
}

/// Makes what a store consists of. `format.json` comes last: a store that has it is whole.
fn make(core: &Core, durability: Durability) -> Result<()> {
    let (layout, disk) = (&core.layout, &core.disk);
    disk.ensure_dir(&layout.private())?;
    let inner = [
        layout.objects(),
        layout.keys(),
        layout.drafts(),
        layout.trash(),
        layout.pins(),
        layout.leases(),
        layout.locks(),
    ];
    for dir in inner {
        disk.ensure_dir(&dir)?;
    }
    disk.ensure_dir(&layout.templates())?;
    disk.fsync_dir(&layout.private())?;
    disk.fsync_dir(layout.root())?;
    let format = StoreFormat::new(durability, core.now()).to_json();
    Ok(disk.write_file(&layout.drafts(), &layout.format_json(), &format, crate::fs::atomic::Lasting::Durable)?)
}

/// The path with its links followed, or as it is when it does not exist.
pub(crate) fn resolved(path: &Utf8Path) -> Utf8PathBuf {
    read::canonical(path).unwrap_or_else(|_| path.to_owned())
}
