//! Making an instance: all of it under a name beside its place, then one rename.

use std::collections::BTreeSet;
use std::io;
use std::time::SystemTime;

use camino::{Utf8Path, Utf8PathBuf};

use super::parts::{Part, Parts, parts};
use super::place::{HALF_DONE, Place, WHOLE};
use super::{INSTANCE_JSON, Instance, InstanceOptions, Reflink, records, warm};
use crate::core::Core;
use crate::error::{At, Error, PathError, Result};
use crate::format::{InstanceFile, InstanceRecord, Owner, SEALED_MODE, Start, Strategy};
use crate::fs::atomic::{needs_copy, parent_of};
use crate::fs::copy::Advance;
use crate::fs::duplicate::{Duplicated, Fallback};
use crate::fs::lock::Flock;
use crate::fs::read::{self, File};
use crate::fs::seal::looks_sealed;
use crate::fs::writer::{Writer, writer};
use crate::id::InvalidName;
use crate::open::resolved;
use crate::progress::{Progress, Stage};
use crate::revision::Revision;
use crate::seal::in_parallel;
use crate::snapshot::Snapshot;

pub(super) fn make(
    revision: &Revision,
    dest: &Utf8Path,
    options: &InstanceOptions,
    progress: &mut dyn Progress,
) -> Result<Instance> {
    let core = revision.core();
    let _change = core.begin_change()?;
    if let Some(owner) = options.owner {
        refuse_strangers(owner)?;
    }
    let place = Place::of(core, dest)?;
    place.check_name()?;
    place.check_free()?;
    revision.check()?;
    loop {
        let snapshot = match options.start {
            Start::Boot => None,
            Start::Snapshot => Some(warm::snapshot(revision)?),
        };
        let filled = fill(revision, snapshot.as_ref(), &place, options, progress);
        // Another one may have taken its place. Then files are missing or of two moments, and nothing is damaged.
        if let Some(snapshot) = &snapshot
            && !snapshot.is_there()?
        {
            continue;
        }
        let (maker, files) = filled?;
        return maker.finish(revision, files);
    }
}

/// Makes all files beside the place.
fn fill<'a>(
    revision: &'a Revision,
    snapshot: Option<&Snapshot>,
    place: &'a Place,
    options: &'a InstanceOptions,
    progress: &mut dyn Progress,
) -> Result<(Maker<'a>, Vec<InstanceFile>)> {
    let core = revision.core();
    let parts = parts(revision, snapshot, place, options)?;
    check_space(core, place, &parts, options)?;
    place.sweep(core)?;
    let maker = Maker { core, place, options, staging: Staging::new(core, place)? };
    let bytes = parts.files.iter().filter(|part| part.writable).map(|part| part.size).fold(0, u64::saturating_add);
    let files = in_parallel(Stage::Copying, bytes, progress, |advance| maker.fill(&parts, advance))?;
    Ok((maker, files))
}

/// Says before anything is made that the files can't be given away.
fn refuse_strangers(Owner { uid, gid }: Owner) -> Result<()> {
    if [uid, gid].contains(&u32::MAX) {
        let problem = "to the system it stands for none";
        let name = InvalidName::new("user id or group id", &u32::MAX.to_string(), problem, "use a smaller number");
        return Err(name.into());
    }
    if read::user() == 0 || (uid, gid) == (read::user(), read::group()) {
        return Ok(());
    }
    Err(Error::CannotGive { uid, gid })
}

/// Refuses before the first byte what can't fit. Clones need no space, so nothing is foreseen where they work.
fn check_space(core: &Core, place: &Place, parts: &Parts, options: &InstanceOptions) -> Result<()> {
    if options.reflink == Reflink::Require {
        return Ok(());
    }
    let is_copied = |part: &&Part| part.writable || !place.is_near || options.owner.is_some();
    let (mut needed, mut largest) = (0, None);
    for part in parts.files.iter().filter(is_copied) {
        let bytes = read::bytes_on_disk(&read::metadata(&part.source)?);
        largest = largest.max(Some((bytes, &part.source)));
        needed += bytes;
    }
    let available = read::available_space(&place.parent)?;
    let Some((_, largest)) = largest.filter(|_| needed > available) else { return Ok(()) };
    match core.disk.can_clone(&read::open(largest)?, &place.parent)? {
        true => Ok(()),
        false => Err(Error::NoSpace { path: place.path.clone(), needed, available }),
    }
}

