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
    match home.file_name().unwrap_or_default() {
        "format.json" => "format.json",
        "revision.json" => "revision.json",
        "template.json" if path.file_name() == Some("template.json") => "template.json of a new template",
        "template.json" => "template.json, replaced",
        "activations.jsonl" if staged => "the empty activation log of a new template",
        "activations.jsonl" => "a line of the activation log",
        _ if !home.starts_with("store/templates") => "an artifact that is thrown away",
        _ if parts(home) > REVISION_DEPTH + 1 => "an artifact in a directory",
        _ if is_large(log, ino) => "a large artifact",
        _ => "a small artifact",
    }
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
    match (path.as_str(), parts(home), home.file_name().unwrap_or_default()) {
        ("", ..) => "the directory above a new store",
        ("store", ..) => "the root of a new store",
        ("store/.store", ..) if name == Some("format.json") => "`.store/`, after format.json",
        ("store/.store", ..) if made_before(log, number, ".store/format.json") => {
            "`.store/`, of a store that was there"
        }
        ("store/.store", ..) => "`.store/`, before format.json",
        ("store/templates", ..) if came.is_some() => "`templates/`, after a template",
        ("store/templates", ..) if went => "`templates/`, before a template is deleted",
        ("store/templates", ..) => "`templates/`, of a template that was there",
        (_, 3, _) if !placed => "the directory of a new template",
        (_, 3, _) if name == Some("current") => "a template, after the swap of `current`",
        (_, 3, _) if name == Some("template.json") => "a template, after a new template.json",
        (_, 3, _) => "a template that somebody else changed",
        (_, 4, _) if !placed => "the empty `artifacts/` of a new template",
        (_, 4, "artifacts") if came.is_some() => "`artifacts/`, after a revision",
        (_, 4, "artifacts") if went => "`artifacts/`, before a revision is deleted",
        (_, 4, "artifacts") => "`artifacts/`, of a revision that was there",
        (_, REVISION_DEPTH, _) => "the directory of a draft",
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
