//! A disk that fails: whichever step it is, what was there is whole, the error says what failed, nothing is left
//! behind, and the next try succeeds.
//!
//! Each operation of [`cases`] is done once on a disk that works; then again and again, from the same beginning, on one
//! where its first, second, … last step fails. [`examine`] says what must hold then, and [`unsaid`] which steps may
//! fail without an error. [`fakes`] shows that what must not be is noticed.
//!
//! With `PROOF=all` each step fails in every way, and without it a sample of them in one way by turns.

mod calls;
mod cases;
mod examine;
mod failing;
mod fakes;
mod unsaid;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use rustix::io::Errno;
use template_store::observe::{Observer, Op};

use cases::{CASES, Case, Ground, Work};
use examine::{Ends, Happened, objects, private_work};
use failing::{ERRNOS, Failing, Fault, LASTING};
use unsaid::{UNSAID, unsaid};

use crate::powercut::acts::{Act, Place};
use crate::powercut::medium::Medium;
use crate::powercut::mending::Before;
use crate::powercut::parallel::in_parallel;
use crate::powercut::promises::{Scratch, clear};
use crate::powercut::recorder::Recorder;
use crate::powercut::view::View;
use crate::powercut::world::Broken;
use crate::proof;

/// A case that was done once on a disk that works.
struct Ready {
    number: usize,
    case: &'static Case,
    start: Medium,
    ends: Ends,
    steps: usize,
}

impl Ready {
    fn new(number: usize, scratch: &Scratch) -> Ready {
        let case = &CASES[number];
        let place = Place::new(&scratch.fresh());
        for act in case.before {
            place.run(*act).unwrap_or_else(|error| panic!("{}: {act:?}: {error}", case.name));
        }
        let alive = (case.prepare)(&place);
        let recorder = Recorder::new(place.dir()).expect("the tree can be read");
        let start = recorder.finish().start;
        drop(alive);

        let place = made_real(&start, scratch);
        let before = matches!(case.ground, Ground::Mending(_)).then(|| Before::of(&place));
        let look = |place: &Place| case.look(place).unwrap_or_else(|broken| panic!("{}: {broken}", case.name));
        let old = (case.ground == Ground::Whole).then(|| look(&place));
        let mut litter = private_work(&place).expect("it can be read");
        litter.extend(objects(&place));
        let counting = Failing::counting();
        case.run(&place.clone().observed(counting.clone())).unwrap_or_else(|text| panic!("{}: {text}", case.name));
        // The next pull goes on with the files that came whole; a collection takes them if there is none.
        if matches!(case.work, Work::Act(Act::Pull(..))) {
            litter.extend(objects(&place));
        }
        let ends = Ends { old, new: look(&place), before, litter };
        Ready { number, case, start, ends, steps: counting.seen() }
    }

    /// Does it on a disk that fails so; what happened, and what of it must not be.
    fn fail(&self, fault: Fault, scratch: &Scratch) -> (Happened, Result<(), Broken>) {
        let failing = Failing::new(fault);
        self.watched(failing.clone(), scratch, |did| Happened { errno: fault.errno, failed: failing.failed(), did })
    }

    fn watched(
        &self,
        observer: Arc<dyn Observer>,
        scratch: &Scratch,
        happened: impl FnOnce(calls::Did) -> Happened,
    ) -> (Happened, Result<(), Broken>) {
        let place = made_real(&self.start, scratch);
        let did = catch_unwind(AssertUnwindSafe(|| self.case.run(&place.clone().observed(observer))));
        let panicked = did.is_err();
        let happened = happened(did.unwrap_or_else(|_| Err("it panicked".to_owned())));
        let examined = match panicked {
            true => Err("it panicked".to_owned()),
            false => catch_unwind(AssertUnwindSafe(|| self.case.examine(&place, &self.ends, &happened)))
                .unwrap_or_else(|_| Err("something panicked afterwards".to_owned())),
        };
        clear(place.dir()).expect("the tree can be removed");
        (happened, examined.map_err(|broken| broken.replace(&format!("{}/", place.dir()), "")))
    }
}

