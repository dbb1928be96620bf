//! Remotes that lie.

use std::sync::Arc;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::{Value, json};
use template_store::{Digest, ErrorKind, Store};

use super::{host, in_memory, publish, pull, push};
use crate::support::{Place, assert_clean, assert_error, id, listing};

/// What a remote holds, to be changed.
struct Held {
    memory: Arc<InMemory>,
}

impl Held {
    fn pushed(place: &Place) -> Held {
        let a = host(place, "a");
        let memory = Arc::new(InMemory::new());
        push(&a, &in_memory(memory.clone()), &publish(place, &a, "one")).unwrap();
        Held { memory }
    }

    fn wait<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    fn get(&self, path: &str) -> Bytes {
        Held::wait(async { self.memory.get(&Path::from(path)).await.unwrap().bytes().await.unwrap() })
    }

    fn put(&self, path: &str, bytes: Vec<u8>) {
        Held::wait(self.memory.put(&Path::from(path), bytes.into())).unwrap();
    }

    fn pointer(&self) -> Value {
        serde_json::from_slice(&self.get("images/templates/web.json")).unwrap()
    }

    fn manifest_name(digest: &str) -> String {
        format!("images/manifests/{}/{}.json", &digest[..2], &digest[2..])
    }

    fn manifest(&self) -> Value {
        let pointer = self.pointer();
        serde_json::from_slice(&self.get(&Held::manifest_name(pointer["revisions"][0]["manifest"].as_str().unwrap())))
            .unwrap()
    }

    /// Lets the pointer lead to another manifest, whose name is right.
    fn publish(&self, manifest: &[u8]) {
        let digest = Digest::of(manifest).to_hex();
        self.put(&Held::manifest_name(&digest), manifest.to_vec());
        let mut pointer = self.pointer();
        pointer["revisions"][0]["manifest"] = digest.into();
        self.put("images/templates/web.json", pointer.to_string().into_bytes());
    }

