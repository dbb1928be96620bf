//! What there is: all templates, and all revisions of one.

use crate::core::Core;
use crate::error::Result;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};

/// Every revision directory of the store, whether or not it is intact.
pub(crate) fn revisions(core: &Core) -> Result<Vec<(TemplateId, RevisionId)>> {
    let mut found = Vec::new();
    for template in templates(core)? {
        found.extend(revisions_of(core, &template)?.into_iter().map(|revision| (template.clone(), revision)));
    }
    Ok(found)
}

/// Whether there is a directory of this template.
pub(crate) fn exists(core: &Core, id: &TemplateId) -> Result<bool> {
    Ok(read::metadata_if_there(&core.layout.template(id))?.is_some_and(|metadata| metadata.is_dir()))
}

/// The ids of all templates; what else lies in `templates/` is not ours.
pub(crate) fn templates(core: &Core) -> Result<Vec<TemplateId>> {
    let found = read::list(&core.layout.templates())?;
    Ok(found.iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.parse().ok()).collect())
}

/// The ids of all revisions of a template.
pub(crate) fn revisions_of(core: &Core, template: &TemplateId) -> Result<Vec<RevisionId>> {
    let found = read::list(&core.layout.artifacts(template))?;
    Ok(found.iter().filter(|entry| entry.is_dir).filter_map(|entry| entry.name.parse().ok()).collect())
}