fn made_real(tree: &Medium, scratch: &Scratch) -> Place {
    let dir = scratch.fresh();
    View::live(tree).materialize(dir.as_std_path()).expect("the tree can be made");
    Place::new(&dir)
}

/// The faults of all cases that this run tries.
fn faults(ready: &[Ready]) -> Vec<(&Ready, Fault)> {
    let by_turns = |ways: &[Errno], turn: usize| match proof::quick() {
        true => vec![ways[turn % ways.len()]],
        false => ways.to_vec(),
    };
    let mut faults = Vec::new();
    for one in ready {
        for nth in 0..one.steps {
            let turn = nth + one.number;
            faults.extend(by_turns(&ERRNOS, turn).into_iter().map(|errno| (one, Fault { nth, errno, lasting: false })));
            let lasting = by_turns(&LASTING, turn);
            faults.extend(lasting.into_iter().map(|errno| (one, Fault { nth, errno, lasting: true })));
        }
    }
    let chosen = faults.into_iter().enumerate().filter(|(number, _)| proof::chosen(number + number / 8, 11));
    chosen.map(|(_, fault)| fault).collect()
}

#[test]
fn whichever_step_fails_the_store_is_whole_says_so_and_goes_on() {
    let scratch = Scratch::new();
    let numbers: Vec<usize> = (0..CASES.len()).collect();
    let ready = in_parallel(&numbers, |&number| Ready::new(number, &scratch));
    let faults = faults(&ready);
    let came = in_parallel(&faults, |(ready, fault)| ready.fail(*fault, &scratch));

    let ways = faults.iter().zip(&came).map(|((_, fault), (happened, _))| (fault, happened));
    report(&ready, &ways.collect::<Vec<_>>());
    let broken: Vec<String> =
        faults.iter().zip(&came).filter_map(|((ready, fault), came)| told(ready.case, *fault, came)).collect();
    assert!(broken.is_empty(), "{} broken, such as\n{}", broken.len(), broken[..broken.len().min(12)].join("\n"));
    // A file takes another way when it seems to be open elsewhere, and that has more steps or fewer.
    let missed = came.iter().filter(|(happened, _)| happened.failed.is_empty()).count();
    assert!(missed * 100 < faults.len(), "{missed} faults met no step");
}

/// Says how much was tried, and what may fail without an error.
fn report(ready: &[Ready], ways: &[(&Fault, &Happened)]) {
    let lasting = ways.iter().filter(|(fault, _)| fault.lasting).count();
    let met = ways.iter().filter(|(_, happened)| !happened.failed.is_empty()).count();
    let errors = ways.iter().filter(|(_, happened)| happened.did.is_err()).count();
    let mut lines = vec![format!(
        "faults: {} operations with {} steps; {} injections, {lasting} of them for good; {errors} gave an error",
        ready.len(),
        ready.iter().map(|one| one.steps).sum::<usize>(),
        met,
    )];
    for one in UNSAID {
        let silent = |happened: &Happened| {
            let mut whys = happened.failed.iter().filter_map(|op| unsaid(op, happened.errno));
            happened.did.is_ok() && whys.any(|why| std::ptr::eq(why, one))
        };
        let times = ways.iter().filter(|(_, happened)| silent(happened)).count();
        lines.push(format!("  {times} without: {}; {}", one.what, one.why));
    }
    let _ = writeln!(std::io::stderr(), "{}", lines.join("\n"));
}

fn told(case: &Case, fault: Fault, (happened, examined): &(Happened, Result<(), Broken>)) -> Option<String> {
    let broken = examined.as_ref().err()?;
    let step: Option<&Op> = happened.failed.first();
    let Fault { nth, errno, lasting } = fault;
    let first =
        format!("{}, step {nth} ({errno:?}{}), {step:?}", case.name, if lasting { " from there on" } else { "" });
    Some(format!("- {first}: {broken}\n  it had said {:?}", happened.did))
}
