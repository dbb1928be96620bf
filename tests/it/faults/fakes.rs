//! Stores that are broken on purpose: what must not be is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use template_store::observe::{Observer, Op, Verdict};

use super::cases::CASES;
use super::examine::Happened;
use super::{Ready, Scratch};
use crate::powercut::parallel::in_parallel;

/// Leaves a step out, the first that is meant, and says that it was taken.
#[derive(Debug)]
struct Leaving {
    step: fn(&Op) -> bool,
    left: AtomicBool,
}

impl Observer for Leaving {
    fn before(&self, op: &Op) -> Verdict {
        match (self.step)(op) && !self.left.swap(true, Ordering::Relaxed) {
            true => Verdict::Skip,
            false => Verdict::Proceed,
        }
    }
}

/// A broken store: the case, the step that it leaves out, and what is said of it.
struct Fake {
    case: &'static str,
    step: fn(&Op) -> bool,
    noticed: &'static str,
}

fn ends_with(op: &Op, name: &str) -> bool {
    super::failing::paths(op).last().is_some_and(|path| path.ends_with(name))
}

const WITHOUT: &str = "success without the effect";

const FAKES: &[Fake] = &[
    Fake {
        case: "activate",
        step: |op| matches!(op, Op::Rename { .. }) && ends_with(op, "current"),
        noticed: "current",
    },
    Fake { case: "publish a build", step: |op| matches!(op, Op::RenameNoReplace { .. }), noticed: "one" },
    Fake { case: "pin", step: |op| matches!(op, Op::Rename { .. }) && ends_with(op, "keep.json"), noticed: WITHOUT },
    Fake { case: "unpin", step: |op| matches!(op, Op::Unlink { .. }), noticed: WITHOUT },
    Fake { case: "remove", step: |op| matches!(op, Op::RenameNoReplace { .. }), noticed: WITHOUT },
    Fake { case: "create", step: |op| matches!(op, Op::RenameNoReplace { .. }), noticed: WITHOUT },
    Fake { case: "apply to a template that is there", step: |op| matches!(op, Op::Rename { .. }), noticed: WITHOUT },
    Fake { case: "replace a snapshot", step: |op| matches!(op, Op::RenameExchange { .. }), noticed: WITHOUT },
    Fake {
        case: "remove an instance",
        step: |op| matches!(op, Op::Rename { .. } | Op::RenameNoReplace { .. }),
        noticed: WITHOUT,
    },
    Fake { case: "abandon a draft", step: |op| matches!(op, Op::Rmdir { .. }), noticed: "is left" },
    Fake {
        case: "fail a build",
        step: |op| matches!(op, Op::Unlink { path } if path.as_str().contains("/locks/")),
        noticed: "is left",
    },
    Fake { case: "note a holder", step: |op| matches!(op, Op::Unlink { .. }), noticed: "is left" },
];

#[test]
fn a_step_that_is_left_out_and_reported_as_taken_is_noticed() {
    let scratch = Scratch::new();
    let noticed = in_parallel(FAKES, |fake| {
        let number = CASES.iter().position(|case| case.name == fake.case).expect("there is such a case");
        let leaving = Arc::new(Leaving { step: fake.step, left: AtomicBool::new(false) });
        let ready = Ready::new(number, &scratch);
        let (happened, examined) =
            ready.watched(leaving.clone(), &scratch, |did| Happened { errno: Errno::IO, failed: Vec::new(), did });
        assert!(leaving.left.load(Ordering::Relaxed), "{} has that step", fake.case);
        (happened, examined)
    });
    for (fake, (happened, examined)) in FAKES.iter().zip(noticed) {
        let broken = examined.expect_err(fake.case);
        assert!(broken.contains(fake.noticed), "{}: {broken}; it had said {:?}", fake.case, happened.did);
    }
}
