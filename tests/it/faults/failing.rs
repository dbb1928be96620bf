//! An observer that fails steps.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use camino::Utf8Path;
use rustix::io::Errno;
use template_store::observe::{Observer, Op, Verdict};

/// What a disk answers once: an error of the device, of space, of a limit, of rights; and a signal.
pub const ERRNOS: [Errno; 6] = [Errno::IO, Errno::NOSPC, Errno::MLINK, Errno::DQUOT, Errno::ACCESS, Errno::INTR];

/// What a disk goes on answering: it is read-only now, or it stays full.
pub const LASTING: [Errno; 2] = [Errno::ROFS, Errno::NOSPC];

/// Which steps fail, and how.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub nth: usize,
    pub errno: Errno,
    /// Whether all later ones fail as well.
    pub lasting: bool,
}

/// Fails steps, and remembers which.
#[derive(Debug)]
pub struct Failing {
    fault: Option<Fault>,
    seen: AtomicUsize,
    failed: Mutex<Vec<Op>>,
}

impl Failing {
    pub fn new(fault: Fault) -> Arc<Failing> {
        Arc::new(Failing { fault: Some(fault), seen: AtomicUsize::new(0), failed: Mutex::default() })
    }

    /// Fails nothing, and counts.
    pub fn counting() -> Arc<Failing> {
        Arc::new(Failing { fault: None, seen: AtomicUsize::new(0), failed: Mutex::default() })
    }

    /// The steps that were taken or failed so far.
    pub fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// The steps that failed, in their order.
    pub fn failed(&self) -> Vec<Op> {
        self.failed.lock().unwrap().clone()
    }
}

impl Observer for Failing {
    fn before(&self, op: &Op) -> Verdict {
        if matches!(op, Op::Foreign { .. }) {
            return Verdict::Proceed;
        }
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            Some(fault) if number == fault.nth || number > fault.nth && fault.lasting && fault.concerns(op) => {
                self.failed.lock().unwrap().push(op.clone());
                Verdict::Fail(io::Error::from_raw_os_error(fault.errno.raw_os_error()))
            }
            _ => Verdict::Proceed,
        }
    }
}

impl Fault {
    /// On a full disk, all that needs no space can still be done.
    fn concerns(&self, op: &Op) -> bool {
        let needs_none = matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::Chmod { .. } | Op::PunchHole { .. });
        self.errno != Errno::NOSPC || !needs_none
    }
}

/// The paths that a step is about; the last is the one that it makes or changes.
pub fn paths(op: &Op) -> Vec<&Utf8Path> {
    match op {
        Op::Link { from, to }
        | Op::Rename { from, to }
        | Op::RenameNoReplace { from, to }
        | Op::RenameExchange { from, to }
        | Op::Clone { from, to } => vec![from, to],
        Op::Create { path }
        | Op::Write { path, .. }
        | Op::Append { path, .. }
        | Op::Truncate { path, .. }
        | Op::Allocate { path, .. }
        | Op::PunchHole { path, .. }
        | Op::Fsync { path }
        | Op::FsyncDir { path }
        | Op::SyncFileSystem { path }
        | Op::Mkdir { path }
        | Op::Rmdir { path }
        | Op::Unlink { path }
        | Op::Symlink { path, .. }
        | Op::Chmod { path, .. }
        | Op::Chown { path, .. }
        | Op::SetMtime { path }
        | Op::RemoveXattr { path, .. }
        | Op::Foreign { path } => vec![path],
        other => panic!("{other:?} is a step that the tests do not know"),
    }
}

/// Whether a step was to take something away, or to make that possible.
pub fn clears(op: &Op) -> bool {
    matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::Chmod { .. })
}