    fn blob_of(&self, name: &str) -> String {
        let manifest = self.manifest();
        let files = manifest["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["path"] == name).unwrap();
        let digest = file["blake3"].as_str().unwrap();
        format!("images/blobs/{}/{}.zst", &digest[..2], &digest[2..])
    }

    /// Pulls to a store of its own, which has nothing afterwards, nor has what is around it.
    #[track_caller]
    fn refused(&self, place: &Place, kind: ErrorKind, words: &[&str]) {
        let b = Store::open_or_init(place.join("deep/down/b")).unwrap();
        let around = around(place);
        assert_error(pull(&b, &in_memory(self.memory.clone()), None), kind, words);
        assert!(b.templates().unwrap().is_empty());
        assert_eq!(around, self::around(place));
        b.gc(&template_store::gc::Policy::default(), &mut ()).unwrap();
        assert_clean(b.layout());
    }
}

/// Everything that is not below `b`.
fn around(place: &Place) -> Vec<String> {
    listing(place.path()).into_iter().filter(|line| !line.contains("/deep/down/b")).collect()
}

/// A manifest with its first file, and the same in its record, changed.
fn with_file(manifest: &Value, change: impl Fn(&mut Value)) -> Vec<u8> {
    let mut manifest = manifest.clone();
    change(&mut manifest["files"][0]);
    let mut file = manifest["files"][0].clone();
    file.as_object_mut().unwrap().remove("holes");
    manifest["revision"]["contents"][0] = file;
    manifest.to_string().into_bytes()
}

#[test]
fn no_file_of_a_remote_is_written_elsewhere() {
    let place = Place::new();
    let held = Held::pushed(&place);
    let good = held.manifest();
    for path in [
        "../../../evil",
        "/tmp/evil",
        "a/../../evil",
        "./evil",
        "",
        ".",
        "..",
        "a//b",
        "evil\0",
        "revision.json",
        "snapshot/mem.bin",
        "a\nb/..",
        &"x".repeat(5000),
    ] {
        held.publish(&with_file(&good, |file| file["path"] = path.into()));
        held.refused(&place, ErrorKind::Damaged, &["manifest"]);
    }
    // Two files of one name, and a file in a file.
    let second = good["files"][1]["path"].as_str().unwrap();
    for path in [second.to_owned(), format!("{second}/below")] {
        held.publish(&with_file(&good, |file| file["path"] = path.clone().into()));
        held.refused(&place, ErrorKind::Damaged, &["manifest"]);
    }
}

#[test]
fn what_a_manifest_says_is_checked_before_anything_is_written() {
    let place = Place::new();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    held.publish(&with_file(&good, |file| file["size"] = (1_u64 << 60).into()));
    held.refused(&place, ErrorKind::Failed, &["needs", "bytes"]);
    held.publish(&with_file(&good, |file| file["size"] = u64::MAX.into()));
    held.refused(&place, ErrorKind::Damaged, &["impossible sizes"]);
    held.publish(&with_file(&good, |file| file["holes"] = json!([[5, u64::MAX]])));
    held.refused(&place, ErrorKind::Damaged, &["impossible sizes"]);
    held.publish(&changed(&|manifest| manifest["files"] = json!([])));
    held.refused(&place, ErrorKind::Damaged, &["not those of its revision.json"]);
    held.publish(&changed(&|manifest| {
        manifest["files"] = json!([]);
        manifest["revision"]["contents"] = json!([]);
    }));
    held.refused(&place, ErrorKind::Damaged, &["artifact"]);
    held.publish(&changed(&|manifest| manifest["template"]["template_id"] = "other".into()));
    held.refused(&place, ErrorKind::Damaged, &["other@"]);
    held.publish(&changed(&|manifest| manifest["revision"]["revision_hash"] = "../x".into()));
    held.refused(&place, ErrorKind::Damaged, &["web@../x"]);
    held.publish(&changed(&|manifest| manifest["revision"]["artifact_paths"]["vmlinux"] = "/etc/passwd".into()));
    held.refused(&place, ErrorKind::Damaged, &[]);
    held.publish(&changed(&|manifest| manifest["version"] = 2.into()));
    held.refused(&place, ErrorKind::Failed, &["version 2"]);
    // Nor is what a newer program pushed replaced.
    let a = host(&place, "a");
    let again = push(&a, &in_memory(held.memory.clone()), &a.current(&id("web")).unwrap());
    assert_error(again, ErrorKind::Failed, &["version 2"]);
    held.publish(&changed(&|manifest| manifest["features"] = json!(["deltas"])));
    held.refused(&place, ErrorKind::Failed, &["deltas"]);
    held.publish(b"{\"version\":1,\"files\":[");
    held.refused(&place, ErrorKind::Damaged, &["manifest"]);
    held.publish(format!("{{\"version\":1,\"files\":[{}null]}}", "[],".repeat(3 << 20)).as_bytes());
    held.refused(&place, ErrorKind::Damaged, &["manifest"]);
    held.publish(good.to_string().as_bytes());
    let name = Held::manifest_name(held.pointer()["revisions"][0]["manifest"].as_str().unwrap());
    held.put(&name, changed(&|manifest| manifest["revision"]["flake_ref"] = "evil".into()));
    held.refused(&place, ErrorKind::Damaged, &["not those of its digest"]);
}

#[test]
fn bytes_that_are_not_those_of_the_digest_are_never_published() {
    let place = Place::new();
    let held = Held::pushed(&place);
    for name in ["rootfs.ext4", "vmlinux", "fc-base.json"] {
        let path = held.blob_of(name);
        let good = held.get(&path).to_vec();
        let mut other = good.clone();
        let middle = other.len() / 3;
        other[middle] ^= 1;
        let packed_zeros = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        for bad in [vec![], good[..good.len() / 2].to_vec(), other, packed_zeros, vec![0xff; 1 << 20]] {
            held.put(&path, bad);
            held.refused(&place, ErrorKind::Damaged, &["blobs/"]);
        }
        // Whole, packed as it should be, and another file's.
        let others = held.get(&held.blob_of(if name == "vmlinux" { "fc-base.json" } else { "vmlinux" })).to_vec();
        held.put(&path, others);
        held.refused(&place, ErrorKind::Damaged, &["blobs/"]);
        Held::wait(held.memory.delete(&Path::from(path.as_str()))).unwrap();
        held.refused(&place, ErrorKind::Damaged, &["it is missing"]);
        let found = in_memory(held.memory.clone()).verify(true, &mut ()).unwrap().findings;
        assert!(found.len() == 1 && found[0].object == path, "{found:?}");
        held.put(&path, good);
    }
}

#[test]
fn pointers_that_are_damaged_lead_nowhere() {
    let place = Place::new();
    let held = Held::pushed(&place);
    let good = held.pointer();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut pointer = good.clone();
        change(&mut pointer);
        pointer.to_string().into_bytes()
    };
    for bad in [
        b"".to_vec(),
        b"[]".to_vec(),
        changed(&|pointer| pointer["template"] = "other".into()),
        changed(&|pointer| pointer["current"] = "unlisted".into()),
        changed(&|pointer| pointer["current"] = "../../x".into()),
        changed(&|pointer| pointer["revisions"][0]["manifest"] = "../../../x".into()),
    ] {
        held.put("images/templates/web.json", bad);
        held.refused(&place, ErrorKind::Damaged, &["templates/web.json"]);
        let found = in_memory(held.memory.clone()).verify(false, &mut ()).unwrap().findings;
        assert_eq!(found.len(), 1, "{found:?}");
    }
    held.put("images/templates/web.json", changed(&|pointer| pointer["version"] = 7.into()));
    held.refused(&place, ErrorKind::Failed, &["version 7"]);
}
