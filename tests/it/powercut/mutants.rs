//! Stores that are broken on purpose: each must break a promise in some state.
//!
//! A mutant is a change of the log that the real store left: one sync is taken out, or two steps change
//! places. So nothing has to be built into the store for it.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::ops::ControlFlow;

use camino::Utf8PathBuf;

use super::classes::{class_of, homes};
use super::killed::{Cuts, record_killed, states_of};
use super::medium::Ino;
use super::parallel::in_parallel;
use super::promises::Scratch;
use super::recorder::Log;
use super::reorder::{REORDERINGS, Reorder};
use super::scenarios::{LIMITS, Recorded, SCENARIOS, record};
use super::states::{Explorer, State};

/// What must become of a store without one kind of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Caught,
    /// The promises hold without it.
    Harmless(&'static str),
}
use Fate::{Caught, Harmless};

/// Every kind of sync that the store does.
const SYNCS: &[(&str, Fate)] = &[
    ("the directory above a new store", Caught),
    ("the root of a new store", Caught),
    ("`.store/`, after format.json", Caught),
    ("`.store/`, of a store that was there", Caught),
    ("format.json", Caught),
    ("template.json of a new template", Caught),
    ("the empty activation log of a new template", Harmless("an empty file has nothing to lose")),
    ("the empty `artifacts/` of a new template", Harmless("an empty directory has nothing to lose")),
    ("the directory of a new template", Caught),
    ("`templates/`, after a template", Caught),
    ("`templates/`, of a template that was there", Caught),
    ("`templates/`, before a template is deleted", Caught),
    ("`templates/`, before old trash is deleted", Caught),
    ("template.json, replaced", Caught),
    ("a template, after a new template.json", Caught),
    ("a small artifact", Caught),
    ("a large artifact", Caught),
    ("an artifact in a directory", Caught),
    ("an artifact that is thrown away", Harmless("nobody ever sees it")),
    ("revision.json", Caught),
    ("a directory in a draft", Caught),
    ("the directory of a draft", Caught),
    ("`artifacts/`, after a revision", Caught),
    ("`artifacts/`, of a revision that was there", Caught),
    ("`artifacts/`, of a revision that is pinned", Caught),
    ("`artifacts/`, before a revision is deleted", Caught),
    ("`artifacts/`, before a collection deletes revisions", Caught),
    ("`artifacts/`, before old trash is deleted", Caught),
    ("a line of the activation log", Caught),
    ("a template, after the swap of `current`", Caught),
    ("a template that somebody else changed", Caught),
    ("a template, before a revision is removed", Caught),
    ("a template, before a collection", Caught),
    ("a pin", Caught),
    ("`pins/`, after a pin", Caught),
    ("`pins/`, after a pin is removed", Caught),
    ("`pins/`, before a revision is removed", Caught),
    ("`pins/`, before a collection", Caught),
    ("a file of a snapshot", Caught),
    ("snapshot.json", Caught),
    ("the drives of a snapshot", Caught),
    ("the directory of a snapshot", Caught),
    ("a revision, after its snapshot", Caught),
    ("a revision, after a new revision.json", Caught),
    ("a revision, before what a dead process had of it is deleted", Caught),
    ("a disk of an instance", Caught),
    ("fc.json", Caught),
    ("instance.json", Caught),
    ("the directory of an instance", Caught),
    ("a directory in an instance", Caught),
    ("the directory of instances, after one", Caught),
    ("the directory of instances, before one is deleted", Caught),
    ("`instances/`, after a note", Caught),
    ("the directory of instances, before a note of one is removed", Caught),
];

/// A changed log. All before `first` is as it was.
#[derive(Debug)]
pub struct Mutated {
    pub log: Log,
    pub first: usize,
}

/// A scenario, and what is known of it when it is whole.
struct Original {
    recorded: Recorded,
    homes: HashMap<Ino, Utf8PathBuf>,
    /// States that the whole log may leave as well prove nothing.
    seen: HashSet<u64>,
}

impl Original {
    fn of_scenario(recorded: Recorded) -> Self {
        let mut explorer = Explorer::new(&recorded.log, LIMITS);
        let _ = explorer.explore(0, &mut |_| ControlFlow::Continue(()));
        let (seen, homes) = (explorer.seen, homes(&recorded.log));
        Self { recorded, homes, seen }
    }

    fn of_killed(recorded: Recorded) -> Self {
        let states = recorded.states();
        let seen = states.iter().map(|state| state.hash).collect();
        let homes = homes(&recorded.log);
        Self { recorded, homes, seen }
    }

    fn without(&self, class: &str) -> Vec<Mutated> {
        let log = &self.recorded.log;
        let of_class = |&number: &usize| class_of(log, &self.homes, number) == Some(class);
        let leave_out = |number: usize| {
            let mut log = log.clone();
            log.entries.remove(number);
            Mutated { log, first: number }
        };
        (0..log.entries.len()).filter(of_class).map(leave_out).collect()
    }

