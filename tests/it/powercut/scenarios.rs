//! What is cut: short stories of a store, and every state that they may leave.

use std::collections::HashSet;
use std::fmt;
use std::io::Write as _;
use std::ops::AddAssign;

use super::acts::Act::{
    self, Activate, Apply, Attach, Build, Create, Fail, Gc, Import, Init, Instance, Litter, MoveIn, Pin, Pull, Rebuild,
    RebuildOnly, Remove, RemoveCurrent, RemoveInstance, RemoveTemplate, Rollback, SealTwice, Unpin,
};
use super::acts::Place;
use super::acts::Term::{Always, Long, Over};
use super::builds::holds_what_was_built;
use super::killed::{Cuts, states_of};
use super::parallel::in_parallel;
use super::promises::{Scratch, Story, survey};
use super::recorder::Log;
use super::states::{Limits, State};
use crate::proof;

/// Acts that are recorded, on a store that others have brought about.
#[derive(Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub before: &'static [Act],
    pub acts: &'static [Act],
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "init", before: &[], acts: &[Init] },
    Scenario { name: "create a template", before: &[Init], acts: &[Create("web")] },
    Scenario { name: "redefine a template", before: &[Init, Create("web")], acts: &[Apply("web")] },
    Scenario { name: "publish the first revision", before: &[Init, Create("web")], acts: &[Build("web", "one")] },
    Scenario { name: "publish into a new template", before: &[Init], acts: &[Build("web", "three")] },
    Scenario {
        name: "publish a second revision, one file of which is known",
        before: &[Init, Build("web", "one")],
        acts: &[Build("web", "two")],
    },
    Scenario {
        name: "publish the same contents under the same id",
        before: &[Init, Build("web", "one")],
        acts: &[Rebuild("web", "one")],
    },
    Scenario {
        name: "publish without activating, then activate",
        before: &[Init, Build("web", "one")],
        acts: &[RebuildOnly("web", "three"), Activate("web", "three")],
    },
    Scenario { name: "import a directory", before: &[Init, Create("web")], acts: &[Import("web", "two")] },
    Scenario { name: "move a directory in", before: &[Init, Build("web", "three")], acts: &[MoveIn("web", "one")] },
    Scenario { name: "pull into a new template", before: &[Init], acts: &[Pull("web", "one")] },
    Scenario {
        name: "pull a second revision, one file of which is known",
        before: &[Init, Build("web", "one")],
        acts: &[Pull("web", "two")],
    },
    Scenario {
        name: "pull what is there, and what was collected",
        before: &[Init, Build("web", "one"), Build("web", "three")],
        acts: &[Pull("web", "one"), Gc, Pull("web", "three"), Gc, Pull("web", "one")],
    },
    Scenario {
        name: "reuse for a template of the same size",
        before: &[Init, Build("web", "one"), Create("shop")],
        acts: &[Build("shop", "one")],
    },
    Scenario {
        name: "reuse for a template of another size",
        before: &[Init, Build("web", "one"), Create("large")],
        acts: &[Build("large", "one")],
    },
    Scenario {
        name: "activate an earlier revision",
        before: &[Init, Build("web", "one"), Build("web", "two")],
        acts: &[Activate("web", "one")],
    },
    Scenario {
        name: "roll back twice",
        before: &[Init, Build("web", "one"), Build("web", "three"), Build("web", "two")],
        acts: &[Rollback("web"), Rollback("web")],
    },
    Scenario {
        name: "remove a revision",
        before: &[Init, Build("web", "one"), Build("web", "two")],
        acts: &[Remove("web", "one")],
    },
    Scenario {
        name: "remove the current revision",
        before: &[Init, Build("web", "one"), Build("web", "two")],
        acts: &[RemoveCurrent("web", "two")],
    },
    Scenario {
        name: "remove a template",
        before: &[Init, Build("web", "one"), Build("shop", "one")],
        acts: &[RemoveTemplate("web")],
    },
    Scenario {
        name: "a build fails",
        before: &[Init, Create("web")],
        acts: &[Fail("web", "three"), Build("web", "three")],
    },
    Scenario {
        name: "two builders seal the same files",
        before: &[Init, Create("web")],
        acts: &[SealTwice("web", "two")],
    },
    Scenario {
        name: "collect a revision and its objects",
        before: &[Init, Build("web", "two"), Build("web", "three")],
        acts: &[Gc],
    },
    Scenario {
        name: "collect in several templates that share objects and keys",
        before: &[
            Init,
            Build("web", "one"),
            Build("web", "two"),
            Build("shop", "one"),
            Build("db", "three"),
            Build("db", "one"),
            Build("db", "two"),
        ],
        acts: &[Gc],
    },
    Scenario {
        name: "collect what dead processes left, and a pin that expired",
        before: &[Init, Build("web", "one"), Build("web", "three"), Pin("old", "web", "one", Over), Litter],
        acts: &[Gc],
    },
    Scenario {
        name: "collect, and publish the same again",
        before: &[Init, Build("web", "one"), Build("web", "two")],
        acts: &[Gc, Build("web", "one")],
    },
    Scenario {
        name: "pin, then collect",
        before: &[Init, Build("web", "one"), Build("web", "three")],
        acts: &[Pin("keep", "web", "one", Always), Gc],
    },
    Scenario {
        name: "pin for another time, unpin, then collect",
        before: &[Init, Build("web", "one"), Build("web", "three"), Pin("keep", "web", "one", Always)],
        acts: &[Pin("keep", "web", "one", Long), Gc, Unpin("keep"), Gc],
    },
    Scenario {
        name: "a pin that is over keeps nothing",
        before: &[Init, Build("web", "one"), Build("web", "three"), Pin("keep", "web", "one", Always)],
        acts: &[Pin("keep", "web", "one", Over), Gc],
    },
    Scenario { name: "make the first instance", before: &[Init, Build("web", "one")], acts: &[Instance("web", "1")] },
    Scenario {
        name: "make another instance, and remove the first",
        before: &[Init, Build("web", "two"), Instance("web", "1")],
        acts: &[Instance("web", "2"), RemoveInstance("1")],
    },
    Scenario {
        name: "instances outlive their revision",
        before: &[Init, Build("web", "one"), Instance("web", "1"), Build("web", "three")],
        acts: &[Gc, RemoveInstance("1"), Instance("web", "1")],
    },
    Scenario { name: "attach a snapshot", before: &[Init, Build("web", "one")], acts: &[Attach("web", "first")] },
    Scenario {
        name: "attach a snapshot of a VM that wrote nothing, then another one",
        before: &[Init, Build("web", "two")],
        acts: &[Attach("web", "idle"), Attach("web", "second")],
    },
    Scenario {
        name: "replace a snapshot, then collect it with its revision",
        before: &[Init, Build("web", "two"), Attach("web", "first")],
        acts: &[Attach("web", "idle"), Build("web", "three"), Gc],
    },
    Scenario {
        name: "a life in short",
        before: &[],
        acts: &[
            Init,
            Create("web"),
            Build("web", "three"),
            Rebuild("web", "two"),
            Rollback("web"),
            Remove("web", "two"),
        ],
    },
    Scenario {
        name: "keeping and collecting",
        before: &[],
        acts: &[
            Init,
            Build("web", "two"),
            Pin("keep", "web", "two", Long),
            Rebuild("web", "three"),
            Gc,
            Unpin("keep"),
            Gc,
            RemoveTemplate("web"),
            Gc,
        ],
    },
    Scenario {
        name: "to and fro",
        before: &[Init, Build("web", "one"), Build("web", "three")],
        acts: &[Activate("web", "one"), Activate("web", "three"), Rollback("web"), Activate("web", "three")],
    },
];

