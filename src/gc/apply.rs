//! Doing at most what a plan says.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use rayon::prelude::*;

use super::inventory::{Inventory, Standing};
use super::leftovers::keys_of;
use super::newest::Newest;
use super::plan::{GcPlan, Planned};
use super::policy::Adopted;
use super::report::{Collected, GcReport, SkipReason, Skipped};
use super::scan::{rollback_targets, standing};
use super::sweep;
use crate::activation::{self, Current};
use crate::core::Core;
use crate::damage;
use crate::error::{Error, Result};
use crate::format::{KeyHint, ObjectOf, Pin, RevisionRecord, RevisionSummary};
use crate::fs::lock::{BackOff, FORK_TIME, Flock, Mode, Patience};
use crate::fs::read;
use crate::fs::remove::Removed;
use crate::id::{CacheKey, RevisionId, TemplateId};
use crate::layout::REVISION_JSON;
use crate::leases;
use crate::pins;
use crate::progress::{Progress, Stage};
use crate::reserve;
use crate::seal::in_parallel;
use crate::template::{self, TemplateLock};
use crate::trash::{Grave, Heirs, Release};

/// Removes what the plan names, as far as nothing speaks against it now.
pub(super) fn apply(
    core: &Core,
    plan: &GcPlan,
    inventory: &Inventory,
    progress: &mut dyn Progress,
) -> Result<GcReport> {
    let _change = core.begin_change()?;
    reserve::give_up_if_full(core);
    let mut victims: BTreeMap<&TemplateId, Vec<&Planned>> = BTreeMap::new();
    for planned in plan.going() {
        victims.entry(&planned.template).or_default().push(planned);
    }
    let (heirs, newest) = (heirs(core, inventory, plan), Newest::of(core, plan, inventory));
    let count = victims.values().map(|of_one| of_one.len() as u64).sum();
    let templates = victims.len();
    let done: Vec<Done> = in_parallel(Stage::Collecting, count, progress, |advance| {
        let collected = victims.into_par_iter().map(|(template, victims)| {
            let done = match newest.are_misjudged(template, &victims) {
                true => Done::misjudged(&victims),
                false => collect(core, plan, template, &victims, &heirs),
            };
            advance(victims.len() as u64);
            done
        });
        Ok(while_others_wait(templates, || collected.collect()))
    })?;
    let (swept, failed) = sweep::sweep(core, &plan.leftovers, &heirs)?;
    let mut report = GcReport {
        removed: Vec::new(),
        skipped: Vec::new(),
        swept,
        failed,
        freed: 0,
        held_by_instances: 0,
        bound: plan.bound,
        unmet: plan.unmet.clone(),
    };
    for done in done {
        report.removed.extend(done.removed);
        report.skipped.extend(done.skipped);
    }
    name_holders(core, &mut report.skipped)?;
    report.freed = report.removed.iter().map(|one| one.freed).chain(report.swept.iter().map(|one| one.freed)).sum();
    report.held_by_instances = held_by_instances(plan, &report);
    reserve::restore(core);
    Ok(report)
}

/// What stays of the removed for instances; where some were skipped, at least that.
fn held_by_instances(plan: &GcPlan, report: &GcReport) -> u64 {
    if report.skipped.is_empty() {
        return plan.held_by_instances;
    }
    let removed: HashSet<_> = report.removed.iter().map(|one| (&one.template, &one.revision)).collect();
    let gone = plan.going().filter(|one| removed.contains(&(&one.template, &one.revision)));
    gone.map(|one| one.held_by_instances).sum()
}

/// What became of the victims in one template.
#[derive(Debug, Default)]
struct Done {
    removed: Vec<Collected>,
    skipped: Vec<Skipped>,
}

impl Done {
    /// None of them goes: it is not known which are the newest.
    fn misjudged(victims: &[&Planned]) -> Done {
        let mut done = Done::default();
        victims.iter().for_each(|planned| done.skip(planned, SkipReason::Misjudged));
        done
    }

