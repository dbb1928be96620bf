//! What may happen: every operation, by somebody who has one of several handles of the store, with or without a
//! power cut in it.
//!
//! Nothing here knows what is in the store. A revision is the n-th of its template, whichever that is by then: so any
//! sequence makes sense, and one that fails can lose any of its steps.

/// How many handles there are, and how many revisions and notes of use may be held at once.
pub const HANDLES: usize = 3;
pub const SLOTS: usize = 2;

/// The n-th revision of a template, the oldest first, around the end; or one that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    Nth(usize),
    Other(usize),
}

/// What `current` is expected to be.
#[derive(Debug, Clone, Copy)]
pub enum Expecting {
    Anything,
    Nothing,
    /// What it is, as far as this caller can see.
    WhatIs,
    A(Pick),
}

/// How something is published.
#[derive(Debug, Clone, Copy)]
pub struct Publishing {
    pub activates: bool,
    pub expecting: Expecting,
}

/// How long a pin keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    Always,
    Long,
    Over,
}

/// What a collection is to keep.
#[derive(Debug, Clone, Copy)]
pub enum Keeping {
    TheUsual,
    Last(u32),
    LastAndRollbacks(u32, u32),
    TheYoung,
    /// One that has a goal that can't be reached, and is to do nothing for it.
    LastAndHungry(u32),
}

/// What is wrong with the disk.
#[derive(Debug, Clone, Copy)]
pub enum Harm {
    /// An object is gone.
    Object(usize),
    /// The index of keys is gone.
    Keys,
    /// A bit of a file of a revision is another one; its owner has what was published, and publishes it again.
    Bit { template: usize, pick: Pick, file: usize, quietly: bool },
    /// The same, and the store has the bytes elsewhere.
    Twin { template: usize, pick: Pick },
    /// The same, and nobody has them.
    Loss { template: usize, pick: Pick },
}

/// One operation. Numbers name templates, keys, contents, pins, instances and slots.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    Create {
        template: usize,
        definition: usize,
    },
    Apply {
        template: usize,
        definition: usize,
    },
    /// Reuses what there is, or builds a content.
    Build {
        template: usize,
        key: usize,
        content: usize,
        publishing: Publishing,
    },
    /// Builds whatever there is.
    BuildAgain {
        template: usize,
        key: usize,
        content: usize,
        publishing: Publishing,
    },
    /// Builds to compare with what is current, and publishes nothing.
    Check {
        template: usize,
        key: usize,
        content: usize,
    },
    /// Begins to build, and goes on with other things.
    Begin {
        template: usize,
        key: usize,
        content: usize,
    },
    Seal,
    /// Publishes what was begun.
    Finish {
        publishing: Publishing,
    },
    /// Throws it away.
    Abandon,
    /// Asks for a build, and fails if it is to build.
    Fail {
        template: usize,
        key: usize,
    },
    Import {
        template: usize,
        content: usize,
        key: Option<usize>,
        moves: bool,
        publishing: Publishing,
    },
    Activate {
        template: usize,
        pick: Pick,
        expecting: Expecting,
    },
    Rollback {
        template: usize,
    },
    Remove {
        template: usize,
        pick: Pick,
        forced: bool,
    },
    RemoveTemplate {
        template: usize,
        forced: bool,
    },
    Pin {
        name: usize,
        template: usize,
        pick: Pick,
        term: Term,
    },
    Unpin {
        name: usize,
    },
    Collect {
        keeping: Keeping,
    },
    Plan {
        keeping: Keeping,
    },
    ApplyPlan,
    /// Asks why a revision would stay or go.
    Why {
        template: usize,
        pick: Pick,
        keeping: Keeping,
    },
    Lookup {
        template: Option<usize>,
        key: usize,
    },
    Look {
        template: usize,
    },
    Hold {
        slot: usize,
        template: usize,
        pick: Pick,
    },
    HoldCurrent {
        slot: usize,
        template: usize,
    },
    NoteHolder {
        slot: usize,
    },
    LetGo {
        slot: usize,
    },
    Instance {
        name: usize,
        template: usize,
        pick: Pick,
    },
    InstanceOfHeld {
        name: usize,
        slot: usize,
    },
    RemoveInstance {
        name: usize,
    },
    Attach {
        template: usize,
        pick: Pick,
        label: usize,
    },
    Verify,
    Repair,
    Harm(Harm),
    Reopen,
}

/// A step, who takes it, and whether the power fails: then the number says where, and what is lost.
#[derive(Debug, Clone, Copy)]
pub struct Transition {
    pub handle: usize,
    pub step: Step,
    pub cut: Option<u64>,
}

impl Step {
    /// A name to count it by.
    pub fn name(self) -> &'static str {
        match self {
            Step::Create { .. } => "create",
            Step::Apply { .. } => "apply",
            Step::Build { .. } => "build",
            Step::BuildAgain { .. } => "build again",
            Step::Begin { .. } => "begin a build",
            Step::Seal => "seal",
            Step::Finish { .. } => "finish a build",
            Step::Abandon => "abandon a build",
            Step::Check { .. } => "check a build",
            Step::Fail { .. } => "fail a build",
            Step::Import { moves: false, .. } => "publish a copy",
            Step::Import { moves: true, .. } => "publish by moving",
            Step::Activate { .. } => "activate",
            Step::Rollback { .. } => "rollback",
            Step::Remove { forced: false, .. } => "remove",
            Step::Remove { forced: true, .. } => "remove by force",
            Step::RemoveTemplate { .. } => "remove a template",
            Step::Pin { .. } => "pin",
            Step::Unpin { .. } => "unpin",
            Step::Collect { .. } => "collect",
            Step::Plan { .. } => "plan",
            Step::ApplyPlan => "apply a plan",
            Step::Why { .. } => "ask why",
            Step::Lookup { .. } => "look up",
            Step::Look { .. } => "look",
            Step::Hold { .. } => "hold",
            Step::HoldCurrent { .. } => "hold current",
            Step::NoteHolder { .. } => "note a holder",
            Step::LetGo { .. } => "let go",
            Step::Instance { .. } => "instance",
            Step::InstanceOfHeld { .. } => "instance of what is held",
            Step::RemoveInstance { .. } => "remove an instance",
            Step::Attach { .. } => "attach a snapshot",
            Step::Verify => "verify",
            Step::Repair => "repair",
            Step::Harm(Harm::Object(_)) => "lose an object",
            Step::Harm(Harm::Keys) => "lose the keys",
            Step::Harm(Harm::Bit { .. }) => "heal a flipped bit",
            Step::Harm(Harm::Twin { .. }) => "mend by a twin",
            Step::Harm(Harm::Loss { .. }) => "lose a revision",
            Step::Reopen => "reopen",
        }
    }

    /// The names of all steps.
    pub const NAMES: [&str; 41] = [
        "create",
        "apply",
        "build",
        "build again",
        "begin a build",
        "seal",
        "finish a build",
        "abandon a build",
        "check a build",
        "fail a build",
        "publish a copy",
        "publish by moving",
        "activate",
        "rollback",
        "remove",
        "remove by force",
        "remove a template",
        "pin",
        "unpin",
        "collect",
        "plan",
        "apply a plan",
        "ask why",
        "look up",
        "look",
        "hold",
        "hold current",
        "note a holder",
        "let go",
        "instance",
        "instance of what is held",
        "remove an instance",
        "attach a snapshot",
        "verify",
        "repair",
        "lose an object",
        "lose the keys",
        "heal a flipped bit",
        "mend by a twin",
        "lose a revision",
        "reopen",
    ];
}
