//! What a builder writes, until it is sealed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use camino::Utf8Path;

use crate::claim::Claim;
use crate::compare::{Difference, differences};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Content, Outcome, RevisionRecord, TemplateSpec};
use crate::fs::lock::Flock;
use crate::inputs::BuildInputs;
use crate::layout::REVISION_JSON;
use crate::options::{Known, SealOptions};
use crate::progress::Progress;
use crate::revision::Revision;
use crate::seal::{self, Survey};
use crate::sealed::Sealed;
use crate::{ArtifactPath, TemplateId};

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

    /// Writes `revision.json`; its bytes are durable, its name is not.
    pub fn write_record(&mut self, record: &RevisionRecord) -> Result<()> {
        self.has_record = true;
        Ok(self.core.disk.write_new(&self.path().join(REVISION_JSON), &record.to_json())?)
    }

    /// Makes the directory visible as `target`; its lock is the lease of what it is now.
    pub fn publish(mut self, target: &Utf8Path) -> Result<Arc<Flock>> {
        self.check()?;
        self.core.disk.publish_dir(self.path(), target)?;
        let lock = self.lock.take().expect("it was there a line ago");
        Ok(self.core.share_lease(lock.moved_to(target)))
    }

    /// Removes the directory, whoever's it was: what it held is in the store already.
    pub fn discard(mut self) -> Result<()> {
        let lock = self.lock.take().expect("it is there until it is published");
        Ok(self.core.disk.remove_tree(lock.path())?)
    }
}

impl DraftDir {
    /// Leaves no trace of what was not published.
    pub fn give_up(mut self) -> Result<()> {
        self.clean_up()
    }

