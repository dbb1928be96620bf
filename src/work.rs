//! The private directory in which a revision is made, and what it is made for.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use camino::Utf8Path;

use crate::claim::Claim;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Content, Outcome, RevisionRecord, TemplateSpec};
use crate::fs::atomic::parent_of;
use crate::fs::lock::Flock;
use crate::fs::read::{self, FileId};
use crate::fs::with_unique_name;
use crate::id::{ArtifactPath, TemplateId};
use crate::inputs::BuildInputs;
use crate::layout::REVISION_JSON;
use crate::objects::NewObjects;
use crate::options::Known;

/// What a draft is for.
#[derive(Debug, Clone)]
pub(crate) struct Purpose {
    pub template: TemplateId,
    /// The template's definition; it is made with it when it does not exist.
    pub spec: TemplateSpec,
    pub inputs: Option<BuildInputs>,
    pub known: Known,
    pub command: String,
}

/// What becomes of a directory that is not published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unpublished {
    Remove,
    /// It is somebody else's, and was only to be moved in.
    Keep,
}

/// A directory that nobody else looks into.
#[derive(Debug)]
pub(crate) struct DraftDir {
    core: Arc<Core>,
    lock: Option<Flock>,
    unpublished: Unpublished,
    has_record: bool,
}

impl DraftDir {
    pub fn new(core: &Arc<Core>) -> Result<DraftDir> {
        Ok(DraftDir::held(core, core.new_draft_dir()?, Unpublished::Remove))
    }

    /// Takes a directory that exists, to be moved in.
    pub fn adopt(core: &Arc<Core>, lock: Flock) -> DraftDir {
        DraftDir::held(core, lock, Unpublished::Keep)
    }

    fn held(core: &Arc<Core>, lock: Flock, unpublished: Unpublished) -> DraftDir {
        DraftDir { core: core.clone(), lock: Some(lock), unpublished, has_record: false }
    }

    pub fn path(&self) -> &Utf8Path {
        self.lock.as_ref().expect("it is there until it is published").path()
    }

    /// Whether the directory that is locked is still the one that the path names.
    pub fn check(&self) -> Result<()> {
        match &self.lock {
            Some(lock) if !lock.still_named()? => Err(Error::Vanished { path: lock.path().to_owned() }),
            _ => Ok(()),
        }
    }

    /// Writes `revision.json`, by way of `staging` where that is another directory; its bytes are durable, its name is
    /// not.
    ///
    /// A crash leaves no part of it in a directory that is somebody else's: an attempt after it knows it for ours.
    pub fn write_record(&mut self, record: &RevisionRecord, staging: &Utf8Path) -> Result<()> {
        self.has_record = true;
        let (disk, path) = (&self.core.disk, self.path().join(REVISION_JSON));
        if staging == self.path() {
            return Ok(disk.write_new(&path, &record.to_json())?);
        }
        let staged = staging.join(REVISION_JSON);
        disk.write_new(&staged, &record.to_json())?;
        Ok(disk.rename(&staged, &path)?)
    }

    /// Makes the directory visible as `target`; its lock is the lease of what it is now.
    ///
    /// One that was somebody else's is asked about once more, where nobody else can change it: the directory that held it
    /// may have been another user's, who could put something else in its place between any two steps.
    pub fn publish(
        mut self,
        target: &Utf8Path,
        is_whole: impl FnOnce(&Utf8Path) -> Result<bool>,
    ) -> Result<Arc<Flock>> {
        self.check()?;
        let disk = &self.core.disk;
        match self.unpublished {
            Unpublished::Remove => disk.publish_dir(self.path(), target)?,
            Unpublished::Keep => {
                disk.rename_noreplace(self.path(), target)?;
                if !(self.is_at(target).unwrap_or(false) && is_whole(target).unwrap_or(false)) {
                    let path = self.path().to_owned();
                    if disk.rename_noreplace(target, &path).is_err() {
                        // A draft that nobody holds goes with the next collection.
                        let drafts = self.core.layout.drafts();
                        with_unique_name(&drafts, "", |draft| disk.rename_noreplace(target, draft))?;
                    }
                    return Err(Error::Vanished { path });
                }
                disk.fsync_dir(parent_of(target))?;
            }
        }
        let lock = self.lock.take().expect("it was there a line ago");
        Ok(self.core.share_lease(lock.moved_to(target)))
    }

    fn is_at(&self, path: &Utf8Path) -> Result<bool> {
        let Some(lock) = &self.lock else { return Ok(false) };
        Ok(read::metadata_if_there(path)?.as_ref().map(FileId::of) == Some(lock.id()?))
    }

