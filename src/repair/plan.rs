//! From findings to actions; pure.

use std::collections::HashMap;

use camino::Utf8PathBuf;

use crate::format::Content;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};
use crate::layout::Layout;
use crate::verify::{Finding, FindingKind, Subject};

/// What is done before the store is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Directories, and what lies where only the store's things should be.
    Places,
    /// What the store has written down, but for the index.
    Documents,
    /// Artifacts and objects.
    Files,
    /// Snapshots that nothing could mend, and what revisions say of theirs.
    Snapshots,
    /// Records that say of intact files that they are damaged.
    Proofs,
    /// Revisions that nothing could mend, and who is current.
    Heads,
    /// What follows from the revisions.
    Index,
}

impl Stage {
    pub const ALL: [Stage; 7] =
        [Stage::Places, Stage::Documents, Stage::Files, Stage::Snapshots, Stage::Proofs, Stage::Heads, Stage::Index];
}

/// What the plan needs to know that is no finding.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// What is current, in the templates that have errors.
    pub current: HashMap<TemplateId, RevisionId>,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    MakeDirectory(Finding),
    SetAside(Finding),
    RebuildDefinition(TemplateId),
    RebuildRecord(TemplateId, RevisionId),
    RebuildLog(TemplateId),
    MendFile(TemplateId, RevisionId, Content),
    SealFile(TemplateId, RevisionId, Content),
    MendObject(Digest),
    DeriveField(TemplateId, RevisionId),
    RetireSnapshot(TemplateId, RevisionId),
    Prove(TemplateId, RevisionId),
    Mark(TemplateId, RevisionId),
    MoveCurrent(TemplateId),
    MakeAlias(TemplateId),
    Retire(TemplateId, RevisionId),
    Share(Extent),
    /// These, or all.
    Keys(Option<Vec<CacheKey>>),
    ClearMark(TemplateId, RevisionId),
}

/// How much of an index was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Whole,
    Parts,
}

impl Action {
    /// What it is about, as a finding names it.
    pub fn path(&self, layout: &Layout) -> Utf8PathBuf {
        match self {
            Action::MakeDirectory(finding) | Action::SetAside(finding) => finding.path.clone(),
            Action::RebuildDefinition(template) => layout.template_json(template),
            Action::RebuildRecord(template, id) | Action::DeriveField(template, id) | Action::Prove(template, id) => {
                layout.revision_json(template, id)
            }
            Action::RetireSnapshot(template, id) => layout.snapshot(template, id),
            Action::RebuildLog(template) => layout.activations(template),
            Action::MendFile(template, id, content) | Action::SealFile(template, id, content) => {
                layout.artifact(template, id, &content.path)
            }
            Action::MendObject(digest) => layout.object(digest),
            Action::Mark(template, id) | Action::Retire(template, id) => layout.revision(template, id),
            Action::MoveCurrent(template) => layout.current(template),
            Action::MakeAlias(template) => layout.alias(template),
            Action::Share(_) => layout.objects(),
            Action::Keys(_) => layout.keys(),
            Action::ClearMark(template, id) => layout.damage_mark(template, id),
        }
    }
}

/// What a stage does about what was found.
pub(super) fn plan(stage: Stage, findings: &[Finding], facts: &Facts) -> Vec<Action> {
    let each: fn(&Finding) -> Option<Action> = match stage {
        Stage::Places => place,
        Stage::Documents => document,
        Stage::Files => file,
        Stage::Snapshots => return snapshots(findings),
        Stage::Proofs => return damaged(findings).into_iter().map(|(id, of)| Action::Prove(id, of)).collect(),
        Stage::Heads => return heads(findings, facts),
        Stage::Index => return index(findings),
    };
    let mut actions: Vec<Action> = findings.iter().filter_map(each).collect();
    // Nothing can be put aside before there is a place for it, and nothing made below what is not there.
    actions.sort_by_key(|action| match action {
        Action::MakeDirectory(finding) => (finding.path.file_name() != Some("damaged"), finding.path.clone()),
        _ => (true, Utf8PathBuf::from("~")),
    });
    actions.dedup();
    actions
}

fn place(finding: &Finding) -> Option<Action> {
    match finding.subject {
        Subject::Directory => Some(Action::MakeDirectory(finding.clone())),
        Subject::Stranger | Subject::Whole => Some(Action::SetAside(finding.clone())),
        _ => None,
    }
}

