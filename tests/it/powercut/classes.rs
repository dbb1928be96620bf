//! What each sync of a log protects.

use std::collections::HashMap;

use camino::{Utf8Path, Utf8PathBuf};

use super::medium::{Edit, Ino, Inode, Step};
use super::recorder::Log;
use super::view::View;

/// Where every inode ends up: the last path that it has in `templates/`, else the last of all.
pub fn homes(log: &Log) -> HashMap<Ino, Utf8PathBuf> {
    let mut homes: HashMap<Ino, Utf8PathBuf> = HashMap::new();
    let mut medium = log.start.clone();
    for (number, entry) in log.entries.iter().enumerate() {
        medium.apply(number, &entry.step);
        if !matches!(entry.step, Step::Names(_)) {
            continue;
        }
        for (path, ino) in View::live(&medium).paths() {
            let published = |path: &Utf8Path| path.starts_with("store/templates");
            if published(&path) || !homes.get(&ino).is_some_and(|home| published(home)) {
                homes.insert(ino, path);
            }
        }
    }
    homes
}

/// What would be lost without the sync at this place of the log; `None` when the entry is no sync.
pub fn class_of(log: &Log, homes: &HashMap<Ino, Utf8PathBuf>, number: usize) -> Option<&'static str> {
    let entry = &log.entries[number];
    match entry.step {
        Step::Fsync(ino) => Some(file_class(log, homes, ino, &entry.path)),
        Step::FsyncDir(dir) => {
            let home = homes.get(&dir).unwrap_or(&entry.path);
            Some(dir_class(log, number, dir, &entry.path, home))
        }
        _ => None,
    }
}

fn file_class(log: &Log, homes: &HashMap<Ino, Utf8PathBuf>, ino: Ino, path: &Utf8Path) -> &'static str {
    let home = homes.get(&ino).map_or(path, |home| home.as_path());
    let staged = path.starts_with("store/.store/drafts");
    if path.starts_with(VMS) {
        return match path.file_name().unwrap_or_default() {
            "instance.json" => "instance.json",
            "fc.json" => "fc.json",
            _ => "a disk of an instance",
        };
    }
    if in_snapshot(home) {
        return if home.file_name() == Some("snapshot.json") { "snapshot.json" } else { "a file of a snapshot" };
    }
    match home.file_name().unwrap_or_default() {
        "format.json" => "format.json",
        "revision.json" => "revision.json",
        "template.json" if path.file_name() == Some("template.json") => "template.json of a new template",
        "template.json" => "template.json, replaced",
        "activations.jsonl" if staged => "the empty activation log of a new template",
        "activations.jsonl" => "a line of the activation log",
        _ if home.starts_with(PINS) => "a pin",
        _ if !home.starts_with("store/templates") && !was_object(log, ino) => "an artifact that is thrown away",
        _ if !was_object(log, ino) && parts(home) > REVISION_DEPTH + 1 => "an artifact in a directory",
        _ if is_large(log, ino) => "a large artifact",
        _ => "a small artifact",
    }
}

/// Whether it is the snapshot of a revision, or in it.
fn in_snapshot(home: &Utf8Path) -> bool {
    home.components().nth(REVISION_DEPTH).is_some_and(|part| part.as_str() == "snapshot")
}

const PINS: &str = "store/.store/pins";

const INSTANCES: &str = "store/.store/instances";

/// Where instances are made.
const VMS: &str = "vms";

/// What an act does when it syncs a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum During {
    Collection,
    /// Of what a deletion left that was cut short.
    Sweep,
    Removal,
    Pin,
    Other,
}

/// By the act that is told of next, and by what it does next.
fn during(log: &Log, number: usize) -> During {
    let later = || log.entries[number + 1..].iter().take_while(|entry| entry.step != Step::Kill);
    let Some(act) = later().find_map(|entry| entry.text.strip_prefix("acknowledged: ")) else { return During::Other };
    let change = later().find(|entry| matches!(entry.step, Step::Names(_)));
    let deletes = change.is_some_and(|entry| {
        let goes = entry.text.starts_with("unlink") || entry.text.starts_with("rmdir");
        goes && entry.path.starts_with("store/.store/trash")
    });
    let moved =
        number.checked_sub(1).is_some_and(|before| log.entries[before].text.contains(" -> store/.store/trash/"));
    match act {
        "Gc" if deletes && !moved => During::Sweep,
        "Gc" => During::Collection,
        _ if act.starts_with("Remove(") || act.starts_with("RemoveCurrent(") => During::Removal,
        _ if act.starts_with("Pin(") => During::Pin,
        _ => During::Other,
    }
}

/// Whether others could link to it, even if its own draft was thrown away.
fn was_object(log: &Log, ino: Ino) -> bool {
    let objects = |path: &Utf8Path| path.starts_with("store/.store/objects");
    log.entries.iter().any(|entry| match &entry.step {
        Step::Names(edits) => objects(&entry.path) && edits.iter().any(|edit| edit.to == Some(ino)),
        _ => false,
    })
}

