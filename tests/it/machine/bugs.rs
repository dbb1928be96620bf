//! Bugs that are put in on purpose, to see that they are found.

use template_store::observe::Op;

/// A bug: something that the store leaves out and says that it did, or something else that it does than it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// `current` is not swapped.
    NoSwap,
    /// No line is written about an activation.
    NoLine,
    /// A pin is not removed.
    NoUnpin,
    /// The index of keys is not written.
    NoKey,
    /// A revision that is removed stays under its name.
    NoGrave,
    /// The name of a revision is not synced.
    RevisionNotSynced,
    /// A swap of `current` is not synced.
    SwapNotSynced,
    /// The line about an activation is not synced.
    LineNotSynced,
    /// The files of a draft are not synced.
    FilesNotSynced,
    /// A pin is not synced.
    PinNotSynced,
    /// The name of an instance is not synced.
    InstanceNotSynced,
    /// A rollback goes back two steps, where it can.
    RollsBackTwice,
    /// A collection does not ask for pins.
    CollectsPinned,
    /// Nobody keeps a revision from being removed by holding it.
    HoldsNothing,
    /// Whatever is current is what was expected.
    ExpectsAnything,
    /// A plan is applied as if it had been made just now.
    PlansAnew,
}

impl Bug {
    pub const ALL: [Bug; 16] = [
        Bug::NoSwap,
        Bug::NoLine,
        Bug::NoUnpin,
        Bug::NoKey,
        Bug::NoGrave,
        Bug::RevisionNotSynced,
        Bug::SwapNotSynced,
        Bug::LineNotSynced,
        Bug::FilesNotSynced,
        Bug::PinNotSynced,
        Bug::InstanceNotSynced,
        Bug::RollsBackTwice,
        Bug::CollectsPinned,
        Bug::HoldsNothing,
        Bug::ExpectsAnything,
        Bug::PlansAnew,
    ];

    /// Whether a store with this bug leaves out this step.
    pub fn leaves_out(self, op: &Op) -> bool {
        match (self, op) {
            (Bug::NoSwap, Op::Rename { to, .. }) => to.ends_with("current"),
            (Bug::NoLine, Op::Append { path, .. }) => path.ends_with("activations.jsonl"),
            (Bug::NoUnpin, Op::Unlink { path }) => path.as_str().contains("/.store/pins/"),
            (Bug::NoKey, Op::Rename { to, .. }) => to.as_str().contains("/.store/keys/"),
            (Bug::NoGrave, Op::RenameNoReplace { to, .. }) => to.as_str().contains("/.store/trash/"),
            (Bug::RevisionNotSynced, Op::FsyncDir { path }) => path.ends_with("artifacts"),
            (Bug::SwapNotSynced, Op::FsyncDir { path }) => {
                path.parent().is_some_and(|parent| parent.ends_with("templates"))
            }
            (Bug::LineNotSynced, Op::Fsync { path }) => path.ends_with("activations.jsonl"),
            (Bug::FilesNotSynced, Op::Fsync { path }) => path.as_str().contains("/.store/drafts/"),
            (Bug::PinNotSynced, Op::FsyncDir { path }) => path.ends_with("pins"),
            (Bug::InstanceNotSynced, Op::FsyncDir { path }) => path.ends_with("vms"),
            _ => false,
        }
    }
}
