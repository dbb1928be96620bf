//! First a process is killed, then another one goes on, then the power fails.
//!
//! What the first one did is there for the second one to see, and not durable. The second must not tell
//! anybody that it is done as long as a cut can take away what it found.

use std::collections::HashSet;
use std::io::Write as _;

use template_store::ErrorKind;

use super::acts::Act::{
    self, Activate, Apply, Attach, Build, Create, Gc, Init, Instance, Litter, MoveIn, Pin, Pull, Rebuild, RebuildOnly,
    Remove, RemoveCurrent, RemoveInstance, RemoveTemplate, Rollback, Unpin,
};
use super::acts::Place;
use super::acts::Term::{Always, Long, Over};
use super::medium::Step;
use super::parallel::in_parallel;
use super::promises::{Scratch, Story, survey};
use super::recorder::{Log, Recorder};
use super::scenarios::{Recorded, Scenario, record};
use super::states::{Explorer, Limits, State};
use super::view::View;
use crate::proof;

/// An act that is killed after each of its steps, and the one that follows.
#[derive(Debug)]
pub struct Killed {
    before: &'static [Act],
    killed: &'static [Act; 1],
    then: Act,
}

pub const KILLED: &[Killed] = &[
    Killed { before: &[], killed: &[Init], then: Init },
    Killed { before: &[], killed: &[Init], then: Create("web") },
    Killed { before: &[Init], killed: &[Create("web")], then: Create("web") },
    Killed { before: &[Init], killed: &[Create("web")], then: Apply("web") },
    Killed { before: &[Init], killed: &[Create("web")], then: Build("web", "three") },
    Killed { before: &[Init, Create("web")], killed: &[Apply("web")], then: Apply("web") },
    Killed { before: &[Init, Create("web")], killed: &[Build("web", "three")], then: Build("web", "three") },
    Killed { before: &[Init, Create("web")], killed: &[Build("web", "three")], then: Build("shop", "three") },
    Killed { before: &[Init, Create("web")], killed: &[RebuildOnly("web", "three")], then: Build("web", "three") },
    Killed { before: &[Init, THREE], killed: &[Rebuild("web", "one")], then: Rebuild("web", "one") },
    Killed { before: &[Init, THREE], killed: &[MoveIn("web", "one")], then: MoveIn("web", "one") },
    Killed { before: &[Init], killed: &[Pull("web", "one")], then: Pull("web", "one") },
    Killed { before: &[Init, ONE], killed: &[Pull("web", "two")], then: Build("web", "two") },
    Killed { before: &[Init, THREE], killed: &[Pull("web", "two")], then: Gc },
    Killed { before: &[Init, ONE], killed: &[RebuildOnly("web", "three")], then: Activate("web", "three") },
    Killed { before: &[Init, ONE], killed: &[Build("shop", "one")], then: Build("shop", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: Build("web", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: Rollback("web") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: RemoveCurrent("web", "three") },
    Killed { before: &[Init, ONE, THREE], killed: &[Rollback("web")], then: Activate("web", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Remove("web", "one")], then: Rebuild("web", "one") },
    Killed { before: &[Init, ONE], killed: &[RemoveTemplate("web")], then: Create("web") },
    Killed { before: &[Init, ONE, THREE], killed: &[Gc], then: Gc },
    Killed { before: &[Init, ONE, THREE], killed: &[Gc], then: Rebuild("web", "one") },
    Killed { before: &[Init, ONE, Build("web", "two"), Build("shop", "one")], killed: &[Gc], then: Gc },
    Killed { before: &[Init, ONE, THREE, Pin("old", "web", "one", Over), Litter], killed: &[Gc], then: Gc },
    Killed { before: &[Init, ONE, THREE], killed: &[Remove("web", "one")], then: Gc },
    Killed { before: &[Init, ONE, Build("shop", "one")], killed: &[RemoveTemplate("web")], then: Gc },
    Killed { before: &[Init, ONE, THREE], killed: &[Build("web", "two")], then: Gc },
    Killed { before: &[Init, ONE, Create("shop")], killed: &[Build("shop", "one")], then: Gc },
    // The newest stays with the current, so that only the one that was current can go.
    Killed { before: &[Init, ONE, THREE, Build("web", "two"), BACK], killed: &[Activate("web", "three")], then: Gc },
    Killed { before: &[Init, ONE, THREE, Build("web", "two")], killed: &[Rollback("web")], then: Gc },
    Killed { before: &[Init, ONE, THREE], killed: &[BACK], then: Remove("web", "three") },
    Killed { before: &[Init, ONE], killed: &[RebuildOnly("web", "three")], then: KEEP },
    // What is moved in comes past `drafts/`, where the pin comes from: its name lasts for nobody else's sake.
    Killed { before: &[Init, ONE], killed: &[MoveIn("web", "three")], then: KEEP },
    Killed { before: &[Init, THREE, ONE], killed: &[Pin("keep", "web", "three", Always)], then: Gc },
    Killed { before: &[Init, THREE, ONE, KEEP], killed: &[Pin("keep", "web", "three", Long)], then: KEEP },
    Killed { before: &[Init, THREE, ONE, KEEP], killed: &[Pin("keep", "web", "three", Over)], then: Gc },
    Killed { before: &[Init, THREE, ONE, KEEP], killed: &[Unpin("keep")], then: Gc },
    Killed { before: &[Init, THREE, ONE, KEEP], killed: &[Unpin("keep")], then: Remove("web", "three") },
    Killed { before: &[Init, ONE], killed: &[Instance("web", "1")], then: Instance("web", "1") },
    Killed { before: &[Init, ONE], killed: &[Instance("web", "1")], then: RemoveInstance("1") },
    Killed { before: &[Init, ONE, Instance("web", "1")], killed: &[RemoveInstance("1")], then: Instance("web", "1") },
    Killed { before: &[Init, ONE, Instance("web", "1")], killed: &[RemoveInstance("1")], then: Gc },
    Killed { before: &[Init, ONE], killed: &[Attach("web", "first")], then: Attach("web", "first") },
    Killed { before: &[Init, ONE, FIRST], killed: &[Attach("web", "second")], then: Attach("web", "idle") },
    Killed { before: &[Init, ONE, FIRST], killed: &[Attach("web", "second")], then: Gc },
    Killed { before: &[Init, ONE, FIRST], killed: &[Attach("web", "second")], then: RemoveTemplate("web") },
    Killed {
        before: &[Init, THREE, Build("shop", "one"), KEEP],
        killed: &[Unpin("keep")],
        then: RemoveTemplate("web"),
    },
];

const FIRST: Act = Attach("web", "first");
const BACK: Act = Activate("web", "one");
const KEEP: Act = Pin("keep", "web", "three", Always);
const ONE: Act = Build("web", "one");
const THREE: Act = Build("web", "three");

impl Killed {
    pub fn name(&self) -> String {
        format!("{:?} is killed, then {:?}", self.killed[0], self.then)
    }

    /// The act, killed after each of its steps, with what the next process did. Only kills with a chosen number are
    /// recorded.
    pub fn record(&self, scratch: &Scratch, chosen: impl Fn(usize) -> bool) -> Vec<Recorded> {
        let scenario = Scenario { name: "", before: self.before, acts: self.killed };
        let whole = record(&scenario, scratch);
        // A sync changes nothing that the next process could see.
        let visible = |step: &Step| !matches!(step, Step::Fsync(_) | Step::FsyncDir(_) | Step::Ack);
        let steps = (1..=whole.log.entries.len()).filter(|&steps| visible(&whole.log.entries[steps - 1].step));
        let steps = steps.enumerate().filter(|(number, _)| chosen(*number)).map(|(_, steps)| steps);
        steps.filter_map(|steps| kill_after(&whole, steps, self, scratch)).collect()
    }
}

/// `None` when the second act has nothing to work on yet.
fn kill_after(whole: &Recorded, steps: usize, killed: &Killed, scratch: &Scratch) -> Option<Recorded> {
    let log = Log { start: whole.log.start.clone(), entries: whole.log.entries[..steps].to_vec() };
    let dir = scratch.fresh();
    View::live(&log.end()).materialize(dir.as_std_path()).expect("the tree can be made");
    let recorder = Recorder::resume(&dir, log).expect("the tree can be read");
    let place = Place::new(&dir).watched(&recorder);
    let [first] = killed.killed;
    let name = format!("{first:?} is killed after step {steps}, then {:?}", killed.then);
    match place.run(killed.then) {
        Ok(()) => recorder.ack(&format!("{:?}", killed.then)),
        // What is pinned is not removed.
        Err(error) if [ErrorKind::NotFound, ErrorKind::Refused].contains(&error.kind()) => return None,
        Err(error) => panic!("{name}: {error}"),
    }
    let ground = whole.story.worlds[0].clone();
    let worlds = vec![ground.clone(), survey(&place).expect("a whole store")];
    let story = Story { acts: vec![killed.then], worlds, killed_on: Some(ground) };
    let cuts = match (*first, killed.then) {
        (RebuildOnly(..) | MoveIn(..), Pin(..)) => Cuts::AfterKill,
        _ => Cuts::AtEnd,
    };
    Some(Recorded { name, story, log: recorder.finish(), cuts, limits: LIMITS })
}

pub const LIMITS: Limits = Limits { all_up_to: 24, sample: 12, seed: 0x51ab };

/// Which cuts count after a process was killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cuts {
    All,
    /// Those from when the first act was told to be done.
    AfterFirstAct,
    /// Those while the second process works: a pin without its revision is wrong before anybody is told of it.
    AfterKill,
    /// Before the end, the second process told nobody anything.
    AtEnd,
}

impl Cuts {
    pub fn first(self, log: &Log) -> usize {
        match self {
            Self::All => 0,
            Self::AfterFirstAct => {
                log.entries.iter().position(|entry| entry.step == Step::Ack).map_or(0, |ack| ack + 1)
            }
            Self::AfterKill => log.entries.iter().position(|entry| entry.step == Step::Kill).map_or(0, |kill| kill + 1),
            Self::AtEnd => log.entries.len(),
        }
    }
}

/// The states that such cuts may leave, but the `known` ones.
pub fn states_of(log: &Log, cuts: Cuts, limits: Limits, known: &HashSet<u64>) -> Vec<State> {
    let mut explorer = Explorer::new(log, limits);
    explorer.seen = known.clone();
    explorer.collect(cuts.first(log))
}

#[test]
fn who_goes_on_after_a_killed_process_tells_only_of_what_lasts() {
    let scratch = Scratch::new();
    let rows: Vec<(usize, &Killed)> = KILLED.iter().enumerate().collect();
    let recorded = in_parallel(&rows, |(row, killed)| killed.record(&scratch, |kill| proof::chosen(row + kill, 8)));
    let recorded: Vec<Recorded> = recorded.into_iter().flatten().collect();
    let checked = in_parallel(&recorded, |recorded| {
        let states = recorded.states();
        let broken = states.iter().find_map(|state| recorded.broken(state, &scratch));
        (states.len(), broken)
    });
    let states: usize = checked.iter().map(|(states, _)| states).sum();
    let _ = writeln!(std::io::stderr(), "{states} states after {} kills", recorded.len());
    let broken: Vec<&String> = checked.iter().filter_map(|(_, broken)| broken.as_ref()).collect();
    // What each breaks, and of the first also how.
    let lines = broken.iter().flat_map(|text| text.lines().next()).chain(broken.first().map(|text| text.as_str()));
    let first: Vec<&str> = lines.collect();
    assert!(broken.is_empty(), "{} kills break promises, such as\n{}", broken.len(), first.join("\n"));
    assert!(recorded.len() >= proof::scaled(70, 600), "{} kills are too few", recorded.len());
}
