//! The steps that may fail without an error: what was asked for is done all the same.

use rustix::io::Errno;
use template_store::FindingKind;
use template_store::observe::Op;

use super::failing::{clears, paths};

/// A step that may fail unsaid, why, and what a verification may find of it.
#[derive(Debug)]
pub struct Unsaid {
    pub what: &'static str,
    pub why: &'static str,
    is: fn(&Op, Errno) -> bool,
    pub finds: &'static [FindingKind],
}

pub static UNSAID: &[Unsaid] = &[
    Unsaid {
        what: "any step, interrupted by a signal",
        why: "it is taken again",
        is: |_, errno| errno == Errno::INTR,
        finds: &[],
    },
    Unsaid {
        what: "blocks that are set aside for a full disk",
        why: "a store without them works as well, and the next removal sets them aside",
        is: |op, _| is_in(op, "reserve"),
        finds: &[],
    },
    Unsaid {
        what: "the sync of a directory above the store that this user may not read",
        why: "who may not read it has made nothing in it",
        is: |op, errno| {
            matches!(op, Op::FsyncDir { path } if !path.as_str().contains("/store")) && errno == Errno::ACCESS
        },
        finds: &[],
    },
    Unsaid {
        what: "an entry of the index of keys",
        why: "it is a hint: without it a build or a search comes once more",
        is: |op, _| is_in(op, "keys") || is_in(op, "drafts") && is_small_file(op),
        finds: &[FindingKind::MissingKey],
    },
    Unsaid {
        what: "telling others how a build ended",
        why: "what was published is published; a lock file of the dead is swept",
        is: |op, _| is_in(op, "locks"),
        finds: &[],
    },
    Unsaid {
        what: "clearing away a private directory or a note, and objects that nobody has",
        why: "a collection sweeps it",
        is: |op, _| clears(op) && ["drafts", "trash", "leases", "objects"].into_iter().any(|dir| is_in(op, dir)),
        finds: &[],
    },
    Unsaid {
        what: "clearing away what a dead process left beside an instance",
        why: "it is in nobody's way, and the next instance clears it away",
        is: |op, _| clears(op) && paths(op)[0].as_str().contains("/vms/.template-store-"),
        finds: &[],
    },
    Unsaid {
        what: "taking the mark of half-done work from an instance that has its name",
        why: "under that name it means nothing",
        is: |op, _| matches!(op, Op::Chmod { path, mode: 0o700 } if path.as_str().contains("/vms/")),
        finds: &[],
    },
    Unsaid {
        what: "a link to an object, or its way to where it replaces a file",
        why: "the file keeps its own blocks, and a note says so",
        is: |op, errno| is_link(op) && [Errno::MLINK, Errno::ACCESS].contains(&errno),
        finds: &[FindingKind::Unshared, FindingKind::Twin],
    },
];

/// Why a step may fail unsaid.
pub fn unsaid(op: &Op, errno: Errno) -> Option<&'static Unsaid> {
    UNSAID.iter().find(|unsaid| (unsaid.is)(op, errno))
}

/// Whether a step is about something below `.store/<name>`.
fn is_in(op: &Op, name: &str) -> bool {
    paths(op).iter().any(|path| path.as_str().contains(&format!("/store/.store/{name}")))
}

fn is_link(op: &Op) -> bool {
    let staged = |op: &Op| paths(op)[0].file_name().is_some_and(|name| name.starts_with(".link-"));
    matches!(op, Op::Link { .. }) || matches!(op, Op::Rename { .. }) && staged(op)
}

/// Whether it is about a file on its way to where it replaces another one.
fn is_small_file(op: &Op) -> bool {
    paths(op)[0].file_name().is_some_and(|name| name.starts_with("file-"))
}
