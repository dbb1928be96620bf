//! What a collection plans, for whatever there may be in a store and whatever the policy is.

mod world;

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;
use template_store::gc::{
    Adopted, CurrentState, GcPlan, Goal, Inventory, Limits, Planned, Policy, Reason, RevisionState, Shared, SharedKind,
    Space, Standing, TemplateState, Verdict, plan,
};

use crate::support::{id, remembered};
use world::{Named, after, brute_force, inventory, name, now, plain_policy, policy};

fn going(plan: &GcPlan) -> HashSet<Named> {
    plan.going().map(name).collect()
}

/// What the plan of this policy takes.
fn goes(inventory: &Inventory, policy: &Policy) -> HashSet<Named> {
    going(&plan(inventory, policy, now()))
}

fn keeps(reason: &Reason) -> bool {
    !matches!(reason, Reason::BeyondLast { .. } | Reason::Older { .. } | Reason::ForSpace { .. })
}

/// The rollbacks that a policy keeps possible, worked out once more.
fn depth(policy: &Policy, template: &TemplateState) -> usize {
    let own = policy.templates.get(&template.id).copied().unwrap_or_default();
    let keep_last = own.keep_last.unwrap_or(policy.keep_last);
    own.rollback.or(policy.rollback).unwrap_or(u32::from(keep_last > 1)) as usize
}

/// Whether a revision must stay, whatever the limits are.
fn is_root(inventory: &Inventory, policy: &Policy, template: &TemplateState, state: &RevisionState) -> bool {
    let pinned = inventory.pins.iter().any(|pin| {
        (&pin.template, &pin.revision) == (&template.id, &state.id) && pin.until.is_none_or(|until| now() < until)
    });
    let not_ours = match state.standing {
        Standing::Published => false,
        Standing::Adopted => policy.adopted == Adopted::Keep,
        Standing::NotOurs | Standing::Unreadable => true,
    };
    let is_current = matches!(&template.current, CurrentState::Revision(current) if *current == state.id);
    pinned
        || not_ours
        || is_current
        || matches!(template.current, CurrentState::Dangling | CurrentState::Unreadable)
        || state.holders.is_some()
        || state.published_at.is_none()
        || template.rollback.iter().take(depth(policy, template)).any(|target| *target == state.id)
}

