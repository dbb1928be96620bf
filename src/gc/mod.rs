//! Collecting what nobody needs: plan, look at the plan, apply it.
//!
//! [`plan`] is pure: it takes what was read ([`Inventory`]), what is to be kept ([`Policy`]) and the time, and gives
//! what goes, and why ([`GcPlan`]). Applying a plan removes at most what it names; each revision is looked at again
//! under its lock. It runs beside anything, and holds no lock for long.

mod apply;
mod bytes;
mod inventory;
mod leftovers;
mod measure;
mod newest;
mod plan;
mod policy;
mod report;
mod saved;
mod scan;
mod sweep;

pub(crate) use bytes::{alone, held};
pub use inventory::{
    Bound, CurrentState, DiskSpace, Footprint, Inventory, Leftover, LeftoverKind, RevisionState, Shard, Shared,
    SharedKind, Standing, TemplateState,
};
pub use plan::{GcPlan, Goal, Planned, PlannedLeftover, Reason, Unmet, Verdict, plan};
pub use policy::{Adopted, Limits, Policy, Space, parse_age, parse_size};
pub use report::{Collected, FailedSweep, GcReport, SkipReason, Skipped, Swept};
pub(crate) use scan::scan;

use std::time::SystemTime;

use crate::catalog;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::progress::Progress;
use crate::store::Store;

impl Store {
    /// What `.store/config.toml` says of collections; the defaults where it says nothing.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that can't be understood.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// assert_eq!(store.policy()?.keep_last, 3);
    /// std::fs::write(store.layout().config(), "[gc]\nkeep_last = 5").unwrap();
    /// assert_eq!(store.policy()?.keep_last, 5);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn policy(&self) -> Result<Policy> {
        let path = self.core.layout.config();
        let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(Policy::default()) };
        let text = String::from_utf8(bytes).map_err(|_| FormatError::invalid("config.toml", "it is not UTF-8"));
        text.and_then(|text| Policy::from_toml(&text)).map_err(|source| Error::Format { path, source })
    }

    /// Plans a collection: what goes, what stays, why, and how many bytes are freed. Nothing is changed.
    ///
    /// # Errors
    /// A pin that can't be read ([`Error::Format`]): what it keeps is not known. An error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # let first = store.publish_dir(&web, &files)?.id().clone();
    /// # std::fs::write(files.join("vmlinux"), "a newer kernel").unwrap();
    /// # store.publish_dir(&web, &files)?;
    /// use template_store::gc::Policy;
    ///
    /// let plan = store.plan_gc(&Policy::default().keep_last(1u32))?;
    /// let going: Vec<_> = plan.going().map(|planned| planned.revision.clone()).collect();
    /// assert_eq!(going, [first]);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn plan_gc(&self, policy: &Policy) -> Result<GcPlan> {
        Ok(planned(&self.core, policy)?.1)
    }

    /// Does at most what a plan says: whatever became current, pinned or used since is left, and told.
    ///
    /// It may run beside anything. A crash leaves each revision whole under its name, or in the trash, from where the
    /// next collection removes it.
    ///
    /// # Errors
    /// [`Error::NotAdopted`], or an error of the disk; what failed in one template is told in the report.
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
    /// # store.publish_dir(&web, &files)?;
    /// use template_store::gc::{Policy, SkipReason};
    ///
    /// let plan = store.plan_gc(&Policy::default().keep_last(1u32))?; // `first` is in use: it is not in the plan
    /// assert_eq!(plan.going().count(), 0);
    /// drop(first);
    /// let plan = store.plan_gc(&Policy::default().keep_last(1u32))?;
    /// let report = store.apply_gc(&plan, &mut ())?;
    /// assert_eq!(report.removed.len(), 1);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn apply_gc(&self, plan: &GcPlan, progress: &mut dyn Progress) -> Result<GcReport> {
        let keys = plan.leftovers.iter().any(|leftover| leftover.kind == LeftoverKind::Key);
        // Who else has a key that loses a revision is to be known.
        let inventory = if keys || plan.going().next().is_some() { scan(&self.core)?.0 } else { Inventory::default() };
        let report = apply::apply(&self.core, plan, &inventory, progress)?;
        if report.is_astray() {
            catalog::forget(&self.core);
        }
        Ok(report)
    }

    /// Plans a collection and applies the plan; gives both.
    ///
    /// # Errors
    /// As [`plan_gc`](Store::plan_gc) and [`apply_gc`](Store::apply_gc).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// let (plan, report) = store.gc(&store.policy()?, &mut ())?;
    /// assert_eq!(plan.frees, report.freed);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn gc(&self, policy: &Policy, progress: &mut dyn Progress) -> Result<(GcPlan, GcReport)> {
        self.check_writable()?;
        let begun = SystemTime::now();
        let (inventory, plan) = planned(&self.core, policy)?;
        let report = apply::apply(&self.core, &plan, &inventory, progress)?;
        if report.is_astray() {
            catalog::forget(&self.core);
        } else if report.freed == 0 && report.removed.is_empty() {
            // What was freed is what `df` shows: a collection that frees something takes nothing for itself.
            catalog::write_if_it_pays(&self.core, &inventory, begun);
        }
        Ok((plan, report))
    }

    /// Why a revision is kept, or that the next collection with this policy removes it.
    ///
    /// # Errors
    /// [`Error::TemplateNotFound`], [`Error::RevisionNotFound`]; as [`plan_gc`](Store::plan_gc).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::gc::{Policy, Reason};
    ///
    /// let revision = store.publish_dir(&web, &files)?.id().clone();
    /// let why = store.why(&web, &revision, &Policy::default())?;
    /// assert_eq!(why.reasons[0], Reason::Current);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn why(&self, template: &TemplateId, revision: &RevisionId, policy: &Policy) -> Result<Planned> {
        let core = &self.core;
        if !read::exists(&core.layout.template(template))? {
            return Err(Error::TemplateNotFound { template: template.clone() });
        }
        let (_, plan) = planned(core, policy)?;
        let found = plan.revisions.into_iter().find(|one| (&one.template, &one.revision) == (template, revision));
        found.ok_or_else(|| Error::RevisionNotFound { template: template.clone(), revision: revision.clone() })
    }
}

/// Reads what is needed, and plans: first who goes, whatever it frees; then, when that was measured, all of it.
fn planned(core: &Core, policy: &Policy) -> Result<(Inventory, GcPlan)> {
    let (mut inventory, mut meter) = scan(core)?;
    if policy.max_size.is_some() {
        inventory.disk.store = measure::whole(core)?;
    }
    let now = core.now();
    let mut places = plan::candidates(&inventory, policy, now);
    scan::ask(core, &mut inventory, &places)?;
    places.retain(|&(t, r)| inventory.templates[t].revisions[r].holders.is_none());
    meter.measure(&mut inventory, &places)?;
    let plan = plan(&inventory, policy, now);
    Ok((inventory, plan))
}
