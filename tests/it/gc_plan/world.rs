//! Random inventories and policies, and the bytes of an inventory counted in another way.

use std::collections::HashSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::{bool, option};
use serde_json::json;
use template_store::gc::{
    Adopted, Bound, CurrentState, DiskSpace, Footprint, Inventory, Leftover, LeftoverKind, Limits, Planned, Policy,
    RevisionState, Shard, Shared, SharedKind, Space, Standing, TemplateState,
};
use template_store::{Holder, Pin, TemplateId};

use crate::support::id;

/// A revision by its names.
pub type Named = (String, String);

pub fn name(planned: &Planned) -> Named {
    (planned.template.to_string(), planned.revision.to_string())
}

pub fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn hours_ago(hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(hours)
}

prop_compose! {
    fn revision()(
        // Hours repeat, so that some are published at once; clocks run ahead, too.
        published in option::weighted(0.95, -2i64..40),
        idle in option::of(0i64..40),
        standing in prop_oneof![
            8 => Just(Standing::Published), 2 => Just(Standing::Adopted), 1 => Just(Standing::NotOurs), 1 => Just(Standing::Unreadable),
        ],
        build_seconds in option::of(prop_oneof![Just(0.0), 0.0..5000.0]),
        holders in option::weighted(0.12, vec((1u32..99, "[a-z]{0,3}"), 0..2)),
        own in 0u64..9,
    ) -> RevisionState {
        let mut state = RevisionState::new(id("none"), now());
        let holder = |(pid, command)| serde_json::from_value::<Holder>(json!({"pid": pid, "command": command})).unwrap();
        state.published_at = published.map(hours_ago);
        state.last_used = idle.map(hours_ago);
        state.standing = standing;
        state.build_seconds = build_seconds;
        state.holders = holders.map(|holders: Vec<_>| holders.into_iter().map(holder).collect());
        state.footprint = Footprint { own: own * 4096, ..Footprint::default() };
        state
    }
}

prop_compose! {
    fn template()(
        revisions in vec(revision(), 0..8),
        current in prop_oneof![1 => Just(None), 8 => any::<prop::sample::Index>().prop_map(Some)],
        strange in prop_oneof![
            18 => Just(None),
            1 => Just(Some(CurrentState::Dangling)),
            1 => Just(Some(CurrentState::Unreadable)),
        ],
        rollback in vec(any::<prop::sample::Index>(), 0..5),
    ) -> TemplateState {
        let mut template = TemplateState::new(id("none"));
        template.revisions = revisions;
        for (at, state) in template.revisions.iter_mut().enumerate() {
            // Not in the order of time.
            state.id = id(&format!("r{}", (at * 5 + 3) % 8));
            state.inode = at as u64 + 1;
        }
        let pick = |index: prop::sample::Index| template.revisions[index.index(template.revisions.len())].id.clone();
        if !template.revisions.is_empty() {
            template.current = current.map_or(CurrentState::Unset, |index| CurrentState::Revision(pick(index)));
            for target in rollback.into_iter().map(pick) {
                if template.current != CurrentState::Revision(target.clone()) && !template.rollback.contains(&target) {
                    template.rollback.push(target);
                }
            }
        }
        if let Some(strange) = strange {
            template.current = strange;
        }
        template
    }
}

/// A shared thing: its kind, blocks, who has names of it (and how many), names elsewhere, and its shard.
type RawShared = (bool, u64, Vec<(prop::sample::Index, u32)>, u32, Option<prop::sample::Index>);

fn shared() -> impl Strategy<Value = RawShared> {
    let elsewhere = prop_oneof![4 => Just(0u32), 1 => 1u32..3];
    let holders = vec((any::<prop::sample::Index>(), 1u32..3), 1..5);
    (bool::weighted(0.8), 1u64..99, holders, elsewhere, option::weighted(0.8, any::<prop::sample::Index>()))
}

fn pin() -> impl Strategy<Value = (u8, u8, Option<i64>)> {
    (0u8..4, 0u8..8, option::of(prop_oneof![-3i64..0, Just(0), 1i64..4]))
}