    fn skip(&mut self, planned: &Planned, why: SkipReason) {
        let Planned { template, revision, .. } = planned;
        self.skipped.push(Skipped { template: template.clone(), revision: revision.clone(), why });
    }
}

/// Templates at a time, and revisions of each: more would be held open at once than some systems allow.
const TEMPLATES_AT_ONCE: usize = 16;
const AT_ONCE: usize = 32;

/// Does the work of so many templates with more threads than there are cores: each template waits for the disk, and those
/// that wait at once share one commit of the file system's journal.
fn while_others_wait<T: Send>(templates: usize, work: impl FnOnce() -> T + Send) -> T {
    let threads = templates.min(TEMPLATES_AT_ONCE);
    let pool = (threads > rayon::current_num_threads())
        .then(|| rayon::ThreadPoolBuilder::new().num_threads(threads).build())
        .and_then(|pool| {
            pool.inspect_err(|error| tracing::debug!(%error, "fewer templates are collected at once")).ok()
        });
    match pool {
        Some(pool) => pool.install(work),
        None => work(),
    }
}

/// A publication holds the template's lock for moments. Who holds it longer is stuck, and must not stop all others.
const PATIENCE: Duration = Duration::from_secs(10);

fn collect(core: &Core, plan: &GcPlan, template: &TemplateId, victims: &[&Planned], heirs: &Heirs) -> Done {
    let mut done = Done::default();
    let mut buried: HashMap<RevisionId, &Planned> = HashMap::new();
    let removed = bury_all(core, plan, template, victims, &mut done, &mut buried).and_then(|grave| match grave {
        Some(grave) => grave.empty(heirs),
        None => Ok(Vec::new()),
    });
    match removed {
        Ok(removed) => {
            let inode = read::inode_size(core.layout.root()).unwrap_or_default().freed;
            for (revision, Removed { bytes, inodes }) in removed {
                let Some(planned) = buried.remove(&revision) else { continue };
                let freed = bytes + inodes * inode;
                done.removed.push(Collected { template: planned.template.clone(), revision, freed });
            }
        }
        // What is in the trash by now goes with the next collection.
        Err(error) => {
            let told: HashSet<RevisionId> = done.skipped.iter().map(|skipped| skipped.revision.clone()).collect();
            for planned in victims.iter().filter(|planned| !told.contains(&planned.revision)) {
                done.skip(planned, SkipReason::Failed { error: error.to_string() });
            }
        }
    }
    done
}