proptest! {
    #![proptest_config(remembered("proptest-regressions/gc_plan.txt"))]

    #[test]
    fn what_must_stay_stays(inventory in inventory(), policy in policy()) {
        let goes = goes(&inventory, &policy);
        for template in &inventory.templates {
            for state in template.revisions.iter().filter(|state| is_root(&inventory, &policy, template, state)) {
                prop_assert!(!goes.contains(&(template.id.to_string(), state.id.to_string())), "{state:?}");
            }
        }
    }

    #[test]
    fn every_revision_has_one_verdict_and_reasons_that_fit_it(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        let mut named: Vec<Named> = plan.revisions.iter().map(name).collect();
        let mut all = world::names(&inventory);
        named.sort();
        all.sort();
        prop_assert_eq!(named, all);
        for Planned { verdict, reasons, frees_alone, frees_together, .. } in &plan.revisions {
            prop_assert!(!reasons.is_empty());
            prop_assert!(reasons.iter().all(|reason| keeps(reason) == (*verdict == Verdict::Kept)), "{reasons:?}");
            let measured = (frees_alone.is_some(), frees_together.is_some());
            prop_assert_eq!(measured, (*verdict == Verdict::Goes, *verdict == Verdict::Goes));
        }
    }

    #[test]
    fn each_place_among_the_newest_is_that_of_one_revision(inventory in inventory(), policy in plain_policy()) {
        let plan = plan(&inventory, &policy, now());
        for template in &inventory.templates {
            let of = plan.revisions.iter().filter(|planned| planned.template == template.id);
            let place = |reason: &Reason| match reason {
                Reason::AmongLast { place, .. } | Reason::BeyondLast { place, .. } => Some(*place),
                _ => None,
            };
            let places: Vec<u32> = of.flat_map(|planned| planned.reasons.iter().filter_map(place)).collect();
            prop_assert!(places.iter().all(|place| *place > 0), "1 is the newest: {places:?}");
            prop_assert!(places.is_sorted_by(|a, b| a < b), "the newest first: {places:?}");
        }
    }

    #[test]
    fn the_limits_alone_decide_about_what_is_no_root(inventory in inventory(), policy in plain_policy()) {
        let goes = goes(&inventory, &policy);
        for template in &inventory.templates {
            let own = policy.templates.get(&template.id).copied().unwrap_or_default();
            let keep_last = own.keep_last.unwrap_or(policy.keep_last) as usize;
            let within = own.keep_within.or(policy.keep_within).unwrap_or_default().as_secs() as i64;
            let counted = |state: &&RevisionState| matches!(state.standing, Standing::Published | Standing::Adopted);
            let newer = |state: &RevisionState| {
                let than = (state.published_at, &state.id);
                template.revisions.iter().filter(counted).filter(|one| (one.published_at, &one.id) > than).count()
            };
            for state in template.revisions.iter().filter(|state| !is_root(&inventory, &policy, template, state)) {
                let age = now().as_second() - state.published_at.unwrap().as_second();
                let stays = newer(state) < keep_last || age.max(0) < within;
                let name = (template.id.to_string(), state.id.to_string());
                prop_assert_eq!(goes.contains(&name), !stays, "{:?} {:?}", name, policy);
            }
        }
    }

    #[test]
    fn who_keeps_more_loses_no_more(inventory in inventory(), policy in plain_policy(), more in 0u32..4, rollback in 0u32..4) {
        let less = goes(&inventory, &policy);
        let keep_last = policy.clone().keep_last(policy.keep_last + more);
        prop_assert!(goes(&inventory, &keep_last).is_subset(&less), "keep_last");
        let longer = policy.keep_within.unwrap_or_default() + Duration::from_secs(u64::from(more) * 3600);
        prop_assert!(goes(&inventory, &policy.clone().keep_within(longer)).is_subset(&less), "keep_within");
        let few = policy.clone().rollback(rollback);
        let many = policy.clone().rollback(rollback + more);
        prop_assert!(goes(&inventory, &many).is_subset(&goes(&inventory, &few)), "rollback");
        let kept = goes(&inventory, &policy.clone().adopted(Adopted::Keep));
        prop_assert!(kept.is_subset(&goes(&inventory, &policy.adopted(Adopted::Collect))), "adopted");
    }

    #[test]
    fn a_goal_that_asks_for_more_takes_more(
        inventory in inventory(), policy in plain_policy(), size in 0u64..600, free in 0u64..600, more in 0u64..200,
    ) {
        let blocks = |count: u64| count * 4096;
        for (modest, strict) in [
            (policy.clone().max_size(blocks(size + more)), policy.clone().max_size(blocks(size))),
            (policy.clone().min_free(Space::Bytes(blocks(free))), policy.clone().min_free(Space::Bytes(blocks(free + more)))),
        ] {
            let (modest, strict) = (plan(&inventory, &modest, now()), plan(&inventory, &strict, now()));
            if strict.unmet.is_empty() {
                prop_assert!(modest.unmet.is_empty(), "who can do more can do less");
                prop_assert!(going(&modest).is_subset(&going(&strict)));
            }
        }
    }

    #[test]
    fn a_goal_that_cannot_be_met_takes_nothing(inventory in inventory(), policy in policy()) {
        let plain = policy.clone().max_size(None).min_free(None);
        let (with, without) = (plan(&inventory, &policy, now()), plan(&inventory, &plain, now()));
        prop_assert!(going(&without).is_subset(&going(&with)), "the limits hold, whatever the goals are");
        for unmet in &with.unmet {
            prop_assert!(unmet.possible < unmet.needed);
            let for_it = |planned: &Planned| planned.reasons == [Reason::ForSpace { goal: unmet.goal }];
            prop_assert!(!with.going().any(for_it), "it takes nothing for {unmet:?}");
        }
        let goals = [policy.max_size.is_some(), policy.min_free.is_some()].into_iter().filter(|goal| *goal).count();
        if with.unmet.len() == goals {
            prop_assert_eq!(going(&with), going(&without));
        }
    }

    #[test]
    fn a_goal_that_is_met_is_met_and_the_last_one_was_needed(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        let is_unmet = |goal: Goal| plan.unmet.iter().any(|unmet| unmet.goal == goal);
        let size = inventory.disk.store.saturating_sub(plan.frees);
        if let Some(most) = policy.max_size.filter(|_| !is_unmet(Goal::MaxSize)) {
            prop_assert!(size <= most, "{size} of {most}");
        }
        if let Some(least) = policy.min_free.filter(|_| !is_unmet(Goal::MinFree)) {
            prop_assert!(inventory.disk.available + plan.frees >= least.of(inventory.disk.total));
        }
        // Some one of those that go for space made the difference: without it, a goal would be missed.
        let taken: Vec<&Planned> = plan.going().filter(|one| matches!(one.reasons[0], Reason::ForSpace { .. })).collect();
        let missed = |without: &Planned| {
            let mut gone = going(&plan);
            gone.remove(&name(without));
            let frees = brute_force(&inventory, &gone, true);
            let too_large = |most: u64| inventory.disk.store.saturating_sub(frees) > most;
            let too_full = |least: Space| inventory.disk.available + frees < least.of(inventory.disk.total);
            !is_unmet(Goal::MaxSize) && policy.max_size.is_some_and(too_large)
                || !is_unmet(Goal::MinFree) && policy.min_free.is_some_and(too_full)
        };
        prop_assert!(taken.is_empty() || taken.into_iter().any(missed));
    }

    #[test]
    fn the_bytes_are_those_that_are_freed(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        prop_assert_eq!(plan.frees, brute_force(&inventory, &going(&plan), true), "in all");
        let together: u64 = plan.going().map(|one| one.frees_together.unwrap()).sum();
        let leftovers: u64 = plan.leftovers.iter().map(|one| one.frees).sum();
        prop_assert_eq!(together + leftovers, plan.frees, "they add up");
        prop_assert_eq!(leftovers, brute_force(&inventory, &HashSet::new(), true), "leftovers come first");
        for one in plan.going() {
            let alone = brute_force(&inventory, &HashSet::from([name(one)]), false);
            prop_assert_eq!(one.frees_alone.unwrap(), alone, "{:?} alone", name(one));
        }
        let up_to = |count: usize| brute_force(&inventory, &plan.going().take(count).map(name).collect(), true);
        if plan.going().all(|one| !matches!(one.reasons[0], Reason::ForSpace { .. })) {
            for (at, one) in plan.going().enumerate() {
                prop_assert_eq!(one.frees_together.unwrap(), up_to(at + 1) - up_to(at), "after all before it");
            }
        }
    }

    #[test]
    fn when_all_of_it_has_gone_nothing_goes_any_more(inventory in inventory(), policy in policy()) {
        let first = plan(&inventory, &policy, now());
        let second = plan(&after(&inventory, &going(&first)), &policy, now());
        prop_assert_eq!(going(&second), HashSet::new());
        prop_assert!(second.is_empty());
        prop_assert_eq!(second.frees, 0);
        let goals = |plan: &GcPlan| plan.unmet.iter().map(|unmet| unmet.goal).collect::<Vec<_>>();
        prop_assert_eq!(goals(&second), goals(&first), "what could not be met can't be met");
    }

    #[test]
    fn the_same_gives_the_same_in_whatever_order_it_was_read(inventory in inventory(), policy in policy(), turn in 0usize..8) {
        let first = plan(&inventory, &policy, now());
        prop_assert_eq!(&plan(&inventory, &policy, now()), &first);
        let mut turned = inventory.clone();
        turned.templates.reverse();
        for template in &mut turned.templates {
            let by = turn % template.revisions.len().max(1);
            template.revisions.rotate_left(by);
        }
        prop_assert_eq!(&plan(&turned, &policy, now()), &first);
    }

    #[test]
    fn a_plan_survives_json(inventory in inventory(), policy in policy()) {
        let plan = plan(&inventory, &policy, now());
        let read: GcPlan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        prop_assert_eq!(&read, &plan);
        let read: GcPlan = serde_json::from_value(serde_json::to_value(&plan).unwrap()).unwrap();
        prop_assert_eq!(read, plan);
    }
}

