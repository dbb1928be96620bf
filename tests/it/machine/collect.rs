//! What a collection must take and leave.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use template_store::gc::{Policy, SkipReason};

use super::images::Image;
use super::model::{Model, Template};
use super::steps::{Keeping, Term};

/// A revision.
pub type Name = (usize, Image);

/// What was planned: the revisions that go, each with what tells it from a later one, and the pins that are over.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub going: BTreeMap<Name, u32>,
    over: BTreeSet<usize>,
    rollbacks: usize,
}

/// Why something stayed that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    Gone,
    Replaced,
    Held,
    Current,
    RollbackTarget,
    Pinned,
    /// Never expected here.
    Other,
}

impl Why {
    pub fn of(reason: &SkipReason) -> Why {
        match reason {
            SkipReason::Gone => Why::Gone,
            SkipReason::Replaced => Why::Replaced,
            SkipReason::Leased { .. } => Why::Held,
            SkipReason::BecameCurrent => Why::Current,
            SkipReason::BecameRollbackTarget => Why::RollbackTarget,
            SkipReason::Pinned { .. } => Why::Pinned,
            _ => Why::Other,
        }
    }
}

impl Keeping {
    pub fn policy(self) -> Policy {
        let last = |last: u32| Policy::default().keep_last(last);
        match self {
            Keeping::TheUsual => Policy::default(),
            Keeping::Last(n) => last(n),
            Keeping::LastAndRollbacks(n, rollbacks) => last(n).rollback(rollbacks),
            Keeping::TheYoung => last(0).keep_within(Duration::from_secs(24 * 3600)),
            Keeping::LastAndHungry(n) => last(n).max_size(1),
        }
    }

    /// How many of the newest are kept, and how many that rollbacks would go back to.
    fn limits(self) -> (usize, usize) {
        let usual = |last: u32| (last as usize, usize::from(last > 1));
        match self {
            Keeping::TheUsual => usual(3),
            Keeping::Last(n) | Keeping::LastAndHungry(n) => usual(n),
            Keeping::LastAndRollbacks(n, rollbacks) => (n as usize, rollbacks as usize),
            Keeping::TheYoung => (usize::MAX, 0),
        }
    }
}

impl Template {
    /// What so many rollbacks, one after the other, would go back to.
    fn targets(&self, depth: usize) -> BTreeSet<Image> {
        let mut targets = Vec::new();
        for image in self.stack.iter().rev() {
            if Some(*image) != self.current && self.has(*image) && !targets.contains(image) {
                targets.push(*image);
            }
        }
        targets.into_iter().take(depth).collect()
    }
}

impl Model {
    pub fn plan(&self, keeping: Keeping) -> Plan {
        let (last, rollbacks) = keeping.limits();
        let over = self.pins.iter().filter(|(_, pin)| pin.term == Term::Over).map(|(name, _)| *name).collect();
        let mut plan = Plan { going: BTreeMap::new(), over, rollbacks };
        for (name, template) in &self.templates {
            let targets = template.targets(rollbacks);
            for revision in template.revisions.iter().rev().skip(last) {
                let image = revision.image;
                let is_root = template.current == Some(image)
                    || targets.contains(&image)
                    || self.is_pinned(*name, image)
                    || self.is_held(*name, image);
                if !is_root {
                    plan.going.insert((*name, image), revision.serial);
                }
            }
        }
        plan
    }

    /// Takes what the plan names and nothing speaks for now. Gives what goes, and what stays and why.
    pub fn collect(&mut self, plan: &Plan) -> (BTreeSet<Name>, BTreeMap<Name, Why>) {
        let mut gone = BTreeSet::new();
        let mut stays = BTreeMap::new();
        for (&(template, image), &serial) in &plan.going {
            match self.why_not(plan, template, image, serial) {
                None => drop(gone.insert((template, image))),
                Some(why) => drop(stays.insert((template, image), why)),
            }
        }
        for (template, image) in &gone {
            self.templates.get_mut(template).expect("it has the revision").drop_revision(*image);
        }
        self.pins.retain(|name, pin| pin.term != Term::Over || !plan.over.contains(name));
        (gone, stays)
    }

    fn why_not(&self, plan: &Plan, template: usize, image: Image, serial: u32) -> Option<Why> {
        let Ok(found) = self.revision(template, image) else { return Some(Why::Gone) };
        let of = &self.templates[&template];
        match () {
            () if self.is_held(template, image) => Some(Why::Held),
            () if found.serial != serial => Some(Why::Replaced),
            () if of.current == Some(image) => Some(Why::Current),
            () if of.targets(plan.rollbacks).contains(&image) => Some(Why::RollbackTarget),
            () if self.is_pinned(template, image) => Some(Why::Pinned),
            () => None,
        }
    }
}
