//! Remotes that lie.

use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde_json::{Value, json};
use template_store::ErrorKind;

use super::held::{Held, sealed, with_file};
use super::{host, in_memory, push};
use crate::support::{Place, assert_error, id};

#[test]
fn no_file_of_a_remote_is_written_elsewhere() {
    let place = Place::in_memory();
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
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.manifest();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    held.publish(&with_file(&good, |file| file["size"] = (1_u64 << 44).into()));
    held.refused(&place, ErrorKind::Failed, &["needs", "bytes"]);
    held.publish(&with_file(&good, |file| file["size"] = (1_u64 << 60).into()));
    held.refused(&place, ErrorKind::Damaged, &["has 1152921504606846976 bytes, and may have"]);
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
    let place = Place::in_memory();
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
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.pointer();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut pointer = good.clone();
        change(&mut pointer);
        sealed(&pointer)
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
