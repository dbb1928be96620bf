//! Repairs and adoptions that lack one sync: bytes are lost in some state, or what was told to be done is not there.

use std::collections::{BTreeSet, HashSet};
use std::io::Write as _;

use super::medium::Step;
use super::mending::{Done, Work, states};
use super::parallel::in_parallel;
use super::promises::Scratch;
use super::recorder::Entry;

/// Syncs that the promises hold without, and why.
const HARMLESS: &[(Work, &str, &str)] = &[
    (Work::Repair, "directory store/.store/pins", "no pin has changed"),
    (Work::Repair, "directory store/templates/web/artifacts", "no name in it has changed since it was last synced"),
    (Work::Repair, "file store/templates/web/activations.jsonl", "how often `current` was mended is no promise"),
    (Work::Adopt, "directory ", "the name of the directory was there before"),
    (Work::Adopt, "directory store/templates", "the names of the templates were there before"),
    (Work::Adopt, "directory store/templates/web/artifacts", "what mvm made there and left empty may come back"),
    (Work::Adopt, "file store/templates/web/template.json", "mvm wrote it, and nothing has changed it"),
];

/// What an entry of a log syncs; names that are others each time are left out.
fn synced(entry: &Entry) -> Option<String> {
    let what = match entry.step {
        Step::Fsync(_) => "file",
        Step::FsyncDir(_) => "directory",
        _ => return None,
    };
    let mut parts: Vec<&str> = entry.path.components().map(|part| part.as_str()).collect();
    for number in 1..parts.len() {
        match parts[number - 1] {
            "drafts" | "trash" | "damaged" | "objects" | "keys" => {
                parts.truncate(number);
                parts.push("*");
                break;
            }
            "artifacts" => parts[number] = "*",
            _ => {}
        }
    }
    Some(format!("{what} {}", parts.join("/")))
}

/// What is broken without a sync, wherever the log has it.
fn broken_without(done: &Done, known: &HashSet<u64>, sync: &str, scratch: &Scratch) -> Option<String> {
    let mut log = done.log.clone();
    log.entries.retain(|entry| synced(entry).as_deref() != Some(sync));
    let states = states(&log, 0);
    let new = states.iter().rev().filter(|state| !known.contains(&state.hash));
    new.into_iter().find_map(|state| done.check(state, scratch).err())
}

#[test]
fn a_repair_or_an_adoption_without_one_sync_breaks_a_promise() {
    let scratch = Scratch::new();
    let mut wrong = Vec::new();
    for work in [Work::Repair, Work::Adopt] {
        let done = Done::record(work, &scratch);
        let known: HashSet<u64> = states(&done.log, 0).iter().map(|state| state.hash).collect();
        let syncs: Vec<String> =
            done.log.entries.iter().filter_map(synced).collect::<BTreeSet<_>>().into_iter().collect();
        let broken = in_parallel(&syncs, |sync| broken_without(&done, &known, sync, &scratch));
        for (sync, broken) in syncs.iter().zip(broken) {
            let harmless = HARMLESS.iter().find(|(of, name, _)| *of == work && name == sync);
            let line = match (&broken, harmless) {
                (Some(broken), None) => format!("ok   no sync: {work:?}, {sync}\n      caught: {broken}"),
                (None, Some((_, _, why))) => format!("ok   no sync: {work:?}, {sync}\n      harmless: {why}"),
                (Some(broken), Some(_)) => format!("FAIL no sync: {work:?}, {sync}\n      NOT HARMLESS: {broken}"),
                (None, None) => format!("FAIL no sync: {work:?}, {sync}\n      NOT CAUGHT"),
            };
            // Straight to the terminal: the table is to be seen even when all is well.
            let _ = writeln!(std::io::stderr(), "{line}");
            wrong.extend(line.starts_with("FAIL").then_some(line));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
