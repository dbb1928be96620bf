//! Two acts, one after the other: what the first one left unsynced is there when the second one is cut.
//!
//! Some of them are tried, or more when [`proof`] says so.

use std::io::Write as _;

use template_store::ErrorKind;

use super::acts::Act::{
    self, Activate, Apply, Attach, Build, Create, Fail, Gc, Import, Init, Instance, MoveIn, Pin, Pull, Rebuild,
    RebuildOnly, Remove, RemoveCurrent, RemoveInstance, RemoveTemplate, Repair, Rollback, SealTwice, Unpin,
};
use super::acts::Place;
use super::acts::Term::Always;
use super::killed::Cuts;
use super::parallel::in_parallel;
use super::promises::{Scratch, Story, survey};
use super::scenarios::{Recorded, Sum, check};
use super::states::Limits;
use crate::proof;

/// What is there before.
pub const GROUND: &[Act] = &[
    Init,
    Build("web", "one"),
    Build("web", "three"),
    Create("shop"),
    Build("db", "one"),
    Pin("old", "db", "one", Always),
    Instance("web", "0"),
];

/// Everything that changes a store.
pub const ACTS: &[Act] = &[
    Create("new"),
    Apply("web"),
    Build("web", "two"),
    Build("shop", "one"),
    Rebuild("web", "one"),
    RebuildOnly("web", "two"),
    Fail("web", "two"),
    Import("shop", "two"),
    MoveIn("shop", "two"),
    Pull("shop", "two"),
    SealTwice("shop", "two"),
    Activate("web", "one"),
    Rollback("web"),
    Remove("web", "one"),
    RemoveCurrent("web", "three"),
    RemoveTemplate("web"),
    Pin("keep", "web", "one", Always),
    Unpin("old"),
    Gc,
    Instance("web", "1"),
    RemoveInstance("0"),
    Attach("web", "first"),
    Repair,
];

const LIMITS: Limits = Limits { all_up_to: 12, sample: 8, seed: 0x2ac7 };

/// `None` when there is nothing left for the second one to work on.
fn record(acts: [Act; 2], scratch: &Scratch) -> Option<Recorded> {
    let name = format!("{:?}, then {:?}", acts[0], acts[1]);
    let place = Place::new(&scratch.fresh());
    for act in GROUND {
        place.run(*act).unwrap_or_else(|error| panic!("{act:?}: {error}"));
    }
    let (place, recorder) = place.recorded().expect("the tree can be read");
    let mut worlds = vec![survey(&place).expect("a whole store")];
    for act in acts {
        match place.run(act) {
            Ok(()) => recorder.ack(&format!("{act:?}")),
            Err(error) if [ErrorKind::NotFound, ErrorKind::Refused].contains(&error.kind()) => return None,
            Err(error) => panic!("{name}: {error}"),
        }
        worlds.push(survey(&place).expect("a whole store"));
    }
    // What is known is reused, and does not fail; whether it is still known after a cut is no promise.
    if let Fail(template, build) = acts[1]
        && worlds[2].has(template, build)
    {
        return None;
    }
    let story = Story { acts: acts.to_vec(), worlds, killed_on: None };
    Some(Recorded { name, story, log: recorder.finish(), cuts: Cuts::AfterFirstAct, limits: LIMITS })
}

#[test]
fn what_is_cut_after_something_else_keeps_every_promise() {
    let scratch = Scratch::new();
    let pairs = ACTS.iter().flat_map(|first| ACTS.iter().map(|second| [*first, *second]));
    // A stride that shares no factor with the number of acts meets each of them in either place.
    let chosen = pairs.enumerate().filter(|(number, _)| proof::chosen(*number, 67));
    let pairs: Vec<[Act; 2]> = chosen.map(|(_, pair)| pair).collect();
    let checked = in_parallel(&pairs, |pair| Some(check(&record(*pair, &scratch)?, &scratch, |_| true)));
    let mut sum = Sum::default();
    checked.into_iter().flatten().for_each(|checked| sum.add(checked));
    let _ = writeln!(std::io::stderr(), "{} of {} pairs: {sum}", sum.scenarios, pairs.len());
    sum.assert_whole();
    assert!(sum.scenarios * 4 > pairs.len() * 3, "most pairs can be done");
}
