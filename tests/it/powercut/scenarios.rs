//! What is cut: short stories of a store, and every state that they may leave.

use std::io::Write as _;
use std::ops::ControlFlow;

use super::acts::Act::{
    self, Activate, Apply, Build, Create, Fail, Import, Init, MoveIn, Rebuild, RebuildOnly, Remove, RemoveCurrent,
    RemoveTemplate, Rollback, SealTwice,
};
use super::acts::{Place, holds_what_was_built};
use super::parallel::in_parallel;
use super::promises::{Scratch, Story, survey};
use super::recorder::Log;
use super::states::{Explorer, Limits, State};

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
    Recorded { name: scenario.name.to_owned(), story, log: recorder.finish() }
}

pub const LIMITS: Limits = Limits { all_up_to: 64, sample: 48, seed: 0x7e3d };

impl Recorded {
    pub fn states(&self) -> Vec<State> {
        let mut states = Vec::new();
        let _ = Explorer::new(&self.log, LIMITS).explore(0, &mut |state| {
            states.push(state);
            ControlFlow::Continue(())
        });
        states
    }

    /// The promise that a state breaks, for people.
    pub fn broken(&self, state: &State, scratch: &Scratch) -> Option<String> {
        let broken = self.story.check(state, scratch).err()?;
        Some(format!("{}: {broken}\n{}", self.name, state.describe(&self.log)))
    }
}

/// What came of the states of one scenario.
struct Checked {
    line: String,
    states: usize,
    sampled: usize,
    sampled_prefixes: usize,
    broken: Vec<String>,
}

fn check_all(recorded: &Recorded, scratch: &Scratch) -> Checked {
    let states = recorded.states();
    let broken: Vec<String> =
        in_parallel(&states, |state| recorded.broken(state, scratch)).into_iter().flatten().collect();
    let sampled: Vec<&State> = states.iter().filter(|state| state.sampled).collect();
    let sampled_prefixes = sampled.iter().filter(|state| state.prefix).count();
    let steps = recorded.log.entries.len();
    let line = format!("{:>6} states of {steps:>3} steps, {:>5} broken: {}", states.len(), broken.len(), recorded.name);
    Checked { line, states: states.len(), sampled: sampled.len(), sampled_prefixes, broken }
}

#[test]
fn whatever_a_power_cut_leaves_keeps_every_promise() {
    let scratch = Scratch::new();
    let recorded = in_parallel(SCENARIOS, |scenario| record(scenario, &scratch));
    let checked: Vec<Checked> = recorded.iter().map(|recorded| check_all(recorded, &scratch)).collect();
    let sum = |of: fn(&Checked) -> usize| checked.iter().map(of).sum::<usize>();
    let (states, sampled, prefixes) = (sum(|c| c.states), sum(|c| c.sampled), sum(|c| c.sampled_prefixes));
    // Straight to the terminal: the count is to be seen even when all is well.
    let mut out = std::io::stderr();
    for line in checked.iter().map(|checked| &checked.line) {
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "{states:>6} states; {sampled} of them from samples, and {prefixes} of those are prefixes");
    let broken: Vec<&String> = checked.iter().flat_map(|checked| checked.broken.iter().take(3)).collect();
    assert!(broken.is_empty(), "{}", broken.iter().map(|text| text.as_str()).collect::<Vec<_>>().join("\n"));
    assert!(states >= 10_000, "{states} states are too few to trust");
    assert!(prefixes * 2 <= sampled, "{prefixes} of {sampled} sampled states are what any disk leaves");
}
