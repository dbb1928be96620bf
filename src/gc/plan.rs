//! What a collection will do, and why; pure.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::bytes::{Freed, alone, held};
use super::inventory::{Bound, CurrentState, Inventory, LeftoverKind, RevisionState, Standing, TemplateState};
use super::policy::{Adopted, Effective, Policy};
use crate::format::{Holder, Pin};
use crate::id::{RevisionId, TemplateId};

/// What a collection will do: saved as JSON, it can be looked at and applied later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct GcPlan {
    /// The time that ages were measured at.
    pub now: Timestamp,
    /// The policy that it follows.
    pub policy: Policy,
    /// Every revision, in the order of templates and then the newest first.
    pub revisions: Vec<Planned>,
    /// What dead processes left behind.
    pub leftovers: Vec<PlannedLeftover>,
    /// The bytes that are freed in all.
    pub frees: u64,
    /// The bytes of what goes that stay on the disk for instances which have links to them.
    #[serde(default)]
    pub held_by_instances: u64,
    /// What the bytes are worth.
    pub bound: Bound,
    /// The goals that can't be reached; nothing goes for their sake.
    pub unmet: Vec<Unmet>,
}

impl GcPlan {
    /// The revisions that go.
    pub fn going(&self) -> impl Iterator<Item = &Planned> {
        self.revisions.iter().filter(|planned| planned.verdict == Verdict::Goes)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.leftovers.is_empty() && self.going().next().is_none()
    }
}

/// What becomes of one revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Planned {
    /// Its template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
    /// Whether it stays.
    pub verdict: Verdict,
    /// All that speaks for the verdict.
    pub reasons: Vec<Reason>,
    /// When this store published or adopted it.
    pub published_at: Option<Timestamp>,
    /// The bytes that removing it alone would free; `None` where that was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frees_alone: Option<u64>,
    /// The bytes that are freed with it when all before it in the plan have gone; they add up to what all free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frees_together: Option<u64>,
    /// The bytes that removing it alone would not free because instances have links to them; they are freed with the
    /// last of those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub held_by_instances: u64,
    /// The number of its directory's inode: another one is another revision.
    pub inode: u64,
}

fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Whether something stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It stays.
    Kept,
    /// It goes.
    Goes,
}

/// Why something stays or goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
#[non_exhaustive]
pub enum Reason {
    /// Kept: it is current.
    Current,
    /// Kept: a rollback would go back to it, so many steps.
    RollbackTarget {
        /// 1 is the next one.
        step: u32,
    },
    /// Kept: somebody said so.
    Pinned {
        /// The pin's name.
        name: String,
        /// Until when; `None` is for ever.
        until: Option<Timestamp>,
    },
    /// Kept: live processes use it.
    Leased {
        /// Those that can be seen.
        holders: Vec<Holder>,
    },
    /// Kept: it is among the newest.
    AmongLast {
        /// 1 is the newest; what is marked as damaged has the place of the next one that is not.
        place: u32,
        /// How many are kept.
        keep_last: u32,
    },
    /// Kept: it is young.
    Younger {
        /// Its age in seconds.
        age: u64,
        /// The age in seconds to which all are kept.
        keep_within: u64,
    },
    /// Kept: this store did not publish it, and does not know what it holds.
    NotOurs,
    /// Kept: it was adopted from mvm.
    Adopted,
    /// Kept: its `revision.json` can't be read.
    Unreadable,
    /// Kept: `current` names nothing that exists, so any may be the one that was meant.
    CurrentUnknown,
    /// Kept: `current` or its log can't be read, so any may be the one that it names, or that a rollback goes back to.
    CurrentUnreadable,
    /// Goes: so many newer ones are kept.
    BeyondLast {
        /// 1 is the newest.
        place: u32,
        /// How many are kept.
        keep_last: u32,
    },
    /// Goes: it is old.
    Older {
        /// Its age in seconds.
        age: u64,
        /// The age in seconds to which all are kept.
        keep_within: u64,
    },
    /// Goes, although it is among the newest or young: its bytes are needed.
    ForSpace {
        /// For which goal.
        goal: Goal,
    },
}

