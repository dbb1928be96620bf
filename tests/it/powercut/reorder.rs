//! Mutants that do the right things in the wrong order.

use super::medium::{Edit, Ino, Inode, Step};
use super::mutants::Mutated;
use super::recorder::{Entry, Log};

/// Gives the logs of a store with this fault, one for each place where it could have it.
pub type Reorder = fn(&Log) -> Vec<Mutated>;

/// With the scenario, or the kills, that show it.
pub const REORDERINGS: &[(&str, &str, Reorder)] = &[
    (
        "`current` is swapped before `artifacts/` is synced",
        "reuse for a template of the same size",
        swap_before_artifacts,
    ),
    ("`current` is removed and made anew", "activate an earlier revision", unlink_and_symlink),
    ("the log is written after `current` is swapped", "activate an earlier revision", log_after_swap),
    (
        "a file becomes an object before it is synced",
        "pull a second revision, one file of which is known",
        object_before_sync,
    ),
    (
        "a file becomes an object, another draft takes it, and it is never synced",
        "two builders seal the same files",
        object_never_synced,
    ),
    (
        "a revision is visible before its record is written",
        "reuse for a template of the same size",
        rename_before_record,
    ),
    ("a removed revision is deleted before the move is durable", "remove a revision", delete_before_sync),
    ("a removed revision is deleted where it is", "remove a revision", delete_in_place),
    (
        "a revision is pinned before its name is durable",
        "MoveIn(\"web\", \"three\") is killed, then Pin(\"keep\", \"web\", \"three\", Always)",
        pin_before_artifacts,
    ),
    (
        "a snapshot is taken away before the next one is there",
        "attach a snapshot of a VM that wrote nothing, then another one",
        snapshot_in_two_steps,
    ),
];

/// The places at which `current` is swapped, the template, and the inode of the new link.
fn swaps(log: &Log) -> Vec<(usize, Ino, Ino)> {
    let swap = |(number, entry): (usize, &Entry)| match &entry.step {
        Step::Names(edits) => {
            let to = edits.iter().find(|edit| &*edit.name == "current" && edit.to.is_some())?;
            Some((number, to.dir, to.to?))
        }
        _ => None,
    };
    log.entries.iter().enumerate().filter_map(swap).collect()
}

fn moved(log: &Log, from: usize, to: usize) -> Mutated {
    let mut log = log.clone();
    let entry = log.entries.remove(from);
    log.entries.insert(to, entry);
    Mutated { log, first: from.min(to) }
}

/// The last entry before `end` that `is` finds.
fn last(log: &Log, end: usize, is: impl Fn(&Entry) -> bool) -> Option<usize> {
    log.entries[..end].iter().rposition(is)
}

fn swap_before_artifacts(log: &Log) -> Vec<Mutated> {
    let one = |(swap, ..): (usize, Ino, Ino)| {
        let sync = last(log, swap, |entry| {
            matches!(entry.step, Step::FsyncDir(_)) && entry.path.file_name() == Some("artifacts")
        })?;
        let published = log.entries[sync.checked_sub(1)?].text.starts_with("rename");
        // Taken out before the swap, the sync stands right after it.
        published.then(|| moved(log, sync, swap))
    };
    swaps(log).into_iter().filter_map(one).collect()
}

fn unlink_and_symlink(log: &Log) -> Vec<Mutated> {
    let mut medium = log.start.clone();
    let mut all = Vec::new();
    let swaps = swaps(log);
    for (number, entry) in log.entries.iter().enumerate() {
        if let Some(&(_, dir, link)) = swaps.iter().find(|(swap, ..)| *swap == number)
            && medium.entry(dir, "current").is_some()
        {
            all.extend(two_steps(log, number, dir, link));
        }
        medium.apply(number, &entry.step);
    }
    all
}

fn two_steps(log: &Log, swap: usize, dir: Ino, link: Ino) -> Option<Mutated> {
    let made = last(
        log,
        swap,
        |entry| matches!(&entry.step, Step::Names(edits) if edits.iter().any(|edit| edit.to == Some(link))),
    )?;
    let mut log = log.clone();
    let edit = |to| Step::Names(vec![Edit { dir, name: "current".into(), to }]);
    let path = log.entries[swap].path.clone();
    let entry = |step, text: &str| Entry { step, text: text.to_owned(), path: path.clone() };
    log.entries[swap] = entry(edit(Some(link)), "symlink current");
    log.entries.insert(swap, entry(edit(None), "unlink current"));
    log.entries.remove(made);
    Some(Mutated { log, first: made })
}

fn log_after_swap(log: &Log) -> Vec<Mutated> {
    let one = |(swap, ..): (usize, Ino, Ino)| {
        let is_log = |entry: &Entry| entry.path.file_name() == Some("activations.jsonl");
        let sync = last(log, swap, |entry| is_log(entry) && matches!(entry.step, Step::Fsync(_)))?;
        let write = last(log, sync, |entry| is_log(entry) && matches!(entry.step, Step::Data(..)))?;
        let Mutated { log, first } = moved(log, write, swap);
        Some(Mutated { log: moved(&log, sync - 1, swap).log, first })
    };
    swaps(log).into_iter().filter_map(one).collect()
}