prop_compose! {
    /// Several templates with all that can be in one.
    pub fn inventory()(
        mut templates in vec(template(), 0..4),
        raw_shared in vec(shared(), 0..7),
        shards in vec((0u64..3, 0u32..2), 0..3),
        raw_leftovers in vec((0u64..5, select(&[LeftoverKind::Trash, LeftoverKind::Draft, LeftoverKind::Object][..])), 0..4),
        pins in vec(pin(), 0..4),
        beside in 0u64..50,
        (total, available) in (1u64..999, 0u64..200),
        at_most in any::<bool>(),
    ) -> Inventory {
        for (at, template) in templates.iter_mut().enumerate() {
            template.id = id(&format!("t{at}"));
        }
        let mut inventory = Inventory { templates, ..Inventory::default() };
        inventory.pins = pins.into_iter().map(|(t, r, until)| pin_on(t, r, until)).collect();
        inventory.shards = shards.iter().map(|&(blocks, others)| Shard { bytes: blocks * 4096, entries: others }).collect();
        for (at, (blocks, kind)) in raw_leftovers.into_iter().enumerate() {
            let mut leftover = Leftover::new(kind, format!(".store/trash/{at}"));
            leftover.footprint.own = blocks * 4096;
            leftover.shard = (kind == LeftoverKind::Object && !shards.is_empty()).then_some(at % shards.len().max(1));
            if let Some(shard) = leftover.shard {
                inventory.shards[shard].entries += 1;
            }
            inventory.leftovers.push(leftover);
        }
        for raw in raw_shared {
            share(&mut inventory, raw);
        }
        let all: HashSet<Named> = names(&inventory).into_iter().collect();
        let store = brute_force(&inventory, &all, true) + beside * 4096;
        inventory.disk = DiskSpace { total: total * 4096, available: available * 4096, store };
        inventory.bound = if at_most { Bound::AtMost } else { Bound::Exact };
        inventory
    }
}

fn pin_on(template: u8, revision: u8, until: Option<i64>) -> Pin {
    let until = until.map(|hours| now() + SignedDuration::from_hours(hours));
    let pin = json!({"template": format!("t{template}"), "revision": format!("r{revision}"), "created_at": hours_ago(9), "until": until});
    serde_json::from_value(pin).unwrap()
}

/// Gives a file or key to those who have it; they are revisions and leftovers.
fn share(inventory: &mut Inventory, (is_file, blocks, holders, elsewhere, shard): RawShared) {
    let at = inventory.shared.len();
    let kind = if is_file { SharedKind::File } else { SharedKind::Key };
    let mut count = elsewhere;
    let mut footprints = footprints(inventory);
    if footprints.is_empty() {
        return;
    }
    for (index, names) in holders {
        let names = if is_file { names } else { 1 };
        let len = footprints.len();
        let footprint = &mut footprints[index.index(len)];
        if footprint.shared.iter().all(|(known, _)| *known != at) {
            footprint.shared.push((at, names));
            count += names;
        }
    }
    let shards = inventory.shards.len();
    let shard = shard.filter(|_| is_file && shards > 0).map(|index| index.index(shards));
    if let Some(shard) = shard {
        inventory.shards[shard].entries += 1;
    }
    inventory.shared.push(Shared { kind, bytes: blocks * 4096, holders: count, instances: 0, shard });
}

fn footprints(inventory: &mut Inventory) -> Vec<&mut Footprint> {
    let revisions = inventory.templates.iter_mut().flat_map(|template| &mut template.revisions);
    let leftovers = inventory.leftovers.iter_mut().map(|leftover| &mut leftover.footprint);
    revisions.map(|state| &mut state.footprint).chain(leftovers).collect()
}

pub fn names(inventory: &Inventory) -> Vec<Named> {
    let of = |template: &TemplateState| {
        let id = template.id.to_string();
        template.revisions.iter().map(move |state| (id.clone(), state.id.to_string())).collect::<Vec<_>>()
    };
    inventory.templates.iter().flat_map(of).collect()
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of(0u32..6), option::of(0u64..40), option::of(0u32..4)).prop_map(|(keep_last, hours, rollback)| {
        let within = hours.map(|hours| Duration::from_secs(hours * 3600));
        Limits::default().keep_last(keep_last).keep_within(within).rollback(rollback)
    })
}

