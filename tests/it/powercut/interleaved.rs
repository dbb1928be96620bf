//! Two processes at once: one stops before one of its steps, the other does its work meanwhile, then the first goes on.
//! The power fails at some moment after that.
//!
//! It stops before every fifth of its steps in turn; or some pairs stop once, unless [`proof`] says otherwise.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use template_store::gc::Policy;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{Error, ErrorKind};

use super::acts::Act::{
    self, Activate, Apply, Attach, Build, Create, GcBeside, Import, Instance, MoveIn, Pin, Pull, Rebuild, RebuildOnly,
    Remove, RemoveCurrent, RemoveTemplate, Repair, Rollback, Unpin,
};
use super::acts::Place;
use super::acts::Term::Always;
use super::pairs::GROUND;
use super::parallel::in_parallel;
use super::promises::{Scratch, after_collection, clear, compare, survey};
use super::recorder::{Log, Recorder};
use super::scenarios::Sum;
use super::states::{Explorer, Limits, State};
use super::world::{Broken, World};
use crate::proof;

/// Who stops, and who works meanwhile.
const PAIRS: &[[Act; 2]] = &[
    [Build("web", "two"), Build("shop", "two")],
    [Build("web", "two"), GcBeside],
    [Build("shop", "one"), GcBeside],
    [Build("shop", "one"), Remove("web", "one")],
    [Rebuild("web", "one"), Rebuild("shop", "one")],
    [RebuildOnly("web", "two"), RemoveTemplate("web")],
    [Import("shop", "two"), MoveIn("db", "two")],
    [MoveIn("shop", "two"), GcBeside],
    [Pull("shop", "two"), GcBeside],
    [Activate("web", "one"), GcBeside],
    [Activate("web", "one"), Rollback("web")],
    [Activate("web", "one"), RemoveCurrent("web", "three")],
    [Rollback("web"), Remove("web", "three")],
    [GcBeside, Build("web", "one")],
    [GcBeside, Pin("keep", "web", "one", Always)],
    [GcBeside, Activate("web", "one")],
    [GcBeside, GcBeside],
    [GcBeside, Instance("web", "1")],
    [Remove("web", "one"), Rebuild("web", "one")],
    [Remove("web", "one"), Pin("keep", "web", "one", Always)],
    [RemoveTemplate("web"), Build("web", "three")],
    [RemoveTemplate("web"), Create("web")],
    [Pin("keep", "web", "one", Always), GcBeside],
    [Pin("keep", "web", "one", Always), RemoveTemplate("web")],
    [Unpin("old"), RemoveTemplate("db")],
    [Create("new"), Build("new", "one")],
    [Apply("web"), Build("web", "two")],
    [Instance("web", "1"), RemoveTemplate("web")],
    [Instance("web", "1"), Attach("web", "first")],
    [Attach("web", "first"), Attach("web", "second")],
    [Attach("web", "first"), GcBeside],
    [Repair, Build("web", "two")],
    [Build("web", "two"), Repair],
];

/// An observer that stops its process before one step.
#[derive(Debug)]
struct Stopping {
    recorder: Arc<Recorder>,
    at: usize,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    seen: usize,
    stopped: bool,
    ended: bool,
}

impl Stopping {
    fn new(recorder: &Arc<Recorder>, at: usize) -> Arc<Self> {
        Arc::new(Self { recorder: recorder.clone(), at, progress: Mutex::default(), changed: Condvar::new() })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress());
        self.changed.notify_all();
    }

    /// Whether it came to the step.
    fn wait_until_stopped(&self) -> bool {
        let waiting = |progress: &mut Progress| !progress.stopped && !progress.ended;
        let progress = self.changed.wait_while(self.progress(), waiting).unwrap_or_else(PoisonError::into_inner);
        progress.stopped
    }
}

impl Observer for Stopping {
    fn before(&self, op: &Op) -> Verdict {
        let mut progress = self.progress();
        if progress.seen == self.at {
            progress.stopped = true;
            self.changed.notify_all();
        }
        progress.seen += 1;
        // None of its threads goes on.
        drop(self.changed.wait_while(progress, |progress| progress.stopped));
        self.recorder.before(op)
    }

