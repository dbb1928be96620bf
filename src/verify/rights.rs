//! Who else can change the store: what is open to every user of the machine, and what belongs to another user.

use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;
use rayon::prelude::*;

use super::finding::{Finding, FindingKind, Severity};
use super::scan::Scan;
use crate::fs::read::{self, Metadata};
use crate::id::TemplateId;
use crate::inventory;

impl Scan<'_> {
    /// Looks at the directories and documents of the store. Artifacts have a mode of their own, which is looked at with
    /// their bytes.
    pub fn rights(&self, templates: &[TemplateId]) {
        let layout = &self.core.layout;
        let Ok(private) = read::metadata(&layout.private()) else { return };
        let owner = private.uid();
        if ![0, read::user()].contains(&owner) {
            let detail = format!("it belongs to user {owner}, who can change everything in it");
            self.report(Finding::new(FindingKind::OtherOwner, Severity::Note, layout.root().to_owned(), detail));
        }
        let mut own = vec![layout.root().to_owned(), layout.private(), layout.templates()];
        own.extend(self.list(&layout.private()).iter().map(|entry| layout.private().join(&entry.name)));
        for path in own {
            self.report_all(rights_of(&path, owner).map(|(kind, severity, detail)| {
                let next = if kind == FindingKind::OpenToAll { advice(layout.root()) } else { String::new() };
                Finding::new(kind, severity, path.clone(), detail + &next)
            }));
        }
        templates.par_iter().for_each(|template| self.rights_in(template, owner));
    }

    /// One finding of each kind for a template: it has as many revisions as there are.
    fn rights_in(&self, template: &TemplateId, owner: u32) {
        let layout = &self.core.layout;
        let mut paths = vec![
            layout.template(template),
            layout.artifacts(template),
            layout.template_json(template),
            layout.activations(template),
        ];
        for id in inventory::revisions_of(self.core, template).unwrap_or_default() {
            paths.extend([layout.revision(template, &id), layout.revision_json(template, &id)]);
        }
        let all: Vec<_> =
            paths.iter().flat_map(|path| rights_of(path, owner).map(move |found| (path, found))).collect();
        for wanted in [FindingKind::OpenToAll, FindingKind::OtherOwner] {
            let mut found = all.iter().filter(|(_, (kind, ..))| *kind == wanted);
            let Some((path, (_, severity, detail))) = found.next() else { continue };
            let mut detail = detail.clone();
            match found.count() {
                0 => {}
                others => detail += &format!("; and so it is with {others} more of this template"),
            }
            if wanted == FindingKind::OpenToAll {
                detail += &advice(layout.root());
            }
            self.report(Finding::new(wanted, *severity, (*path).clone(), detail).of(template));
        }
    }
}

fn advice(root: &Utf8Path) -> String {
    format!("; take that right away: chmod -R o-w {root}")
}

/// What can be said of who may change something.
fn rights_of(path: &Utf8Path, owner: u32) -> impl Iterator<Item = (FindingKind, Severity, String)> + use<> {
    let found = read::metadata(path).ok().filter(|found| !found.is_symlink());
    let open = |found: &Metadata| {
        let detail = "every user of the machine can change it".to_owned();
        (found.mode() & 0o002 != 0).then_some((FindingKind::OpenToAll, Severity::Warning, detail))
    };
    let other = |found: &Metadata| {
        let detail = format!("it belongs to user {}, who can change it; the store is user {owner}'s", found.uid());
        let strange = ![0, owner].contains(&found.uid());
        strange.then_some((FindingKind::OtherOwner, Severity::Note, detail))
    };
    let of = found.map(|found| [open(&found), other(&found)]);
    of.into_iter().flatten().flatten()
}
