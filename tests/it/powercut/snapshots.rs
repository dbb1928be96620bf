//! Snapshots: the files of a paused VM, and what of a snapshot is read from the bare disk.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use template_store::{Error, Revision, SnapshotFiles, SnapshotOptions};

use super::world::{Broken, Files, list, read_json};

/// Writes the files of a paused VM of a revision. A label with `idle` has not written to its disk.
pub fn pause(dir: &Utf8Path, revision: &Revision, label: &str) {
    let bytes = |what: &str, len: usize| {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(label.as_bytes()).update(what.as_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let mut memory = vec![0; 1 << 20];
    memory[9_000..9_100].copy_from_slice(&bytes("memory", 100));
    let mut disk = fs::read(revision.rootfs()).expect("it is there");
    if !label.contains("idle") {
        disk.resize(disk.len().max(3000), 0);
        disk[..3000].copy_from_slice(&bytes("disk", 3000));
    }
    for (name, bytes) in [("vmstate", bytes("state", 500)), ("mem", memory), ("disk", disk)] {
        fs::write(dir.join(name), bytes).expect("the directory takes files");
    }
}

pub fn attach(dir: &Utf8Path, revision: &Revision, label: &str) -> Result<(), Error> {
    let files = SnapshotFiles::new(dir.join("vmstate"), dir.join("mem"));
    let files = files.drive("rootfs".parse().expect("a valid id"), dir.join("disk"));
    let options = SnapshotOptions::default().mem_mib(1_u32).created_at(label.to_owned());
    revision.attach_snapshot(&files, &options, &mut ()).map(drop)
}

/// The files that the snapshot of a revision lists, by their paths in the revision; none if it has no snapshot.
pub fn listed(dir: &Utf8Path) -> Result<Files, Broken> {
    let snapshot = dir.join("snapshot");
    let mut listed = Files::new();
    if snapshot.symlink_metadata().is_err() {
        return Ok(listed);
    }
    let record = read_json(&snapshot.join("snapshot.json"))?;
    for content in record["contents"].as_array().into_iter().flatten() {
        let text = |field: &str| content[field].as_str().unwrap_or_default().to_owned();
        listed.insert(Utf8PathBuf::from("snapshot").join(text("path")), text("blake3"));
    }
    match listed.len() {
        3 => Ok(listed),
        _ => Err(format!("{snapshot} lists {listed:?}")),
    }
}

/// Fails when a revision says something else of its snapshot than the snapshot itself.
pub fn fields_agree(root: &Utf8Path) -> Result<(), Broken> {
    for (template, dir) in list(&root.join("templates"))? {
        for (id, revision) in list(&dir.join("artifacts"))? {
            let field = &read_json(&revision.join("revision.json"))?["snapshot"];
            let snapshot = revision.join("snapshot/snapshot.json");
            let truth = if snapshot.exists() { read_json(&snapshot)? } else { Value::Null };
            let same = |name: &str| field[name] == truth[name];
            if field.is_null() != truth.is_null() || !["created_at", "mem_mib", "mem_size_bytes"].into_iter().all(same)
            {
                return Err(format!("{template}@{id} says {field} of its snapshot, which says {truth}"));
            }
        }
    }
    Ok(())
}

/// How many of the files of a revision a builder made.
pub fn built_of(files: &Files) -> usize {
    files.keys().filter(|path| !path.starts_with("snapshot")).count()
}