/// A template `web` of these revisions: name, build seconds, hours since the last use, blocks.
fn web(revisions: &[(&str, f64, i64, u64)]) -> Inventory {
    let mut web = TemplateState::new(id("web"));
    for (at, &(name, build_seconds, idle, blocks)) in revisions.iter().enumerate() {
        let mut state = RevisionState::new(id(name), now() - jiff::SignedDuration::from_hours(500 + at as i64));
        state.build_seconds = Some(build_seconds);
        state.last_used = Some(now() - jiff::SignedDuration::from_hours(idle));
        state.footprint.own = blocks * 4096;
        web.revisions.push(state);
    }
    let mut inventory = Inventory { templates: vec![web], ..Inventory::default() };
    inventory.disk.store = revisions.iter().map(|(_, _, _, blocks)| blocks * 4096).sum();
    inventory
}

fn taken_for(inventory: &Inventory, blocks: u64) -> Vec<String> {
    let policy = Policy::default().keep_last(9u32).max_size(inventory.disk.store - blocks * 4096);
    let plan = plan(inventory, &policy, now());
    assert_eq!(plan.unmet, []);
    let mut taken: Vec<_> = plan.going().map(|planned| planned.revision.to_string()).collect();
    taken.sort();
    taken
}

#[test]
fn for_space_goes_what_is_soon_built_again_long_unused_and_large() {
    let inventory = web(&[("quick", 10.0, 9, 100), ("slow", 1000.0, 9, 100)]);
    assert_eq!(taken_for(&inventory, 1), ["quick"], "soon built again");
    let inventory = web(&[("idle", 10.0, 90, 100), ("busy", 10.0, 1, 100)]);
    assert_eq!(taken_for(&inventory, 1), ["idle"], "long unused");
    let inventory = web(&[("large", 10.0, 9, 900), ("small", 10.0, 9, 100)]);
    assert_eq!(taken_for(&inventory, 1), ["large"], "large");
    let inventory = web(&[("newer", 10.0, 9, 100), ("older", 10.0, 9, 100)]);
    assert_eq!(taken_for(&inventory, 1), ["older"], "of equals the older");
}

