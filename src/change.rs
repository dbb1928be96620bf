//! Changing templates, `current` and what there is.

use crate::error::{Error, Result};
use crate::format::{Action, TemplateSpec};
use crate::id::{RevisionId, TemplateId};
use crate::options::{Expect, PublishOptions};
use crate::publish::activate_existing;
use crate::removal::{self, Removal, RemovalReport};
use crate::revision::Revision;
use crate::store::Store;
use crate::{activation, template};

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
        loop {
            if template::create(&self.core, &id, spec)? {
                return Ok(());
            }
            // Somebody may have removed it between the two.
            let Some(existing) = template::spec_if_there(&self.core, &id)? else { continue };
            if existing.defines_the_same(spec) {
                return Ok(());
            }
            return Err(Error::TemplateExists { difference: template::difference(&existing, spec), template: id });
        }
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
        revision.check()?;
        // Whoever published it may have died before its name was durable.
        self.core.disk.fsync_dir(&self.core.layout.artifacts(&lock.id))?;
        activate_existing(&self.core, lock, &revision, &PublishOptions::default().expect(expect), action)?;
        Ok(revision)
    }

    /// Removes a revision, and gives its blocks back if neither another nor an instance has them.
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
    pub fn remove(&self, id: &TemplateId, revision: &RevisionId, how: Removal) -> Result<RemovalReport> {
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
    pub fn remove_template(&self, id: &TemplateId, how: Removal) -> Result<RemovalReport> {
        removal::remove_template(&self.core, id, how)
    }
}

/// Parses the names in a definition.
fn check(spec: &TemplateSpec) -> Result<TemplateId> {
    spec.profile.parse::<crate::Profile>()?;
    spec.role.parse::<crate::Role>()?;
    Ok(spec.template_id.parse()?)
}
