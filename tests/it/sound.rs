//! Whether a store is sound: looked at from outside, by walking over it and hashing every file.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{BuildInputs, Error, OBJECT_MIN_SIZE, RevisionRecord, Severity, Store, VerifyOptions};

use crate::support::{assert_clean, assert_right, id, names};

/// Every current resolves, every file has the bytes that it should have, objects and keys say what is there, and
/// nothing is left of the dead: what must hold after a collection that nobody disturbed.
pub fn assert_sound(store: &Store) {
    assert_clean(store.layout());
    assert_revisions_right(store);
    assert_objects_right(store);
    assert_keys_lead(store);
    assert_undamaged(store);
}

/// The store's own verification finds no damage. What the killed have left is none.
pub fn assert_undamaged(store: &Store) {
    let report = store.verify(&VerifyOptions::default(), &mut ()).unwrap();
    let damage: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    assert!(damage.is_empty(), "{damage:?}");
}

fn assert_revisions_right(store: &Store) {
    for id in store.templates().unwrap() {
        for revision in store.revisions(&id).unwrap() {
            assert_right(&store.revision(&id, &revision).unwrap());
        }
        match store.current(&id) {
            Ok(current) => assert!(store.layout().current(&id).join("revision.json").exists(), "{current:?}"),
            Err(Error::NoCurrent { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// The names that each inode has in revisions. Besides, a template has its documents, of which a log may be as large.
fn names_in_revisions(store: &Store) -> HashMap<u64, Vec<Utf8PathBuf>> {
    let mut found: HashMap<u64, Vec<Utf8PathBuf>> = HashMap::new();
    for entry in walkdir::WalkDir::new(store.layout().templates()).into_iter().map(|entry| entry.unwrap()) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_file() && metadata.len() >= OBJECT_MIN_SIZE && entry.depth() > 2 {
            let path = Utf8PathBuf::from_path_buf(entry.into_path()).unwrap();
            found.entry(metadata.ino()).or_default().push(path);
        }
    }
    found
}

/// Each object has the bytes of its name, and as many names as there are revisions with it, and one; each large file
/// is the object of its bytes.
fn assert_objects_right(store: &Store) {
    let mut held = names_in_revisions(store);
    for_each_name(&store.layout().objects(), |path, name| {
        let metadata = fs::symlink_metadata(path).unwrap();
        assert_eq!(blake3::hash(&fs::read(path).unwrap()).to_hex().as_str(), name, "the bytes of {path}");
        let holders = held.remove(&metadata.ino()).unwrap_or_default();
        assert_eq!(metadata.nlink(), holders.len() as u64 + 1, "the names of {path}; in revisions: {holders:?}");
    });
    assert!(held.is_empty(), "large files that are no objects: {held:?}");
}

/// Calls with each path in `<dir>/ab/<rest>`, and `ab<rest>`.
fn for_each_name(dir: &Utf8Path, mut look: impl FnMut(&Utf8Path, &str)) {
    for shard in names(dir) {
        for name in names(dir.join(&shard)) {
            look(&dir.join(&shard).join(&name), &format!("{shard}{name}"));
        }
    }
}

/// Every entry of a key leads to revisions that have the key.
pub fn assert_keys_lead(store: &Store) {
    for_each_name(&store.layout().keys(), |path, _| {
        let entry: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let hints = entry["revisions"].as_array().unwrap();
        assert!(!hints.is_empty(), "{path}");
        for hint in hints {
            let (template, revision) = (hint["template"].as_str().unwrap(), hint["revision"].as_str().unwrap());
            let led = store.revision(&id(template), &id(revision)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert!(keys_of(store, led.record()).iter().any(|key| key == path), "{path}: {template}@{revision}");
        }
    });
}

/// The entries of the keys that a revision was made from.
fn keys_of(store: &Store, record: &RevisionRecord) -> Vec<Utf8PathBuf> {
    let build = &record.build;
    let first = (&build.flake_lock_hash, &build.profile, &build.role);
    let others = record.also_made_from.iter().map(|made| (&made.flake_lock_hash, &made.profile, &made.role));
    let key = |(hash, profile, role): (&String, &String, &String)| {
        store.layout().key(&BuildInputs::new(id(hash), id(profile), id(role)).key())
    };
    let known = std::iter::once(first).chain(others).filter(|(hash, ..)| !hash.is_empty());
    known.map(key).collect()
}
