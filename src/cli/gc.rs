//! `gc` and `why`: what goes, what stays, and the reasons.

use std::collections::{HashMap, HashSet};

use camino::Utf8Path;
use serde::Serialize;
use serde_json::json;
use template_store::gc::{
    Adopted, Bound, GcPlan, GcReport, Goal, Planned, Policy, Reason, SkipReason, Skipped, Unmet, Verdict,
};
use template_store::{Error, Holder, RevisionId, Store, TemplateId};

use super::args::{Gc, PolicyArgs, Target};
use super::output::{Output, shown, size, table};
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status, input};

/// What `--json` prints, and `--plan` reads ([`GcPlan::from_json`]).
#[derive(Debug, Serialize)]
struct Document<'a, P, R> {
    dry_run: bool,
    plan: P,
    report: Option<R>,
    /// Of a saved plan: what it speaks of and is not there any more.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    gone: &'a [Gone],
}

/// A revision of a saved plan that somebody has removed since.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
struct Gone {
    template: TemplateId,
    revision: RevisionId,
}

impl Gone {
    fn of(planned: &Planned) -> Gone {
        Gone { template: planned.template.clone(), revision: planned.revision.clone() }
    }
}

/// The revisions of a plan that are not in the store.
fn gone(store: &Store, plan: &GcPlan) -> Result<Vec<Gone>> {
    let mut there: HashMap<&TemplateId, HashSet<RevisionId>> = HashMap::new();
    for planned in &plan.revisions {
        if !there.contains_key(&planned.template) {
            let revisions = match store.revisions(&planned.template) {
                Err(Error::TemplateNotFound { .. }) => Vec::new(),
                revisions => revisions?,
            };
            there.insert(&planned.template, revisions.into_iter().collect());
        }
    }
    let is_gone = |planned: &&Planned| !there[&planned.template].contains(&planned.revision);
    Ok(plan.revisions.iter().filter(is_gone).map(Gone::of).collect())
}

pub(crate) fn gc(session: &Session, args: &Gc) -> Result {
    let store = session.open()?;
    let output = session.output;
    let mut terminal = Terminal::new(output);
    // What was gone before is no work of this call.
    let saved = match &args.plan {
        Some(file) => {
            let plan = saved(file)?;
            Some((gone(&store, &plan)?, plan))
        }
        None => None,
    };
    if args.dry_run {
        let (gone, plan) = match saved {
            Some(saved) => saved,
            None => (Vec::new(), store.plan_gc(&policy(&store, &args.policy)?)?),
        };
        let document = Document::<_, GcReport> { dry_run: true, plan: &plan, report: None, gone: &gone };
        output.document(&document, || dry_run_text(&plan, &gone, args.plan.is_some()));
        return Ok(unmet(output, &plan.unmet));
    }
    let (gone, plan, report) = match saved {
        Some((gone, plan)) => {
            let report = store.apply_gc(&plan, &mut terminal)?;
            (gone, plan, report)
        }
        None => {
            let (plan, report) = store.gc(&policy(&store, &args.policy)?, &mut terminal)?;
            (Vec::new(), plan, report)
        }
    };
    let document = Document { dry_run: false, plan: &plan, report: Some(&report), gone: &gone };
    output.document(&document, || report_text(&plan, &report, &gone));
    for failed in &report.failed {
        output.note(&failed.error);
    }
    let stuck = |one: &Skipped| matches!(one.why, SkipReason::Failed { .. } | SkipReason::Busy);
    let failed = !report.failed.is_empty() || report.skipped.iter().any(stuck);
    Ok(if failed { Status::Failed } else { unmet(output, &report.unmet) })
}

/// The store's policy, with what the call says instead.
fn policy(store: &Store, args: &PolicyArgs) -> Result<Policy> {
    let mut policy = store.policy()?;
    policy.keep_last = args.keep_last.unwrap_or(policy.keep_last);
    policy.keep_within = args.keep_within.or(policy.keep_within);
    policy.rollback = args.rollback.or(policy.rollback);
    policy.max_size = args.max_size.or(policy.max_size);
    policy.min_free = args.min_free.or(policy.min_free);
    if args.include_adopted {
        policy.adopted = Adopted::Collect;
    }
    Ok(policy)
}

/// A plan that `gc --dry-run --json` printed.
fn saved(file: &Utf8Path) -> Result<GcPlan> {
    let (bytes, name) = match file.as_str() {
        "-" => (input::standard()?, "standard input"),
        _ => (input::read(file)?, file.as_str()),
    };
    let wrong = |error| Failure::Usage(format!("{name} is not a plan of `gc --dry-run --json`: {error}"));
    GcPlan::from_json(&bytes).map_err(wrong)
}

