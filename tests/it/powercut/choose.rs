//! Which pending changes persist, and what becomes of files: all ways, or some at random.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::content::{Choice, FileState, outcomes};
use super::medium::{Change, Ino, Inode, Medium};
use super::mix;
use super::view::View;

type Outcomes = Arc<[(Choice, FileState)]>;

/// One choice of changes that persist, and the unsynced files that then have a name.
#[derive(Debug)]
pub struct Subset {
    pub kept: Vec<bool>,
    /// What each of them may be; at least two things, the whole file first.
    pub files: Vec<(Ino, Outcomes)>,
}

impl Subset {
    pub fn new(medium: &Medium, kept: Vec<bool>) -> Self {
        let named = View::after_cut(medium, &kept, &[]).files();
        let unsynced = |ino: Ino| match &medium.inodes[ino] {
            Inode::File { durable, current } if durable.hash() != current.hash() => {
                Some((ino, known_outcomes(durable, current)))
            }
            _ => None,
        };
        let files = named.into_iter().filter_map(unsynced).collect();
        Self { kept, files }
    }

    /// All changes but one, and those that can't be there without it.
    pub fn without(medium: &Medium, lost: usize) -> Self {
        let mut stopped = Vec::new();
        let keep = |(i, change): (usize, &Arc<Change>)| {
            let keep = i != lost && !touches_any(change, &stopped);
            if !keep {
                stopped.extend(change.edits.iter().map(|edit| edit.dir));
            }
            keep
        };
        let kept = medium.pending.iter().enumerate().map(keep).collect();
        Self::new(medium, kept)
    }

    /// Every file the same way, where it can be that; else the last way that it can be.
    pub fn all_like(&self, choice: Choice) -> Vec<usize> {
        let like =
            |(_, all): &(Ino, Outcomes)| all.iter().position(|(known, _)| *known == choice).unwrap_or(all.len() - 1);
        self.files.iter().map(like).collect()
    }

    /// All files whole but one, in every way.
    pub fn one_file_hurt(&self) -> Vec<Vec<usize>> {
        let mut all = Vec::new();
        for (i, (_, outcomes)) in self.files.iter().enumerate() {
            for outcome in 1..outcomes.len() {
                let mut picks = vec![0; self.files.len()];
                picks[i] = outcome;
                all.push(picks);
            }
        }
        all
    }
}

/// The same files come up in thousands of states.
fn known_outcomes(durable: &FileState, current: &FileState) -> Outcomes {
    static KNOWN: LazyLock<Mutex<HashMap<(u64, u64), Outcomes>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (durable.hash(), current.hash());
    known.entry(key).or_insert_with(|| outcomes(durable, current).into()).clone()
}

fn touches_any(change: &Change, dirs: &[Ino]) -> bool {
    dirs.iter().any(|dir| change.touches(*dir))
}

/// Every set of pending changes that has, with each change, all earlier ones of the directories that
/// it touches; only those with the `forced` ones, which must be such a set. `None` when more than `most`.
pub fn all_subsets(pending: &[Arc<Change>], forced: &[bool], most: usize) -> Option<Vec<Vec<bool>>> {
    let mut found = Vec::new();
    let mut search = Search { pending, forced, most, kept: Vec::new(), stopped: Vec::new() };
    search.run(&mut found).then_some(found)
}

struct Search<'a> {
    pending: &'a [Arc<Change>],
    forced: &'a [bool],
    most: usize,
    kept: Vec<bool>,
    /// Directories that lost a change, and so all later ones.
    stopped: Vec<Ino>,
}

impl Search<'_> {
    fn run(&mut self, found: &mut Vec<Vec<bool>>) -> bool {
        let next = self.kept.len();
        let Some(change) = self.pending.get(next) else {
            found.push(self.kept.clone());
            return found.len() <= self.most;
        };
        if !touches_any(change, &self.stopped) {
            self.kept.push(true);
            let few = self.run(found);
            self.kept.pop();
            if !few {
                return false;
            }
        }
        if self.forced[next] {
            return true;
        }
        let before = self.stopped.len();
        self.stopped.extend(change.edits.iter().map(|edit| edit.dir));
        self.kept.push(false);
        let few = self.run(found);
        self.kept.pop();
        self.stopped.truncate(before);
        few
    }
}

/// Random numbers, the same ones in every run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0, 0)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    /// One of `count` ways a file can be, the whole one more often than each other.
    pub fn pick(&mut self, count: usize) -> usize {
        if self.below(2) == 0 { 0 } else { self.below(count) }
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A random set of the kind that [`all_subsets`] lists.
    pub fn subset(&mut self, pending: &[Arc<Change>], forced: &[bool]) -> Vec<bool> {
        // Sometimes nearly all is there, sometimes little.
        let odds = [2, 4, 16][self.below(3)];
        let mut stopped: Vec<Ino> = Vec::new();
        let mut kept = Vec::new();
        for (change, forced) in pending.iter().zip(forced) {
            let keep = *forced || (!touches_any(change, &stopped) && self.below(odds) != 0);
            if !keep {
                stopped.extend(change.edits.iter().map(|edit| edit.dir));
            }
            kept.push(keep);
        }
        kept
    }
}