impl Reason {
    /// Whether the goals of space outweigh it.
    fn yields_to_space(&self) -> bool {
        matches!(self, Reason::AmongLast { .. } | Reason::Younger { .. })
    }
}

/// A goal of space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// What the store may take at most.
    MaxSize,
    /// What is to be free at least.
    MinFree,
}

/// A goal that can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmet {
    /// Which.
    pub goal: Goal,
    /// The bytes that would have to be freed, beside those that go anyway.
    pub needed: u64,
    /// The bytes that could be freed for it.
    pub possible: u64,
}

/// Something that a dead process left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PlannedLeftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where it is, below the store's directory.
    pub path: String,
    /// The bytes that are freed with it.
    pub frees: u64,
}

/// Plans a collection: the same inventory, policy and time give the same plan. Nothing is read or changed.
///
/// Kept is what is current, what the nearest rollbacks go back to, what is pinned or in use, what this store did not
/// publish, what was adopted (unless the policy says otherwise), and of each template the newest revisions and the
/// young ones. The rest goes.
///
/// The two goals of space then take from the newest and the young, in an order that does not depend on what went
/// before: the least loss first, where the loss is
/// `(build_seconds + 1) / ((seconds since the last use + 3600) * (bytes freed alone + 4096))`. They take no more than
/// is needed, and nothing at all if all of it would not be enough.
///
/// ```
/// use template_store::gc::{Inventory, Policy, RevisionState, TemplateState, plan};
///
/// let mut web = TemplateState::new("web".parse()?);
/// for day in 1..=5 {
///     let published = format!("2026-11-0{day}T00:00:00Z").parse().unwrap();
///     web.revisions.push(RevisionState::new(format!("r{day}").parse()?, published));
/// }
/// let inventory = Inventory { templates: vec![web], ..Inventory::default() };
/// let plan = plan(&inventory, &Policy::default(), "2026-11-23T00:00:00Z".parse().unwrap());
/// let going: Vec<_> = plan.going().map(|planned| planned.revision.as_str()).collect();
/// assert_eq!(going, ["r2", "r1"]); // the last three are kept
/// # Ok::<(), template_store::InvalidName>(())
/// ```
pub fn plan(inventory: &Inventory, policy: &Policy, now: Timestamp) -> GcPlan {
    let mut judged = judge(inventory, policy, now);
    let mut freed = Freed::nothing(inventory);
    let leftovers = inventory.leftovers.iter().map(|leftover| {
        let entry = leftover.shard.map_or(0, |shard| freed.take_shard_entry(shard));
        let frees = entry + freed.take(&leftover.footprint);
        PlannedLeftover { kind: leftover.kind, path: leftover.path.clone(), frees }
    });
    let leftovers = leftovers.collect();
    for one in judged.iter_mut().filter(|one| one.planned.verdict == Verdict::Goes) {
        one.planned.frees_together = Some(freed.take(&one.state.footprint));
    }
    let unmet = make_space(inventory, policy, now, &mut judged, &mut freed);
    GcPlan {
        now,
        policy: policy.clone(),
        revisions: judged.into_iter().map(|one| one.planned).collect(),
        leftovers,
        frees: freed.bytes,
        held_by_instances: freed.held,
        bound: inventory.bound,
        unmet,
    }
}

/// The revisions that could go, whatever they take: those are to be measured before a plan tells bytes.
///
/// Each is the place of its template, and its own place in it.
pub(super) fn candidates(inventory: &Inventory, policy: &Policy, now: Timestamp) -> Vec<(usize, usize)> {
    let limited = policy.max_size.is_some() || policy.min_free.is_some();
    let judged = judge(inventory, policy, now).into_iter();
    let may_go = judged.filter(|one| one.planned.verdict == Verdict::Goes || limited && one.yields_to_space());
    may_go.map(|one| one.place).collect()
}

/// A revision with the verdict on it.
struct Judged<'a> {
    place: (usize, usize),
    state: &'a RevisionState,
    planned: Planned,
}

impl Judged<'_> {
    fn yields_to_space(&self) -> bool {
        self.planned.reasons.iter().all(Reason::yields_to_space)
    }
}