    fn clean_up(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        let removed = match self.unpublished {
            Unpublished::Remove => self.core.disk.remove_tree(lock.path()),
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

/// A private directory that a builder fills.
///
/// Finish it with [`seal`](Draft::seal), or drop it: dropping removes the directory and tells those who wait
/// for the same build that it failed ([`fail`](Draft::fail) tells them why). A process that dies leaves a dead
/// draft, which the next builder of the key or a collection removes.
#[must_use = "seal the draft to publish it; dropping it throws away what was built"]
#[derive(Debug)]
pub struct Draft {
    pub(crate) core: Arc<Core>,
    pub(crate) dir: DraftDir,
    pub(crate) purpose: Box<Purpose>,
    pub(crate) claim: Option<Box<Claim>>,
    pub(crate) started: Instant,
    /// Files that the store itself put there, and hashed on the way.
    pub(crate) imported: HashMap<ArtifactPath, Content>,
    /// A directory for half-done work, if the draft's own is somebody else's.
    pub(crate) staging: Option<DraftDir>,
}

impl Draft {
    pub(crate) fn new(core: &Arc<Core>, purpose: Box<Purpose>, mut claim: Option<Box<Claim>>) -> Result<Draft> {
        let made = DraftDir::new(core).and_then(|dir| {
            claim.as_mut().map_or(Ok(()), |claim| claim.building_in(dir.path()))?;
            Ok(dir)
        });
        match made {
            Ok(dir) => Ok(Draft { claim, ..Draft::in_dir(core, dir, purpose) }),
            Err(error) => {
                claim.map_or(Ok(()), |claim| claim.end(Outcome::Failed(error.to_string())))?;
                Err(error)
            }
        }
    }

    /// A draft in a directory that there is, which nobody waits for.
    pub(crate) fn in_dir(core: &Arc<Core>, dir: DraftDir, purpose: Box<Purpose>) -> Draft {
        Draft {
            core: core.clone(),
            dir,
            purpose,
            claim: None,
            started: Instant::now(),
            imported: HashMap::new(),
            staging: None,
        }
    }

    /// The directory to fill, with any tree of regular files.
    pub fn path(&self) -> &Utf8Path {
        self.dir.path()
    }

    /// Hashes and deduplicates the files and makes them durable; the builder must be done.
    ///
    /// # Errors
    /// [`Error::BadDraft`] for what is not a regular file or directory, [`Error::MissingArtifact`], an error of
    /// the disk. The draft is gone then, and those who wait for the same build get the same error.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let root = camino::Utf8Path::from_path(dir.path()).unwrap().join("store");
    /// use template_store::{Build, BuildInputs, Store};
    ///
    /// let store = Store::open_or_init(&root)?;
    /// let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// let revision = match store.build(&"web".parse()?, &inputs)? {
    ///     Build::Reused(revision) => revision,
    ///     Build::Draft(draft) => {
    ///         for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] {
    ///             std::fs::write(draft.path().join(name), "{}").unwrap();
    ///         }
    ///         draft.seal()?.publish()?
    ///     }
    /// };
    /// assert_eq!(store.current(&"web".parse()?)?.id(), revision.id());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn seal(self) -> Result<Sealed> {
        self.seal_with(&SealOptions::default(), &mut ())
    }

    /// [`seal`](Draft::seal), with a choice of names and a view of its progress.
    ///
    /// # Errors
    /// As [`seal`](Draft::seal).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Build, BuildInputs};
    /// # let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// use template_store::{ArtifactNames, SealOptions};
    ///
    /// let names = ArtifactNames::default().vmlinux("bzImage".parse::<template_store::ArtifactPath>()?);
    /// let options = SealOptions::default().names(names).revision("2026.11".parse::<template_store::RevisionId>()?);
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     for name in ["bzImage", "rootfs.ext4", "fc-base.json"] {
    ///         std::fs::write(draft.path().join(name), "{}").unwrap();
    ///     }
    ///     let revision = draft.seal_with(&options, &mut ())?.publish()?;
    ///     assert_eq!(revision.id().as_str(), "2026.11");
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn seal_with(self, options: &SealOptions, progress: &mut dyn Progress) -> Result<Sealed> {
        match seal::seal(&self, options, progress) {
            Ok(files) => Ok(Sealed::new(self, options, files)),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Compares what was built with a revision, publishes nothing and throws the draft away: a build that is
    /// reproducible leaves no difference.
    ///
    /// # Errors
    /// As [`seal`](Draft::seal).
    pub fn compare(
        self,
        with: &Revision,
        options: &SealOptions,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Difference>> {
        let compared = self.compare_contents(with, options, progress);
        match compared {
            Ok(found) => {
                self.abandon()?;
                Ok(found)
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn compare_contents(
        &self,
        with: &Revision,
        options: &SealOptions,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Difference>> {
        let survey = Survey::of(&self.core.disk, self.path(), options)?;
        // Nothing of it will be kept, so nothing of it needs to last.
        let files = seal::seal_files(&self.core.disk.without_syncs(), &survey, self, progress)?;
        let contents: Vec<Content> = files.into_iter().map(|file| file.content).collect();
        differences((&with.path(), with.contents()), (self.path(), &contents))
    }

    /// Throws the draft away and tells those who wait for the same build why it failed.
    ///
    /// # Errors
    /// The draft could not be removed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Build, BuildInputs};
    /// # let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     draft.fail("the kernel does not compile")?;
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn fail(self, message: impl Into<String>) -> Result<()> {
        let Draft { dir, claim, .. } = self;
        // The blocks first: on a full disk, the next builder needs them.
        let removed = dir.give_up();
        claim.map_or(Ok(()), |claim| claim.end(Outcome::Failed(message.into())))?;
        removed
    }

    /// Throws the draft away and lets the next in line build.
    ///
    /// # Errors
    /// The draft could not be removed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Build, BuildInputs};
    /// # let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     draft.abandon()?;
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn abandon(self) -> Result<()> {
        let Draft { dir, claim, .. } = self;
        let removed = dir.give_up();
        claim.map_or(Ok(()), |claim| claim.abandon())?;
        removed
    }

    fn failed(self, error: Error) -> Error {
        let _ = self.fail(error.to_string());
        error
    }

    /// Where half-done work is put.
    pub(crate) fn staging(&self) -> &Utf8Path {
        self.staging.as_ref().unwrap_or(&self.dir).path()
    }
}
