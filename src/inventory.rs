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
    let mut ids = Vec::new();
    for id in read::names(&core.layout.templates())?.iter().filter_map(|name| name.parse().ok()) {
        if exists(core, &id)? {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// The ids of all revisions of a template.
pub(crate) fn revisions_of(core: &Core, template: &TemplateId) -> Result<Vec<RevisionId>> {
    let mut ids = Vec::new();
    for id in read::names(&core.layout.artifacts(template))?.iter().filter_map(|name| name.parse().ok()) {
        if read::metadata_if_there(&core.layout.revision(template, &id))?.is_some_and(|metadata| metadata.is_dir()) {
            ids.push(id);
        }
    }
    Ok(ids)
}
