//! `du`: what the store takes, and who of it.

use template_store::gc::Bound;
use template_store::{Bytes, Error, TemplateId, TemplateUsage};

use super::output::{size, table};
use super::{Result, Session, Status};

pub(crate) fn du(session: &Session, id: Option<&TemplateId>) -> Result {
    let store = session.open()?;
    let mut usage = store.usage()?;
    if let Some(id) = id {
        usage.templates.retain(|template| template.template == *id);
        if usage.templates.is_empty() {
            return Err(Error::TemplateNotFound { template: id.clone() }.into());
        }
    }
    let text = || {
        let rows = usage.templates.iter().flat_map(|template| rows(template, id.is_some()));
        let header = ["TEMPLATE", "REVISION", "APPARENT", "ON DISK", "SHARED", "EXCLUSIVE", "FREED IF REMOVED", "HELD"];
        let mut text = table(&header, rows);
        let at_most = if usage.bound == Bound::AtMost { "; what is freed is at most that" } else { "" };
        text += &format!(
            "\n{} on disk ({} beside revisions), {} if nothing were shared; {} of {} are free{at_most}\n",
            size(usage.on_disk),
            size(usage.own),
            size(usage.apparent),
            size(usage.disk_available),
            size(usage.disk_total)
        );
        text
    };
    session.output.document(&usage, text);
    Ok(Status::Done)
}

/// A template's line, and those of its revisions when only it is asked about.
fn rows(template: &TemplateUsage, with_revisions: bool) -> Vec<Vec<String>> {
    let id = template.template.to_string();
    let count = template.revisions.len();
    let mut rows = vec![row(id, format!("({count})"), &template.bytes)];
    if with_revisions {
        let one = |revision: &template_store::RevisionUsage| {
            row(String::new(), revision.revision.to_string(), &revision.bytes)
        };
        rows.extend(template.revisions.iter().map(one));
    }
    rows
}

fn row(template: String, revision: String, bytes: &Bytes) -> Vec<String> {
    let sizes = [bytes.apparent, bytes.on_disk, bytes.shared, bytes.exclusive, bytes.freed_if_removed];
    let held = match bytes.held_by_instances {
        0 => String::new(),
        held => format!("{} by instances", size(held)),
    };
    [template, revision].into_iter().chain(sizes.map(size)).chain([held]).collect()
}
