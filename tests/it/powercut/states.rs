//! All trees that a cut may leave, or a fair sample where they are too many.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::choose::{Random, Subset, all_subsets};
use super::content::{Choice, FileState};
use super::medium::{Ino, Medium, Step};
use super::mix;
use super::recorder::Log;
use super::view::View;

/// A tree that a cut left.
#[derive(Debug, Clone)]
pub struct State {
    /// How many steps of the log happened before the cut.
    pub cut: usize,
    /// How many acknowledgements the caller had got.
    pub acked: usize,
    /// Whether a disk that does everything at once and in order could have left it.
    pub prefix: bool,
    /// Whether it is one of a sample, not of all.
    pub sampled: bool,
    /// Equal for equal trees with equal acknowledgements.
    pub hash: u64,
    medium: Arc<Medium>,
    kept: Vec<bool>,
    files: Vec<(Ino, FileState)>,
    choices: Vec<Choice>,
}

impl State {
    /// One that a cut may leave of the steps from `first` on, or after them all; another one for each seed.
    pub fn at_random(log: &Log, first: usize, seed: u64) -> Self {
        let mut random = Random(seed << 20);
        let end = log.entries.len();
        let cut = if random.below(4) == 0 { end } else { first + random.below(end - first + 1) };
        let mut medium = log.start.clone();
        for (number, entry) in log.entries[..cut].iter().enumerate() {
            medium.apply(number, &entry.step);
        }
        let nothing = vec![false; medium.pending.len()];
        let subset = Subset::new(&medium, random.subset(&medium.pending, &nothing));
        let picked = subset.files.iter().map(|(ino, all)| (*ino, all[random.pick(all.len())].clone()));
        let (files, choices) = picked.map(|(ino, (choice, state))| ((ino, state), choice)).unzip();
        let hash = View::after_cut(&medium, &subset.kept, &[]).hash();
        let acked = log.entries[..cut].iter().filter(|entry| entry.step == Step::Ack).count();
        let (kept, medium) = (subset.kept, Arc::new(medium));
        Self { cut, acked, prefix: false, sampled: true, hash, medium, kept, files, choices }
    }

    /// Makes the tree below `root`, an existing, empty directory.
    pub fn materialize(&self, root: &Path) -> io::Result<()> {
        self.view().materialize(root)
    }

    /// The tree.
    pub fn view(&self) -> View<'_> {
        View::after_cut(&self.medium, &self.kept, &self.files)
    }

    /// Where the cut was, what it took, and what the caller had been told.
    pub fn describe(&self, log: &Log) -> String {
        let mut text = String::new();
        let last = self.cut.checked_sub(1).map_or("nothing", |last| &log.entries[last].text);
        let _ = writeln!(text, "cut after step {} of {}: {last}", self.cut, log.entries.len());
        let pending = self.medium.pending.iter().zip(&self.kept);
        for (change, kept) in pending {
            let what = if *kept { "kept, though not synced" } else { "lost" };
            let _ = writeln!(text, "  {what}: {}", log.entries[change.step].text);
        }
        let paths = self.view().paths();
        for ((file, _), choice) in self.files.iter().zip(&self.choices) {
            let path = paths.iter().find(|(_, ino)| ino == file).map_or("?", |(path, _)| path.as_str());
            let _ = writeln!(text, "  not synced: {path} {choice}");
        }
        for entry in log.entries[..self.cut].iter().filter(|entry| entry.step == Step::Ack) {
            let _ = writeln!(text, "  {}", entry.text);
        }
        text
    }
}

/// How much to look at.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A cut that may leave at most so many trees has all of them looked at...
    pub all_up_to: usize,
    /// ...one that may leave more, so many.
    pub sample: usize,
    pub seed: u64,
}

/// Goes through the states of a log, each once.
#[derive(Debug)]
pub struct Explorer<'l> {
    log: &'l Log,
    limits: Limits,
    /// The hashes of the states that were met, and of those that need not be.
    pub seen: HashSet<u64>,
    prefixes: HashSet<u64>,
    random: Random,
    acked: usize,
}

/// Which states are new, compared with a cut one step earlier.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fresh {
    None,
    All,
    /// Those in which the latest change of names persists.
    LastChange,
    /// Those in which something of this file's new content is there.
    File(Ino),
}

type Flow = ControlFlow<()>;

/// One cut, while its states are listed.
struct Cut<'v> {
    number: usize,
    medium: Arc<Medium>,
    acked: usize,
    sampled: bool,
    visit: &'v mut dyn FnMut(State) -> Flow,
}

impl<'l> Explorer<'l> {
    pub fn new(log: &'l Log, limits: Limits) -> Self {
        let mut medium = log.start.clone();
        let mut prefixes = HashSet::from([View::live(&medium).hash()]);
        for (number, entry) in log.entries.iter().enumerate() {
            medium.apply(number, &entry.step);
            prefixes.insert(View::live(&medium).hash());
        }
        let random = Random(limits.seed);
        Self { log, limits, seen: HashSet::new(), prefixes, random, acked: 0 }
    }

    /// Shows every state of the cuts from `first` on, until told to stop.
    ///
    /// A step adds states only by what it makes possible, and a sync by nothing: so a cut is asked
    /// only for the states that no earlier one could leave.
    pub fn explore(&mut self, first: usize, visit: &mut dyn FnMut(State) -> Flow) -> Flow {
        let mut medium = self.log.start.clone();
        let mut fresh = Fresh::All;
        for number in 0..=self.log.entries.len() {
            if number >= first && fresh != Fresh::None {
                let acked = self.acked;
                let medium = Arc::new(medium.clone());
                self.explore_cut(fresh, Cut { number, medium, acked, sampled: false, visit })?;
            }
            let Some(entry) = self.log.entries.get(number) else { break };
            medium.apply(number, &entry.step);
            fresh = match entry.step {
                Step::Names(_) => Fresh::LastChange,
                Step::Data(file, _) => Fresh::File(file),
                // After a kill, all that it may have left is asked for where that is the first cut.
                Step::DirMode(..) | Step::Kill => Fresh::All,
                Step::Fsync(_) | Step::FsyncDir(_) => Fresh::None,
                Step::Ack => {
                    self.acked += 1;
                    Fresh::All
                }
            };
        }
        Flow::Continue(())
    }

