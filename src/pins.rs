//! Pins: what is kept because somebody said so.

use jiff::Timestamp;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::Pin;
use crate::fs::atomic::Lasting;
use crate::fs::lock::{Flock, Mode};
use crate::fs::read;
use crate::id::{PinName, RevisionId, TemplateId};
use crate::options::setters;
use crate::revision::not_found;
use crate::store::Store;

/// How long a pin keeps, and why.
///
/// ```
/// use template_store::PinOptions;
///
/// let options = PinOptions::default().reason("the release of November");
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PinOptions {
    pub(crate) until: Option<Timestamp>,
    pub(crate) reason: String,
}

impl PinOptions {
    setters! {
        /// From this moment on the pin keeps nothing. Without one, it keeps until it is removed.
        until: Option<Timestamp>,
        /// Why, for people.
        reason: String,
    }
}

impl Store {
    /// Keeps a revision from being collected or removed, until the pin is removed or expires.
    ///
    /// Pinning the same revision under the same name again changes expiry and reason. When this returns, the pin
    /// survives a power cut. A crash before leaves the old pin or none.
    ///
    /// # Errors
    /// [`Error::PinExists`] if the name is taken for another revision; [`Error::TemplateNotFound`],
    /// [`Error::RevisionNotFound`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::PinOptions;
    ///
    /// let revision = store.publish_dir(&web, &files)?;
    /// store.pin(&"release".parse()?, &web, revision.id(), &PinOptions::default().reason("shipped"))?;
    /// assert_eq!(store.pins()?[0].reason, "shipped");
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn pin(
        &self,
        name: &PinName,
        template: &TemplateId,
        revision: &RevisionId,
        options: &PinOptions,
    ) -> Result<Pin> {
        let core = &self.core;
        let _change = core.begin_change()?;
        if !read::exists(&core.layout.pins())? {
            core.disk.ensure_dir(&core.layout.pins())?;
            core.disk.fsync_dir(&core.layout.private())?;
        }
        let _pins = lock(core)?;
        // The lease first: from here on, no collector takes the revision without looking at the pins again.
        let lease = core.lease(&core.layout.revision(template, revision));
        let _lease = match lease {
            Err(Error::Io(error)) if error.is_not_found() => {
                return Err(not_found(core, template, revision, error));
            }
            lease => lease?,
        };
        if let Some(old) = by_name(core, name)?
            && (&old.template, &old.revision) != (template, revision)
        {
            return Err(Error::PinExists { pin: name.to_string(), template: old.template, revision: old.revision });
        }
        let mut pin = Pin::new(template.clone(), revision.clone(), core.now());
        (pin.until, pin.reason) = (options.until, options.reason.clone());
        // Whoever published the revision may have died before its name was durable.
        core.disk.fsync_dir(&core.layout.artifacts(template))?;
        core.disk.write_file(&core.layout.drafts(), &core.layout.pin(name), &pin.to_json(), Lasting::Durable)?;
        Ok(Pin { name: Some(name.clone()), ..pin })
    }

    /// Removes a pin.
    ///
    /// A crash leaves the pin or removes it.
    ///
    /// # Errors
    /// [`Error::PinNotFound`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let revision = store.publish_dir(&web, &files)?;
    /// # let release = "release".parse()?;
    /// store.pin(&release, &web, revision.id(), &Default::default())?;
    /// store.unpin(&release)?;
    /// assert!(store.pins()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn unpin(&self, name: &PinName) -> Result<()> {
        let core = &self.core;
        let _change = core.begin_change()?;
        match core.disk.unlink(core.layout.pin(name)) {
            Err(error) if error.is_not_found() => Err(Error::PinNotFound { pin: name.to_string() }),
            removed => {
                removed?;
                Ok(core.disk.fsync_dir(&core.layout.pins())?)
            }
        }
    }

    /// All pins, also those that have expired, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Format`] for a pin that can't be read: nothing is collected until it can be, or is removed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// assert!(store.pins()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn pins(&self) -> Result<Vec<Pin>> {
        all(&self.core)
    }
}

/// Makes the pins that everybody sees last: whoever removed or changed one may have died before its sync. A pin that
/// comes back after a power cut must find its revision, so this comes before anything goes that no pin keeps.
pub(crate) fn settle(core: &Core) -> Result<()> {
    match core.disk.fsync_dir(&core.layout.pins()) {
        Err(error) if error.is_not_found() => Ok(()),
        synced => Ok(synced?),
    }
}

/// Keeps others from changing pins.
pub(crate) fn lock(core: &Core) -> Result<Flock> {
    Ok(Flock::wait_for(&core.layout.pins(), Mode::Exclusive)?)
}

/// All pins. One that can't be read is an error: what it keeps is not known.
pub(crate) fn all(core: &Core) -> Result<Vec<Pin>> {
    let mut pins = Vec::new();
    for name in names(core)? {
        pins.extend(by_name(core, &name)?);
    }
    Ok(pins)
}

fn names(core: &Core) -> Result<Vec<PinName>> {
    Ok(read::names(&core.layout.pins())?.iter().filter_map(|name| name_of(name)).collect())
}

/// The pin that a file is named after.
pub(crate) fn name_of(file: &str) -> Option<PinName> {
    file.strip_suffix(".json")?.parse().ok()
}

pub(crate) fn by_name(core: &Core, name: &PinName) -> Result<Option<Pin>> {
    let path = core.layout.pin(name);
    let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(None) };
    Pin::from_json(name, &bytes).map(Some).map_err(|source| Error::Format { path, source })
}

/// The pin that keeps a revision now, if one does.
pub(crate) fn keeping(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<Option<Pin>> {
    let now = core.now();
    let keeps = |pin: &Pin| (&pin.template, &pin.revision) == (template, revision) && pin.holds_at(now);
    Ok(all(core)?.into_iter().find(keeps))
}

/// Refuses what would take a pinned revision away.
pub(crate) fn refuse_if_kept(core: &Core, template: &TemplateId, revision: &RevisionId) -> Result<()> {
    match keeping(core, template, revision)? {
        None => Ok(()),
        Some(pin) => {
            Err(Error::Pinned { template: template.clone(), revision: revision.clone(), pin: pin.name().to_owned() })
        }
    }
}
