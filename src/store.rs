//! The store: what a build tool calls.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::activation;
use crate::catalog::{self, Overview};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Activation, TemplateSpec};
use crate::fs::utf8;
use crate::id::{RevisionId, TemplateId};
use crate::inventory;
use crate::layout::Layout;
use crate::open;
use crate::options::StoreOptions;
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

    /// What is known of the revisions of a large store without reading each: the catalog that its collections write.
    ///
    /// What is not in it, or was changed since, is left out, and so is what has a mark of damage. Nobody has looked at the
    /// files of the others.
    ///
    /// # Errors
    /// An error of the disk. A catalog that is damaged is empty.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// assert!(store.overviews()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn overviews(&self) -> Result<HashMap<(TemplateId, RevisionId), Overview>> {
        catalog::overviews(&self.core)
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
}
