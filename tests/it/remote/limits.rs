//! Remotes that want more than they may have.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use template_store::{Digest, ErrorKind};

use super::held::{Held, POINTER, sealed, with_file};
use super::{host, in_memory, pull};
use crate::process::Ran;
use crate::support::{Place, program};

fn changed(good: &Value, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut manifest = good.clone();
    change(&mut manifest);
    manifest.to_string().into_bytes()
}

#[test]
fn what_would_be_large_when_it_is_written_is_refused() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let deep = (0..110).fold(json!(0), |inner, _| json!({ "a": inner }));
    held.publish(&changed(&good, |manifest| manifest["revision"]["x"] = json!([deep])));
    held.refused(&place, ErrorKind::Damaged, &["manifest", "nested more than 32 levels"]);
    // Each part has a line of its own on the disk, and takes memory.
    let wide = (0..25).fold(json!(vec![0; 60_000]), |inner, _| json!([inner]));
    held.publish(&changed(&good, |manifest| manifest["revision"]["x"] = json!([wide, wide, wide, wide])));
    held.refused(&place, ErrorKind::Damaged, &["manifest", "more than 200000 parts"]);
    let wide = (0..25).fold(json!(vec![0; 180_000]), |inner, _| json!([inner]));
    let long = "x".repeat(8 << 20);
    held.publish(&changed(&good, |manifest| manifest["revision"]["x"] = json!([wide, long])));
    held.refused(&place, ErrorKind::Damaged, &["revision.json", "on the disk"]);
    held.publish(&changed(&good, |manifest| manifest["x"] = "x".repeat(17 << 20).into()));
    held.refused(&place, ErrorKind::Damaged, &["and may have 16777216"]);
}

#[test]
fn a_revision_is_made_from_so_many_inputs_and_no_more() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let made = |count: usize| {
        let one =
            |number| json!({ "flake_lock_hash": format!("{number:064x}"), "profile": "minimal", "role": "worker" });
        changed(&good, |manifest| manifest["revision"]["also_made_from"] = (0..count).map(one).collect())
    };
    held.publish(&made(1001));
    held.refused(&place, ErrorKind::Damaged, &["made from 1001 inputs", "1000"]);
    held.publish(&made(1000));
    pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap();
}

#[test]
fn data_in_a_hole_are_not_written() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let names: Vec<_> = good["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    let rootfs = names.iter().position(|name| *name == "rootfs.ext4").unwrap();
    let size = good["files"][rootfs]["size"].as_u64().unwrap();
    for (start, len) in [(0, size), (4 << 20, 1 << 20), ((5 << 20) - 1, 10 << 20), (size - 1, 1)] {
        held.publish(&changed(&good, |manifest| manifest["files"][rootfs]["holes"] = json!([[start, len]])));
        held.refused(&place, ErrorKind::Damaged, &["blobs/", "data where its manifest has a hole"]);
    }
    held.publish(&changed(&good, |manifest| manifest["files"][rootfs]["holes"] = json!([[5 << 20, 20 << 20]])));
    pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap();
}

#[test]
fn a_file_has_so_many_holes_and_no_more() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let rootfs = |count: u64| {
        let holes: Vec<_> = (0..count).map(|number| [(5 << 20) + number * 16, 8]).collect();
        changed(&good, |manifest| {
            let files = manifest["files"].as_array_mut().unwrap();
            files.iter_mut().find(|file| file["path"] == "rootfs.ext4").unwrap()["holes"] = json!(holes);
        })
    };
    held.publish(&rootfs(1001));
    held.refused(&place, ErrorKind::Damaged, &["has 1001 holes, and may have 1000"]);
    held.publish(&rootfs(1000));
    pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap();
    // No file is so large, whatever of it is a hole.
    held.publish(&with_file(&good, |file| {
        file["size"] = (1_u64 << 62).into();
        file["holes"] = json!([[0, 1_u64 << 62]]);
    }));
    held.refused(&place, ErrorKind::Damaged, &["has 4611686018427387904 bytes, and may have"]);
}

/// A process that may have so much memory reads what is as costly as may be.
#[test]
fn small_documents_take_little_memory() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let hub = place.join("hub");
    let write = |path: &str, bytes: Vec<u8>| {
        let path = hub.join(path.strip_prefix("images/").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let limited = |words: &[&str]| {
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -d 200000; exec \"$@\"", "sh", program(), "--store", place.root().as_str()]);
        Ran::of(limited.args(words).output().unwrap())
    };
    let pointer = held.pointer();
    let ls = |x: &str| {
        let mut pointer = pointer.clone();
        pointer["x"] = serde_json::from_str(x).unwrap();
        write(POINTER, sealed(&pointer));
        limited(&["remote", "ls", hub.as_str()])
    };
    ls(&format!("[{}0]", "{\"a\":0},".repeat(66_000))).with_code(0);
    ls(&format!("[{}0]", "[],".repeat(99_000))).with_code(0);
    ls(&format!("\"{}\"", "x".repeat(15 << 20))).with_code(0);
    let refused = ls(&format!("[{}0]", "{\"a\":0},".repeat(70_000))).with_code(4);
    assert!(refused.err.contains("more than 200000 parts"), "{}", refused.err);
    // A manifest is also held against what it would be here. Its files are not there: it was read until then.
    for x in ["{\"a\":0},".repeat(66_000), "[],".repeat(99_000), format!("\"{}\",", "x".repeat(15 << 20))] {
        let x: Value = serde_json::from_str(&format!("[{x}0]")).unwrap();
        let manifest = changed(&held.manifest(), |manifest| manifest["revision"]["x"] = x);
        let name = Digest::of(&manifest).to_hex();
        write(&Held::manifest_name(&name), manifest);
        let mut pointer = pointer.clone();
        pointer["revisions"][0]["manifest"] = name.into();
        write(POINTER, sealed(&pointer));
        let refused = limited(&["pull", "web", "--remote", hub.as_str()]).with_code(4);
        assert!(refused.err.contains("blobs/") && refused.err.contains("it is missing"), "{}", refused.err);
    }
}
