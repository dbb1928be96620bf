//! Asking for a build: what is there already, or the right to make it.

use std::path::Path;

use crate::claim::{Claim, Claimed, claim};
use crate::draft::Draft;
use crate::error::{Error, Result};
use crate::format::{Attempt, Outcome, TemplateSpec};
use crate::fs::utf8;
use crate::id::TemplateId;
use crate::import::{self, ImportOptions};
use crate::inputs::BuildInputs;
use crate::options::{BuildOptions, Known, Match, Resources};
use crate::progress::Progress;
use crate::reuse::{BuildRequest, Request};
use crate::revision::Revision;
use crate::sealed::Published;
use crate::store::Store;
use crate::template;
use crate::work::{Purpose, Work};

/// What asking for a build gives.
#[must_use = "a draft is to be filled and sealed"]
#[derive(Debug)]
pub enum Build {
    /// It has been built already, and is current now.
    Reused(Revision),
    /// This process builds it; others that ask wait.
    Draft(Draft),
}

/// What came of asking.
enum Right {
    Served(Revision),
    ToBuild(Box<Claim>),
}

impl Store {
    /// The revision that was made from these inputs, of `template` or of any; one open and one small read a step.
    ///
    /// # Errors
    /// An error of the disk. What is damaged is passed over.
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
    /// assert!(store.lookup(None, &inputs)?.is_none());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn lookup(&self, template: Option<&TemplateId>, inputs: &BuildInputs) -> Result<Option<Revision>> {
        self.lookup_with(template, inputs, Match::Sources, &mut ())
    }

    /// [`lookup`](Store::lookup), which says why something was passed over.
    ///
    /// # Errors
    /// As [`lookup`](Store::lookup).
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
    /// use template_store::Match;
    ///
    /// assert!(store.lookup_with(Some(&web), &inputs, Match::Strict, &mut ())?.is_none());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn lookup_with(
        &self,
        template: Option<&TemplateId>,
        inputs: &BuildInputs,
        matching: Match,
        progress: &mut dyn Progress,
    ) -> Result<Option<Revision>> {
        Request { core: &self.core, inputs, matching }.lookup(template, progress)
    }

    /// Asks for a build: what has been built from the same inputs, by any template, or a draft to fill.
    ///
    /// Of all who ask at once, in threads or processes, one gets the draft. The others wait and get its
    /// revision; if it fails, its error; if it dies, one of them gets a draft. A template that does not exist
    /// is made when the draft is published.
    ///
    /// # Errors
    /// [`Error::BuildFailed`], [`Error::AlreadyBuilding`], or an error of the disk.
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
    /// # fn run_build(out: &camino::Utf8Path) {
    /// #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
    /// # }
    /// let revision = match store.build(&web, &inputs)? {
    ///     Build::Reused(revision) => revision,
    ///     Build::Draft(draft) => {
    ///         run_build(draft.path());
    ///         draft.seal()?.publish()?
    ///     }
    /// };
    /// assert!(matches!(store.build(&web, &inputs)?, Build::Reused(_)));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn build(&self, template: &TemplateId, inputs: &BuildInputs) -> Result<Build> {
        self.build_with(template, inputs, &BuildOptions::default(), &mut ())
    }

    /// [`build`](Store::build), with choices.
    ///
    /// # Errors
    /// As [`build`](Store::build), and [`Error::BuildInProgress`] when the time to wait is over.
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
    /// # fn run_build(out: &camino::Utf8Path) {
    /// #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
    /// # }
    /// use std::time::Duration;
    /// use template_store::{BuildOptions, Known, Wait};
    ///
    /// let options = BuildOptions::default().known(Known::BuildAgain).wait(Wait::AtMost(Duration::from_secs(600)));
    /// if let Build::Draft(draft) = store.build_with(&web, &inputs, &options, &mut ())? {
    ///     run_build(draft.path());
    ///     draft.seal()?.publish()?;
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn build_with(
        &self,
        template: &TemplateId,
        inputs: &BuildInputs,
        options: &BuildOptions,
        progress: &mut dyn Progress,
    ) -> Result<Build> {
        drop(self.core.begin_change()?);
        let purpose = self.purpose(template, Some(inputs), options.resources, options.known, &options.command)?;
        match self.known_or_claimed(&purpose, inputs, options, progress)? {
            Right::Served(revision) => Ok(Build::Reused(revision)),
            Right::ToBuild(claim) => Ok(Build::Draft(Draft { work: Work::begin(&self.core, purpose, Some(claim))? })),
        }
    }

    fn known_or_claimed(
        &self,
        purpose: &Purpose,
        inputs: &BuildInputs,
        options: &BuildOptions,
        progress: &mut dyn Progress,
    ) -> Result<Right> {
        let of = Request { core: &self.core, inputs, matching: options.matching };
        let request = BuildRequest { of, purpose, publish: &options.publish };
        let may_reuse = options.known == Known::Reuse;
        if may_reuse && let Some(revision) = request.known(progress)? {
            return Ok(Right::Served(revision));
        }
        loop {
            let claim = match claim(&self.core, &inputs.key(), self.attempt(purpose), options.wait, progress)? {
                Claimed::Mine(claim) => claim,
                Claimed::Ended { attempt, outcome: Outcome::Published(id) } => {
                    // Whoever wants a new build has one: it was made while this process waited.
                    match request.built(&attempt.template, &id, progress)? {
                        Some(revision) => return Ok(Right::Served(revision)),
                        None => continue,
                    }
                }
                Claimed::Ended { attempt, outcome: Outcome::Failed(message) } => {
                    if attempt.source_hash == inputs.source_hash() {
                        return Err(Error::BuildFailed { attempt, message });
                    }
                    // What fails from other sources may well be built from ours.
                    continue;
                }
            };
            if !may_reuse {
                return Ok(Right::ToBuild(claim));
            }
            // The builder before may have been done between our look and our claim.
            match request.known_or_own(&mut ()) {
                Ok(None) => return Ok(Right::ToBuild(claim)),
                Ok(Some(revision)) => {
                    claim.abandon()?;
                    return Ok(Right::Served(revision));
                }
                Err(error) => {
                    claim.abandon()?;
                    return Err(error);
                }
            }
        }
    }

    /// Builds a key again to see whether it comes out the same: a draft that [`Draft::compare`] takes.
    ///
    /// Others that ask for the key meanwhile are not kept waiting, and nothing is published.
    ///
    /// # Errors
    /// An error of the disk.
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
    /// # fn run_build(out: &camino::Utf8Path) {
    /// #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
    /// # }
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     run_build(draft.path());
    ///     draft.seal()?.publish()?;
    /// }
    /// let again = store.rebuild(&web, &inputs)?;
    /// run_build(again.path());
    /// assert!(again.compare(&store.current(&web)?, &Default::default(), &mut ())?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn rebuild(&self, template: &TemplateId, inputs: &BuildInputs) -> Result<Draft> {
        let _change = self.core.begin_change()?;
        let purpose = self.purpose(template, Some(inputs), None, Known::BuildAgain, "")?;
        Ok(Draft { work: Work::begin(&self.core, purpose, None)? })
    }

    /// Publishes files that were built elsewhere: clones or copies of them.
    ///
    /// # Errors
    /// As [`Draft::seal`] and [`Sealed::publish`](crate::Sealed::publish); [`Error::NoSpace`] when they do not
    /// fit. The directory is left as it is.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// let revision = store.publish_dir(&web, &files)?;
    /// assert_eq!(store.publish_dir(&web, &files)?.id(), revision.id());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn publish_dir(&self, template: &TemplateId, dir: impl AsRef<Path>) -> Result<Revision> {
        Ok(self.publish_dir_with(template, dir, &ImportOptions::default(), &mut ())?.revision)
    }

    /// [`publish_dir`](Store::publish_dir), with choices; the directory itself can be moved in.
    ///
    /// # Errors
    /// As [`publish_dir`](Store::publish_dir).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::{Import, ImportOptions};
    ///
    /// let options = ImportOptions::default().how(Import::Move);
    /// store.publish_dir_with(&web, &files, &options, &mut ())?;
    /// assert!(!files.exists());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn publish_dir_with(
        &self,
        template: &TemplateId,
        dir: impl AsRef<Path>,
        options: &ImportOptions,
        progress: &mut dyn Progress,
    ) -> Result<Published> {
        drop(self.core.begin_change()?);
        let inputs = options.inputs.as_ref();
        let mut purpose = self.purpose(template, inputs, None, Known::Reuse, "")?;
        if let (Some(spec), None) = (&options.new_template, template::spec_if_there(&self.core, template)?) {
            purpose.spec = TemplateSpec { template_id: template.to_string(), ..spec.clone() };
        }
        import::publish_dir(&self.core, purpose, utf8(dir.as_ref())?, options, progress)
    }

    fn purpose(
        &self,
        template: &TemplateId,
        inputs: Option<&BuildInputs>,
        resources: Option<Resources>,
        known: Known,
        command: &str,
    ) -> Result<Box<Purpose>> {
        let spec = match template::spec_if_there(&self.core, template)? {
            Some(spec) => spec,
            None => self.new_spec(template, inputs, resources.unwrap_or_default())?,
        };
        let (template, inputs, command) = (template.clone(), inputs.cloned(), command.to_owned());
        Ok(Box::new(Purpose { template, spec, inputs, known, command }))
    }

    fn new_spec(
        &self,
        template: &TemplateId,
        inputs: Option<&BuildInputs>,
        resources: Resources,
    ) -> Result<TemplateSpec> {
        let (profile, role) = match inputs {
            Some(inputs) => (inputs.profile().clone(), inputs.role().clone()),
            None => ("minimal".parse()?, "default".parse()?),
        };
        let flake_ref = inputs.and_then(BuildInputs::flake_ref).unwrap_or(".");
        let mut spec = TemplateSpec::new(template, flake_ref, &profile, &role, &self.core.now().to_string());
        (spec.vcpus, spec.mem_mib, spec.data_disk_mib) = (resources.vcpus, resources.mem_mib, resources.data_disk_mib);
        Ok(spec)
    }

    fn attempt(&self, purpose: &Purpose) -> Attempt {
        Attempt {
            template: purpose.template.clone(),
            pid: std::process::id(),
            command: purpose.command.clone(),
            started_at: self.core.now(),
            source_hash: purpose.inputs.as_ref().and_then(BuildInputs::source_hash),
            draft: String::new(),
            outcome: None,
        }
    }
}
