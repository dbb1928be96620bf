//! What a builder writes, until it is sealed.

use camino::Utf8Path;

use crate::compare::{Difference, differences};
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::{Content, with_machine};
use crate::fs::read;
use crate::options::{Resources, SealOptions};
use crate::progress::Progress;
use crate::revision::Revision;
use crate::seal::{self, Survey};
use crate::sealed::Sealed;
use crate::work::Work;

/// A private directory that a builder fills.
///
/// Finish it with [`seal`](Draft::seal), or drop it: dropping removes the directory and tells those who wait
/// for the same build that it failed ([`fail`](Draft::fail) tells them why). A process that dies leaves a dead
/// draft, which the next builder of the key or a collection removes.
#[must_use = "seal the draft to publish it; dropping it throws away what was built"]
#[derive(Debug)]
pub struct Draft {
    pub(crate) work: Work,
}

impl Draft {
    /// The directory to fill, with any tree of regular files.
    pub fn path(&self) -> &Utf8Path {
        self.work.path()
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
    pub fn seal_with(mut self, options: &SealOptions, progress: &mut dyn Progress) -> Result<Sealed> {
        match seal::seal(&mut self.work, options, progress) {
            Ok(files) => Ok(Sealed::new(self.work, options, files)),
            Err(error) => {
                let _ = self.fail(error.to_string());
                Err(error)
            }
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
        match self.compare_contents(with, options, progress) {
            Ok(found) => {
                self.abandon()?;
                Ok(found)
            }
            Err(error) => {
                let _ = self.fail(error.to_string());
                Err(error)
            }
        }
    }

    fn compare_contents(
        &self,
        with: &Revision,
        options: &SealOptions,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Difference>> {
        let disk = &self.work.core.disk;
        if with.record().reused_from.is_some() {
            self.take_machine_of(with, options)?;
        }
        let survey = Survey::of(disk, self.path(), options)?;
        // Nothing of it will be kept, so nothing of it needs to last.
        let files = seal::seal_files(&disk.without_syncs(), &survey, &self.work, progress)?;
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
        self.work.fail(message.into())
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
        self.work.abandon()
    }

    /// Does to the new configuration what reusing did to the other one.
    fn take_machine_of(&self, with: &Revision, options: &SealOptions) -> Result<()> {
        let path = self.path().join(options.names.fc_base_config.as_path());
        let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(()) };
        let Resources { vcpus, mem_mib, .. } = with.record().resources();
        let Ok(bytes) = with_machine(&bytes, vcpus, mem_mib) else { return Ok(()) };
        let disk = &self.work.core.disk;
        disk.unlink(&path)?;
        Ok(disk.write_new(&path, &bytes)?)
    }
}
