//! What is refused, is refused before the first byte; and what is no file keeps nobody waiting.

use std::fs;
use std::sync::Arc;

use object_store::memory::InMemory;
use serde_json::json;
use template_store::{
    Digest, Error, ErrorKind, Expect, ImportOptions, PublishOptions, PullOptions, Remote, RemoteSettings, RevisionId,
    SealOptions, Store, WithSnapshot,
};

use super::faulty::Faulty;
use super::held::{Held, POINTER, sealed};
use super::{host, in_memory, publish, pull, push};
use crate::process::Ran;
use crate::support::{Place, assert_error, assert_right, id};

/// A remote that notes when a file is fetched from it.
fn without_blobs(memory: Arc<InMemory>) -> Remote {
    in_memory(Faulty::while_reading(memory, |path| {
        assert!(!path.as_ref().contains("/blobs/"), "{path} is fetched");
    }))
}

#[test]
fn a_pull_that_is_to_be_refused_fetches_nothing() {
    let place = Place::new();
    let (a, b, memory) = (host(&place, "a"), host(&place, "b"), Arc::new(InMemory::new()));
    let name: RevisionId = id("same-name");
    let named = ImportOptions::default().seal(SealOptions::default().revision(name.clone()));
    let publish_as = |store: &Store, label: &str| {
        let image = place.image(label, label);
        store.publish_dir_with(&id("web"), image, &named, &mut ()).unwrap().revision
    };
    push(&a, &in_memory(memory.clone()), &publish_as(&a, "theirs")).unwrap();
    publish_as(&b, "ours");
    let refused = pull(&b, &without_blobs(memory.clone()), None);
    assert!(matches!(refused, Err(Error::RevisionDiffers { .. })), "{refused:?}");
    let c = host(&place, "c");
    let expecting = PullOptions::default().publish(PublishOptions::default().expect(Expect::Current(name)));
    let refused = c.pull(&without_blobs(memory), &id("web"), None, &expecting, &mut ());
    assert!(matches!(refused, Err(Error::CurrentMoved { .. })), "{refused:?}");
}

#[test]
fn a_record_that_cannot_be_read_is_healed_if_its_id_says_what_it_held() {
    let place = Place::new();
    let (a, b, memory) = (host(&place, "a"), host(&place, "b"), Arc::new(InMemory::new()));
    push(&a, &in_memory(memory.clone()), &publish(&place, &a, "one")).unwrap();
    let record = pull(&b, &in_memory(memory.clone()), None).unwrap().revision.path().join("revision.json");
    fs::remove_file(&record).unwrap();
    fs::write(&record, "{").unwrap();
    assert_right(&pull(&b, &in_memory(memory), None).unwrap().revision);
}

/// The room for the snapshot is looked at with that for its revision, before anything comes.
#[test]
fn a_snapshot_that_does_not_fit_keeps_its_revision_away_too() {
    let place = Place::new();
    let held = Held::pushed(&place);
    let digest = "0".repeat(64);
    let file = |path: &str, size: u64| json!({ "path": path, "size": size, "blake3": digest });
    let files = json!([file("mem.bin", 1 << 44), file("vmstate.bin", 1)]);
    let manifest = json!({
        "version": 1, "features": [], "template": "web", "revision": held.pointer()["current"],
        "snapshot": {
            "schema_version": 1, "vmm": "firecracker", "created_at": "t", "vmstate_size_bytes": 1,
            "mem_size_bytes": 1_u64 << 44, "boot_args": "", "vcpus": 1, "mem_mib": 1 << 24, "contents": files, "drives": [],
        },
        "files": files,
    });
    let bytes = manifest.to_string().into_bytes();
    let name = Digest::of(&bytes).to_hex();
    held.put(&Held::manifest_name(&name), bytes);
    let mut pointer = held.pointer();
    pointer["revisions"][0]["snapshot"] = name.into();
    held.put(POINTER, sealed(&pointer));
    let b = host(&place, "b");
    let with = PullOptions::default().snapshot(WithSnapshot::Yes);
    let refused = b.pull(&without_blobs(held.memory.clone()), &id("web"), None, &with, &mut ());
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    assert!(b.templates().unwrap().is_empty());
    pull(&b, &in_memory(held.memory.clone()), None).unwrap();
}

#[test]
fn a_verify_that_reads_nothing_sees_what_is_cut_short() {
    let place = Place::new();
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let (a, remote) = (host(&place, "a"), Remote::open(&RemoteSettings::at(hub.as_str())).unwrap());
    push(&a, &remote, &publish(&place, &a, "one")).unwrap();
    let blobs = walkdir::WalkDir::new(hub.join("blobs")).into_iter().map(Result::unwrap);
    let blobs: Vec<_> = blobs.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()).collect();
    for blob in &blobs {
        fs::write(blob, [0; 16]).unwrap();
    }
    assert_eq!(remote.verify(false, &mut ()).unwrap().findings.len(), blobs.len());
}

#[test]
fn what_is_no_file_keeps_nobody_waiting() {
    let place = Place::new();
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let (a, remote) = (host(&place, "a"), Remote::open(&RemoteSettings::at(hub.as_str())).unwrap());
    push(&a, &remote, &publish(&place, &a, "one")).unwrap();
    let pointer = hub.join("templates/web.json");
    let blob = walkdir::WalkDir::new(hub.join("blobs")).into_iter().map(Result::unwrap);
    let blob = blob.filter(|entry| entry.file_type().is_file()).map(|entry| entry.into_path()).next().unwrap();
    for path in [pointer.as_std_path(), &blob, hub.join("format.json").as_std_path()] {
        let good = fs::read(path).unwrap();
        fs::remove_file(path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
        // Each host opens the remote anew.
        let remote = Remote::open(&RemoteSettings::at(hub.as_str())).unwrap();
        assert_error(pull(&host(&place, "b"), &remote, None), ErrorKind::Failed, &["it is not a regular file"]);
        let _ = remote.templates();
        let _ = remote.verify(true, &mut ());
        fs::remove_file(path).unwrap();
        fs::write(path, good).unwrap();
    }
    pull(&host(&place, "b"), &remote, None).unwrap();
}

#[test]
fn a_remote_with_one_writer_is_checked_as_such() {
    let Some(bucket) = super::server::bucket() else { return };
    let place = Place::new();
    let check = |algorithm: Option<&str>| {
        let mut command = place.program(&["remote", "check", "one", "--json"]);
        command.env("AWS_ACCESS_KEY_ID", super::server::KEY).env("AWS_SECRET_ACCESS_KEY", super::server::SECRET);
        if let Some(algorithm) = algorithm {
            command.env("AWS_CHECKSUM_ALGORITHM", algorithm);
        }
        Ran::of(command.output().unwrap())
    };
    let url = bucket.url();
    let words = ["remote", "add", "one", &url, "--endpoint", &bucket.endpoint, "--allow-http", "--single-writer"];
    place.done(&words);
    let found = check(None).with_code(0).json();
    assert!(found["passed"].to_string().contains("single_writer"), "{found}");
    check(Some("crc64nvme")).with_code(0);
    // Whoever says another one is heard.
    let unknown = check(Some("md5")).with_code(2);
    assert!(unknown.err.contains("md5"), "{}", unknown.err);
}