    /// Removes the directory, whoever's it was: what it held is in the store already.
    pub fn discard(mut self) -> Result<()> {
        self.check()?;
        let lock = self.lock.take().expect("it is there until it is published");
        self.core.disk.remove_tree(lock.path())?;
        Ok(())
    }

    /// Removes a directory that is somebody else's, by way of this one: to its owner it is there whole, or gone.
    pub fn discard_other(self, mut other: DraftDir) -> Result<()> {
        let lock = other.lock.take().expect("it is there until it is published");
        self.core.disk.rename_noreplace(lock.path(), &self.path().join("moved"))?;
        self.discard()
    }

    /// Leaves no trace of what was not published.
    pub fn give_up(mut self) -> Result<()> {
        self.clean_up()
    }

    /// Leaves the directory to a collection, which makes last what its names were exchanged for.
    pub fn leave(mut self) {
        self.lock = None;
    }

    fn clean_up(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let removed = match self.unpublished {
            Unpublished::Remove => self.core.disk.remove_tree(lock.path()).map(drop),
            // The user can try again with what is there, so the record that we put there must go.
            Unpublished::Keep if self.has_record => self.core.disk.unlink_if_there(&lock.path().join(REVISION_JSON)),
            Unpublished::Keep => Ok(()),
        };
        Ok(removed?)
    }
}

impl Drop for DraftDir {
    fn drop(&mut self) {
        let _ = self.clean_up();
    }
}

/// A file that the store itself put into a draft.
#[derive(Debug, Clone)]
pub(crate) struct Imported {
    pub content: Content,
    /// Whether it is a link to an object, not a copy.
    pub is_object: bool,
}

/// A revision that is being made.
///
/// Dropped, it removes its directory first and tells those who wait for it then.
#[derive(Debug)]
pub(crate) struct Work {
    pub core: Arc<Core>,
    pub dir: DraftDir,
    /// A directory for half-done work, if `dir` is somebody else's.
    pub staging: Option<DraftDir>,
    pub purpose: Box<Purpose>,
    pub claim: Option<Box<Claim>>,
    pub started: Instant,
    /// Files that the store itself put there, and hashed on the way.
    pub imported: HashMap<ArtifactPath, Imported>,
    /// What a remote says of them, if they are from there.
    pub pulled: Option<Box<RevisionRecord>>,
    /// What a remote had for the same inputs, by its manifest, and was damaged: what is built takes its place there.
    #[cfg(feature = "remote")]
    pub damaged_there: Vec<crate::id::Digest>,
    /// Dropped after the directory: only then is it seen that nobody has them.
    pub objects: NewObjects,
}

impl Work {
    /// Begins in a directory of its own.
    pub fn begin(core: &Arc<Core>, purpose: Box<Purpose>, mut claim: Option<Box<Claim>>) -> Result<Work> {
        let made = DraftDir::new(core).and_then(|dir| {
            claim.as_mut().map_or(Ok(()), |claim| claim.building_in(dir.path()))?;
            Ok(dir)
        });
        match made {
            Ok(dir) => Ok(Work { claim, ..Work::in_dir(core, dir, purpose) }),
            Err(error) => {
                claim.map_or(Ok(()), |claim| claim.end(Outcome::Failed(error.to_string())))?;
                Err(error)
            }
        }
    }

    /// Begins in a directory that there is; nobody waits for it.
    pub fn in_dir(core: &Arc<Core>, dir: DraftDir, purpose: Box<Purpose>) -> Work {
        let (core, started, objects) = (core.clone(), Instant::now(), NewObjects::none(core));
        Work {
            core,
            dir,
            staging: None,
            purpose,
            claim: None,
            started,
            imported: HashMap::new(),
            pulled: None,
            #[cfg(feature = "remote")]
            damaged_there: Vec::new(),
            objects,
        }
    }

    pub fn path(&self) -> &Utf8Path {
        self.dir.path()
    }

    /// Where half-done work is put.
    pub fn staging(&self) -> &Utf8Path {
        self.staging.as_ref().unwrap_or(&self.dir).path()
    }

    /// Whether the directory was somebody else's, and is to be moved in.
    pub fn is_moved(&self) -> bool {
        self.staging.is_some()
    }

    /// Ends it, and tells those who wait why it failed.
    pub fn fail(self, message: String) -> Result<()> {
        let Work { dir, claim, objects, .. } = self;
        // The blocks first: on a full disk, the next builder needs them.
        let removed = dir.give_up();
        drop(objects);
        claim.map_or(Ok(()), |claim| claim.end(Outcome::Failed(message)))?;
        removed
    }

    /// Ends it, and lets the next in line begin.
    pub fn abandon(self) -> Result<()> {
        let Work { dir, claim, objects, .. } = self;
        let removed = dir.give_up();
        drop(objects);
        claim.map_or(Ok(()), |claim| claim.abandon())?;
        removed
    }
}