    /// All states of the cuts from `first` on that were not met before.
    pub fn collect(mut self, first: usize) -> Vec<State> {
        let mut states = Vec::new();
        let _ = self.explore(first, &mut |state| {
            states.push(state);
            ControlFlow::Continue(())
        });
        states
    }

    fn explore_cut(&mut self, fresh: Fresh, mut cut: Cut<'_>) -> Flow {
        let pending = &cut.medium.pending;
        let last = pending.len().saturating_sub(1);
        let forced = match fresh {
            Fresh::LastChange => {
                let latest = Arc::as_ptr(&pending[last]);
                cut.medium.needed_by(|change| std::ptr::eq(change, latest))
            }
            _ => vec![false; pending.len()],
        };
        match self.few(&cut.medium, &forced, fresh) {
            Some(subsets) => {
                for subset in subsets {
                    self.all_contents(&mut cut, &subset)?;
                }
                Flow::Continue(())
            }
            None => {
                cut.sampled = true;
                self.sample(&mut cut, &forced)
            }
        }
    }

    /// All subsets, when the states that they stand for are few.
    fn few(&self, medium: &Medium, forced: &[bool], fresh: Fresh) -> Option<Vec<Subset>> {
        let most = self.limits.all_up_to;
        let mut states = 0_usize;
        let mut subsets = Vec::new();
        for kept in all_subsets(&medium.pending, forced, most)? {
            let subset = Subset::new(medium, kept);
            if let Fresh::File(file) = fresh
                && !subset.files.iter().any(|(ino, _)| *ino == file)
            {
                continue;
            }
            let product = subset.files.iter().map(|(_, outcomes)| outcomes.len());
            states = states.saturating_add(product.fold(1, usize::saturating_mul));
            if states > most {
                return None;
            }
            subsets.push(subset);
        }
        Some(subsets)
    }

    fn all_contents(&mut self, cut: &mut Cut<'_>, subset: &Subset) -> Flow {
        let mut picks = vec![0; subset.files.len()];
        loop {
            self.show(cut, subset, &picks)?;
            let Some(next) = (0..picks.len()).find(|&i| picks[i] + 1 < subset.files[i].1.len()) else {
                return Flow::Continue(());
            };
            picks[next] += 1;
            picks[..next].fill(0);
        }
    }

    /// The states with one thing wrong, some with everything wrong, and random ones.
    fn sample(&mut self, cut: &mut Cut<'_>, forced: &[bool]) -> Flow {
        let medium = cut.medium.clone();
        let pending = &medium.pending;
        let whole = Subset::new(&medium, vec![true; pending.len()]);
        let least = Subset::new(&medium, forced.to_vec());
        let mut left = self.limits.sample;
        for subset in [&whole, &least] {
            for choice in [Choice::Current, Choice::Durable, Choice::Noise, Choice::Bare, Choice::Zeros] {
                left = left.saturating_sub(usize::from(self.show(cut, subset, &subset.all_like(choice))?));
            }
        }
        let mut singles: Vec<(Option<usize>, Vec<usize>)> =
            whole.one_file_hurt().into_iter().map(|picks| (None, picks)).collect();
        singles.extend((0..pending.len()).filter(|&i| !forced[i]).map(|i| (Some(i), Vec::new())));
        self.random.shuffle(&mut singles);
        for (lost, picks) in singles.into_iter().take(left.saturating_sub(self.limits.sample / 4)) {
            let shown = match lost {
                None => self.show(cut, &whole, &picks)?,
                Some(lost) => {
                    let subset = Subset::without(&medium, lost);
                    self.show(cut, &subset, &subset.all_like(Choice::Current))?
                }
            };
            left -= usize::from(shown);
        }
        for _ in 0..2 * left {
            if left == 0 {
                break;
            }
            let subset = Subset::new(&medium, self.random.subset(pending, forced));
            let picks: Vec<usize> = subset.files.iter().map(|(_, all)| self.random.pick(all.len())).collect();
            left -= usize::from(self.show(cut, &subset, &picks)?);
        }
        Flow::Continue(())
    }

    /// Whether the state was new.
    fn show(&mut self, cut: &mut Cut<'_>, subset: &Subset, picks: &[usize]) -> ControlFlow<(), bool> {
        let picked = subset.files.iter().zip(picks).map(|((ino, all), &pick)| (ino, &all[pick]));
        let files: Vec<(Ino, FileState)> = picked.clone().map(|(ino, (_, state))| (*ino, state.clone())).collect();
        let tree = View::after_cut(&cut.medium, &subset.kept, &files).hash();
        let hash = mix(tree, self.acked as u64);
        if !self.seen.insert(hash) {
            return ControlFlow::Continue(false);
        }
        let choices = picked.map(|(_, (choice, _))| *choice).collect();
        let state = State {
            cut: cut.number,
            acked: cut.acked,
            prefix: self.prefixes.contains(&tree),
            sampled: cut.sampled,
            hash,
            medium: cut.medium.clone(),
            kept: subset.kept.clone(),
            files,
            choices,
        };
        (cut.visit)(state)?;
        ControlFlow::Continue(true)
    }
}