/// The places at which a file becomes an object, and at which it was synced before.
fn internings(log: &Log) -> Vec<(usize, usize)> {
    let interning = |(number, entry): (usize, &Entry)| {
        let Step::Names(edits) = &entry.step else { return None };
        let object = edits.first().filter(|_| entry.text.starts_with("link store/.store/objects/"))?.to?;
        let sync = last(log, number, |entry| entry.step == Step::Fsync(object))?;
        Some((number, sync))
    };
    log.entries.iter().enumerate().filter_map(interning).collect()
}

fn object_before_sync(log: &Log) -> Vec<Mutated> {
    internings(log).into_iter().map(|(link, sync)| moved(log, sync, link)).collect()
}

/// A builder that stops between the two steps, while another one goes on with the object.
fn object_never_synced(log: &Log) -> Vec<Mutated> {
    let leave_out = |(link, sync): (usize, usize)| {
        let Step::Fsync(object) = log.entries[sync].step else { return None };
        let taken = |entry: &Entry| matches!(&entry.step, Step::Names(edits) if edits.iter().any(|edit| edit.to == Some(object)));
        log.entries[link + 1..].iter().any(taken).then(|| {
            let mut log = log.clone();
            log.entries.remove(sync);
            Mutated { log, first: sync }
        })
    };
    internings(log).into_iter().filter_map(leave_out).collect()
}

/// The rename that publishes comes before the record's bytes are synced.
fn rename_before_record(log: &Log) -> Vec<Mutated> {
    let one = |(number, entry): (usize, &Entry)| {
        let Step::Fsync(record) = entry.step else { return None };
        if entry.path.file_name() != Some("revision.json") || !matches!(log.start.inodes[record], Inode::File { .. }) {
            return None;
        }
        let rename = log.entries[number..].iter().position(|entry| entry.text.starts_with("rename"))?;
        Some(moved(log, number, number + rename))
    };
    log.entries.iter().enumerate().filter_map(one).collect()
}

/// The sync of the directory that a thing was moved out of comes after the deletion.
fn delete_before_sync(log: &Log) -> Vec<Mutated> {
    let one = |(number, entry): (usize, &Entry)| {
        let to_trash = entry.text.starts_with("rename") && entry.text.contains(" -> store/.store/trash/");
        let gone = log.entries[number..].iter().position(|entry| entry.step == Step::Ack)?;
        (to_trash && matches!(log.entries[number + 1].step, Step::FsyncDir(_)))
            .then(|| moved(log, number + 1, number + gone - 1))
    };
    log.entries.iter().enumerate().filter_map(one).collect()
}

/// Nothing is moved to the trash; what is deleted goes from its place.
fn delete_in_place(log: &Log) -> Vec<Mutated> {
    let one = |(number, entry): (usize, &Entry)| {
        let Step::Names(edits) = &entry.step else { return None };
        let [taken, given] = &edits[..] else { return None };
        if !entry.text.contains(" -> store/.store/trash/") {
            return None;
        }
        let mut log = log.clone();
        for later in &mut log.entries[number..] {
            let Step::Names(edits) = &mut later.step else { continue };
            let end = edits.iter_mut().find(|edit| (edit.dir, &edit.name) == (given.dir, &given.name));
            end.into_iter().for_each(|edit| *edit = taken.clone());
        }
        log.entries.remove(number);
        Some(Mutated { log, first: number })
    };
    log.entries.iter().enumerate().filter_map(one).collect()
}

/// The sync of the directory that has the revision comes after the pin.
fn pin_before_artifacts(log: &Log) -> Vec<Mutated> {
    let one = |(number, entry): (usize, &Entry)| {
        let pinned = entry.text.starts_with("rename") && entry.path.starts_with("store/.store/pins");
        let sync = last(log, number, |entry| {
            matches!(entry.step, Step::FsyncDir(_)) && entry.path.file_name() == Some("artifacts")
        })?;
        // After the rename comes the sync of `pins/`.
        pinned.then(|| moved(log, sync, number + 1))
    };
    log.entries.iter().enumerate().filter_map(one).collect()
}

/// The old snapshot is moved away in one step, and the new one gets its name in another.
fn snapshot_in_two_steps(log: &Log) -> Vec<Mutated> {
    let one = |(number, entry): (usize, &Entry)| {
        let Step::Names(edits) = &entry.step else { return None };
        let given = edits.iter().find(|edit| &*edit.name == "snapshot" && entry.text.starts_with("exchange"))?;
        let mut log = log.clone();
        let away = Step::Names(vec![Edit { to: None, ..given.clone() }]);
        log.entries.insert(number, Entry { step: away, ..entry.clone() });
        Some(Mutated { log, first: number })
    };
    log.entries.iter().enumerate().filter_map(one).collect()
}
