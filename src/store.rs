//! The store: what a build tool calls.

use std::path::Path;
use std::sync::Arc;

use crate::activation;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Action, Activation, TemplateSpec};
use crate::fs::utf8;
use crate::id::{RevisionId, TemplateId};
use crate::inventory;
use crate::layout::Layout;
use crate::open;
use crate::options::{Expect, PublishOptions, StoreOptions};
use crate::publish::activate_existing;
use crate::removal::{self, Removal};
use crate::revision::Revision;
use crate::template;

/// A store of templates and their revisions; cloning is cheap, and threads may share it.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let root = camino::Utf8Path::from_path(dir.path()).unwrap().join("store");
/// use template_store::Store;
///
/// let store = Store::open_or_init(&root)?;
/// assert!(store.templates()?.is_empty());
/// # Ok::<(), template_store::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) core: Arc<Core>,
}

/// What [`Store::apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// The template is new.
    Created,
    /// It has another definition now.
    Changed,
    /// It had this definition.
    Unchanged,
}

impl Store {
    /// Opens a store that exists, to read and to change it.
    ///
    /// A data directory of mvm is opened as well; it can be read, and every change is refused.
    ///
    /// # Errors
    /// [`Error::NoStore`], [`Error::NotAStore`], [`Error::NetworkFileSystem`], or a format that this version
    /// does not know.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// use template_store::{Error, Store};
    ///
    /// let missing = Store::open(dir.join("nothing"));
    /// assert!(matches!(missing, Err(Error::NoStore { .. })));
    /// Store::open_or_init(dir.join("store"))?;
    /// Store::open(dir.join("store"))?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        Store::open_with(root, &StoreOptions::default())
    }

    /// [`open`](Store::open), with choices.
    ///
    /// # Errors
    /// As [`open`](Store::open).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// use template_store::{Store, StoreOptions};
    ///
    /// let store = Store::open_with(dir.join("store"), &StoreOptions::default().allow_network_fs())?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn open_with(root: impl AsRef<Path>, options: &StoreOptions) -> Result<Store> {
        Ok(Store { core: Arc::new(open::open(utf8(root.as_ref())?, options)?) })
    }

    /// Makes a store in a directory that is empty or does not exist; one that is there is opened.
    ///
    /// A crash leaves a store, or a beginning that the next call completes.
    ///
    /// # Errors
    /// As [`open`](Store::open), and [`Error::NotAdopted`] for a data directory of mvm.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// use template_store::{Durability, Store, StoreOptions};
    ///
    /// let store = Store::init(dir.join("scratch"), &StoreOptions::default().durability(Durability::None))?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn init(root: impl AsRef<Path>, options: &StoreOptions) -> Result<Store> {
        Ok(Store { core: Arc::new(open::init(utf8(root.as_ref())?, options)?) })
    }

    /// Opens the store at `root`, and makes it when there is none.
    ///
    /// # Errors
    /// As [`init`](Store::init).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// assert!(store.layout().format_json().exists());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn open_or_init(root: impl AsRef<Path>) -> Result<Store> {
        Store::init(root, &StoreOptions::default())
    }

    /// Whether the store takes changes; whether the file system does is not looked at.
    ///
    /// # Errors
    /// [`Error::NotAdopted`] for a data directory of mvm.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// store.check_writable()?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn check_writable(&self) -> Result<()> {
        self.core.begin_change().map(drop)
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.core.layout
    }

    /// Makes a template.
    ///
    /// A crash leaves it whole or not at all.
    ///
    /// # Errors
    /// [`Error::TemplateExists`] if it has another definition; the same one is no error.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let root = camino::Utf8Path::from_path(dir.path()).unwrap().join("store");
    /// use template_store::{Store, TemplateSpec};
    ///
    /// let store = Store::open_or_init(&root)?;
    /// let web = "web".parse()?;
    /// let spec = TemplateSpec::new(&web, ".", &"minimal".parse()?, &"worker".parse()?, "2026-01-01T00:00:00Z");
    /// store.create(&spec)?;
    /// assert_eq!(store.template(&web)?, spec);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn create(&self, spec: &TemplateSpec) -> Result<()> {
        let _change = self.core.begin_change()?;
        let id: TemplateId = check(spec)?;
        if template::create(&self.core, &id, spec)? {
            return Ok(());
        }
        let existing = template::spec(&self.core, &id)?;
        if existing.defines_the_same(spec) {
            return Ok(());
        }
        Err(Error::TemplateExists { difference: template::difference(&existing, spec), template: id })
    }

    /// Makes a template, or gives it another definition. Its revisions stay as they are.
    ///
    /// A crash leaves the old definition or the new one.
    ///
    /// # Errors
    /// A name in the definition that is not valid, or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// use template_store::{Applied, TemplateConfig};
    ///
    /// let text = "template_id = 'web'\nflake_ref = '.'\n[[variants]]\nrole = 'worker'\nvcpus = 2\nmem_mib = 512\n";
    /// for spec in TemplateConfig::from_toml(text).and_then(|config| config.specs("2026-01-01T00:00:00Z")).unwrap() {
    ///     assert_eq!(store.apply(&spec)?, Applied::Created);
    ///     assert_eq!(store.apply(&spec)?, Applied::Unchanged);
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn apply(&self, spec: &TemplateSpec) -> Result<Applied> {
        let _change = self.core.begin_change()?;
        let id: TemplateId = check(spec)?;
        let (lock, created) = template::create_and_lock(&self.core, &id, spec)?;
        if created {
            return Ok(Applied::Created);
        }
        let existing = template::spec(&self.core, &id)?;
        if existing.defines_the_same(spec) {
            // Whoever gave it this definition may have died before that was durable.
            self.core.disk.fsync_dir(&self.core.layout.template(&id))?;
            return Ok(Applied::Unchanged);
        }
        let mut changed = spec.clone();
        changed.created_at.clone_from(&existing.created_at);
        for (name, value) in existing.extra {
            changed.extra.entry(name).or_insert(value);
        }
        template::redefine(&self.core, &lock, &changed)?;
        Ok(Applied::Changed)
    }

    /// The ids of all templates, sorted.
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
    /// store.publish_dir(&web, &files)?;
    /// assert_eq!(store.templates()?, [web]);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn templates(&self) -> Result<Vec<TemplateId>> {
        inventory::templates(&self.core)
    }

    /// A template's definition.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], or a `template.json` that can't be read.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// store.publish_dir(&web, &files)?;
    /// assert_eq!(store.template(&web)?.mem_mib, 512);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn template(&self, id: &TemplateId) -> Result<TemplateSpec> {
        template::spec(&self.core, id)
    }

    /// The ids of a template's revisions, sorted, whether or not they are intact.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// assert_eq!(store.revisions(&web)?.len(), 2);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn revisions(&self, id: &TemplateId) -> Result<Vec<RevisionId>> {
        match inventory::exists(&self.core, id)? {
            true => inventory::revisions_of(&self.core, id),
            false => Err(Error::TemplateNotFound { template: id.clone() }),
        }
    }

    /// A revision, with its lease.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], [`Error::RevisionNotFound`], [`Error::Damaged`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// let old = store.revision(&web, first.id())?;
    /// assert_eq!(std::fs::read(old.kernel()).unwrap(), b"{}");
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn revision(&self, id: &TemplateId, revision: &RevisionId) -> Result<Revision> {
        Revision::open(&self.core, id, revision)
    }

    /// The current revision, with its lease. However often `current` is swapped, all that the handle shows is
    /// of one revision.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], [`Error::NoCurrent`], [`Error::DanglingCurrent`], [`Error::Damaged`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// assert_eq!(store.current(&web)?.id(), second.id());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn current(&self, id: &TemplateId) -> Result<Revision> {
        Revision::current(&self.core, id)
    }

    /// The id of the current revision, if one is set; whether it exists is not looked at.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], [`Error::DanglingCurrent`] for a text that is no revision id.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// assert_eq!(store.current_id(&web)?.as_ref(), Some(second.id()));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn current_id(&self, id: &TemplateId) -> Result<Option<RevisionId>> {
        match activation::current(&self.core, id)? {
            activation::Current::Revision(revision) => Ok(Some(revision)),
            activation::Current::Strange(_) => Err(activation::dangling(&self.core, id)?),
            activation::Current::Unset => template::spec(&self.core, id).map(|_| None),
        }
    }

    /// Who was current, the oldest first; only what took effect.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// let history: Vec<_> = store.history(&web)?.into_iter().map(|entry| entry.revision).collect();
    /// assert_eq!(history, [first.id().clone(), second.id().clone()]);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn history(&self, id: &TemplateId) -> Result<Vec<Activation>> {
        template::spec(&self.core, id)?;
        let current = activation::current(&self.core, id)?;
        Ok(activation::log(&self.core, id, &current)?.entries)
    }

    /// Makes a revision current.
    ///
    /// When this returns, it survives a power cut; a crash before leaves the old `current` or the new one.
    ///
    /// # Errors
    /// [`Error::RevisionNotFound`], [`Error::CurrentMoved`], [`Error::Damaged`] if a file is missing or changed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// use template_store::Expect;
    ///
    /// store.activate(&web, first.id(), Expect::Current(second.id().clone()))?;
    /// assert_eq!(store.current(&web)?.id(), first.id());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn activate(&self, id: &TemplateId, revision: &RevisionId, expect: Expect) -> Result<Revision> {
        let _change = self.core.begin_change()?;
        let lock = template::lock(&self.core, id)?;
        self.activate_locked(&lock, revision, expect, Action::Activate)
    }

    /// Makes the revision current that was so before; again and again, back to the first one that still exists.
    ///
    /// # Errors
    /// [`Error::NothingToRollBack`]; else as [`activate`](Store::activate).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// store.rollback(&web)?;
    /// assert_eq!(store.current(&web)?.id(), first.id());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn rollback(&self, id: &TemplateId) -> Result<Revision> {
        let _change = self.core.begin_change()?;
        let lock = template::lock(&self.core, id)?;
        let earlier = activation::rollback_target(&self.core, id)?;
        self.activate_locked(&lock, &earlier, Expect::Any, Action::Rollback)
    }

    fn activate_locked(
        &self,
        lock: &template::TemplateLock,
        revision: &RevisionId,
        expect: Expect,
        action: Action,
    ) -> Result<Revision> {
        let revision = Revision::open(&self.core, &lock.id, revision)?;
        revision.refuse_damage()?;
        // Whoever published it may have died before its name was durable.
        self.core.disk.fsync_dir(&self.core.layout.artifacts(&lock.id))?;
        activate_existing(&self.core, lock, &revision, &PublishOptions::default().expect(expect), action)?;
        Ok(revision)
    }

    /// Removes a revision, and gives its blocks back if no other has them.
    ///
    /// A crash leaves it whole, or in the trash, from where a collection deletes it.
    ///
    /// # Errors
    /// [`Error::IsCurrent`], [`Error::InUse`] unless forced; [`Error::RevisionNotFound`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?;
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # let second = store.publish_dir(&web, &files)?;
    /// use template_store::{Error, Removal};
    ///
    /// let id = first.id().clone();
    /// assert!(matches!(store.remove(&web, &id, Removal::Unused), Err(Error::InUse { .. })));
    /// drop(first);
    /// store.remove(&web, &id, Removal::Unused)?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn remove(&self, id: &TemplateId, revision: &RevisionId, how: Removal) -> Result<()> {
        removal::remove_revision(&self.core, id, revision, how)
    }

    /// Removes a template with all its revisions.
    ///
    /// A crash leaves it whole, or in the trash.
    ///
    /// # Errors
    /// [`Error::InUse`] unless forced; [`Error::TemplateNotFound`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::Removal;
    ///
    /// store.publish_dir(&web, &files)?;
    /// store.remove_template(&web, Removal::Unused)?;
    /// assert!(store.templates()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn remove_template(&self, id: &TemplateId, how: Removal) -> Result<()> {
        removal::remove_template(&self.core, id, how)
    }
}

/// Parses the names in a definition.
fn check(spec: &TemplateSpec) -> Result<TemplateId> {
    spec.profile.parse::<crate::Profile>()?;
    spec.role.parse::<crate::Role>()?;
    Ok(spec.template_id.parse()?)
}