/// A scenario that was played once.
#[derive(Debug)]
pub struct Recorded {
    pub name: String,
    pub story: Story,
    pub log: Log,
    pub cuts: Cuts,
    pub limits: Limits,
}

pub fn record(scenario: &Scenario, scratch: &Scratch) -> Recorded {
    let place = Place::new(&scratch.fresh());
    for act in scenario.before {
        place.run(*act).unwrap_or_else(|error| panic!("{}: {act:?}: {error}", scenario.name));
    }
    let (place, recorder) = place.recorded().expect("the tree can be read");
    let mut worlds = vec![survey(&place).expect("a whole store")];
    for act in scenario.acts {
        place.run(*act).unwrap_or_else(|error| panic!("{}: {act:?}: {error}", scenario.name));
        recorder.ack(&format!("{act:?}"));
        worlds.push(survey(&place).expect("a whole store"));
    }
    assert!(worlds.iter().all(holds_what_was_built), "{}: a revision is not what was built", scenario.name);
    let story = Story { acts: scenario.acts.to_vec(), worlds, killed_on: None };
    Recorded { name: scenario.name.to_owned(), story, log: recorder.finish(), cuts: Cuts::All, limits: LIMITS }
}

pub const LIMITS: Limits = Limits { all_up_to: 64, sample: 20, seed: 0x7e3d };

