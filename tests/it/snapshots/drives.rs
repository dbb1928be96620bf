//! Which drives a snapshot has, how large they are, and what an attachment does not replace.

use std::fs::{self, File};

use template_store::{DriveId, ErrorKind, Host, Incompatibility, InstanceOptions, SnapshotOptions, Start};

use super::Paused;
use crate::support::{assert_clean, assert_error, bytes, edit_json, id};

#[test]
fn a_drive_that_the_template_does_not_have_is_kept_and_has_its_place_again() {
    let paused = Paused::new();
    let options = InstanceOptions::default().data_disk_mib(1u32);
    let vm = paused.revision().instance_with(paused.place.join("cold"), &options, &mut ()).unwrap();
    fs::write(vm.path().join("data.img"), bytes("data", 1 << 20)).unwrap();
    let files = paused.files().drive(id("data"), vm.path().join("data.img"));
    let snapshot = paused.attach_files(&files).unwrap();
    let drives: Vec<&str> = snapshot.drives().map(|(id, _)| id.as_str()).collect();
    assert_eq!(drives, ["rootfs", "data"]);
    assert!(snapshot.compatible_with(&Host::here()).is_empty());
    let warm = InstanceOptions::default().start(Start::Snapshot);
    let vm = paused.revision().instance_with(paused.place.join("warm"), &warm, &mut ()).unwrap();
    assert!(fs::read(vm.path().join("data.img")).unwrap() == bytes("data", 1 << 20));
    let file = vm.files().iter().find(|file| file.path.as_str() == "data.img").unwrap();
    assert!(file.writable);
}

#[test]
fn a_drive_that_is_shorter_than_what_the_vm_booted_with_is_refused() {
    let paused = Paused::new();
    for len in [0, 4096, (256 << 10) - 1] {
        File::options().write(true).open(paused.vm().join("rootfs.ext4")).unwrap().set_len(len).unwrap();
        let words = ["vm/rootfs.ext4", &format!("has {len} bytes"), "drive rootfs", "has 262144"];
        paused.refused(&paused.files(), &SnapshotOptions::default(), &words);
    }
    File::options().write(true).open(paused.vm().join("rootfs.ext4")).unwrap().set_len(1 << 20).unwrap();
    paused.attach();
}

#[test]
fn a_snapshot_of_a_newer_program_is_not_replaced() {
    let paused = Paused::new();
    let path = paused.attach().path().join("snapshot.json");
    edit_json(&path, |record| {
        record["schema_version"] = 2.into();
        record["new"] = "what nobody here knows".into();
    });
    let before = fs::read_to_string(&path).unwrap();
    assert_error(paused.attach_files(&paused.files()), ErrorKind::Failed, &["snapshot.json", "version 2", "up to 1"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    assert_clean(paused.store.layout());
    fs::write(&path, "{").unwrap();
    paused.attach();
}

#[test]
fn a_drive_that_the_vm_did_not_have_is_named() {
    let paused = Paused::new();
    paused.attach();
    let mut host = Host::here();
    host.drive_paths.insert(id("rootfs"), "/x".into());
    host.drive_paths.insert(id("nosuch"), "/y".into());
    let snapshot = paused.revision().snapshot().unwrap().unwrap();
    let drive: DriveId = id("nosuch");
    assert_eq!(snapshot.compatible_with(&host), [Incompatibility::DriveUnknown { drive }]);
    let ran = paused.place.run(&["snapshot", "check", "web", "--drive-path", "nosuch=/y"]).with_code(5);
    assert!(ran.out.contains("no drive nosuch"), "{}", ran.out);
}