/// A document of a newer program is not damaged: it is for that program to mend.
fn document(finding: &Finding) -> Option<Action> {
    if finding.kind == FindingKind::Newer {
        return None;
    }
    let template = finding.template.clone()?;
    match finding.subject {
        Subject::Definition => Some(Action::RebuildDefinition(template)),
        Subject::Record => Some(Action::RebuildRecord(template, finding.revision.clone()?)),
        Subject::Log => Some(Action::RebuildLog(template)),
        _ => None,
    }
}

fn file(finding: &Finding) -> Option<Action> {
    if let Subject::Object(digest) = finding.subject {
        return Some(Action::MendObject(digest));
    }
    let Subject::File(content) = &finding.subject else { return None };
    let (template, id) = finding.place()?;
    match finding.kind {
        FindingKind::WrongMode | FindingKind::WrongTime => Some(Action::SealFile(template, id, content.clone())),
        FindingKind::Unshared | FindingKind::Twin => None,
        _ => Some(Action::MendFile(template, id, content.clone())),
    }
}

/// The field of a snapshot that is moved away goes with it.
fn snapshots(findings: &[Finding]) -> Vec<Action> {
    let unmended = |finding: &&Finding| finding.is_error() && finding.is_of_snapshot();
    let mut lost: Vec<_> = findings.iter().filter(unmended).filter_map(Finding::place).collect();
    lost.sort();
    lost.dedup();
    let fields = findings.iter().filter(|finding| finding.subject == Subject::SnapshotField);
    let fields = fields.filter_map(Finding::place).filter(|place| !lost.contains(place));
    let mut actions: Vec<Action> = fields.map(|(template, id)| Action::DeriveField(template, id)).collect();
    actions.extend(lost.into_iter().map(|(template, id)| Action::RetireSnapshot(template, id)));
    actions
}

/// Marks come first: from then on nobody is given the revision. It is moved last, when it is not current any more.
fn heads(findings: &[Finding], facts: &Facts) -> Vec<Action> {
    let damaged = damaged(findings);
    let mut actions: Vec<Action> =
        damaged.iter().map(|(template, id)| Action::Mark(template.clone(), id.clone())).collect();
    let about = |subject: Subject| {
        let of_it = move |finding: &&Finding| finding.subject == subject;
        findings.iter().filter(of_it).filter_map(|finding| finding.template.clone())
    };
    actions.extend(about(Subject::Alias).map(Action::MakeAlias));
    let unfit = damaged.iter().filter(|(template, id)| facts.current.get(template) == Some(id));
    let mut moved: Vec<TemplateId> =
        about(Subject::Current).chain(unfit.map(|(template, _)| template.clone())).collect();
    moved.sort();
    moved.dedup();
    actions.extend(moved.into_iter().map(Action::MoveCurrent));
    actions.extend(damaged.into_iter().map(|(template, id)| Action::Retire(template, id)));
    actions
}

/// The revisions that are unfit for use.
fn damaged(findings: &[Finding]) -> Vec<(TemplateId, RevisionId)> {
    let mut damaged: Vec<_> = findings.iter().filter(|finding| is_damage(finding)).filter_map(Finding::place).collect();
    damaged.sort();
    damaged.dedup();
    damaged
}

/// Whether the finding makes its revision unfit for use.
fn is_damage(finding: &Finding) -> bool {
    finding.spoils_revision() && !matches!(finding.subject, Subject::Whole | Subject::Denied | Subject::Mark)
}

fn index(findings: &[Finding]) -> Vec<Action> {
    let mut actions = Vec::new();
    let has = |kind| findings.iter().any(|finding| finding.kind == kind);
    match findings.iter().any(|finding| finding.subject == Subject::Objects) {
        true => actions.push(Action::Share(Extent::Whole)),
        false if has(FindingKind::Unshared) || has(FindingKind::Twin) => actions.push(Action::Share(Extent::Parts)),
        false => {}
    }
    let keys = findings.iter().filter_map(|finding| match finding.subject {
        Subject::Key(key) => Some(key),
        _ => None,
    });
    let mut keys: Vec<CacheKey> = keys.collect();
    keys.sort();
    keys.dedup();
    match findings.iter().any(|finding| finding.subject == Subject::Keys) {
        true => actions.push(Action::Keys(None)),
        false if !keys.is_empty() => actions.push(Action::Keys(Some(keys))),
        false => {}
    }
    let stale = findings.iter().filter(|finding| finding.kind == FindingKind::StaleMark).filter_map(Finding::place);
    actions.extend(stale.map(|(template, id)| Action::ClearMark(template, id)));
    actions
}
