//! Stores that are broken on purpose: each must break a promise in some state.
//!
//! A mutant is a change of the log that the real store left: one sync is taken out, or two steps change
//! places. So nothing has to be built into the store for it.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use camino::Utf8PathBuf;

use super::classes::{class_of, homes};
use super::killed::{Cuts, KILLED, states_of};
use super::medium::Ino;
use super::parallel::in_parallel;
use super::promises::Scratch;
use super::recorder::Log;
use super::reorder::{REORDERINGS, Reorder};
use super::scenarios::{LIMITS, Recorded, SCENARIOS, record};
use super::states::{Explorer, State};
use crate::proof;

/// What must become of a store without one kind of sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// This scenario, or these kills, show that a promise is broken: the first one to look at.
    Caught(&'static str),
    /// The promises hold without it.
    Harmless(&'static str),
}
use Fate::{Caught, Harmless};

/// Every kind of sync that the store does.
const SYNCS: &[(&str, Fate)] = &[
    ("the directory above a new store", Caught("init")),
    ("the root of a new store", Caught("init")),
    ("`.store/`, after format.json", Caught("init")),
    ("`.store/`, of a store that was there", Caught("Init is killed, then Init")),
    ("format.json", Caught("init")),
    ("template.json of a new template", Caught("create a template")),
    ("the empty activation log of a new template", Harmless("an empty file has nothing to lose")),
    ("the empty `artifacts/` of a new template", Harmless("an empty directory has nothing to lose")),
    ("the directory of a new template", Caught("create a template")),
    ("`templates/`, after a template", Caught("create a template")),
    ("`templates/`, of a template that was there", Caught("Create(\"web\") is killed, then Create(\"web\")")),
    ("`templates/`, before a template is deleted", Caught("remove a template")),
    ("`templates/`, before old trash is deleted", Caught("RemoveTemplate(\"web\") is killed, then Gc")),
    ("template.json, replaced", Caught("redefine a template")),
    ("a template, after a new template.json", Caught("redefine a template")),
    ("a small artifact", Caught("reuse for a template of another size")),
    ("a large artifact", Caught("pull a second revision, one file of which is known")),
    ("an artifact in a directory", Caught("move a directory in")),
    ("an artifact that is thrown away", Harmless("nobody ever sees it")),
    ("revision.json", Caught("reuse for a template of the same size")),
    ("a directory in a draft", Caught("reuse for a template of the same size")),
    ("the directory of a draft", Caught("reuse for a template of the same size")),
    ("`artifacts/`, after a revision", Caught("reuse for a template of the same size")),
    (
        "`artifacts/`, of a revision that was there",
        Caught("Build(\"web\", \"three\") is killed, then Build(\"web\", \"three\")"),
    ),
    (
        "`artifacts/`, of a revision that is pinned",
        Caught("MoveIn(\"web\", \"three\") is killed, then Pin(\"keep\", \"web\", \"three\", Always)"),
    ),
    ("`artifacts/`, before a revision is deleted", Caught("remove a revision")),
    ("`artifacts/`, before a collection deletes revisions", Caught("collect a revision and its objects")),
    ("`artifacts/`, before old trash is deleted", Caught("Gc is killed, then Gc")),
    ("a line of the activation log", Caught("activate an earlier revision")),
    ("a template, after the swap of `current`", Caught("activate an earlier revision")),
    ("a template that somebody else changed", Caught("Apply(\"web\") is killed, then Apply(\"web\")")),
    (
        "a template, before a revision is removed",
        Caught("Activate(\"web\", \"one\") is killed, then RemoveCurrent(\"web\", \"three\")"),
    ),
    ("a template, before a collection", Caught("Pull(\"web\", \"two\") is killed, then Gc")),
    ("a pin", Caught("pin, then collect")),
    ("`pins/`, after a pin", Caught("pin, then collect")),
    ("`pins/`, after a pin is removed", Caught("pin for another time, unpin, then collect")),
    ("`pins/`, before a revision is removed", Caught("Unpin(\"keep\") is killed, then Remove(\"web\", \"three\")")),
    ("`pins/`, before a collection", Caught("Pin(\"keep\", \"web\", \"three\", Over) is killed, then Gc")),
    ("a file of a snapshot", Caught("attach a snapshot")),
    ("snapshot.json", Caught("attach a snapshot")),
    ("the drives of a snapshot", Caught("attach a snapshot")),
    ("the directory of a snapshot", Caught("attach a snapshot")),
    ("a revision, after its snapshot", Caught("attach a snapshot of a VM that wrote nothing, then another one")),
    ("a revision, after a new revision.json", Caught("attach a snapshot")),
    (
        "a revision, before what a dead process had of it is deleted",
        Caught("Attach(\"web\", \"second\") is killed, then Gc"),
    ),
    ("a disk of an instance", Caught("make the first instance")),
    ("fc.json", Caught("make the first instance")),
    ("instance.json", Caught("make the first instance")),
    ("the directory of an instance", Caught("make the first instance")),
    ("a directory in an instance", Caught("make the first instance")),
    ("the directory of instances, after one", Caught("make the first instance")),
    ("the directory of instances, before one is deleted", Caught("make another instance, and remove the first")),
    ("`instances/`, after a note", Caught("make the first instance")),
    ("the directory of instances, before a note of one is removed", Caught("RemoveInstance(\"1\") is killed, then Gc")),
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

    fn changed_by(&self, mutant: Mutant) -> Vec<Mutated> {
        match mutant {
            Mutant::Without(class, _) => self.without(class),
            Mutant::Reordered(..) if self.recorded.cuts == Cuts::AtEnd => Vec::new(),
            Mutant::Reordered(_, reorder, _) => reorder(&self.recorded.log),
        }
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

/// All that the mutants are tried on. Each is recorded when it is first asked for.
struct Originals<'s> {
    scratch: &'s Scratch,
    scenarios: Vec<OnceLock<Original>>,
    kills: Vec<OnceLock<Vec<Original>>>,
}

impl<'s> Originals<'s> {
    fn new(scratch: &'s Scratch) -> Self {
        let scenarios = SCENARIOS.iter().map(|_| OnceLock::new()).collect();
        let kills = KILLED.iter().map(|_| OnceLock::new()).collect();
        Self { scratch, scenarios, kills }
    }

    fn scenarios(&self, chosen: impl Fn(usize) -> bool) -> impl Iterator<Item = &Original> {
        (0..SCENARIOS.len()).filter(move |number| chosen(*number)).map(|number| {
            let recorded = || Original::of_scenario(record(&SCENARIOS[number], self.scratch));
            self.scenarios[number].get_or_init(recorded)
        })
    }

    fn kills(&self, chosen: impl Fn(usize) -> bool) -> impl Iterator<Item = &Original> {
        (0..KILLED.len()).filter(move |row| chosen(*row)).flat_map(|row| {
            let recorded = || KILLED[row].record(self.scratch, |_| true);
            self.kills[row].get_or_init(|| recorded().into_iter().map(Original::of_killed).collect())
        })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Original> {
        let kills = self.kills(move |row| KILLED[row].name() == name);
        self.scenarios(move |number| SCENARIOS[number].name == name).chain(kills)
    }

    fn all(&self) -> impl Iterator<Item = &Original> {
        self.scenarios(|_| true).chain(self.kills(|_| true))
    }
}

#[derive(Clone, Copy)]
enum Mutant {
    Without(&'static str, Fate),
    Reordered(&'static str, Reorder, Fate),
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
        let reordered = |(name, witness, reorder): &(&'static str, &'static str, Reorder)| {
            Self::Reordered(name, *reorder, Caught(witness))
        };
        without.chain(REORDERINGS.iter().map(reordered)).collect()
    }

    fn judge(self, originals: &Originals<'_>) -> Verdict {
        let (name, fate) = match self {
            Self::Without(class, fate) => (format!("no sync: {class}"), fate),
            Self::Reordered(name, _, fate) => (name.to_owned(), fate),
        };
        let mut verdict = Verdict { name, fate, applied: 0, caught: None };
        match fate {
            Caught(witness) => {
                let first = originals.named(witness).chain(originals.all());
                self.search(first, usize::MAX, originals.scratch, &mut verdict);
            }
            // That nothing is found where nothing is to be found needs no long search in each log.
            Harmless(_) => {
                let scenarios = originals.scenarios(|number| number % 5 == 0 || proof::chosen(number, 5));
                let kills = originals.kills(|row| !proof::quick() && proof::chosen(row, 1));
                let most = if proof::quick() { 5 } else { 20 };
                self.search(scenarios.chain(kills), most, originals.scratch, &mut verdict);
            }
        }
        verdict
    }

    /// Tries the mutant on each until one notices; looks at so many states of each log at `most`.
    fn search<'o>(
        self,
        originals: impl Iterator<Item = &'o Original>,
        most: usize,
        scratch: &Scratch,
        verdict: &mut Verdict,
    ) {
        for original in originals {
            for mutated in original.changed_by(self) {
                verdict.applied += 1;
                if let Some(broken) = original.caught(&mutated, scratch, most) {
                    verdict.caught = Some((original.recorded.name.clone(), broken));
                    return;
                }
            }
        }
    }
}

impl Verdict {
    fn is_right(&self) -> bool {
        self.applied > 0 && self.caught.is_some() == matches!(self.fate, Caught(_))
    }

    fn line(&self) -> String {
        let (name, applied) = (&self.name, self.applied);
        match (&self.caught, self.fate) {
            _ if applied == 0 => format!("{name}\n      NO LOG HAS SUCH A STEP"),
            (Some((scenario, broken)), Caught(_)) => format!("{name}\n      caught by {scenario:?}: {broken}"),
            (Some((scenario, broken)), Harmless(_)) => format!("{name}\n      NOT HARMLESS in {scenario:?}: {broken}"),
            (None, Caught(_)) => format!("{name}\n      NOT CAUGHT, {applied} times"),
            (None, Harmless(why)) => format!("{name}\n      harmless, {applied} times: {why}"),
        }
    }
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
    let originals = Originals::new(&scratch);
    let verdicts = in_parallel(&Mutant::all(), |mutant| mutant.judge(&originals));
    originals.scenarios(|_| true).for_each(assert_all_are_named);
    originals.kills(|row| !proof::quick() && proof::chosen(row, 1)).for_each(assert_all_are_named);
    // Straight to the terminal: the table is to be seen even when all is well.
    let mut out = std::io::stderr();
    for verdict in &verdicts {
        let _ = writeln!(out, "{} {}", if verdict.is_right() { "ok  " } else { "FAIL" }, verdict.line());
    }
    let wrong: Vec<&str> =
        verdicts.iter().filter(|verdict| !verdict.is_right()).map(|verdict| &*verdict.name).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
