//! Makes sequences of steps.

use proptest::prelude::*;
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use super::bugs::Bug;
use super::images::{CONTENTS, DEFINITIONS, KEYS, TEMPLATES};
use super::steps::{Expecting, HANDLES, Harm, Keeping, Pick, Publishing, SLOTS, Step, Term, Transition};

/// What there may be by now, to be of use: nobody looks whether it is so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Likely {
    /// The bug that was put in.
    pub bug: Option<Bug>,
    published: u32,
    pins: u32,
    instances: u32,
    is_held: bool,
    is_planned: bool,
    is_building: bool,
}

/// What a store must hold follows from what it answers as well, as after a cut: so the model is in the
/// system under test, and here is only what makes a step likely to come to something.
#[derive(Debug)]
pub struct Steps;

impl ReferenceStateMachine for Steps {
    type State = Likely;
    type Transition = Transition;

    fn init_state() -> BoxedStrategy<Likely> {
        Just(Likely::default()).boxed()
    }

    fn transitions(likely: &Likely) -> BoxedStrategy<Transition> {
        let cut = prop::option::weighted(0.08, 0..1_000_000_u64);
        (0..HANDLES, likely.step(), cut).prop_map(Transition::new).boxed()
    }

    fn apply(mut likely: Likely, transition: &Transition) -> Likely {
        if transition.cut.is_some() {
            (likely.is_held, likely.is_planned, likely.is_building) = (false, false, false);
        }
        match transition.step {
            Step::Build { .. } | Step::BuildAgain { .. } | Step::Import { .. } => likely.published += 1,
            Step::RemoveTemplate { .. } | Step::Collect { .. } => likely.published = 1,
            Step::Pin { .. } => likely.pins += 1,
            Step::Unpin { .. } => likely.pins = likely.pins.saturating_sub(1),
            Step::Instance { .. } => likely.instances += 1,
            Step::RemoveInstance { .. } => likely.instances = likely.instances.saturating_sub(1),
            Step::Hold { .. } | Step::HoldCurrent { .. } => likely.is_held = true,
            Step::LetGo { .. } => likely.is_held = false,
            Step::Plan { .. } => likely.is_planned = true,
            Step::ApplyPlan => likely.is_planned = false,
            Step::Begin { .. } => likely.is_building = true,
            Step::Finish { .. } | Step::Abandon => likely.is_building = false,
            _ => {}
        }
        likely
    }
}

impl Likely {
    pub fn with(bug: Bug) -> Likely {
        Likely { bug: Some(bug), ..Likely::default() }
    }
}

impl Transition {
    /// No power fails where somebody else harms the store.
    fn new((handle, step, cut): (usize, Step, Option<u64>)) -> Transition {
        Transition { handle, step, cut: cut.filter(|_| !matches!(step, Step::Harm(_))) }
    }
}

/// Mostly the same ones, so that much happens to them.
fn template() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![6 => Just(0_usize), 1 => Just(1), 2 => Just(TEMPLATES.len() - 1)]
}

fn key() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![3 => Just(0_usize), 3 => 0..KEYS]
}

fn name() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![4 => Just(0_usize), 2 => 1..3_usize]
}

fn slot() -> impl Strategy<Value = usize> + Clone {
    prop_oneof![6 => Just(0_usize), 1 => Just(SLOTS - 1)]
}

fn pick() -> impl Strategy<Value = Pick> + Clone {
    prop_oneof![12 => (0..4_usize).prop_map(Pick::Nth), 1 => (0..2 * CONTENTS).prop_map(Pick::Other)]
}

fn expecting() -> impl Strategy<Value = Expecting> + Clone {
    prop_oneof![
        8 => Just(Expecting::Anything),
        1 => Just(Expecting::Nothing),
        2 => Just(Expecting::WhatIs),
        1 => pick().prop_map(Expecting::A),
    ]
}

fn publishing() -> impl Strategy<Value = Publishing> + Clone {
    (prop::bool::weighted(0.8), expecting()).prop_map(|(activates, expecting)| Publishing { activates, expecting })
}

fn keeping() -> impl Strategy<Value = Keeping> + Clone {
    prop_oneof![
        1 => Just(Keeping::TheUsual),
        6 => (0..2_u32).prop_map(Keeping::Last),
        3 => (0..2_u32, 0..3_u32).prop_map(|(last, rollbacks)| Keeping::LastAndRollbacks(last, rollbacks)),
        1 => Just(Keeping::TheYoung),
        1 => (0..3_u32).prop_map(Keeping::LastAndHungry),
    ]
}

fn term() -> impl Strategy<Value = Term> + Clone {
    prop_oneof![3 => Just(Term::Always), 2 => Just(Term::Long), 2 => Just(Term::Over)]
}

fn harm() -> impl Strategy<Value = Harm> + Clone {
    let bit = (template(), pick(), 0..4_usize, any::<bool>());
    prop_oneof![
        2 => (0..4_usize).prop_map(Harm::Object),
        2 => Just(Harm::Keys),
        2 => bit.prop_map(|(template, pick, file, quietly)| Harm::Bit { template, pick, file, quietly }),
        2 => (template(), pick()).prop_map(|(template, pick)| Harm::Twin { template, pick }),
        4 => (template(), pick()).prop_map(|(template, pick)| Harm::Loss { template, pick }),
    ]
}

