//! A published revision, held by whoever looks at it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use camino::Utf8PathBuf;

use crate::activation::{self, Current};
use crate::core::Core;
use crate::damage;
use crate::error::{Error, PathError, Result};
use crate::format::{Content, FormatError, RevisionRecord, TemplateRevision};
use crate::fs::lock::Flock;
use crate::fs::read;
use crate::fs::seal::looks_sealed;
use crate::id::{ArtifactPath, CacheKey, RevisionId, TemplateId};
use crate::leases::{self, LeaseNoted};

/// One immutable build. While the handle lives, no collector removes it: it is the lease.
///
/// Cloning is cheap, and all handles of one process share one descriptor. The kernel takes the lease back
/// when the process dies.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let root = camino::Utf8Path::from_path(dir.path()).unwrap();
/// # let files = root.join("files");
/// # std::fs::create_dir(&files).unwrap();
/// # for name in ["vmlinux", "rootfs.ext4"] { std::fs::write(files.join(name), name).unwrap(); }
/// # std::fs::write(files.join("fc-base.json"), "{}").unwrap();
/// use template_store::Store;
///
/// let store = Store::open_or_init(root.join("store"))?;
/// let web = "web".parse()?;
/// store.publish_dir(&web, &files)?;
///
/// let revision = store.current(&web)?;
/// assert_eq!(std::fs::read(revision.kernel()).unwrap(), b"vmlinux");
/// # Ok::<(), template_store::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Revision {
    core: Arc<Core>,
    template: TemplateId,
    id: RevisionId,
    record: Arc<RevisionRecord>,
    lease: Arc<Flock>,
}

impl Revision {
    /// Opens a revision and takes its lease.
    pub(crate) fn open(core: &Arc<Core>, template: &TemplateId, id: &RevisionId) -> Result<Revision> {
        let lease = match core.lease(&core.layout.revision(template, id)) {
            Err(Error::Io(error)) if error.is_not_found() => return Err(not_found(core, template, id, error)),
            lease => lease?,
        };
        Revision::held(core, template, id, lease)
    }

    /// The handle of a revision whose lease is held.
    pub(crate) fn held(
        core: &Arc<Core>,
        template: &TemplateId,
        id: &RevisionId,
        lease: Arc<Flock>,
    ) -> Result<Revision> {
        let path = core.layout.revision_json(template, id);
        let bytes = match read::bytes(&path) {
            // Whoever removes by force does not ask who holds it.
            Err(error) if error.is_not_found() && !lease.still_named()? => {
                return Err(not_found(core, template, id, error));
            }
            Err(error) if error.is_not_found() => {
                return Err(Error::Damaged { path, problem: "it is missing".into() });
            }
            bytes => bytes?,
        };
        let record = RevisionRecord::from_json(&bytes).map_err(|source| match source {
            FormatError::Invalid { .. } => Error::Damaged { path, problem: source.to_string() },
            newer => Error::Format { path, source: newer },
        })?;
        let (template, id) = (template.clone(), id.clone());
        Ok(Revision { core: core.clone(), template, id, record: Arc::new(record), lease })
    }