/// `store/templates/<id>/artifacts/<revision>` has so many parts.
const REVISION_DEPTH: usize = 5;

fn parts(path: &Utf8Path) -> usize {
    path.components().count()
}

fn is_large(log: &Log, ino: Ino) -> bool {
    log.entries
        .iter()
        .any(|entry| matches!(&entry.step, Step::Data(file, state) if *file == ino && state.blob.len() >= 65_536))
        || matches!(&log.start.inodes[ino], Inode::File { current, .. } if current.blob.len() >= 65_536)
}

fn dir_class(log: &Log, number: usize, dir: Ino, path: &Utf8Path, home: &Utf8Path) -> &'static str {
    // The change that made the sync necessary is the step before.
    let before = number.checked_sub(1).map(|before| &log.entries[before].step);
    let edits: &[Edit] = match before {
        Some(Step::Names(edits)) => edits,
        _ => &[],
    };
    let came = edits.iter().find(|edit| edit.dir == dir && edit.to.is_some());
    let went = edits.iter().any(|edit| edit.dir == dir && edit.to.is_none());
    let name = came.map(|edit| &*edit.name);
    let placed = path == home;
    let during = during(log, number);
    match (path.as_str(), parts(home), home.file_name().unwrap_or_default()) {
        (PINS, ..) if came.is_some() => "`pins/`, after a pin",
        (PINS, ..) if went => "`pins/`, after a pin is removed",
        (PINS, ..) if during == During::Collection => "`pins/`, before a collection",
        (PINS, ..) => "`pins/`, before a revision is removed",
        (INSTANCES, ..) => "`instances/`, after a note",
        (VMS, ..) if came.is_some_and(|edit| edit.name.starts_with('.')) => {
            "the directory of instances, before one is deleted"
        }
        (VMS, ..) if during == During::Collection => "the directory of instances, before a note of one is removed",
        (VMS, ..) => "the directory of instances, after one",
        _ if path.starts_with(VMS) && parts(path) > 2 => "a directory in an instance",
        _ if path.starts_with(VMS) => "the directory of an instance",
        ("", ..) => "the directory above a new store",
        ("store", ..) => "the root of a new store",
        ("store/.store", ..) if name == Some("format.json") => "`.store/`, after format.json",
        ("store/.store", ..) if made_before(log, number, ".store/format.json") => {
            "`.store/`, of a store that was there"
        }
        ("store/.store", ..) => "`.store/`, before format.json",
        ("store/templates", ..) if came.is_some() => "`templates/`, after a template",
        ("store/templates", ..) if went => "`templates/`, before a template is deleted",
        ("store/templates", ..) if during == During::Sweep => "`templates/`, before old trash is deleted",
        ("store/templates", ..) => "`templates/`, of a template that was there",
        (_, 3, _) if !placed => "the directory of a new template",
        (_, 3, _) if name == Some("current") => "a template, after the swap of `current`",
        (_, 3, _) if name == Some("template.json") => "a template, after a new template.json",
        (_, 3, _) if during == During::Collection => "a template, before a collection",
        (_, 3, _) if during == During::Removal => "a template, before a revision is removed",
        (_, 3, _) => "a template that somebody else changed",
        (_, 4, _) if !placed => "the empty `artifacts/` of a new template",
        (_, 4, "artifacts") if came.is_some() => "`artifacts/`, after a revision",
        (_, 4, "artifacts") if during == During::Sweep => "`artifacts/`, before old trash is deleted",
        (_, 4, "artifacts") if during == During::Pin => "`artifacts/`, of a revision that is pinned",
        (_, 4, "artifacts") if during == During::Collection => "`artifacts/`, before a collection deletes revisions",
        (_, 4, "artifacts") if went => "`artifacts/`, before a revision is deleted",
        (_, 4, "artifacts") => "`artifacts/`, of a revision that was there",
        (_, REVISION_DEPTH, _) if placed && name == Some("snapshot") => "a revision, after its snapshot",
        (_, REVISION_DEPTH, _) if placed && name == Some("revision.json") => "a revision, after a new revision.json",
        (_, REVISION_DEPTH, _) if placed => "a revision, before what a dead process had of it is deleted",
        (_, REVISION_DEPTH, _) => "the directory of a draft",
        _ if in_snapshot(home) && parts(home) > REVISION_DEPTH + 1 => "the drives of a snapshot",
        _ if in_snapshot(home) => "the directory of a snapshot",
        (_, parts, _) if parts > REVISION_DEPTH => "a directory in a draft",
        _ => "a directory of no known kind",
    }
}

/// Whether an earlier step gave something this name.
fn made_before(log: &Log, number: usize, name: &str) -> bool {
    let earlier = &log.entries[..number];
    log.start.lookup(&Utf8Path::new("store").join(name)).is_some()
        || earlier.iter().any(|entry| matches!(entry.step, Step::Names(_)) && entry.path.ends_with(name))
}
