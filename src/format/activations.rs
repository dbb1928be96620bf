//! `activations.jsonl`: who became current, and when.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::RevisionId;

/// Why a revision became current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Action {
    /// It was published.
    Publish,
    /// A build asked for what it holds.
    Reuse,
    /// Somebody chose it.
    Activate,
    /// The one after it was undone.
    Rollback,
    /// It came from a remote.
    Pull,
    /// Somebody else made it current, or a newer program that calls it otherwise.
    #[serde(other)]
    Other,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Activation {
    /// Who became current.
    pub revision: RevisionId,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub action: Action,
}

impl Activation {
    pub(crate) fn new(revision: RevisionId, at: Timestamp, action: Action) -> Activation {
        Activation { revision, at, action }
    }

    pub(crate) fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("our own types are JSON");
        line.push(b'\n');
        line
    }
}

/// Where the part of a log that counts ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogEnd {
    /// What follows these bytes is to be cut before a line is added.
    pub len: u64,
    /// Who the last line that counts names.
    pub last: Option<RevisionId>,
}

impl LogEnd {
    /// Finds the end in the last lines of a log, if the one that names `current` is among them; `before` is how many
    /// bytes come before these.
    pub fn in_last_lines(before: u64, lines: &[u8], current: Option<&str>) -> Option<LogEnd> {
        let end = LogEnd::from(ActivationLog::parse_after(before, lines, current));
        let names_current = current.is_some() && end.last.as_ref().map(RevisionId::as_str) == current;
        names_current.then_some(end)
    }
}

impl From<ActivationLog> for LogEnd {
    fn from(mut log: ActivationLog) -> LogEnd {
        LogEnd { len: log.len, last: log.entries.pop().map(|entry| entry.revision) }
    }
}

/// The part of a log that counts.
///
/// A line is written before `current` is swapped. So the last line that names `current` is the last that
/// took effect; what follows it belongs to an activation that was cut short, and counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ActivationLog {
    pub entries: Vec<Activation>,
    /// The bytes that hold these entries: what follows them is to be cut before a line is added.
    pub len: u64,
}

impl ActivationLog {
    /// Reads a log; `current` is the text that the link holds, as far as it names a revision.
    ///
    /// A line that can't be read is passed over and stays: a flipped bit must not cost the lines after it.
    pub fn parse(bytes: &[u8], current: Option<&str>) -> ActivationLog {
        ActivationLog::parse_after(0, bytes, current)
    }