fn judge<'a>(inventory: &'a Inventory, policy: &Policy, now: Timestamp) -> Vec<Judged<'a>> {
    let mut pins: HashMap<(&TemplateId, &RevisionId), Vec<&Pin>> = HashMap::new();
    for pin in inventory.pins.iter().filter(|pin| pin.holds_at(now)) {
        pins.entry((&pin.template, &pin.revision)).or_default().push(pin);
    }
    let mut judged = Vec::new();
    let mut templates: Vec<(usize, &TemplateState)> = inventory.templates.iter().enumerate().collect();
    templates.sort_by_key(|(_, template)| &template.id);
    for (t, template) in templates {
        let limits = policy.limits(&template.id);
        let mut newest_first: Vec<(usize, &RevisionState)> = template.revisions.iter().enumerate().collect();
        newest_first.sort_by(|(_, a), (_, b)| (b.published_at, &b.id).cmp(&(a.published_at, &a.id)));
        let mut place = 0;
        for (r, state) in newest_first {
            let is_ours = matches!(state.standing, Standing::Published | Standing::Adopted);
            // A damaged one has the place of the next intact one: it stays as long as that, and drives none out.
            let of_it = is_ours.then_some(place + 1);
            place += u32::from(is_ours && !state.damaged);
            let pins = pins.get(&(&template.id, &state.id)).map_or(&[][..], Vec::as_slice);
            let subject = Subject { template, state, place: of_it, pins };
            judged.push(Judged { place: (t, r), state, planned: subject.judge(limits, policy.adopted, now) });
        }
    }
    judged
}

/// A revision, and what is known of its place.
struct Subject<'a> {
    template: &'a TemplateState,
    state: &'a RevisionState,
    /// Among the intact ones of its template that are ours; 1 is the newest.
    place: Option<u32>,
    pins: &'a [&'a Pin],
}

impl Subject<'_> {
    fn judge(&self, limits: Effective, adopted: Adopted, now: Timestamp) -> Planned {
        let mut reasons = self.roots(limits, adopted);
        reasons.extend(self.policy(limits, now, Verdict::Kept));
        let verdict = if reasons.is_empty() { Verdict::Goes } else { Verdict::Kept };
        if verdict == Verdict::Goes {
            reasons.extend(self.policy(limits, now, Verdict::Goes));
        }
        let RevisionState { id, published_at, inode, .. } = self.state;
        Planned {
            template: self.template.id.clone(),
            revision: id.clone(),
            verdict,
            reasons,
            published_at: *published_at,
            frees_alone: None,
            frees_together: None,
            held_by_instances: 0,
            inode: *inode,
        }
    }

    /// What keeps it, whatever the limits say.
    fn roots(&self, limits: Effective, adopted: Adopted) -> Vec<Reason> {
        let (template, state) = (self.template, self.state);
        let mut reasons = Vec::new();
        match &template.current {
            CurrentState::Revision(current) if *current == state.id => reasons.push(Reason::Current),
            CurrentState::Dangling => reasons.push(Reason::CurrentUnknown),
            CurrentState::Unreadable => reasons.push(Reason::CurrentUnreadable),
            _ => {}
        }
        let target = template.rollback.iter().take(limits.rollback as usize).position(|target| *target == state.id);
        reasons.extend(target.map(|at| Reason::RollbackTarget { step: at as u32 + 1 }));
        let pinned = |pin: &&Pin| Reason::Pinned { name: pin.name().to_owned(), until: pin.until };
        reasons.extend(self.pins.iter().map(pinned));
        reasons.extend(state.holders.clone().map(|holders| Reason::Leased { holders }));
        match state.standing {
            Standing::NotOurs => reasons.push(Reason::NotOurs),
            Standing::Unreadable => reasons.push(Reason::Unreadable),
            Standing::Adopted if adopted == Adopted::Keep => reasons.push(Reason::Adopted),
            _ if state.published_at.is_none() => reasons.push(Reason::NotOurs),
            _ => {}
        }
        reasons
    }

    /// What the limits say for this verdict.
    fn policy(&self, limits: Effective, now: Timestamp, verdict: Verdict) -> Vec<Reason> {
        let (Some(published), Effective { keep_last, keep_within, .. }) = (self.state.published_at, limits) else {
            return Vec::new();
        };
        let mut reasons = Vec::new();
        match (verdict, self.place) {
            (Verdict::Kept, Some(place)) if place <= keep_last => reasons.push(Reason::AmongLast { place, keep_last }),
            (Verdict::Goes, Some(place)) if place > keep_last => reasons.push(Reason::BeyondLast { place, keep_last }),
            _ => {}
        }
        if let Some(keep_within) = keep_within.map(|time| time.as_secs()) {
            let age = seconds_since(published, now);
            match verdict {
                Verdict::Kept if age < keep_within => reasons.push(Reason::Younger { age, keep_within }),
                Verdict::Goes if age >= keep_within => reasons.push(Reason::Older { age, keep_within }),
                _ => {}
            }
        }
        reasons
    }
}