    /// The promise that a mutant breaks. The latest states first: there, most was promised.
    fn caught(&self, mutated: &Mutated, scratch: &Scratch, most: usize) -> Option<String> {
        let states = match self.recorded.cuts {
            Cuts::All => self.new_states(mutated),
            cuts => states_of(&mutated.log, cuts, self.recorded.limits, &self.seen),
        };
        let broken = |state: &State| self.recorded.story.check(state, scratch).err();
        states.iter().rev().take(most).find_map(broken).filter(|_| self.is_sound(scratch))
    }

    /// Where a promise is broken without the mutant's doing, nothing is proved. The scenarios have their own
    /// test, which is long; those with a killed process are asked here.
    fn is_sound(&self, scratch: &Scratch) -> bool {
        let keeps = |state: &State| self.recorded.story.check(state, scratch).is_ok();
        let cuts = self.recorded.cuts;
        cuts == Cuts::All || self.recorded.states().iter().all(keeps)
    }

    fn new_states(&self, mutated: &Mutated) -> Vec<State> {
        let mut explorer = Explorer::new(&mutated.log, LIMITS);
        explorer.seen = self.seen.clone();
        explorer.collect(mutated.first)
    }
}

#[derive(Clone, Copy)]
enum Mutant {
    Without(&'static str, Fate),
    Reordered(&'static str, Reorder),
}

struct Verdict {
    name: String,
    fate: Fate,
    applied: usize,
    caught: Option<(String, String)>,
}

impl Mutant {
    fn all() -> Vec<Self> {
        let without = SYNCS.iter().map(|(class, fate)| Self::Without(class, *fate));
        without.chain(REORDERINGS.iter().map(|(name, reorder)| Self::Reordered(name, *reorder))).collect()
    }

    fn apply(self, original: &Original) -> Vec<Mutated> {
        match self {
            Self::Without(class, _) => original.without(class),
            Self::Reordered(..) if original.recorded.cuts == Cuts::AtEnd => Vec::new(),
            Self::Reordered(_, reorder) => reorder(&original.recorded.log),
        }
    }

    /// Tries the mutant on each scenario until one notices.
    fn judge(self, originals: &[Original], scratch: &Scratch) -> Verdict {
        let (name, fate) = match self {
            Self::Without(class, fate) => (format!("no sync: {class}"), fate),
            Self::Reordered(name, _) => (name.to_owned(), Caught),
        };
        // That nothing is found where nothing is to be found needs no long search in each log.
        let most = if fate == Caught { usize::MAX } else { 20 };
        let mut verdict = Verdict { name, fate, applied: 0, caught: None };
        for original in originals {
            for mutated in self.apply(original) {
                verdict.applied += 1;
                if let Some(broken) = original.caught(&mutated, scratch, most) {
                    verdict.caught = Some((original.recorded.name.clone(), broken));
                    return verdict;
                }
            }
        }
        verdict
    }
}

impl Verdict {
    fn is_right(&self) -> bool {
        self.applied > 0 && self.caught.is_some() == (self.fate == Caught)
    }

    fn line(&self) -> String {
        let (name, applied) = (&self.name, self.applied);
        match (&self.caught, self.fate) {
            _ if applied == 0 => format!("{name}\n      NO LOG HAS SUCH A STEP"),
            (Some((scenario, broken)), Caught) => format!("{name}\n      caught by {scenario:?}: {broken}"),
            (Some((scenario, broken)), Harmless(_)) => format!("{name}\n      NOT HARMLESS in {scenario:?}: {broken}"),
            (None, Caught) => format!("{name}\n      NOT CAUGHT, {applied} times"),
            (None, Harmless(why)) => format!("{name}\n      harmless, {applied} times: {why}"),
        }
    }
}

fn originals(scratch: &Scratch) -> Vec<Original> {
    let mut originals = in_parallel(SCENARIOS, |scenario| Original::of_scenario(record(scenario, scratch)));
    // What a short log shows is shown soonest.
    originals.sort_by_key(|original| original.recorded.log.entries.len());
    let killed = record_killed(scratch);
    originals.extend(killed.into_iter().map(Original::of_killed));
    originals
}

/// A sync of a kind that [`SYNCS`] does not name has no mutant.
fn assert_all_are_named(original: &Original) {
    let log = &original.recorded.log;
    for (number, entry) in log.entries.iter().enumerate() {
        let class = class_of(log, &original.homes, number);
        let named = class.is_none_or(|class| SYNCS.iter().any(|(known, _)| *known == class));
        assert!(named, "{}: no mutant leaves out {}, which is {class:?}", original.recorded.name, entry.text);
    }
}

#[test]
fn every_mutant_breaks_a_promise() {
    let scratch = Scratch::new();
    let originals = originals(&scratch);
    originals.iter().for_each(assert_all_are_named);
    let verdicts = in_parallel(&Mutant::all(), |mutant| mutant.judge(&originals, &scratch));
    // Straight to the terminal: the table is to be seen even when all is well.
    let mut out = std::io::stderr();
    for verdict in &verdicts {
        let _ = writeln!(out, "{} {}", if verdict.is_right() { "ok  " } else { "FAIL" }, verdict.line());
    }
    let wrong: Vec<&str> =
        verdicts.iter().filter(|verdict| !verdict.is_right()).map(|verdict| &*verdict.name).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
