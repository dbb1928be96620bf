//! Same key, one build: who builds a key holds its lock file, and tells the others how it ended.
//!
//! One lock file is one attempt. The builder writes the end into it and removes its name before it lets go; so
//! whoever had it open while waiting reads the end of just the attempt that it waited for, and whoever comes
//! later makes a new file. A builder that died left no end: the next one in line takes over.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Attempt, Outcome};
use crate::fs::Disk;
use crate::fs::lock::{BackOff, Flock, Mode, Patience, read_lock_file};
use crate::id::{CacheKey, TemplateId};
use crate::options::Wait;
use crate::progress::Progress;

/// What came of asking for the right to build.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Nobody else builds it.
    Mine(Box<Claim>),
    /// Somebody else built it while we waited.
    Ended { attempt: Box<Attempt>, outcome: Outcome },
}

/// The right to build a key. Dropped without an end, it tells the others that the build failed.
#[derive(Debug)]
pub(crate) struct Claim {
    disk: Disk,
    lock: Flock,
    attempt: Attempt,
    open: bool,
    _turn: Turn,
}

/// A longer error or command is cut for those who wait.
const LONGEST_TEXT: usize = 16 * 1024;

/// Asks for the right to build a key, and waits while somebody else has it.
pub(crate) fn claim(
    core: &Core,
    key: &CacheKey,
    attempt: Attempt,
    wait: Wait,
    progress: &mut dyn Progress,
) -> Result<Claimed> {
    let path = core.layout.build_lock(key);
    let turn = Turn::take(&path, &attempt.template)?;
    let mut pauses = BackOff::new(match wait {
        Wait::Forever => None,
        Wait::AtMost(limit) => Some(limit),
    });
    loop {
        let lock = Flock::open_or_create(&path)?;
        let waited = wait_for(&lock, &mut pauses, progress)?;
        let last = Attempt::from_json(&read_lock_file(&lock)?).ok();
        let named = lock.still_named()?;
        match last {
            // A file that ended and has its name is of one who died in between; it tells those who waited only.
            Some(Attempt { outcome: Some(ref outcome), .. }) if waited || !named => {
                let outcome = outcome.clone();
                return Ok(Claimed::Ended { attempt: Box::new(last.expect("it was just looked at")), outcome });
            }
            _ if !named => continue,
            dead => {
                let mut claim = Claim { disk: core.disk.clone(), lock, attempt, open: true, _turn: turn };
                claim.attempt.command.truncate(claim.attempt.command.floor_char_boundary(LONGEST_TEXT));
                claim.write()?;
                if let Some(dead) = dead {
                    remove_draft_of(core, &dead);
                }
                return Ok(Claimed::Mine(Box::new(claim)));
            }
        }
    }
}

/// Waits for a lock, and says for whom; `true` if somebody had it.
fn wait_for(lock: &Flock, pauses: &mut BackOff, progress: &mut dyn Progress) -> Result<bool> {
    let mut told: Option<Attempt> = None;
    let mut waited = false;
    while !lock.try_lock(Mode::Exclusive)? {
        waited = true;
        // The file is empty while its builder has just begun.
        if let Ok(attempt) = Attempt::from_json(&read_lock_file(lock)?)
            && told.as_ref() != Some(&attempt)
        {
            progress.waiting(&attempt);
            told = Some(attempt);
        }
        if !pauses.pause() {
            return Err(match told {
                Some(attempt) => Error::BuildInProgress { attempt: Box::new(attempt), waited: pauses.waited() },
                None => crate::error::PathError {
                    doing: "wait for",
                    path: lock.path().to_owned(),
                    source: io::ErrorKind::TimedOut.into(),
                }
                .into(),
            });
        }
    }
    Ok(waited)
}

/// Removes what a builder that died left; if somebody else does it first, or it can't be done, a sweep will.
fn remove_draft_of(core: &Core, dead: &Attempt) {
    if dead.draft.is_empty() || dead.draft.contains(['/', '.']) {
        return;
    }
    let dir = core.layout.drafts().join(&dead.draft);
    if let Ok(Some(_lock)) = Flock::take(&dir, Mode::Exclusive, Patience::None) {
        let _ = core.disk.remove_tree(&dir);
    }
}

impl Claim {
    /// Notes where the builder writes, so that whoever takes over can clean up.
    pub fn building_in(&mut self, draft: &Utf8Path) -> Result<()> {
        self.attempt.draft = draft.file_name().unwrap_or_default().to_owned();
        self.write()
    }

    /// Tells those who wait how it ended, and lets go.
    pub fn end(mut self, outcome: Outcome) -> Result<()> {
        self.tell(outcome)
    }

    /// Lets go without an end: the next in line builds.
    pub fn abandon(mut self) -> Result<()> {
        self.open = false;
        Ok(self.disk.unlink_if_there(self.lock.path())?)
    }

    fn tell(&mut self, mut outcome: Outcome) -> Result<()> {
        self.open = false;
        if let Outcome::Failed(message) = &mut outcome {
            // The end of a long log says most.
            let start = message.ceil_char_boundary(message.len().saturating_sub(LONGEST_TEXT));
            message.drain(..start);
        }
        self.attempt.outcome = Some(outcome);
        let written = self.write();
        self.disk.unlink_if_there(self.lock.path())?;
        written
    }

    /// Whoever waits may read the file at any moment; what it finds is whole or not JSON at all. It is written
    /// over first and cut then, which needs no space on a disk that a failed build has filled.
    fn write(&self) -> Result<()> {
        let (file, path) = (self.lock.file(), self.lock.path());
        let bytes = self.attempt.to_json();
        self.disk.write_at_start(file, path, &bytes)?;
        Ok(self.disk.set_len(file, path, bytes.len() as u64)?)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.open {
            let _ = self.tell(Outcome::Failed("the builder gave up without saying why".into()));
        }
    }
}

/// The threads of this process that have or await a key: one that asked twice would wait for itself.
static TURNS: Mutex<Vec<(Utf8PathBuf, ThreadId)>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Turn((Utf8PathBuf, ThreadId));

impl Turn {
    fn take(path: &Utf8Path, template: &TemplateId) -> Result<Turn> {
        let turn = (path.to_owned(), thread::current().id());
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.contains(&turn) {
            return Err(Error::AlreadyBuilding { template: template.clone() });
        }
        turns.push(turn.clone());
        Ok(Turn(turn))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = turns.iter().position(|turn| *turn == self.0) {
            turns.swap_remove(at);
        }
    }
}