    /// Reads the last lines of a log that has so many bytes before them.
    pub fn parse_after(before: u64, lines: &[u8], current: Option<&str>) -> ActivationLog {
        let mut log = ActivationLog { entries: Vec::new(), len: before };
        let mut ends = Vec::new();
        for line in lines.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            log.len += line.len() as u64;
            if let Ok(entry) = serde_json::from_slice(line) {
                log.entries.push(entry);
                ends.push(log.len);
            }
        }
        let counted = match current {
            // The first activation was cut short. A second line would say that there was a `current`.
            None if before == 0 && log.entries.len() <= 1 => Some(0),
            None => None,
            Some(current) => log.entries.iter().rposition(|entry| entry.revision.as_str() == current).map(|at| at + 1),
        };
        // Where no line names `current`, somebody else moved or removed it, and no line was cut short.
        if let Some(counted) = counted {
            log.entries.truncate(counted);
            log.len = counted.checked_sub(1).map_or(before, |last| ends[last]);
        }
        log
    }

    /// How many whole lines of a log can't be read.
    pub fn unreadable_lines(bytes: &[u8]) -> usize {
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        lines.filter(|line| serde_json::from_slice::<Activation>(line).is_err()).count()
    }

    /// The revisions that a rollback can go back through; the last is the current one.
    ///
    /// An activation goes on top; a rollback takes off what is above the revision that it names.
    pub fn stack(&self) -> Vec<&RevisionId> {
        let mut stack: Vec<&RevisionId> = Vec::new();
        // Where each revision is in it, the lowest first: a log may be long.
        let mut places: HashMap<&RevisionId, Vec<usize>> = HashMap::new();
        for entry in &self.entries {
            let below = places.get(&entry.revision).and_then(|places| places.last());
            let rolled_back = below.copied().filter(|_| entry.action == Action::Rollback);
            match rolled_back {
                Some(at) => {
                    for revision in stack.drain(at + 1..) {
                        places.get_mut(revision).and_then(Vec::pop);
                    }
                }
                None if stack.last() == Some(&&entry.revision) => {}
                None => {
                    places.entry(&entry.revision).or_default().push(stack.len());
                    stack.push(&entry.revision);
                }
            }
        }
        stack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(lines: &[(&str, Action)]) -> Vec<u8> {
        let line = |&(revision, action): &(&str, Action)| {
            Activation::new(revision.parse().unwrap(), Timestamp::UNIX_EPOCH, action).to_line()
        };
        lines.iter().flat_map(line).collect()
    }

    fn stack(lines: &[(&str, Action)], current: &str) -> Vec<String> {
        let log = ActivationLog::parse(&bytes(lines), Some(current));
        log.stack().into_iter().map(ToString::to_string).collect()
    }

    use Action::{Activate, Publish, Rollback};

    #[test]
    fn rollbacks_go_back_one_activation_each() {
        let lines = [("a", Publish), ("b", Publish), ("c", Publish), ("b", Rollback)];
        assert_eq!(stack(&lines, "b"), ["a", "b"]);
    }

    #[test]
    fn an_activation_after_a_rollback_goes_on_top() {
        let lines = [("a", Publish), ("b", Publish), ("a", Rollback), ("c", Publish), ("b", Activate)];
        assert_eq!(stack(&lines, "b"), ["a", "c", "b"]);
    }

    #[test]
    fn lines_after_the_one_that_names_current_do_not_count() {
        let lines = [("a", Publish), ("b", Publish), ("c", Publish)];
        assert_eq!(stack(&lines, "b"), ["a", "b"]);
        assert_eq!(ActivationLog::parse(&bytes(&lines[..1]), None).len, 0);
    }

    #[test]
    fn a_torn_line_is_cut() {
        let whole = bytes(&[("a", Publish), ("b", Publish)]);
        for kept in 0..whole.len() {
            let log = ActivationLog::parse(&whole[..kept], Some("a"));
            assert!(log.len <= kept as u64);
            assert_eq!(log.entries.len() as u64, log.len / (whole.len() as u64 / 2));
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_costs_no_other() {
        let mut log = bytes(&[("a", Publish), ("b", Publish), ("c", Publish)]);
        let line = log.len() / 3;
        log[line + 3] ^= 0x80;
        let read = ActivationLog::parse(&log, Some("c"));
        assert_eq!((read.entries.len(), read.len), (2, log.len() as u64));
    }

    #[test]
    fn the_end_is_the_same_in_every_tail_that_has_it() {
        let mut log = bytes(&[("a", Publish), ("b", Publish), ("a", Rollback), ("c", Publish), ("b", Activate)]);
        let third = log.split_inclusive(|&byte| byte == b'\n').take(3).map(<[u8]>::len).sum::<usize>();
        log.truncate(log.len() - 3);
        let end = |before: usize, current| LogEnd::in_last_lines(before as u64, &log[before..], current);
        let starts = || (0..log.len()).filter(|&at| at == 0 || log[at - 1] == b'\n');
        for current in [Some("a"), Some("b"), Some("c"), Some("z"), None] {
            let whole = LogEnd::from(ActivationLog::parse(&log, current));
            for before in starts() {
                assert!(end(before, current).is_none_or(|end| end == whole), "{current:?}, after {before} bytes");
            }
        }
        assert!(end(third, Some("c")).is_some() && end(third, Some("z")).is_none());
        assert!(starts().filter(|&start| start > third).all(|start| end(start, Some("c")).is_none()));
    }

    #[test]
    fn what_comes_before_the_last_lines_is_never_cut() {
        for (lines, current) in [(&[("a", Publish)][..], None), (&[("a", Publish), ("b", Publish)], Some("z"))] {
            let lines = bytes(lines);
            assert_eq!(ActivationLog::parse_after(1000, &lines, current).len, 1000 + lines.len() as u64);
        }
    }

    #[test]
    fn a_log_whose_current_was_removed_is_kept() {
        let log = bytes(&[("a", Publish), ("b", Publish)]);
        assert_eq!(ActivationLog::parse(&log, None).len, log.len() as u64);
    }

    #[test]
    fn a_log_that_does_not_name_current_is_kept() {
        assert_eq!(stack(&[("a", Publish), ("b", Publish)], "z"), ["a", "b"]);
    }
}