fn unmet(output: &Output, unmet: &[Unmet]) -> Status {
    for one in unmet {
        let goal = match one.goal {
            Goal::MaxSize => "the store can't be made as small as it is to be",
            Goal::MinFree => "the file system can't be given the free space that it is to have",
        };
        let (needed, possible) = (size(one.needed), size(one.possible));
        output.note(&format!(
            "{goal}: {needed} more would have to go, and only {possible} may; nothing was taken for it"
        ));
    }
    if unmet.is_empty() { Status::Done } else { Status::Refused }
}

fn dry_run_text(plan: &GcPlan, gone: &[Gone], is_saved: bool) -> String {
    let set: HashSet<&Gone> = gone.iter().collect();
    let is_there = |planned: &&Planned| !set.contains(&Gone::of(planned));
    let row = |planned: &Planned| {
        let bytes = planned.frees_together.map(size).unwrap_or_default();
        vec![planned.template.to_string(), planned.revision.to_string(), bytes, reasons(planned)]
    };
    let going: Vec<_> = plan.going().filter(is_there).collect();
    let mut text = String::new();
    if !going.is_empty() {
        text += &table(&["TEMPLATE", "REVISION", "FREES", "WHY"], going.iter().copied().map(row));
        text += "\n";
    }
    text += &gone_already(gone);
    text += &protected(plan, &set);
    text += &leftovers(plan.leftovers.iter().map(|one| (kind_name(one.kind), one.path.as_str(), one.frees)));
    text += &held(plan.held_by_instances);
    let frees = match gone.is_empty() {
        true => format!("{}{}", at_most(plan.bound), size(plan.frees)),
        // What the plan counts as shared with one that is gone may be freed with the other.
        false => format!("about {}", size(going.iter().filter_map(|planned| planned.frees_together).sum())),
    };
    text +=
        &format!("would remove {} and free {frees}; {}\n", revisions(going.len()), kept(plan, going.len(), gone.len()));
    if is_saved {
        text += "this is a saved plan: what became current or was pinned since, or is in use, will stay\n";
    }
    text
}

fn report_text(plan: &GcPlan, report: &GcReport, gone: &[Gone]) -> String {
    let row =
        |one: &template_store::gc::Collected| vec![one.template.to_string(), one.revision.to_string(), size(one.freed)];
    let mut text = String::new();
    if !report.removed.is_empty() {
        text += &table(&["TEMPLATE", "REVISION", "FREED"], report.removed.iter().map(row));
        text += "\n";
    }
    for skipped in &report.skipped {
        text += &format!("skipped {}@{}: {}\n", skipped.template, skipped.revision, shown(&skip_reason(skipped)));
    }
    let mut set: HashSet<&Gone> = gone.iter().collect();
    text += &protected(plan, &set);
    text += &leftovers(report.swept.iter().map(|one| (kind_name(one.kind), one.path.as_str(), one.freed)));
    text += &held(report.held_by_instances);
    let skipped = report.skipped.iter().filter(|skipped| skipped.why == SkipReason::Gone);
    let skipped: Vec<_> =
        skipped.map(|one| Gone { template: one.template.clone(), revision: one.revision.clone() }).collect();
    set.extend(&skipped);
    text + &format!(
        "removed {} and freed {}{}; {}\n",
        revisions(report.removed.len()),
        at_most(report.bound),
        size(report.freed),
        kept(plan, report.removed.len(), set.len())
    )
}

/// How many revisions of the plan stay, and how many others have removed.
fn kept(plan: &GcPlan, removed: usize, gone: usize) -> String {
    let kept = plan.revisions.len().saturating_sub(removed + gone);
    match gone {
        0 => format!("{kept} kept"),
        gone => format!("{kept} kept, {gone} gone already"),
    }
}

fn gone_already(gone: &[Gone]) -> String {
    gone.iter().map(|one| format!("gone already: {}@{}\n", one.template, one.revision)).collect()
}

/// What somebody uses or has pinned is said by name.
fn protected(plan: &GcPlan, gone: &HashSet<&Gone>) -> String {
    let is_kept = |planned: &&Planned| planned.verdict == Verdict::Kept && !gone.contains(&Gone::of(planned));
    let kept = plan.revisions.iter().filter(is_kept);
    let by_somebody = |planned: &&Planned| {
        planned.reasons.iter().any(|reason| matches!(reason, Reason::Leased { .. } | Reason::Pinned { .. }))
    };
    let line =
        |planned: &Planned| format!("kept {}@{}: {}\n", planned.template, planned.revision, shown(&reasons(planned)));
    kept.filter(by_somebody).map(line).collect()
}

fn leftovers<'a>(found: impl Iterator<Item = (String, &'a str, u64)>) -> String {
    found
        .map(|(kind, path, bytes)| format!("left behind by a dead process: {kind} {}, {}\n", shown(path), size(bytes)))
        .collect()
}

/// What removing a revision does not free.
fn held(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(
            "{} more stay for instances that have links to them (`template-store instance list`)\n",
            size(bytes)
        ),
    }
}

