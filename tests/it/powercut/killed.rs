//! First a process is killed, then another one goes on, then the power fails.
//!
//! What the first one did is there for the second one to see, and not durable. The second must not tell
//! anybody that it is done as long as a cut can take away what it found.

use std::collections::HashSet;
use std::io::Write as _;
use std::ops::ControlFlow;

use template_store::ErrorKind;

use super::acts::Act::{
    self, Activate, Apply, Build, Create, Init, MoveIn, Rebuild, RebuildOnly, Remove, RemoveCurrent, RemoveTemplate,
    Rollback,
};
use super::acts::Place;
use super::medium::Step;
use super::parallel::in_parallel;
use super::promises::{Scratch, Story, survey};
use super::recorder::{Log, Recorder};
use super::scenarios::{Recorded, Scenario, record};
use super::states::{Explorer, Limits, State};
use super::view::View;

/// An act that is killed after each of its steps, and the one that follows.
#[derive(Debug)]
struct Killed {
    before: &'static [Act],
    killed: &'static [Act; 1],
    then: Act,
}

const KILLED: &[Killed] = &[
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
    Killed { before: &[Init, ONE], killed: &[RebuildOnly("web", "three")], then: Activate("web", "three") },
    Killed { before: &[Init, ONE], killed: &[Build("shop", "one")], then: Build("shop", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: Build("web", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: Rollback("web") },
    Killed { before: &[Init, ONE, THREE], killed: &[Activate("web", "one")], then: RemoveCurrent("web", "three") },
    Killed { before: &[Init, ONE, THREE], killed: &[Rollback("web")], then: Activate("web", "one") },
    Killed { before: &[Init, ONE, THREE], killed: &[Remove("web", "one")], then: Rebuild("web", "one") },
    Killed { before: &[Init, ONE], killed: &[RemoveTemplate("web")], then: Create("web") },
];

const ONE: Act = Build("web", "one");
const THREE: Act = Build("web", "three");

/// Every act of [`KILLED`], killed after every step, with what the next process did.
pub fn record_killed(scratch: &Scratch) -> Vec<Recorded> {
    let play = |killed: &Killed| -> Vec<Recorded> {
        let scenario = Scenario { name: "", before: killed.before, acts: killed.killed };
        let whole = record(&scenario, scratch);
        // A sync changes nothing that the next process could see.
        let visible = |step: &Step| !matches!(step, Step::Fsync(_) | Step::FsyncDir(_) | Step::Ack);
        let steps = (1..=whole.log.entries.len()).filter(|&steps| visible(&whole.log.entries[steps - 1].step));
        steps.filter_map(|steps| kill_after(&whole, steps, killed, scratch)).collect()
    };
    in_parallel(KILLED, play).into_iter().flatten().collect()
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
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("{name}: {error}"),
    }
    let ground = whole.story.worlds[0].clone();
    let worlds = vec![ground.clone(), survey(&place).expect("a whole store")];
    let story = Story { acts: vec![killed.then], worlds, killed_on: Some(ground) };
    Some(Recorded { name, story, log: recorder.finish() })
}

pub const LIMITS: Limits = Limits { all_up_to: 24, sample: 12, seed: 0x51ab };

/// The states that a cut may leave once the second process has told of its success, but the `known` ones.
pub fn last_states(log: &Log, known: &HashSet<u64>) -> Vec<State> {
    let mut states = Vec::new();
    let mut explorer = Explorer::new(log, LIMITS);
    explorer.seen = known.clone();
    let _ = explorer.explore(log.entries.len(), &mut |state| {
        states.push(state);
        ControlFlow::Continue(())
    });
    states
}

#[test]
fn who_goes_on_after_a_killed_process_tells_only_of_what_lasts() {
    let scratch = Scratch::new();
    let recorded = record_killed(&scratch);
    let checked = in_parallel(&recorded, |recorded| {
        let states = last_states(&recorded.log, &HashSet::new());
        let broken = states.iter().find_map(|state| recorded.broken(state, &scratch));
        (states.len(), broken)
    });
    let states: usize = checked.iter().map(|(states, _)| states).sum();
    let _ = writeln!(std::io::stderr(), "{states} states after {} kills", recorded.len());
    let broken: Vec<&String> = checked.iter().filter_map(|(_, broken)| broken.as_ref()).collect();
    let first: Vec<&str> = broken.iter().take(5).map(|text| text.as_str()).collect();
    assert!(broken.is_empty(), "{} kills break promises, such as\n{}", broken.len(), first.join("\n"));
    assert!(recorded.len() >= 200, "{} kills are too few", recorded.len());
}