    /// Opens the revision that `current` names.
    pub(crate) fn current(core: &Arc<Core>, template: &TemplateId) -> Result<Revision> {
        loop {
            let revision = match activation::current(core, template)? {
                Current::Revision(revision) => revision,
                Current::Strange(_) => return Err(activation::dangling(core, template)?),
                Current::Unset => return Err(no_current(core, template)?),
            };
            match Revision::open(core, template, &revision) {
                Err(Error::RevisionNotFound { .. }) if activation::dangles(core, template)? => {
                    return Err(activation::dangling(core, template)?);
                }
                // It was swapped and removed between the two.
                Err(Error::RevisionNotFound { .. }) => {}
                opened => return opened,
            }
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// The template that it is a revision of.
    pub fn template(&self) -> &TemplateId {
        &self.template
    }

    /// Its id.
    pub fn id(&self) -> &RevisionId {
        &self.id
    }

    /// Its directory. The files in it are read-only and stay what they are.
    pub fn path(&self) -> Utf8PathBuf {
        self.core.layout.revision(&self.template, &self.id)
    }

    /// All that `revision.json` says.
    pub fn record(&self) -> &RevisionRecord {
        &self.record
    }

    /// What mvm records of a build.
    pub fn build(&self) -> &TemplateRevision {
        &self.record.build
    }

    /// What it was made from; `None` if its lock file is not known.
    pub fn cache_key(&self) -> Option<CacheKey> {
        let build = &self.record.build;
        let known = !build.flake_lock_hash.is_empty();
        known.then(|| CacheKey::of_text(&build.flake_lock_hash, &build.profile, &build.role))
    }

    /// Its files; empty if this store did not publish it.
    pub fn contents(&self) -> &[Content] {
        self.record.contents.as_deref().unwrap_or_default()
    }

    /// The path of one of its files.
    pub fn artifact(&self, path: &ArtifactPath) -> Utf8PathBuf {
        self.core.layout.artifact(&self.template, &self.id, path)
    }

    /// The path of the kernel.
    pub fn kernel(&self) -> Utf8PathBuf {
        self.path().join(&self.record.build.artifact_paths.vmlinux)
    }

    /// The path of the root file system. It must never be given to a VM as a writable drive.
    pub fn rootfs(&self) -> Utf8PathBuf {
        self.path().join(&self.record.build.artifact_paths.rootfs)
    }

    /// The path of the Firecracker configuration.
    pub fn fc_base_config(&self) -> Utf8PathBuf {
        self.path().join(&self.record.build.artifact_paths.fc_base_config)
    }

    /// The path of the initial RAM disk, if there is one.
    pub fn initrd(&self) -> Option<Utf8PathBuf> {
        self.record.build.artifact_paths.initrd.as_ref().map(|name| self.path().join(name))
    }

    /// A descriptor for a child process: while the child has it, the lease goes on, even after this process died.
    ///
    /// Every program that is started while it is open inherits it, so drop it when the child runs.
    ///
    /// # Errors
    /// No descriptor is left.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use std::process::Command;
    ///
    /// let revision = store.publish_dir(&web, &files)?;
    /// let inherited = revision.lease_for_child()?;
    /// let mut child = Command::new("cat").arg(revision.kernel()).spawn().unwrap();
    /// drop(inherited);
    /// child.wait().unwrap();
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn lease_for_child(&self) -> Result<OwnedFd> {
        Ok(self.lease.for_child()?)
    }

    /// Notes that a process uses this revision, for those whom `gc` and `why` tell. The note is removed when the result
    /// is dropped; that of a process that died is removed by a collection.
    ///
    /// It keeps nothing: the lease does, which this handle is, and [`lease_for_child`](Revision::lease_for_child) hands on.
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
    /// # store.publish_dir(&web, &files)?;
    /// use template_store::gc::{Policy, Reason};
    ///
    /// let revision = store.current(&web)?;
    /// let note = revision.note_holder(std::process::id(), "boots a VM")?;
    /// let why = store.why(&web, revision.id(), &Policy::default())?;
    /// assert!(matches!(&why.reasons[1], Reason::Leased { holders } if holders[0].purpose == "boots a VM"));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn note_holder(&self, pid: u32, purpose: &str) -> Result<LeaseNoted> {
        leases::note(&self.core, &self.template, &self.id, pid, purpose)
    }

    /// Whether it is still where it was: who removes by force does not ask who holds it.
    pub(crate) fn is_there(&self) -> Result<bool> {
        Ok(self.lease.still_named()?)
    }

    /// Whether all files are there with their sizes, modes and times; their bytes are not read.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the first file that is not as it was published. [`Error::RevisionNotFound`]: it was
    /// removed by force.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// revision.check()?;
    /// std::fs::remove_file(revision.kernel()).unwrap();
    /// assert!(revision.check().is_err());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn check(&self) -> Result<()> {
        match self.first_damage()? {
            None => Ok(()),
            Some((path, problem)) if self.is_there()? => Err(Error::Damaged { path, problem: problem.to_owned() }),
            Some(_) => Err(Error::RevisionNotFound { template: self.template.clone(), revision: self.id.clone() }),
        }
    }

    /// Finds, without reading data, a file that is not what was published.
    pub(crate) fn first_damage(&self) -> Result<Option<(Utf8PathBuf, &'static str)>> {
        if damage::is_marked(&self.core, &self.template, &self.id)? {
            return Ok(Some((self.path(), "a verification found damage in it")));
        }
        for content in self.contents() {
            let path = self.artifact(&content.path);
            match read::metadata_if_there(&path)? {
                None => return Ok(Some((path, "it is missing"))),
                Some(metadata) if !looks_sealed(&metadata, content.size) => {
                    return Ok(Some((path, "it was changed after it was published")));
                }
                Some(_) => {}
            }
        }
        if self.record.contents.is_some() {
            return Ok(None);
        }
        let named = self.record.artifacts().map_err(|source| Error::Format { path: self.path(), source })?;
        for (_, name) in named {
            let path = self.artifact(&name);
            if !read::exists(&path)? {
                return Ok(Some((path, "it is missing")));
            }
        }
        Ok(None)
    }
}

/// The error of a revision whose directory can't be found.
pub(crate) fn not_found(core: &Core, template: &TemplateId, id: &RevisionId, error: PathError) -> Error {
    match read::exists(&core.layout.template(template)) {
        Ok(true) => Error::RevisionNotFound { template: template.clone(), revision: id.clone() },
        Ok(false) => Error::TemplateNotFound { template: template.clone() },
        Err(_) => error.into(),
    }
}

fn no_current(core: &Core, template: &TemplateId) -> Result<Error> {
    let template = template.clone();
    Ok(match read::exists(&core.layout.template(&template))? {
        true => Error::NoCurrent { template },
        false => Error::TemplateNotFound { template },
    })
}
