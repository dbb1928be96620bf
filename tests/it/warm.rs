//! Instances that go on from a snapshot.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use camino::Utf8Path;
use serde_json::json;
use template_store::{
    ErrorKind, Host, Incompatibility, Instance, InstanceOptions, Result, SnapshotOptions, Start, Strategy,
    VerifyOptions,
};

use crate::snapshots::{MEM_MIB, Paused};
use crate::support::{assert_error, bytes, id, inode, meanwhile, names, read_json};

fn warm(paused: &Paused, name: &str) -> Result<Instance> {
    let options = InstanceOptions::default().start(Start::Snapshot);
    paused.revision().instance_with(paused.place.join(name), &options, &mut ())
}

/// Every file of an instance is of the pause with this label.
fn assert_of_one_moment(dir: &Utf8Path, label: &str) {
    let start = |name: &str, len: usize| fs::read(dir.join(name)).unwrap()[..len].to_vec();
    assert!(start("vmstate.bin", 5000) == bytes(&format!("{label}: state"), 5000), "{label}: the state");
    assert!(start("mem.bin", 100) == bytes(&format!("{label}: memory at 0"), 100), "{label}: the memory");
    assert!(start("rootfs.ext4", 4096) == bytes(&format!("{label}: disk"), 4096), "{label}: the disk");
}

#[test]
fn a_vm_goes_on_from_the_moment_of_the_pause() {
    let paused = Paused::new();
    paused.attach();
    let vm = warm(&paused, "1").unwrap();
    assert_of_one_moment(vm.path(), "first");
    let dir = vm.path();
    assert_eq!(vm.config(), dir.join("snapshot-load.json"));
    assert_eq!(
        read_json(vm.config()),
        json!({
            "snapshot_path": dir.join("vmstate.bin"),
            "mem_backend": { "backend_type": "File", "backend_path": dir.join("mem.bin") },
            "resume_vm": false,
        })
    );
    assert_eq!(fs::metadata(dir.join("mem.bin")).unwrap().len(), u64::from(MEM_MIB) << 20);
    assert!(names(dir).iter().all(|name| !name.starts_with('.')) && !dir.join("fc.json").exists());
}

#[test]
fn memory_is_shared_and_disks_are_not() {
    let paused = Paused::new();
    let snapshot = paused.attach();
    let (one, two) = (warm(&paused, "1").unwrap(), warm(&paused, "2").unwrap());
    for name in ["mem.bin", "vmstate.bin"] {
        let how = one.files().iter().find(|file| file.path.as_str() == name).unwrap();
        assert_eq!(how.strategy, Strategy::HardLink);
        assert_eq!(inode(one.path().join(name)), inode(snapshot.path().join(name)));
        assert!(
            OpenOptions::new().write(true).open(two.path().join(name)).is_err() || rustix::process::geteuid().is_root()
        );
    }
    let disk = OpenOptions::new().write(true).open(one.path().join("rootfs.ext4")).unwrap();
    disk.write_all_at(b"the VM went on", 0).unwrap();
    drop(disk);
    assert_of_one_moment(two.path(), "first");
    assert!(paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap().is_clean());
}

#[test]
fn without_a_snapshot_nothing_is_made() {
    let paused = Paused::new();
    assert_error(warm(&paused, "1"), ErrorKind::NotFound, &["web", "snapshot attach"]);
    let target = paused.place.join("1");
    paused.place.run(&["instance", "web", target.as_str(), "--snapshot"]).with_code(3);
    assert!(!target.exists());
    let snapshot = paused.attach();
    fs::remove_file(snapshot.mem()).unwrap();
    assert_error(warm(&paused, "1"), ErrorKind::Damaged, &["mem.bin", "missing"]);
    assert!(!target.exists());
}

#[test]
fn a_disk_has_the_place_that_its_vm_knows() {
    let paused = Paused::new();
    let options = SnapshotOptions::default().drive_path(id("rootfs"), "disks/root.img");
    paused.revision().attach_snapshot(&paused.files(), &options, &mut ()).unwrap();
    let vm = warm(&paused, "1").unwrap();
    let disk = fs::read(vm.path().join("disks/root.img")).unwrap();
    assert!(disk[..4096] == bytes("first: disk", 4096));
}

#[test]
fn an_instance_is_of_one_snapshot_while_another_takes_its_place() {
    let paused = Paused::new();
    paused.attach();
    let replace = || {
        for label in ["second", "third", "second", "third", "second"] {
            paused.pause(label);
            paused.attach();
        }
    };
    let mut numbers = 0..;
    meanwhile(replace, || {
        let vm = warm(&paused, &format!("vm{}", numbers.next().unwrap())).unwrap();
        let state = fs::read(vm.path().join("vmstate.bin")).unwrap();
        let mut labels = ["first", "second", "third"].into_iter();
        let label = labels.find(|label| state == bytes(&format!("{label}: state"), 5000));
        assert_of_one_moment(vm.path(), label.expect("it is of some pause"));
    });
}

#[test]
fn a_snapshot_that_is_replaced_is_not_taken_for_a_damaged_one() {
    let paused = Paused::new();
    let revision = paused.revision();
    let attach = |round: usize| {
        // Each has another state, and each second one has a drive more.
        fs::write(paused.vm().join("vmstate"), vec![1; 5000 + round]).unwrap();
        let files = match round % 2 {
            0 => paused.files(),
            _ => paused.files().drive(id("data"), paused.vm().join("vmstate")),
        };
        revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ()).unwrap();
    };
    attach(0);
    let compare = || {
        let reasons = revision.snapshot().unwrap().unwrap().compatible_with(&Host::default());
        let is_replaced = |reason: &Incompatibility| matches!(reason, Incompatibility::Replaced { .. });
        assert!(reasons.iter().all(is_replaced), "{reasons:?}");
    };
    let attach_and_compare = || meanwhile(|| (1..40).for_each(attach), compare);
    let mut numbers = 0..;
    meanwhile(attach_and_compare, || {
        let vm = warm(&paused, &format!("vm{}", numbers.next().unwrap())).unwrap();
        let round = fs::metadata(vm.path().join("vmstate.bin")).unwrap().len() as usize - 5000;
        assert_eq!(vm.path().join("data.img").exists(), round % 2 == 1, "all is of one moment");
        fs::remove_dir_all(vm.path()).unwrap();
    });
}

#[test]
fn a_handle_of_a_snapshot_that_was_replaced_says_so() {
    let paused = Paused::new();
    let old = paused.attach();
    paused.pause("second");
    paused.attach();
    assert_eq!(old.compatible_with(&Host::default()), [Incompatibility::Replaced { path: old.path().to_owned() }]);
}