/// A directory beside the instance's place. Dropped, it is removed.
struct Staging<'a> {
    core: &'a Core,
    lock: Option<Flock>,
}

impl<'a> Staging<'a> {
    fn new(core: &'a Core, place: &Place) -> Result<Staging<'a>> {
        Ok(Staging { core, lock: Some(core.new_private_dir(&place.parent, &place.prefix(), HALF_DONE)?) })
    }

    fn path(&self) -> &Utf8Path {
        self.lock.as_ref().expect("it is there until it is published").path()
    }

    /// Gives it its name, which must be free; both last when this returns.
    fn publish(mut self, to: &Utf8Path) -> Result<(), PathError> {
        self.core.disk.publish_dir(self.path(), to)?;
        self.lock = None;
        // Before, a crash would have left what nobody knows to be half done. Under this name the mark means nothing.
        let _ = self.core.disk.chmod(to, WHOLE);
        Ok(())
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            let _ = self.core.disk.remove_tree(lock.path());
        }
    }
}

struct Maker<'a> {
    core: &'a Core,
    place: &'a Place,
    options: &'a InstanceOptions,
    staging: Staging<'a>,
}

impl Maker<'_> {
    /// Makes all files; their bytes are durable, their names are not.
    fn fill(&self, parts: &Parts, advance: Advance) -> Result<Vec<InstanceFile>> {
        let disk = &self.core.disk;
        let mut files = Vec::new();
        for part in &parts.files {
            let to = self.new_path(part.name.as_path())?;
            let strategy = match part.writable {
                true => self.duplicate(part, &to, advance)?,
                false => self.read_only(part, &to, advance)?,
            };
            let blake3 = part.blake3.filter(|_| !part.writable);
            files.push(InstanceFile { path: part.name.clone(), strategy, writable: part.writable, blake3 });
        }
        for (name, bytes) in &parts.documents {
            files.push(self.document(name, bytes)?);
        }
        if let Some((name, bytes)) = &parts.data_disk {
            let to = self.new_path(name.as_path())?;
            let file = disk.create(&to, 0o600)?;
            disk.set_len(&file, &to, *bytes)?;
            self.give(&to)?;
            disk.fsync(&file, &to)?;
            files.push(InstanceFile::made(name.clone(), true));
        }
        Ok(files)
    }

    /// A small file that was made for this instance; its bytes are durable, its name is not.
    fn document(&self, name: &str, bytes: &[u8]) -> Result<InstanceFile> {
        let (disk, to) = (&self.core.disk, self.new_path(Utf8Path::new(name))?);
        let file = disk.create(&to, 0o666)?;
        disk.write(&file, &to, bytes)?;
        self.give(&to)?;
        disk.fsync(&file, &to)?;
        Ok(InstanceFile::document(name))
    }

    /// Gives a file or directory of the instance to its owner, if it has another one.
    fn give(&self, path: &Utf8Path) -> Result<(), PathError> {
        match self.options.owner {
            Some(Owner { uid, gid }) => self.core.disk.chown(path, uid, gid),
            None => Ok(()),
        }
    }

    /// The path of a file that is to be made, with the directories above it.
    fn new_path(&self, name: &Utf8Path) -> Result<Utf8PathBuf> {
        let path = self.staging.path().join(name);
        let mut missing = Vec::new();
        for dir in path.ancestors().skip(1).take_while(|dir| *dir != self.staging.path()) {
            if read::exists(dir)? {
                break;
            }
            missing.push(dir);
        }
        for dir in missing.into_iter().rev() {
            self.core.disk.mkdir(dir, 0o700)?;
        }
        Ok(path)
    }

    /// The store's own inode, or a second file where that can't be.
    fn read_only(&self, part: &Part, to: &Utf8Path, advance: Advance) -> Result<Strategy> {
        let disk = &self.core.disk;
        // A hard link has one owner with the store's file, who could change it; and of a file that was never sealed, whoever
        // writes to ours would write to the template's.
        if self.options.owner.is_none() && looks_sealed(&read::metadata(&part.source)?, part.size) {
            match disk.link(&part.source, to) {
                Ok(()) => return Ok(Strategy::HardLink),
                Err(error) if needs_copy(error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.duplicate(part, to, advance)
    }

    /// A file of its own that only its owner may read; it is durable, its name is not.
    fn duplicate(&self, part: &Part, to: &Utf8Path, advance: Advance) -> Result<Strategy> {
        let disk = &self.core.disk;
        let fallback = match self.options.reflink {
            Reflink::Prefer => Fallback::Copy,
            Reflink::Require => Fallback::Nothing,
        };
        let source = read::open(&part.source)?;
        let before = unwritten(part, &source)?;
        let (file, how) = match disk.duplicate((&source, &part.source), to, fallback, advance) {
            Ok(made) => made,
            Err(error) if fallback == Fallback::Nothing && error.path == to => {
                return Err(self.cannot_clone(part, &error));
            }
            Err(error) => return Err(error.into()),
        };
        if unwritten(part, &source)? != before {
            return Err(Error::ArtifactInUse { path: part.source.clone() });
        }
        if !part.writable {
            disk.chmod_file(&file, to, SEALED_MODE)?;
        }
        self.give(to)?;
        disk.fsync(&file, to)?;
        Ok(match how {
            Duplicated::Cloned => Strategy::Reflink,
            Duplicated::Copied => Strategy::Copy { bytes: read::bytes_on_disk(&read::metadata(to)?) },
        })
    }

    fn cannot_clone(&self, part: &Part, error: &PathError) -> Error {
        let reason = match error.errno() {
            Some(libc::EXDEV) => "it is on another file system than the store".to_owned(),
            Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS) => {
                let name = read::file_system_name(&self.place.parent).unwrap_or("this file system");
                format!("files of {name} can't share blocks here")
            }
            _ => error.source.to_string(),
        };
        Error::CannotClone { path: self.place.path.join(part.name.as_path()), reason }
    }

    /// Writes what it came from, and makes it visible; it lasts when this returns.
    fn finish(self, revision: &Revision, files: Vec<InstanceFile>) -> Result<Instance> {
        let (core, disk, dir) = (self.core, &self.core.disk, self.staging.path().to_owned());
        let store = (resolved(core.layout.root()), records::made_at(core)?);
        let mut record = InstanceRecord::new(revision.template(), revision.id(), store, core.now());
        (record.start, record.owner, record.files) = (self.options.start, self.options.owner, files);
        record.files.push(InstanceFile::document(INSTANCE_JSON));
        self.document(INSTANCE_JSON, &record.to_json())?;
        for dir in directories(&dir, &record.files) {
            self.give(&dir)?;
            disk.fsync_dir(&dir)?;
        }
        let path = self.place.path.clone();
        // The note first: what is there is never missed.
        let _noted = if self.place.is_near { Some(records::note(self.core, &path)?) } else { None };
        match self.staging.publish(&path) {
            Err(error) if is_taken(error.kind()) => Err(Error::DestinationTaken { path }),
            published => {
                published?;
                Ok(Instance { path, record })
            }
        }
    }
}

/// The size and time of a file that nobody has sealed; one that is open for writing is refused.
fn unwritten(part: &Part, source: &File) -> Result<Option<(u64, SystemTime)>> {
    if part.blake3.is_some() {
        return Ok(None);
    }
    if writer(&part.source)? == Writer::Some {
        return Err(Error::ArtifactInUse { path: part.source.clone() });
    }
    let state = source.metadata().and_then(|found| Ok((found.len(), found.modified()?)));
    Ok(Some(state.at("read", &part.source)?))
}

fn is_taken(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory)
}

/// The directories that hold these files, each after those that it holds.
fn directories(dir: &Utf8Path, files: &[InstanceFile]) -> Vec<Utf8PathBuf> {
    let paths = files.iter().map(|file| dir.join(file.path.as_path()));
    let mut dirs: BTreeSet<Utf8PathBuf> = BTreeSet::new();
    for path in paths {
        dirs.extend(parent_of(&path).ancestors().take_while(|above| above.starts_with(dir)).map(Utf8Path::to_owned));
    }
    dirs.into_iter().rev().collect()
}