impl Recorded {
    pub fn states(&self) -> Vec<State> {
        states_of(&self.log, self.cuts, self.limits, &HashSet::new())
    }

    /// The promise that a state breaks, for people.
    pub fn broken(&self, state: &State, scratch: &Scratch) -> Option<String> {
        let broken = self.story.check(state, scratch).err()?;
        Some(format!("{}: {broken}\n{}", self.name, state.describe(&self.log)))
    }
}

/// What came of the states of one scenario.
pub struct Checked {
    name: String,
    steps: usize,
    /// How many a cut may leave, whether or not they were looked at.
    known: usize,
    states: usize,
    prefixes: usize,
    broken: Vec<String>,
}

/// Looks at the states of a scenario whose number is chosen.
pub fn check(recorded: &Recorded, scratch: &Scratch, chosen: impl Fn(usize) -> bool) -> Checked {
    let mut states = recorded.states();
    let known = states.len();
    let mut numbers = 0..;
    states.retain(|_| numbers.next().is_some_and(&chosen));
    Checked {
        name: recorded.name.clone(),
        steps: recorded.log.entries.len(),
        known,
        states: states.len(),
        prefixes: states.iter().filter(|state| state.prefix).count(),
        broken: states.iter().filter_map(|state| recorded.broken(state, scratch)).collect(),
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, steps, known, states, broken, .. } = self;
        write!(f, "{states:>6} of {known:>4} states of {steps:>3} steps, {:>5} broken: {name}", broken.len())
    }
}

/// What came of all of them.
#[derive(Default)]
pub struct Sum {
    pub scenarios: usize,
    known: usize,
    pub states: usize,
    /// Those that a disk leaves which does everything at once and in order.
    prefixes: usize,
    broken: Vec<String>,
}

impl Sum {
    pub fn add(&mut self, checked: Checked) {
        self.scenarios += 1;
        self.known += checked.known;
        self.states += checked.states;
        self.prefixes += checked.prefixes;
        self.broken.extend(checked.broken.into_iter().take(3));
    }

    /// Counts one state, and what it breaks.
    pub fn note(&mut self, state: &State, broken: Option<String>) {
        self.states += 1;
        self.prefixes += usize::from(state.prefix);
        self.broken.extend(broken.filter(|_| self.broken.len() < 3));
    }

    /// No promise is broken, and the states were not such as any disk leaves.
    pub fn assert_whole(&self) {
        assert!(self.broken.is_empty(), "{}", self.broken.join("\n"));
        assert!(self.prefixes * 2 <= self.states, "{} of {} states are prefixes", self.prefixes, self.states);
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.scenarios += other.scenarios;
        self.known += other.known;
        self.states += other.states;
        self.prefixes += other.prefixes;
        self.broken.extend(other.broken);
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} of them prefixes of what was done", self.states, self.prefixes)
    }
}

#[test]
fn whatever_a_power_cut_leaves_keeps_every_promise() {
    let scratch = Scratch::new();
    let some = |state| proof::chosen(state, 16);
    let checked = in_parallel(SCENARIOS, |scenario| check(&record(scenario, &scratch), &scratch, some));
    let mut sum = Sum::default();
    // Straight to the terminal: the count is to be seen even when all is well.
    let mut out = std::io::stderr();
    for checked in checked {
        let _ = writeln!(out, "{checked}");
        sum.add(checked);
    }
    let _ = writeln!(out, "{} scenarios, {} states known: {sum}", sum.scenarios, sum.known);
    sum.assert_whole();
    assert!(sum.known >= 15_000, "{} states are too few to trust", sum.known);
}
