//! `objects/`: one inode for all files with the same bytes.
//!
//! An object is a hard link to the file of a revision; the kernel's link count says how many revisions use
//! it. Linking holds the shard's lock shared, and the sweep of an object that nobody uses holds it
//! exclusively, so that no link is made to an object while it goes.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use camino::Utf8Path;

use crate::core::Core;
use crate::damage;
use crate::error::{PathError, Result};
use crate::format::Content;
use crate::fs::atomic::needs_copy;
use crate::fs::copy::{Advance, hash};
use crate::fs::lock::{Flock, Mode};
use crate::fs::read::{self, File, FileId};
use crate::fs::remove::Removed;
use crate::fs::seal::{holds, looks_sealed};
use crate::id::Digest;
use crate::samples;

/// What became of a file that was to be an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interned {
    /// Its inode is the object now.
    New,
    /// It is a link to the object that was there.
    Shared,
    /// Its inode took the place of an object that had rotted; whoever links to that one has bad bytes.
    Replaced { rotten: FileId },
    /// It keeps its own inode.
    Private { reason: String },
}

/// Objects that are made for a draft; those that nobody has go when this is dropped, which must be after its files.
#[derive(Debug)]
pub(crate) struct NewObjects {
    core: Arc<Core>,
    digests: Vec<Digest>,
}

impl NewObjects {
    pub fn none(core: &Arc<Core>) -> NewObjects {
        NewObjects { core: core.clone(), digests: Vec::new() }
    }

    pub fn add(&mut self, digest: impl IntoIterator<Item = Digest>) {
        self.digests.extend(digest);
    }

    /// The draft is a revision now, which has them.
    pub fn keep(mut self) {
        self.digests.clear();
    }
}

impl Drop for NewObjects {
    fn drop(&mut self) {
        for digest in &self.digests {
            // What can't be removed now, a collection will.
            drop(release(&self.core, digest));
        }
    }
}

/// Makes a sealed, durable file of a draft share its inode with all files of the same bytes.
///
/// The object that is there is read and compared: linking to bytes that rotted would throw good ones away.
/// A crash leaves the file as it was, or linked; both have its bytes.
pub(crate) fn intern(core: &Core, file: &Utf8Path, content: &Content, staging: &Utf8Path) -> Result<Interned> {
    let _shard = lock_shard(core, &content.blake3)?;
    let object = core.layout.object(&content.blake3);
    loop {
        match core.disk.link(file, &object) {
            Ok(()) => {
                samples::note(core, file, content.size);
                return Ok(Interned::New);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) if needs_copy(error.kind()) => return Ok(private(&error)),
            Err(error) => return Err(error.into()),
        }
        match join(core, file, &object, content, staging) {
            Err(crate::Error::Io(error)) if error.is_not_found() => {} // its name went meanwhile
            joined => return joined,
        }
    }
}

/// Gives a file from outside the name `to` without a copy, if its bytes are an object; `None` if they are none, or the
/// object is not to be trusted. The source keeps its bytes: the object is not read.
///
/// A crash leaves the name, or nothing.
pub(crate) fn link_known(
    core: &Core,
    source: (&File, &Utf8Path),
    to: &Utf8Path,
    advance: Advance,
) -> Result<Option<(Digest, u64)>> {
    if !samples::is_known(core, source.0, source.1)? || damage::is_any(core)? {
        return Ok(None);
    }
    let (digest, size) = hash(source.0, source.1, advance)?;
    Ok(link(core, (&digest, size), to)?.then_some((digest, size)))
}

/// Gives an object the name `to` as well; `false` if there is none that looks as it was sealed, or no link can be made.
///
/// A crash leaves the name, or nothing.
pub(crate) fn link(core: &Core, (digest, size): (&Digest, u64), to: &Utf8Path) -> Result<bool> {
    let object = core.layout.object(digest);
    // Who only asks makes no directory.
    if !read::exists(&object)? {
        return Ok(false);
    }
    let _shard = lock_shard(core, digest)?;
    match read::metadata_if_there(&object)? {
        Some(metadata) if looks_sealed(&metadata, size) && read::can_share(&metadata) => {}
        _ => return Ok(false),
    }
    match core.disk.link(&object, to) {
        Ok(()) => Ok(true),
        Err(error) if needs_copy(error.kind()) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Keeps objects from being swept while they are linked to.
fn lock_shard(core: &Core, digest: &Digest) -> Result<Flock> {
    let shard = core.layout.object_shard(digest);
    loop {
        core.disk.ensure_dir(&shard)?;
        match Flock::wait_for(&shard, Mode::Shared) {
            // An empty one is removed, and may be so between the two.
            Err(error) if error.is_not_found() => {}
            locked => return Ok(locked?),
        }
    }
}

/// Links the file to an object that exists, if that one is intact.
fn join(core: &Core, file: &Utf8Path, object: &Utf8Path, content: &Content, staging: &Utf8Path) -> Result<Interned> {
    let (ours, theirs) = (read::metadata(file)?, read::metadata(object)?);
    let (our_id, their_id) = (FileId::of(&ours), FileId::of(&theirs));
    // The kernel does nothing when both names of a rename are one inode; so would we.
    if our_id == their_id {
        return Ok(Interned::Shared);
    }
    if !looks_sealed(&theirs, content.size) || !holds(object, &content.blake3)? {
        return match core.disk.replace_by_link(staging, file, object) {
            Ok(()) => Ok(Interned::Replaced { rotten: their_id }),
            Err(error) if needs_copy(error.kind()) => Ok(private(&error)),
            Err(error) => Err(error.into()),
        };
    }
    if !read::can_share(&theirs) {
        return Ok(Interned::Private { reason: "the stored file belongs to another user, who could change it".into() });
    }
    match core.disk.replace_by_link(staging, object, file) {
        Ok(()) => Ok(Interned::Shared),
        // The inode has as many names as the file system allows: ours is the object from now on.
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
            core.disk.replace_by_link(staging, file, object)?;
            Ok(Interned::New)
        }
        Err(error) if needs_copy(error.kind()) => Ok(private(&error)),
        Err(error) => Err(error.into()),
    }
}

fn private(error: &PathError) -> Interned {
    let reason = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the stored file belongs to another user (fs.protected_hardlinks)".to_owned()
        }
        _ => error.source.to_string(),
    };
    Interned::Private { reason }
}

/// Removes the object of a digest if no revision has it any more; its directory too, if it was the last one there.
pub(crate) fn release(core: &Core, digest: &Digest) -> Result<Removed> {
    let mut removed = Removed::default();
    let shard = core.layout.object_shard(digest);
    let object = core.layout.object(digest);
    let _shard = match Flock::wait_for(&shard, Mode::Exclusive) {
        Ok(lock) => lock,
        Err(error) if error.is_not_found() => return Ok(removed),
        Err(error) => return Err(error.into()),
    };
    match read::metadata_if_there(&object)? {
        Some(metadata) if metadata.nlink() == 1 => {
            samples::forget(core, &object, metadata.len());
            core.disk.unlink(&object)?;
            removed += Removed::name_of(&metadata);
        }
        _ => return Ok(removed),
    }
    let metadata = read::metadata(&shard)?;
    match core.disk.rmdir(&shard) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        emptied => {
            emptied?;
            removed += Removed::name_of(&metadata);
        }
    }
    Ok(removed)
}