    fn after(&self, op: &Op, outcome: Result<(), &io::Error>) {
        self.recorder.after(op, outcome);
    }
}

/// Two acts that were done at once.
struct Recorded {
    name: String,
    acts: [Act; 2],
    log: Log,
    /// Where the first one stopped.
    first: usize,
    /// The number of the one that ended first, if both did what they were to do.
    sooner: Option<usize>,
    end: World,
}

/// What one act does in a thread of its own, as a process would.
fn run(place: &Place, act: Act) -> Result<(), Error> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started");
    pool.install(|| place.run(act))
}

/// Waits until a thread has ended, or waits for a lock that it does not get.
fn wait_until_ended_or_stuck(ended: &AtomicBool, recorder: &Recorder) {
    let mut last = (recorder.len(), Instant::now());
    while !ended.load(Ordering::Relaxed) && last.1.elapsed() < Duration::from_millis(60) {
        thread::sleep(Duration::from_millis(1));
        if recorder.len() != last.0 {
            last = (recorder.len(), Instant::now());
        }
    }
}

/// `None` when the first one has no such step.
fn record(acts: [Act; 2], at: usize, scratch: &Scratch) -> Option<Recorded> {
    let name = format!("{:?} stops before step {at}, and {:?}", acts[0], acts[1]);
    let place = ground(scratch);
    let (place, recorder) = place.recorded().expect("the tree can be read");
    let stopping = Stopping::new(&recorder, at);
    let told = |number: usize, result: Result<(), Error>| match result {
        Ok(()) => {
            recorder.ack(&format!("{:?}", acts[number]));
            Some(Instant::now())
        }
        Err(error) if [ErrorKind::NotFound, ErrorKind::Refused].contains(&error.kind()) => None,
        Err(error) => panic!("{name}: {:?}: {error}", acts[number]),
    };
    let ended = AtomicBool::new(false);
    let (stopped, ends) = thread::scope(|scope| {
        let first = scope.spawn(|| {
            let result = run(&place.clone().observed(stopping.clone()), acts[0]);
            stopping.change(|progress| progress.ended = true);
            told(0, result)
        });
        if !stopping.wait_until_stopped() {
            first.join().expect("it does not panic");
            return None;
        }
        let stopped = recorder.len();
        let second = scope.spawn(|| {
            let result = run(&place, acts[1]);
            let end = told(1, result);
            ended.store(true, Ordering::Relaxed);
            end
        });
        wait_until_ended_or_stuck(&ended, &recorder);
        stopping.change(|progress| progress.stopped = false);
        let ends = [first, second].map(|act| act.join().unwrap_or_else(|_| panic!("{name}: it panicked")));
        Some((stopped, ends))
    })?;
    let sooner = ends[0].zip(ends[1]).map(|(first, second)| usize::from(second < first));
    let end = survey(&place).unwrap_or_else(|broken| panic!("{name}: {broken}"));
    Some(Recorded { name, acts, log: recorder.finish(), first: stopped, sooner, end })
}

fn ground(scratch: &Scratch) -> Place {
    let place = Place::new(&scratch.fresh());
    for act in GROUND {
        place.run(*act).unwrap_or_else(|error| panic!("{act:?}: {error}"));
    }
    place
}

/// What some acts make of the ground, one after the other.
fn serial(acts: &[Act], scratch: &Scratch) -> World {
    let place = ground(scratch);
    for act in acts {
        drop(place.run(*act));
    }
    survey(&place).expect("a whole store")
}

/// What may be seen of two acts.
struct Worlds {
    before: World,
    only: [World; 2],
    both: [World; 2],
}

impl Worlds {
    fn of([a, b]: [Act; 2], scratch: &Scratch) -> Self {
        let [before, only_a, only_b, ab, ba] =
            [&[][..], &[a], &[b], &[a, b], &[b, a]].map(|acts| serial(acts, scratch));
        Self { before, only: [only_a, only_b], both: [ab, ba] }
    }