type Weighted = (u32, BoxedStrategy<Step>);

/// A kind of step that comes up so often, compared with the others.
fn often<S: Strategy + 'static>(weight: u32, what: S, step: impl Fn(S::Value) -> Step + 'static) -> Weighted {
    (weight, what.prop_map(step).boxed())
}

impl Likely {
    fn step(self) -> impl Strategy<Value = Step> {
        let all = [self.publications(), self.changes(), self.collections(), self.uses(), looks()];
        Union::new_weighted(all.concat())
    }

    /// More often where there is something that it is about.
    fn where_any(is_any: bool, weight: u32) -> u32 {
        if is_any { weight } else { 1 }
    }

    fn publications(self) -> Vec<Weighted> {
        let content = || 0..CONTENTS;
        let build = || (template(), key(), content(), publishing());
        let import = (template(), content(), prop::option::of(key()), any::<bool>(), publishing());
        let few = if self.published < 4 { 10 } else { 1 };
        let building = |weight| Self::where_any(self.is_building, weight);
        vec![
            often(8 * few, build(), |(template, key, content, publishing)| Step::Build {
                template,
                key,
                content,
                publishing,
            }),
            often(8 * few, build(), |(template, key, content, publishing)| Step::BuildAgain {
                template,
                key,
                content,
                publishing,
            }),
            often(6 * few, import, |(template, content, key, moves, publishing)| Step::Import {
                template,
                content,
                key,
                moves,
                publishing,
            }),
            often(if self.is_building { 1 } else { 6 }, (template(), key(), content()), |(template, key, content)| {
                Step::Begin { template, key, content }
            }),
            often(building(6), Just(Step::Seal), |step| step),
            often(building(14), publishing(), |publishing| Step::Finish { publishing }),
            often(building(3), Just(Step::Abandon), |step| step),
            often(2, (template(), key(), content()), |(template, key, content)| Step::Check { template, key, content }),
            often(1, (template(), key()), |(template, key)| Step::Fail { template, key }),
        ]
    }

    fn changes(self) -> Vec<Weighted> {
        let definition = || 0..DEFINITIONS;
        let some = |weight| Self::where_any(self.published > 1, weight);
        vec![
            often(2, (template(), definition()), |(template, definition)| Step::Create { template, definition }),
            often(2, (template(), definition()), |(template, definition)| Step::Apply { template, definition }),
            often(some(6), (template(), pick(), expecting()), |(template, pick, expecting)| Step::Activate {
                template,
                pick,
                expecting,
            }),
            often(some(10), template(), |template| Step::Rollback { template }),
            often(some(5), (template(), pick()), |(template, pick)| Step::Remove { template, pick, forced: false }),
            often(some(5), (template(), pick()), |(template, pick)| Step::Remove { template, pick, forced: true }),
            often(1, (template(), any::<bool>()), |(template, forced)| Step::RemoveTemplate { template, forced }),
            often(some(5), (template(), pick(), 0..2_usize), |(template, pick, label)| Step::Attach {
                template,
                pick,
                label,
            }),
            often(if self.is_building { 1 } else { some(8) }, harm(), Step::Harm),
            often(1, Just(Step::Repair), |step| step),
        ]
    }

    fn collections(self) -> Vec<Weighted> {
        let some = |weight| Self::where_any(self.published > 1, weight);
        vec![
            often(some(12), (name(), template(), pick(), term()), |(name, template, pick, term)| Step::Pin {
                name,
                template,
                pick,
                term,
            }),
            often(Self::where_any(self.pins > 0, 10), name(), |name| Step::Unpin { name }),
            often(some(12), keeping(), |keeping| Step::Collect { keeping }),
            often(if self.is_planned { 1 } else { some(12) }, keeping(), |keeping| Step::Plan { keeping }),
            often(Self::where_any(self.is_planned, 20), Just(Step::ApplyPlan), |step| step),
        ]
    }

    fn uses(self) -> Vec<Weighted> {
        let some = |weight| Self::where_any(self.published > 1, weight);
        let held = |weight| Self::where_any(self.is_held, weight);
        vec![
            often(some(6), (slot(), template(), pick()), |(slot, template, pick)| Step::Hold { slot, template, pick }),
            often(some(2), (slot(), template()), |(slot, template)| Step::HoldCurrent { slot, template }),
            often(held(24), slot(), |slot| Step::NoteHolder { slot }),
            often(held(10), slot(), |slot| Step::LetGo { slot }),
            often(some(4), (name(), template(), pick()), |(name, template, pick)| Step::Instance {
                name,
                template,
                pick,
            }),
            often(held(20), (name(), slot()), |(name, slot)| Step::InstanceOfHeld { name, slot }),
            often(Self::where_any(self.instances > 0, 10), name(), |name| Step::RemoveInstance { name }),
        ]
    }
}

fn looks() -> Vec<Weighted> {
    vec![
        often(5, (prop::option::of(template()), key()), |(template, key)| Step::Lookup { template, key }),
        often(2, template(), |template| Step::Look { template }),
        often(2, (template(), pick(), keeping()), |(template, pick, keeping)| Step::Why { template, pick, keeping }),
        often(1, Just(Step::Verify), |step| step),
        often(2, Just(Step::Reopen), |step| step),
    ]
}
