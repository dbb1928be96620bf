//! Random sequences of all operations, against a model in memory.
//!
//! [`steps`] says what may happen, and [`sequences`] in which order. [`model`], with [`collect`], is what a store must hold and
//! answer. [`carry`], [`builds`] and [`harm`] take each step on a real store, by one of several handles, and compare what it is told
//! with the model; [`facts`] reads what is on the bare disk. With some steps the power fails: what that leaves, as
//! in `powercut`, is what there is from then on, and it must be as before the step or as after it.
//!
//! ```sh
//! PROOF=all cargo test --test it machine -- --nocapture   # many, others each time
//! ```

mod bugs;
mod builds;
mod carry;
mod collect;
mod facts;
mod harm;
mod images;
mod model;
mod sequences;
mod steps;
mod sut;
mod tally;

use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use proptest::strategy::{Just, Strategy, ValueTree};
use proptest::test_runner::{Config, FailurePersistence, FileFailurePersistence, PersistedSeed, RngSeed, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, Sequential, StateMachineTest};

use bugs::Bug;
use sequences::{Likely, Steps};
use steps::Transition;
use sut::Sut;
use tally::Tally;

use crate::proof;

/// How many sequences are tried with each `cargo test`, and how many when all is tried.
const SEQUENCES: u32 = 64;
const MANY_SEQUENCES: usize = 1200;

/// How many steps a sequence has.
const LENGTH: std::ops::RangeInclusive<usize> = 20..=30;

/// How many sequences are tried at the same time: some wait for locks that nobody will give up.
const AT_ONCE: u32 = 8;

struct Machine;

/// What all sequences together have done.
static TALLY: Mutex<Option<Tally>> = Mutex::new(None);

impl StateMachineTest for Machine {
    type SystemUnderTest = Sut;
    type Reference = Steps;

    fn init_test(start: &Likely) -> Sut {
        Sut::new(start.bug)
    }

    fn apply(mut sut: Sut, _: &Likely, transition: Transition) -> Sut {
        if let Err(broken) = sut.take(transition) {
            panic!("{transition:?}: {broken}");
        }
        sut
    }

    fn teardown(mut sut: Sut, _: Likely) {
        if let Err(broken) = sut.end() {
            panic!("at the end: {broken}");
        }
        sut.tally.sequences = 1;
        let mut tally = TALLY.lock().unwrap_or_else(PoisonError::into_inner);
        tally.get_or_insert_default().add(&sut.tally);
    }
}

/// Keeps what fails. What failed before is tried again in one part of a run only.
#[derive(Debug, Clone, PartialEq)]
struct Keeper {
    file: FileFailurePersistence,
    tries_again: bool,
}

impl FailurePersistence for Keeper {
    fn load_persisted_failures2(&self, source: Option<&'static str>) -> Vec<PersistedSeed> {
        if self.tries_again { self.file.load_persisted_failures2(source) } else { Vec::new() }
    }

    fn save_persisted_failure2(&mut self, source: Option<&'static str>, seed: PersistedSeed, shrunk: &dyn Debug) {
        self.file.save_persisted_failure2(source, seed, shrunk);
    }

    fn box_clone(&self) -> Box<dyn FailurePersistence> {
        Box::new(self.clone())
    }

    fn eq(&self, other: &dyn FailurePersistence) -> bool {
        other.as_any().downcast_ref() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// The usual sequences are the same each time, so that what they reach is known.
fn config(part: u32) -> Config {
    let sequences = proof::scaled(SEQUENCES as usize, MANY_SEQUENCES);
    let cases = u32::try_from(sequences).expect("they are not that many").div_ceil(AT_ONCE);
    let rng_seed = if proof::quick() { RngSeed::Fixed(u64::from(part)) } else { RngSeed::Random };
    let file = FileFailurePersistence::Direct("proptest-regressions/machine.txt");
    let keeper = Keeper { file, tries_again: part == 0 };
    Config { cases, rng_seed, failure_persistence: Some(Box::new(keeper)), ..Config::default() }
}

/// Keeps the library's parallel work on one thread: it must not begin another sequence in the middle of this one.
fn alone<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread can be started").install(work)
}

/// One of several parts of a run; an error is the shortest sequence that fails.
fn run(part: u32) -> Result<(), String> {
    let config = config(part);
    let mut runner = TestRunner::new(config.clone());
    let tried = alone(|| {
        runner.run(&Steps::sequential_strategy(LENGTH), |(start, transitions, seen)| {
            Machine::test_sequential(config.clone(), start, transitions, seen);
            Ok(())
        })
    });
    tried.map_err(|error| error.to_string())
}

#[test]
fn whatever_is_done_in_whatever_order_the_store_is_what_the_model_says() {
    let failed: Vec<String> = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..AT_ONCE).map(|part| scope.spawn(move || run(part))).collect();
        parts.into_iter().filter_map(|part| part.join().expect("proptest catches panics").err()).collect()
    });
    let tally = TALLY.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    tally.print();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    assert_eq!(tally.never_done(), [""; 0], "every operation comes to success");
}

/// How many sequences it takes to find a bug, and how it shows; `None` if it is not found in as many as are usual.
fn find(bug: Bug) -> Option<(u32, String)> {
    let mut runner =
        TestRunner::new(Config { rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Config::default() });
    let start = move || Just(Likely::with(bug)).boxed();
    let sequences = Sequential::new(LENGTH.into(), start, Steps::preconditions, Steps::transitions, Steps::apply);
    (1..=SEQUENCES).find_map(|tried| {
        let (_, transitions, _) = sequences.new_tree(&mut runner).expect("nothing is rejected").current();
        let mut sut = Sut::new(Some(bug));
        let mut all = || transitions.iter().try_for_each(|transition| sut.take(*transition)).and_then(|()| sut.end());
        let told = catch_unwind(AssertUnwindSafe(&mut all)).unwrap_or_else(|_| Err("a check panics".to_owned()));
        told.err().map(|broken| (tried, broken))
    })
}

#[test]
fn every_bug_that_is_put_in_is_found() {
    let found: Vec<_> = std::thread::scope(|scope| {
        let found = Bug::ALL.map(|bug| (bug, scope.spawn(move || alone(|| find(bug)))));
        found.into_iter().map(|(bug, found)| (bug, found.join().expect("panics are caught"))).collect()
    });
    for (bug, found) in &found {
        let how = found.as_ref().map(|(tried, broken)| (tried, broken.lines().next().unwrap_or_default()));
        eprintln!("{bug:?}: {how:?}");
    }
    let missed: Vec<_> = found.iter().filter(|(_, found)| found.is_none()).map(|(bug, _)| bug).collect();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