#[test]
fn for_space_no_more_goes_than_is_needed() {
    let inventory = web(&[("a", 1000.0, 9, 100), ("b", 100.0, 9, 100), ("c", 10.0, 9, 100)]);
    assert_eq!(taken_for(&inventory, 0), [""; 0]);
    assert_eq!(taken_for(&inventory, 100), ["c"]);
    assert_eq!(taken_for(&inventory, 101), ["b", "c"]);
    assert_eq!(taken_for(&inventory, 300), ["a", "b", "c"]);
}

#[test]
fn the_order_in_which_it_goes_does_not_depend_on_what_went_before() {
    // Alone, neither twin frees the file that they share: both are small, and stay small when one of them went.
    let mut inventory = web(&[("lone", 10.0, 9, 100), ("twin-1", 10.0, 9, 1), ("twin-2", 10.0, 9, 1)]);
    inventory.shared =
        vec![Shared { kind: SharedKind::File, bytes: 900 * 4096, holders: 2, instances: 0, shard: None }];
    for twin in &mut inventory.templates[0].revisions[1..] {
        twin.footprint.shared = vec![(0, 1)];
    }
    inventory.disk.store += 900 * 4096;
    assert_eq!(taken_for(&inventory, 100), ["lone"]);
    assert_eq!(taken_for(&inventory, 101), ["lone", "twin-2"]);
    assert_eq!(taken_for(&inventory, 102), ["lone", "twin-1", "twin-2"]);
}

#[test]
fn other_limits_hold_for_a_template_that_has_some() {
    let mut inventory = web(&[("a", 1.0, 9, 1), ("b", 1.0, 9, 1), ("c", 1.0, 9, 1)]);
    let mut other = inventory.templates[0].clone();
    other.id = id("other");
    inventory.templates.insert(0, other);
    let policy = Policy::default().keep_last(1u32).template(id("web"), Limits::default().keep_last(2u32));
    let named = |template: &str, revision: &str| (template.to_owned(), revision.to_owned());
    let expected = [named("other", "b"), named("other", "c"), named("web", "c")];
    assert_eq!(goes(&inventory, &policy), expected.into());
}