/// Moves the victims out of sight, durably.
fn bury_all<'a, 'p>(
    core: &'a Core,
    plan: &GcPlan,
    template: &TemplateId,
    victims: &[&'p Planned],
    done: &mut Done,
    buried: &mut HashMap<RevisionId, &'p Planned>,
) -> Result<Option<Grave<'a>>> {
    let mut pauses = BackOff::new(Some(PATIENCE));
    let lock = loop {
        match template::try_lock(core, template) {
            Ok(Some(lock)) => break lock,
            Ok(None) if pauses.pause() => {}
            Ok(None) => {
                victims.iter().for_each(|planned| done.skip(planned, SkipReason::Busy));
                return Ok(None);
            }
            Err(Error::TemplateNotFound { .. }) => {
                victims.iter().for_each(|planned| done.skip(planned, SkipReason::Gone));
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    };
    // The `current` that everybody sees must last before what it left is gone.
    activation::settle(core, template)?;
    let roots = Roots::of(core, plan, &lock)?;
    let mut grave = Grave::dig(core)?;
    for some in victims.chunks(AT_ONCE) {
        bury_some(core, &lock, &roots, some, &mut grave, done, buried)?;
    }
    core.disk.fsync_dir(&core.layout.artifacts(template))?;
    for (_, revision) in damage::marked(core)?.iter().filter(|(of, one)| of == template && buried.contains_key(one)) {
        damage::clear(core, template, revision)?;
    }
    Ok(Some(grave))
}

/// Takes the victims from those who could use them, then asks once more what speaks for each.
fn bury_some<'p>(
    core: &Core,
    lock: &TemplateLock,
    roots: &Roots,
    victims: &[&'p Planned],
    grave: &mut Grave,
    done: &mut Done,
    buried: &mut HashMap<RevisionId, &'p Planned>,
) -> Result<()> {
    let mut taken = Vec::new();
    let mut pauses = BackOff::new(Some(FORK_TIME));
    for &planned in victims {
        match take(core, planned, roots.adopted, &mut pauses)? {
            Ok((lease, release)) => taken.push((planned, lease, release)),
            Err(why) => done.skip(planned, why),
        }
    }
    let noted: HashSet<String> = read::names(&core.layout.leases())?.into_iter().collect();
    // The pins after the locks: whoever pins a revision holds it first.
    let pins = pins_of(core, &lock.id)?;
    for (planned, _lease, release) in taken {
        let name = format!("{}@{}", planned.template, planned.revision);
        if noted.contains(&name) && leases::is_noted(core, &planned.template, &planned.revision)? {
            done.skip(planned, SkipReason::Leased { holders: Vec::new() });
            continue;
        }
        match roots.keep(&planned.revision).or_else(|| pinned(&pins, &planned.revision)) {
            Some(why) => done.skip(planned, why),
            None => {
                grave.bury(&lock.id, &planned.revision, release)?;
                buried.insert(planned.revision.clone(), planned);
            }
        }
    }
    Ok(())
}

/// The revision's lock, if it is the one that the plan means, and nobody holds it; and what is to be released with it.
///
/// Nobody held it when the plan was made. Whoever seems to hold it now may be a copy of that question, in a process that
/// has just been started: so there is some patience, once for all.
fn take(
    core: &Core,
    planned: &Planned,
    adopted: Adopted,
    pauses: &mut BackOff,
) -> Result<std::result::Result<(Flock, Release), SkipReason>> {
    let dir = core.layout.revision(&planned.template, &planned.revision);
    let lease = loop {
        match Flock::take(&dir, Mode::Exclusive, Patience::None) {
            Ok(Some(lease)) => break lease,
            Ok(None) if pauses.pause() => {}
            Ok(None) => return Ok(Err(SkipReason::Leased { holders: Vec::new() })),
            Err(error) if error.is_not_found() => return Ok(Err(SkipReason::Gone)),
            Err(error) => return Err(error.into()),
        }
    };
    let bytes = read::bytes_if_there(&dir.join(REVISION_JSON))?.unwrap_or_default();
    let Ok(record) = RevisionSummary::<Vec<ObjectOf>>::from_json(&bytes) else { return Ok(Err(SkipReason::Replaced)) };
    // The plan may follow a catalog, or come from anywhere: what decided is read from the record itself.
    let may_go = match standing(&record) {
        Standing::Published => true,
        Standing::Adopted => adopted == Adopted::Collect,
        Standing::NotOurs | Standing::Unreadable => false,
    };
    let same =
        record.published_at.or(record.adopted_at) == planned.published_at && lease.id()?.inode() == planned.inode;
    Ok(if same && may_go { Ok((lease, Release::from(&record))) } else { Err(SkipReason::Replaced) })
}

/// What keeps revisions of a template while its lock is held.
struct Roots {
    current: Option<RevisionId>,
    /// `current` names nothing that exists.
    dangles: bool,
    targets: Vec<RevisionId>,
    /// What the plan's policy says of those that were adopted.
    adopted: Adopted,
}

impl Roots {
    fn of(core: &Core, plan: &GcPlan, lock: &TemplateLock) -> Result<Roots> {
        let current = activation::current(core, &lock.id)?;
        let log = activation::log(core, &lock.id, &current)?;
        let exists =
            |revision: &RevisionId| read::exists(&core.layout.revision_json(&lock.id, revision)).unwrap_or(true);
        let depth = plan.policy.limits(&lock.id).rollback as usize;
        let targets = rollback_targets(&log, current.revision(), depth, exists);
        let dangles = match &current {
            Current::Unset => false,
            Current::Revision(revision) => !read::exists(&core.layout.revision(&lock.id, revision))?,
            Current::Strange(_) => true,
        };
        Ok(Roots { current: current.revision().cloned(), dangles, targets, adopted: plan.policy.adopted })
    }

    fn keep(&self, revision: &RevisionId) -> Option<SkipReason> {
        if self.current.as_ref() == Some(revision) {
            return Some(SkipReason::BecameCurrent);
        }
        if self.dangles {
            return Some(SkipReason::CurrentUnknown);
        }
        self.targets.contains(revision).then_some(SkipReason::BecameRollbackTarget)
    }
}

/// The pins that hold at this moment in a template; that there are no others lasts.
fn pins_of(core: &Core, template: &TemplateId) -> Result<Vec<Pin>> {
    let now = core.now();
    let mut pins = pins::all(core)?;
    pins::settle(core)?;
    pins.retain(|pin| pin.template == *template && pin.holds_at(now));
    Ok(pins)
}

fn pinned(pins: &[Pin], revision: &RevisionId) -> Option<SkipReason> {
    let pin = pins.iter().find(|pin| pin.revision == *revision)?;
    Some(SkipReason::Pinned { name: pin.name().to_owned(), until: pin.until })
}

/// The revisions that stay and have a key of one that goes, or of an entry that was left behind.
fn heirs(core: &Core, inventory: &Inventory, plan: &GcPlan) -> Heirs {
    let going: HashSet<(&TemplateId, &RevisionId)> =
        plan.going().map(|planned| (&planned.template, &planned.revision)).collect();
    let all =
        || inventory.templates.iter().flat_map(|template| template.revisions.iter().map(move |one| (template, one)));
    let goes = |template: &TemplateId, revision: &RevisionId| going.contains(&(template, revision));
    let theirs = all().filter(|(template, one)| goes(&template.id, &one.id)).flat_map(|(_, one)| &one.keys).copied();
    let keys: HashSet<CacheKey> = theirs.chain(keys_of(core, plan.leftovers.iter())).collect();
    let mut heirs: HashMap<CacheKey, Vec<(Option<jiff::Timestamp>, KeyHint)>> = HashMap::new();
    for (template, one) in all().filter(|(template, one)| !goes(&template.id, &one.id)) {
        for key in one.keys.iter().filter(|key| keys.contains(*key)) {
            let hints = hints(core, key, &template.id, &one.id);
            heirs.entry(*key).or_default().extend(hints.into_iter().map(|hint| (one.published_at, hint)));
        }
    }
    let newest_first = |mut hints: Vec<(Option<_>, KeyHint)>| {
        hints.sort_by_key(|(published, _)| std::cmp::Reverse(*published));
        hints.into_iter().map(|(_, hint)| hint).collect()
    };
    heirs.into_iter().map(|(key, hints)| (key, newest_first(hints))).collect()
}

/// The hints by which a key leads to a revision.
fn hints(core: &Core, key: &CacheKey, template: &TemplateId, revision: &RevisionId) -> Vec<KeyHint> {
    let bytes = read::bytes(&core.layout.revision_json(template, revision)).unwrap_or_default();
    let Ok(record) = RevisionRecord::from_json(&bytes) else { return Vec::new() };
    let made = record.made_from().filter(|made| made.key() == *key);
    let hint = |source_hash| KeyHint { template: template.clone(), revision: revision.clone(), source_hash };
    made.map(|made| hint(made.source_hash)).collect()
}

/// Finds out who holds what was skipped for it, once for all.
fn name_holders(core: &Core, skipped: &mut [Skipped]) -> Result<()> {
    let leased: Vec<&mut Skipped> =
        skipped.iter_mut().filter(|skipped| matches!(skipped.why, SkipReason::Leased { .. })).collect();
    let names: Vec<_> = leased.iter().map(|skipped| (skipped.template.clone(), skipped.revision.clone())).collect();
    for (skipped, holders) in leased.into_iter().zip(leases::holders(core, &names)?) {
        skipped.why = SkipReason::Leased { holders };
    }
    Ok(())
}