    /// What may be there when so many acts were told to be done.
    fn after<'w>(&'w self, recorded: &'w Recorded, acked: usize) -> Vec<&'w World> {
        let ends = [&recorded.end, &self.both[0], &self.both[1]];
        match (acked, recorded.sooner) {
            (2, _) => vec![&recorded.end],
            // A collection tells of what it took itself: what another one is about to take may come back.
            (1, Some(sooner)) if !matches!(recorded.acts[sooner], GcBeside) => {
                [&[&self.only[sooner]][..], &ends].concat()
            }
            _ => [&[&self.before, &self.only[0], &self.only[1]][..], &ends].concat(),
        }
    }
}

impl Recorded {
    fn check(&self, worlds: &Worlds, state: &State, scratch: &Scratch) -> Result<(), Broken> {
        let dir = scratch.fresh();
        state.materialize(dir.as_std_path()).expect("the tree can be made");
        let place = Place::new(&dir);
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_place(worlds, &place, state)));
        clear(&dir).expect("the tree can be removed");
        checked.unwrap_or_else(|_| Err("the library panicked".to_owned()))
    }

    fn check_place(&self, worlds: &Worlds, place: &Place, state: &State) -> Result<(), Broken> {
        let found = survey(place)?;
        compare(&found, &worlds.after(self, state.acked))?;
        if state.hash.is_multiple_of(2) {
            after_collection(place, found, &Policy::default().keep_last(u32::MAX))?;
        }
        // Whoever was cut short goes on, whatever the other one has left.
        for act in self.acts {
            match place.run(act) {
                Err(error) if ![ErrorKind::NotFound, ErrorKind::Refused].contains(&error.kind()) => {
                    return Err(format!("{act:?} fails after the cut: {error}"));
                }
                _ => {}
            }
        }
        let end = survey(place).map_err(|broken| format!("after the retry: {broken}"))?;
        after_collection(place, end, &Policy::default().keep_last(1_u32)).map(drop)
    }

    fn states(&self) -> Vec<State> {
        Explorer::new(&self.log, LIMITS).collect(self.first)
    }
}

const LIMITS: Limits = Limits { all_up_to: 5, sample: 4, seed: 0x6d19 };

/// The steps at which the first act of a pair stops: every fifth one, beginning at another one for each pair.
fn stops(pair: &[Act; 2]) -> Box<dyn Iterator<Item = usize>> {
    let number = PAIRS.iter().position(|other| std::ptr::eq(other, pair)).expect("it is one of them");
    match (proof::quick(), proof::chosen(number, 6)) {
        (true, true) => Box::new([1 + number * 5 % 13].into_iter()),
        (true, false) => Box::new([].into_iter()),
        (false, _) => {
            let stops = (0..).map(move |stop| (stop, number % 5 + 5 * stop));
            Box::new(stops.filter(move |(stop, _)| proof::chosen(number + stop, 1)).map(|(_, at)| at))
        }
    }
}

fn check_pair(pair: &[Act; 2], scratch: &Scratch) -> Sum {
    let worlds = Worlds::of(*pair, scratch);
    let mut sum = Sum::default();
    for at in stops(pair) {
        let Some(recorded) = record(*pair, at, scratch) else { break };
        sum.scenarios += 1;
        for state in recorded.states() {
            let broken = recorded.check(&worlds, &state, scratch).err();
            sum.note(&state, broken.map(|why| format!("{}: {why}\n{}", recorded.name, state.describe(&recorded.log))));
        }
    }
    sum
}

#[test]
fn what_two_processes_leave_that_were_cut_at_once_keeps_every_promise() {
    let scratch = Scratch::new();
    let sums = in_parallel(PAIRS, |pair| check_pair(pair, &scratch));
    let mut sum = Sum::default();
    sums.into_iter().for_each(|one| sum += one);
    let (runs, pairs) = (sum.scenarios, PAIRS.len());
    let _ = writeln!(std::io::stderr(), "{runs} interleavings of {pairs} pairs: {sum}");
    sum.assert_whole();
    let least = proof::scaled(pairs / 8, pairs * 4);
    assert!(runs >= least, "{runs} interleavings are too few, {least} are expected");
}