fn kind_name(kind: template_store::gc::LeftoverKind) -> String {
    format!("{kind:?}").to_lowercase()
}

fn revisions(count: usize) -> String {
    if count == 1 { "1 revision".into() } else { format!("{count} revisions") }
}

fn at_most(bound: Bound) -> &'static str {
    match bound {
        Bound::AtMost => "at most ",
        _ => "",
    }
}

fn reasons(planned: &Planned) -> String {
    planned.reasons.iter().map(reason).collect::<Vec<_>>().join("; ")
}

fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Current => "it is current".into(),
        Reason::RollbackTarget { step: 1 } => "the next rollback goes back to it".into(),
        Reason::RollbackTarget { step } => format!("{step} rollbacks go back to it"),
        Reason::Pinned { name, until: None } => format!("pinned as {name}"),
        Reason::Pinned { name, until: Some(until) } => format!("pinned as {name} until {until}"),
        Reason::Leased { holders } => in_use(holders),
        Reason::AmongLast { place, keep_last } => format!("number {place} of the newest {keep_last}"),
        Reason::Younger { age, keep_within } => format!("{} old, kept for {}", time(*age), time(*keep_within)),
        Reason::NotOurs => "this store did not publish it".into(),
        Reason::Adopted => "it was adopted (--include-adopted takes it)".into(),
        Reason::Unreadable => "its revision.json can't be read (try `template-store verify --repair`)".into(),
        Reason::CurrentUnknown => {
            "current points to nothing, so nothing is taken here (try `template-store verify --repair`)".into()
        }
        Reason::CurrentUnreadable => {
            "current or its history can't be read, so nothing is taken here (`template-store verify` says why)".into()
        }
        Reason::BeyondLast { place, keep_last } => format!("number {place} from the newest, {keep_last} are kept"),
        Reason::Older { age, keep_within } => format!("{} old, kept for {}", time(*age), time(*keep_within)),
        Reason::ForSpace { goal: Goal::MaxSize } => "for the maximum size of the store".into(),
        Reason::ForSpace { goal: Goal::MinFree } => "for free space on the disk".into(),
        _ => "a reason that this program does not know".into(),
    }
}

fn in_use(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "in use by a process that can't be seen from here".into();
    }
    let holder = |holder: &Holder| {
        let command = if holder.command.is_empty() { String::new() } else { format!(" ({})", holder.command) };
        let purpose = if holder.purpose.is_empty() { String::new() } else { format!(", {}", holder.purpose) };
        format!("process {}{command}{purpose}", holder.pid)
    };
    format!("in use by {}", holders.iter().map(holder).collect::<Vec<_>>().join(" and "))
}

fn skip_reason(skipped: &Skipped) -> String {
    match &skipped.why {
        SkipReason::BecameCurrent => "it became current".into(),
        SkipReason::CurrentUnknown => "current points to nothing now, and it may be the one that was meant".into(),
        SkipReason::BecameRollbackTarget => "a rollback would go back to it now".into(),
        SkipReason::Leased { holders } => in_use(holders),
        SkipReason::Pinned { name, .. } => format!("it was pinned as {name}"),
        SkipReason::Gone => "it is gone already".into(),
        SkipReason::Replaced => "another revision has its name".into(),
        SkipReason::Misjudged => {
            "what is kept in its stead is not as new as the catalog said; collect once more".into()
        }
        SkipReason::Busy => "somebody holds the template's lock".into(),
        SkipReason::Failed { error } => error.clone(),
        _ => "a reason that this program does not know".into(),
    }
}

/// Seconds, for people.
fn time(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if days >= 2 => format!("{days} days"),
        () if hours >= 2 => format!("{hours} hours"),
        () if minutes >= 2 => format!("{minutes} minutes"),
        () => format!("{seconds} seconds"),
    }
}

pub(crate) fn why(session: &Session, target: &Target, args: &PolicyArgs) -> Result {
    let store = session.open()?;
    let revision = match &target.revision {
        Some(revision) => revision.clone(),
        None => {
            store.current_id(&target.template)?.ok_or_else(|| Error::NoCurrent { template: target.template.clone() })?
        }
    };
    let planned = store.why(&target.template, &revision, &policy(&store, args)?)?;
    session.output.result(|| json!(planned), || why_text(&planned));
    Ok(Status::Done)
}

fn why_text(planned: &Planned) -> String {
    let head = match planned.verdict {
        Verdict::Kept => "is kept",
        Verdict::Goes => "goes with the next gc of this policy",
    };
    let mut text = format!("{}@{} {head}:\n", planned.template, planned.revision);
    for one in &planned.reasons {
        text += &format!("  {}\n", shown(&reason(one)));
    }
    if let Some(bytes) = planned.frees_alone {
        text += &format!("  removing it alone frees {}\n", size(bytes));
    }
    if planned.held_by_instances > 0 {
        text += &format!("  {} of it stay for instances that have links to them\n", size(planned.held_by_instances));
    }
    text
}