fn space() -> impl Strategy<Value = Space> {
    prop_oneof![(0u64..1200).prop_map(|blocks| Space::Bytes(blocks * 4096)), (0.0f64..=100.0).prop_map(Space::Percent)]
}

prop_compose! {
    /// A policy without goals of space.
    pub fn plain_policy()(
        keep_last in 0u32..6,
        hours in option::of(0u64..40),
        rollback in option::of(0u32..4),
        adopted in any::<bool>(),
        overrides in vec((0u8..4, limits()), 0..2),
    ) -> Policy {
        let adopted = if adopted { Adopted::Collect } else { Adopted::Keep };
        let within = hours.map(|hours| Duration::from_secs(hours * 3600));
        let policy = Policy::default().keep_last(keep_last).keep_within(within).rollback(rollback).adopted(adopted);
        let set = |policy: Policy, (at, limits)| policy.template(id::<TemplateId>(&format!("t{at}")), limits);
        overrides.into_iter().fold(policy, set)
    }
}

prop_compose! {
    pub fn policy()(
        policy in plain_policy(), max_size in option::of(0u64..900), min_free in option::of(space()),
    ) -> Policy {
        policy.max_size(max_size.map(|blocks| blocks * 4096)).min_free(min_free)
    }
}

/// The bytes that are freed when these revisions go, with all leftovers or with none, counted from scratch.
pub fn brute_force(inventory: &Inventory, gone: &HashSet<Named>, leftovers: bool) -> u64 {
    let mut footprints: Vec<&Footprint> = Vec::new();
    for template in &inventory.templates {
        let goes = |state: &&RevisionState| gone.contains(&(template.id.to_string(), state.id.to_string()));
        footprints.extend(template.revisions.iter().filter(goes).map(|state| &state.footprint));
    }
    let swept = if leftovers { &inventory.leftovers[..] } else { &[] };
    footprints.extend(swept.iter().map(|leftover| &leftover.footprint));
    let names_gone = |at: usize| -> u32 {
        footprints.iter().flat_map(|one| &one.shared).filter(|(shared, _)| *shared == at).map(|(_, names)| names).sum()
    };
    let freed: Vec<usize> = (0..inventory.shared.len())
        .filter(|&at| names_gone(at) > 0 && names_gone(at) == inventory.shared[at].holders)
        .collect();
    let own: u64 = footprints.iter().map(|footprint| footprint.own).sum();
    let shared: u64 = freed.iter().map(|&at| inventory.shared[at].bytes).sum();
    let emptied = |(at, shard): (usize, &Shard)| {
        let files = freed.iter().filter(|&&file| inventory.shared[file].shard == Some(at)).count();
        let objects = swept.iter().filter(|leftover| leftover.shard == Some(at)).count();
        let entries = (files + objects) as u32;
        if entries > 0 && entries == shard.entries { shard.bytes } else { 0 }
    };
    own + shared + inventory.shards.iter().enumerate().map(emptied).sum::<u64>()
}

/// What is left when these revisions and all leftovers have gone.
pub fn after(inventory: &Inventory, gone: &HashSet<Named>) -> Inventory {
    let mut left = inventory.clone();
    let freed = brute_force(inventory, gone, true);
    left.disk.available += freed;
    left.disk.store = left.disk.store.saturating_sub(freed);
    let mut lost: Vec<(usize, u32)> = Vec::new();
    for template in &mut left.templates {
        let id = template.id.to_string();
        let stays = |state: &RevisionState| !gone.contains(&(id.clone(), state.id.to_string()));
        for state in template.revisions.iter().filter(|state| !stays(state)) {
            lost.extend(&state.footprint.shared);
        }
        template.rollback.retain(|target| !gone.contains(&(id.clone(), target.to_string())));
        template.revisions.retain(stays);
    }
    for leftover in std::mem::take(&mut left.leftovers) {
        lost.extend(&leftover.footprint.shared);
        leftover.shard.inspect(|&shard| left.shards[shard].entries -= 1);
    }
    for (at, names) in lost {
        let shared = &mut left.shared[at];
        shared.holders -= names;
        if shared.holders == 0 {
            shared.shard.inspect(|&shard| left.shards[shard].entries -= 1);
        }
    }
    left
}