/// Takes more for the goals of space, the least loss first; gives the goals that can't be reached.
fn make_space(
    inventory: &Inventory,
    policy: &Policy,
    now: Timestamp,
    judged: &mut [Judged],
    freed: &mut Freed,
) -> Vec<Unmet> {
    let mut unmet = Vec::new();
    for one in judged.iter_mut().filter(|one| one.planned.verdict == Verdict::Goes) {
        one.planned.frees_alone = Some(alone(inventory, &one.state.footprint));
        one.planned.held_by_instances = held(inventory, &one.state.footprint);
    }
    let goals = goals(inventory, policy);
    if goals.is_empty() {
        return unmet;
    }
    let order = by_loss(inventory, now, judged);
    for (goal, target) in goals {
        let before = freed.bytes;
        let mut attempt = freed.clone();
        let mut taken = Vec::new();
        for &at in &order {
            if attempt.bytes >= target {
                break;
            }
            if judged[at].planned.verdict == Verdict::Kept {
                taken.push((at, attempt.take(&judged[at].state.footprint)));
            }
        }
        if attempt.bytes < target {
            unmet.push(Unmet { goal, needed: target - before, possible: attempt.bytes - before });
            continue;
        }
        *freed = attempt;
        for (at, bytes) in taken {
            let (planned, state) = (&mut judged[at].planned, judged[at].state);
            planned.verdict = Verdict::Goes;
            planned.reasons = vec![Reason::ForSpace { goal }];
            planned.frees_alone = Some(alone(inventory, &state.footprint));
            planned.held_by_instances = held(inventory, &state.footprint);
            planned.frees_together = Some(bytes);
        }
    }
    unmet
}

/// The goals of space, each with the bytes that are to be freed in all.
fn goals(inventory: &Inventory, policy: &Policy) -> Vec<(Goal, u64)> {
    let disk = inventory.disk;
    let max_size = policy.max_size.map(|most| (Goal::MaxSize, disk.store.saturating_sub(most)));
    let min_free = policy.min_free.map(|least| (Goal::MinFree, least.of(disk.total).saturating_sub(disk.available)));
    max_size.into_iter().chain(min_free).collect()
}

/// The places of those that may go for space, the least loss first.
fn by_loss(inventory: &Inventory, now: Timestamp, judged: &[Judged]) -> Vec<usize> {
    let loss = |one: &Judged| {
        let idle = one.state.last_used.map_or(0, |used| seconds_since(used, now));
        let bytes = alone(inventory, &one.state.footprint);
        (one.state.build_seconds.unwrap_or_default().max(0.0) + 1.0) / ((idle + 3600) as f64 * (bytes + 4096) as f64)
    };
    let kept = judged.iter().enumerate().filter(|(_, one)| one.planned.verdict == Verdict::Kept);
    let mut order: Vec<(f64, usize)> =
        kept.filter(|(_, one)| one.yields_to_space()).map(|(at, one)| (loss(one), at)).collect();
    // Of equal losses the older one goes: the newest come first in the list.
    order.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
    order.into_iter().map(|(_, at)| at).collect()
}

fn seconds_since(then: Timestamp, now: Timestamp) -> u64 {
    u64::try_from(now.as_second() - then.as_second()).unwrap_or(0)
}
