//! Templates: their definition, and the lock under which they change.

use std::io;

use crate::core::Core;
use crate::error::{Error, PathError, Result};
use crate::format::TemplateSpec;
use crate::fs::atomic::Lasting;
use crate::fs::handle::Handle;
use crate::fs::lock::{Flock, Mode, Patience};
use crate::fs::read;
use crate::id::TemplateId;
use crate::layout::{ACTIVATIONS, ALIAS, ARTIFACTS, TEMPLATE_JSON};

/// The right to move `current` of one template, and to add or remove its revisions.
#[derive(Debug)]
pub(crate) struct TemplateLock {
    pub id: TemplateId,
    _lock: Flock,
}

/// Makes a template if there is none, and locks it; says whether it is new.
pub(crate) fn create_and_lock(core: &Core, id: &TemplateId, spec: &TemplateSpec) -> Result<(TemplateLock, bool)> {
    loop {
        let created = create(core, id, spec)?;
        match lock(core, id) {
            // Somebody removed it between the two.
            Err(Error::TemplateNotFound { .. }) => {}
            locked => return Ok((locked?, created)),
        }
    }
}

/// The template's lock, if nobody has it now.
pub(crate) fn try_lock(core: &Core, id: &TemplateId) -> Result<Option<TemplateLock>> {
    match Flock::take(&core.layout.template(id), Mode::Exclusive, Patience::None) {
        Ok(lock) => lock.map(|lock| locked(core, id, lock)).transpose(),
        Err(error) => Err(missing(id, error)),
    }
}

/// Waits for the template's lock.
pub(crate) fn lock(core: &Core, id: &TemplateId) -> Result<TemplateLock> {
    match Flock::wait_for(&core.layout.template(id), Mode::Exclusive) {
        Ok(lock) => locked(core, id, lock),
        Err(error) => Err(missing(id, error)),
    }
}

/// Nothing is put into what only looks like the template's directory of revisions.
fn locked(core: &Core, id: &TemplateId, lock: Flock) -> Result<TemplateLock> {
    let path = core.layout.artifacts(id);
    match read::metadata_if_there(&path)? {
        Some(metadata) if !metadata.is_dir() => Err(Error::Misplaced { path }),
        _ => Ok(TemplateLock { id: id.clone(), _lock: lock }),
    }
}

/// A template's definition.
pub(crate) fn spec(core: &Core, id: &TemplateId) -> Result<TemplateSpec> {
    let path = core.layout.template_json(id);
    loop {
        if let Some(bytes) = read::bytes_if_there(&path)? {
            return TemplateSpec::from_json(&bytes).map_err(|source| Error::Format { path, source });
        }
        // The template may have been removed, and made again since.
        let Some(template) = Handle::of(&core.layout.template(id))? else {
            return Err(Error::TemplateNotFound { template: id.clone() });
        };
        if !read::exists(&path)? && template.still_named()? {
            return Err(Error::Damaged { path, problem: "it is missing".into() });
        }
    }
}

/// A template's definition, if there is such a template.
pub(crate) fn spec_if_there(core: &Core, id: &TemplateId) -> Result<Option<TemplateSpec>> {
    match spec(core, id) {
        Ok(spec) => Ok(Some(spec)),
        Err(Error::TemplateNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn missing(id: &TemplateId, error: PathError) -> Error {
    if error.is_not_found() { Error::TemplateNotFound { template: id.clone() } } else { error.into() }
}

/// Makes a template if there is none; `false` when there was one. It is durable when this returns.
///
/// It is built as a draft and made visible by one rename. A crash leaves it whole or not at all, and at most
/// a dead draft.
pub(crate) fn create(core: &Core, id: &TemplateId, spec: &TemplateSpec) -> Result<bool> {
    let made = !read::exists(&core.layout.template(id))? && make(core, id, spec)?;
    if !made {
        // Whoever made it may have died before its name was durable.
        core.disk.fsync_dir(&core.layout.templates())?;
    }
    Ok(made)
}

fn make(core: &Core, id: &TemplateId, spec: &TemplateSpec) -> Result<bool> {
    let target = core.layout.template(id);
    let draft = core.new_draft_dir()?;
    let made = fill(core, &draft, spec).and_then(|()| core.disk.publish_dir(draft.path(), &target));
    match made {
        Ok(()) => Ok(true),
        Err(error) => {
            let _ = core.disk.remove_tree(draft.path());
            match error.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => Ok(false),
                _ => Err(error.into()),
            }
        }
    }
}

fn fill(core: &Core, draft: &Flock, spec: &TemplateSpec) -> std::result::Result<(), PathError> {
    let (disk, dir) = (&core.disk, draft.path());
    disk.write_new(&dir.join(TEMPLATE_JSON), &spec.to_json())?;
    disk.mkdir(&dir.join(ARTIFACTS), 0o777)?;
    disk.symlink(ARTIFACTS, &dir.join(ALIAS))?;
    disk.write_new(&dir.join(ACTIVATIONS), b"")?;
    disk.fsync_dir(&dir.join(ARTIFACTS))?;
    disk.chmod(dir, core.public_mode()?)?;
    disk.fsync_dir(dir)
}

/// Replaces the definition of a template that exists. A crash leaves the old one or the new one.
pub(crate) fn redefine(core: &Core, lock: &TemplateLock, spec: &TemplateSpec) -> Result<()> {
    let path = core.layout.template_json(&lock.id);
    Ok(core.disk.write_file(&core.layout.drafts(), &path, &spec.to_json(), Lasting::Durable)?)
}

/// What differs between two definitions, for people.
pub(crate) fn difference(old: &TemplateSpec, new: &TemplateSpec) -> String {
    let fields = |spec: &TemplateSpec| {
        [
            ("flake_ref", spec.flake_ref.clone()),
            ("profile", spec.profile.clone()),
            ("role", spec.role.clone()),
            ("vcpus", spec.vcpus.to_string()),
            ("mem_mib", spec.mem_mib.to_string()),
            ("data_disk_mib", spec.data_disk_mib.to_string()),
        ]
    };
    let pairs = fields(old).into_iter().zip(fields(new)).filter(|(old, new)| old != new);
    pairs.map(|((name, old), (_, new))| format!("{name} is {old}, not {new}")).collect::<Vec<_>>().join(", ")
}
