//! Setting right what a verification found.
//!
//! After a first look, which holds nobody up, all is done in stages while nobody else changes the store. Each stage
//! plans from a look of its own, so that it never acts on what was so before; what one sets right (a directory, a
//! record) shows the next what there is to do. A crash leaves a store with fewer findings than before.

mod aside;
mod copies;
mod documents;
mod files;
mod heads;
mod index;
mod plan;
mod retire;
mod snapshots;
mod supply;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::activation;
use crate::core::Core;
use crate::error::Result;
use crate::fs::read::FileId;
use crate::id::{RevisionId, TemplateId};
use crate::progress::{Note, Progress};
use crate::verify::{Finding, Hashed, Mended, Repaired, Scanned, Scope, Suspects, VerifyOptions, scan};
use crate::work::DraftDir;

use copies::Copies;
use plan::{Action, Facts, Stage, plan};
use supply::Supplied;

pub(crate) use supply::Supply;

/// A repair at work. Nobody else changes the store from when it looks for the second time.
struct Repair<'a> {
    core: &'a Arc<Core>,
    options: &'a VerifyOptions,
    progress: &'a mut dyn Progress,
    suspects: Suspects,
    /// What the first look hashed.
    first: Hashed,
    /// The last look: what is damaged now.
    now: Scanned,
    copies: Copies,
    /// Inodes that have a name below `damaged/`.
    kept: HashSet<FileId>,
    /// Inodes that somebody can still write to, and the sealed copy of each.
    open: HashMap<FileId, Utf8PathBuf>,
    staging: Option<DraftDir>,
    /// Asked last: what it has must come here first.
    supplied: Supplied<'a>,
    mended: Vec<Mended>,
    /// What is out of the way, and was not mended.
    lost: Vec<Finding>,
    failed: HashMap<Utf8PathBuf, String>,
    /// What could not be mended now, because the system refused: it is not lost, and stays for the next repair.
    refused: Vec<Utf8PathBuf>,
}

/// Verifies and repairs; see [`Store::repair`](crate::Store::repair).
pub(crate) fn repair(
    core: &Arc<Core>,
    options: &VerifyOptions,
    supply: Option<&dyn Supply>,
    progress: &mut dyn Progress,
) -> Result<Repaired> {
    // What can't be changed says so before everything is read.
    core.check_adopted()?;
    core.settle_dead_repair()?;
    let Scanned { report, hashed, seen } = scan(core, options, Scope::Everything, Hashed::default(), progress)?;
    if !Stage::ALL.iter().any(|stage| !plan(*stage, &report.findings, &facts(core, &report.findings)).is_empty()) {
        let remaining = report.findings.iter().filter(|finding| finding.counts()).cloned().collect();
        return Ok(Repaired { report, mended: Vec::new(), remaining });
    }
    let suspects = Suspects::of(&report.findings);
    let now = Scanned { report: report.clone(), hashed: Hashed::default(), seen };
    let mut repair = Repair {
        core,
        options,
        progress,
        suspects,
        first: hashed,
        now,
        copies: Copies::default(),
        kept: HashSet::new(),
        open: HashMap::new(),
        staging: None,
        supplied: Supplied::new(supply),
        mended: Vec::new(),
        lost: Vec::new(),
        failed: HashMap::new(),
        refused: Vec::new(),
    };
    // What stands in the way of it is mended, or said, by the stages.
    if let Err(error) = repair.fetch_ahead() {
        tracing::debug!(%error, "not all of what is missing was fetched ahead");
    }
    // What was seen was seen while others could change it.
    repair.copies = Copies::default();
    let repairing = core.begin_repair()?;
    repair.look()?;
    for stage in Stage::ALL {
        repair.stage(stage)?;
    }
    let repaired = Repaired { report, remaining: repair.remaining(), mended: repair.mended };
    repairing.end()?;
    Ok(repaired)
}

/// What the plan needs to know that is no finding.
fn facts(core: &Core, findings: &[Finding]) -> Facts {
    let damaged = findings.iter().filter(|finding| finding.is_error()).filter_map(|finding| finding.template.clone());
    let templates: HashSet<TemplateId> = damaged.collect();
    let current = |id: TemplateId| {
        let current = activation::current(core, &id).ok()?;
        Some((id, current.revision()?.clone()))
    };
    Facts { current: templates.into_iter().filter_map(current).collect() }
}

