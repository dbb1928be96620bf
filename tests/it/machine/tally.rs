//! How much was tried.

use std::collections::BTreeMap;
use std::io::Write as _;

use super::steps::Step;

#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub sequences: usize,
    pub cuts: usize,
    /// How often each operation was tried, and how often it came to success.
    each: BTreeMap<&'static str, (usize, usize)>,
}

impl Tally {
    pub fn count(&mut self, step: &'static str, done: bool) {
        let each = self.each.entry(step).or_default();
        each.0 += 1;
        each.1 += usize::from(done);
    }

    pub fn add(&mut self, other: &Tally) {
        self.sequences += other.sequences;
        self.cuts += other.cuts;
        for (step, (tried, done)) in &other.each {
            let each = self.each.entry(step).or_default();
            each.0 += tried;
            each.1 += done;
        }
    }

    fn steps(&self) -> usize {
        self.each.values().map(|(tried, _)| tried).sum()
    }

    /// The operations that never came to success.
    pub fn never_done(&self) -> Vec<&'static str> {
        let done = |step: &&str| self.each.get(step).is_some_and(|(_, done)| *done > 0);
        Step::NAMES.into_iter().filter(|step| !done(step)).collect()
    }

    /// Straight to the terminal: it is to be seen even when all is well.
    pub fn print(&self) {
        let mut out = std::io::stderr();
        let _ = writeln!(out, "{} sequences, {} steps, {} cuts", self.sequences, self.steps(), self.cuts);
        for (step, (tried, done)) in &self.each {
            let _ = writeln!(out, "  {step}: {done} of {tried}");
        }
    }
}