impl Repair<'_> {
    /// Looks again at all that was found, and at what else shows now.
    fn look(&mut self) -> Result<()> {
        self.suspects.extend(&self.now.report.findings);
        let known = std::mem::take(&mut self.now.hashed);
        self.now = scan(self.core, self.options, Scope::Only(&self.suspects), known, &mut ())?;
        Ok(())
    }

    fn stage(&mut self, stage: Stage) -> Result<()> {
        let actions = plan(stage, &self.now.report.findings, &facts(self.core, &self.now.report.findings));
        if actions.is_empty() {
            return Ok(());
        }
        for action in actions {
            let path = action.path(&self.core.layout);
            if let Err(error) = self.act(&action) {
                self.fail(path, error.to_string());
            }
        }
        self.look()
    }

    fn act(&mut self, action: &Action) -> Result<()> {
        match action {
            Action::MakeDirectory(finding) => self.make_directory(finding),
            Action::SetAside(finding) => self.stranger(finding),
            Action::RebuildDefinition(template) => self.definition(template),
            Action::RebuildRecord(template, id) => self.record(template, id),
            Action::RebuildLog(template) => self.log(template),
            Action::MendFile(template, id, content) => self.mend(template, id, content),
            Action::SealFile(template, id, content) => self.seal(template, id, content),
            Action::MendObject(digest) => self.object(digest),
            Action::DeriveField(template, id) => self.derive_field(template, id),
            Action::RetireSnapshot(template, id) => self.retire_snapshot(template, id),
            Action::Prove(template, id) => self.prove(template, id),
            Action::Mark(template, id) => self.mark(template, id),
            Action::MoveCurrent(template) => self.current(template),
            Action::MakeAlias(template) => self.alias(template),
            Action::Retire(template, id) => self.retire(template, id),
            Action::Share(whole) => self.share(*whole),
            Action::Keys(keys) => self.keys(keys.as_deref()),
            Action::ClearMark(template, id) => self.clear_mark(template, id),
        }
    }

    /// A private directory for half-done work.
    fn staging(&mut self) -> Result<Utf8PathBuf> {
        if self.staging.is_none() {
            self.staging = Some(DraftDir::new(self.core)?);
        }
        Ok(self.staging.as_ref().map(|dir| dir.path().to_owned()).expect("it was made a line ago"))
    }

    fn done(&mut self, path: impl Into<Utf8PathBuf>, how: impl Into<String>) {
        self.mended.push(Mended { path: path.into(), how: how.into() });
    }

    fn fail(&mut self, path: Utf8PathBuf, reason: String) {
        self.progress.note(Note::NotHealed { path: path.clone(), reason: reason.clone() });
        self.refused.push(path.clone());
        self.failed.insert(path, reason);
    }

    /// Whether something in a directory could be mended on another day.
    fn was_refused(&self, dir: &Utf8Path) -> bool {
        self.refused.iter().any(|path| path.starts_with(dir))
    }

    /// The errors of a revision, as the last look saw them.
    fn errors(&self, template: &TemplateId, id: &RevisionId) -> Vec<Finding> {
        let of_it = |finding: &&Finding| {
            finding.spoils_revision()
                && finding.template.as_ref() == Some(template)
                && finding.revision.as_ref() == Some(id)
        };
        self.now.report.findings.iter().filter(of_it).cloned().collect()
    }

    /// What is still not as it should be, and why.
    fn remaining(&self) -> Vec<Finding> {
        let open = self.now.report.findings.iter().filter(|finding| finding.counts());
        let mut remaining: Vec<Finding> = self.lost.iter().chain(open).cloned().collect();
        for finding in &mut remaining {
            if let Some(reason) = self.failed.get(&finding.path) {
                finding.detail += &format!("; it could not be mended: {reason}");
            }
        }
        remaining
    }

    fn below_root(&self, path: &Utf8Path) -> String {
        path.strip_prefix(self.core.layout.root()).unwrap_or(path).to_string()
    }
}
