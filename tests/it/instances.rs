//! Instances: private disks, everything else read-only, and nothing half at their place.

mod beside;
mod files;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::{
    Error, ErrorKind, Instance, InstanceOptions, Owner, Reflink, Removal, Revision, Severity, Store, Strategy,
    VerifyOptions,
};

use crate::gc::{blocks, counts_exactly};
use crate::sound::assert_sound;
use crate::support::{
    Place, assert_error, assert_right, build, bytes, draft, id, image, inode, inputs, names, object_of, when_free,
};

/// A revision, and a directory for instances.
fn with_image(place: &Place) -> (Store, Revision, Utf8PathBuf) {
    let store = place.store();
    let revision = build(&store, "web", &inputs("a"), "a");
    let vms = place.join("vms");
    fs::create_dir(&vms).unwrap();
    (store, revision, vms)
}

fn strategy(instance: &Instance, name: &str) -> Strategy {
    instance.files().iter().find(|file| file.path.as_str() == name).expect("it is listed").strategy
}

fn config(instance: &Instance) -> serde_json::Value {
    serde_json::from_slice(&fs::read(instance.config()).unwrap()).unwrap()
}

#[test]
fn an_instance_has_every_file_and_a_configuration_with_absolute_paths() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let vm = revision.instance(vms.join("1")).unwrap();
    assert_eq!(vm.path(), vms.join("1"));
    for content in revision.contents() {
        let (ours, theirs) = (vm.path().join(content.path.as_path()), revision.artifact(&content.path));
        assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "the bytes of {ours}");
    }
    let config = config(&vm);
    assert_eq!(config["boot-source"]["kernel_image_path"], vms.join("1/vmlinux").as_str());
    let root = config["drives"].as_array().unwrap().iter().find(|drive| drive["is_root_device"] == true).unwrap();
    assert_eq!(root["path_on_host"], vms.join("1/rootfs.ext4").as_str());
    let record = fs::read(vm.path().join("instance.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    assert_eq!((record["template"].as_str(), record["revision"].as_str()), (Some("web"), Some(revision.id().as_str())));
    assert_eq!(names(&vms), ["1"], "nothing is left beside it");
}

#[test]
fn what_a_vm_writes_is_its_own() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let vms = ["1", "2"].map(|name| revision.instance(vms.join(name)).unwrap());
    let published = fs::read(revision.rootfs()).unwrap();
    let disk = OpenOptions::new().write(true).open(vms[0].path().join("rootfs.ext4")).unwrap();
    disk.write_all_at(b"written by a VM", 5).unwrap();
    drop(disk);
    assert!(fs::read(vms[1].path().join("rootfs.ext4")).unwrap() == published);
    assert_right(&revision);
}

#[test]
fn all_but_the_disks_is_the_stores_own_inode_and_read_only() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let vm = revision.instance(vms.join("1")).unwrap();
    for name in ["vmlinux", "fc-base.json"] {
        assert_eq!(strategy(&vm, name), Strategy::HardLink);
        assert_eq!(inode(vm.path().join(name)), inode(revision.path().join(name)), "{name}");
        assert_eq!(fs::metadata(vm.path().join(name)).unwrap().mode() & 0o7777, 0o444);
    }
    assert_ne!(inode(vm.path().join("rootfs.ext4")), inode(revision.rootfs()));
    let mode = |path: &Utf8Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(vm.path()), mode(&vm.path().join("rootfs.ext4"))), (0o700, 0o600), "nobody else looks into it");
}

#[test]
fn every_disk_that_a_vm_may_write_to_is_private() {
    let place = Place::new();
    let store = place.store();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "a");
    fs::create_dir(draft.path().join("disks")).unwrap();
    for name in ["state.img", "usr.img"] {
        fs::write(draft.path().join("disks").join(name), bytes(name, 100_000)).unwrap();
    }
    let base = r#"{ "drives": [
        { "drive_id": "state", "path_on_host": "disks/state.img", "is_root_device": false, "is_read_only": false },
        { "drive_id": "usr", "path_on_host": "disks/usr.img", "is_root_device": false, "is_read_only": true }
    ] }"#;
    fs::write(draft.path().join("fc-base.json"), base).unwrap();
    let revision = draft.seal().unwrap().publish().unwrap();
    let vm = revision.instance(place.join("vm")).unwrap();
    assert_ne!(strategy(&vm, "disks/state.img"), Strategy::HardLink);
    assert_eq!(strategy(&vm, "disks/usr.img"), Strategy::HardLink);
    File::options().write(true).open(vm.path().join("disks/state.img")).unwrap().write_all_at(b"x", 0).unwrap();
    assert_right(&revision);
    assert_eq!(config(&vm)["drives"][0]["path_on_host"], vm.path().join("rootfs.ext4").as_str(), "the root is added");
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let store = place.store();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "a");
    let disk = File::create(draft.path().join("rootfs.ext4")).unwrap();
    disk.set_len(256 << 20).unwrap();
    for at in [0, 77 << 20, 200 << 20] {
        disk.write_all_at(&bytes("some", 300_000), at).unwrap();
    }
    drop(disk);
    let revision = draft.seal().unwrap().publish().unwrap();
    let vm =
        revision.instance_with(place.join("vm"), &InstanceOptions::default().data_disk_mib(512u32), &mut ()).unwrap();
    let blocks = |path: &Utf8Path| fs::metadata(path).unwrap().blocks() * 512;
    let (ours, theirs) = (blocks(&vm.path().join("rootfs.ext4")), blocks(&revision.rootfs()));
    assert!(ours <= theirs + (64 << 10), "{ours} bytes of blocks, where the template has {theirs}");
    let data = fs::metadata(vm.path().join("data.img")).unwrap();
    assert_eq!((data.len(), data.blocks()), (512 << 20, 0), "an empty disk takes nothing");
}

#[test]
fn the_data_disk_is_the_one_of_the_definition_unless_said_otherwise() {
    let place = Place::new();
    let lock = place.lock("a");
    place.done(&[
        "build",
        "web",
        "--flake-lock",
        lock.as_str(),
        "--role",
        "worker",
        "--data-disk",
        "64",
        "--",
        "sh",
        "-c",
        &crate::support::script("a"),
    ]);
    let len = |name: &str| fs::metadata(place.join(name).join("data.img")).map(|metadata| metadata.len()).ok();
    place.done(&["instance", "web", place.join("1").as_str()]);
    assert_eq!(len("1"), Some(64 << 20));
    place.done(&["instance", "web", place.join("2").as_str(), "--extra-disk", "3"]);
    assert_eq!(len("2"), Some(3 << 20));
    place.done(&["instance", "web", place.join("3").as_str(), "--extra-disk", "0"]);
    assert_eq!(len("3"), None);
}

#[test]
fn where_an_instance_can_not_be_nothing_is_made() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    fs::create_dir(vms.join("taken")).unwrap();
    fs::write(vms.join("file"), "mine").unwrap();
    std::os::unix::fs::symlink("nowhere", vms.join("link")).unwrap();
    for name in ["taken", "file", "link"] {
        let error = revision.instance(vms.join(name));
        assert_error(error, ErrorKind::Refused, &[vms.join(name).as_str(), "exists already"]);
    }
    assert_error(revision.instance(vms.join("no/vm")), ErrorKind::Failed, &["no/vm", "make that first"]);
    assert_error(revision.instance(vms.join("file/vm")), ErrorKind::Failed, &["file"]);
    assert_error(revision.instance(store.layout().root().join("vm")), ErrorKind::Failed, &["in the store"]);
    assert_error(revision.instance(store.layout().templates().join("vm")), ErrorKind::Failed, &["in the store"]);
    assert_error(revision.instance("/"), ErrorKind::Failed, &["has no name"]);
    assert_eq!(fs::read_to_string(vms.join("file")).unwrap(), "mine");
    assert_eq!(names(&vms), ["file", "link", "taken"]);
    assert!(store.instances().unwrap().is_empty());
}

#[test]
fn what_is_no_clone_is_refused_when_clones_are_required() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let required = InstanceOptions::default().reflink(Reflink::Require);
    match revision.instance_with(vms.join("1"), &required, &mut ()) {
        Ok(vm) => assert_eq!(strategy(&vm, "rootfs.ext4"), Strategy::Reflink),
        Err(error @ Error::CannotClone { .. }) => {
            assert!(error.to_string().contains("can't share blocks"), "{error}");
            assert_eq!(names(&vms), [""; 0]);
            let vm = revision.instance(vms.join("1")).unwrap();
            let size = fs::metadata(revision.rootfs()).unwrap().blocks() * 512;
            assert!(matches!(strategy(&vm, "rootfs.ext4"), Strategy::Copy { bytes } if bytes <= size + (64 << 10)));
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_instance_keeps_what_it_has_when_its_revision_goes() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    let vm = revision.instance(vms.join("1")).unwrap();
    let (kernel, disk) = (fs::read(revision.kernel()).unwrap(), fs::read(revision.rootfs()).unwrap());
    let object = object_of(store.layout(), &revision.kernel());
    let (id_of_it, kernel_size) = (revision.id().clone(), fs::metadata(revision.kernel()).unwrap().blocks() * 512);
    drop(revision);
    drop(build(&store, "web", &inputs("b"), "b"));
    let policy = Policy::default().keep_last(1u32);
    let why = when_free(|| match store.why(&id("web"), &id_of_it, &policy)? {
        why if why.frees_alone.is_none() => Err(Error::InUse { template: id("web"), revision: id_of_it.clone() }),
        why => Ok(why),
    })
    .unwrap();
    assert!(why.held_by_instances >= kernel_size, "{why:?}");
    let held = store.usage().unwrap().templates[0].bytes.held_by_instances;
    assert_eq!(held, why.held_by_instances);
    let before = blocks(place.path());
    let report = when_free(|| {
        let (plan, report) = store.gc(&policy, &mut ())?;
        assert_eq!((plan.frees, plan.held_by_instances), (report.freed, report.held_by_instances));
        Ok(report)
    })
    .unwrap();
    assert_eq!((report.removed.len(), report.held_by_instances), (1, held), "{report:?}");
    if counts_exactly(place.path()) {
        assert_eq!(before - blocks(place.path()), report.freed, "what the disk says");
    }
    assert!(
        fs::read(vm.path().join("vmlinux")).unwrap() == kernel
            && fs::read(vm.path().join("rootfs.ext4")).unwrap() == disk
    );
    assert!(object.exists(), "an instance has it");
    let (plan, _) = store.gc(&policy, &mut ()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    store.remove_instance(vm.path(), Removal::Unused).unwrap();
    assert!(!object.exists(), "nobody has it any more");
    assert_sound(&store);
}

#[test]
fn instances_are_listed_until_they_are_gone() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    let one = revision.instance(vms.join("1")).unwrap();
    let two = revision.instance(vms.join("2")).unwrap();
    assert_eq!(store.instances().unwrap(), [one.clone(), two.clone()]);
    let json = place.done(&["--json", "instance", "list"]).json();
    assert_eq!(json["instances"][1]["path"], two.path().as_str());
    place.done(&["instance", "rm", one.path().as_str()]);
    assert_eq!(names(&vms), ["2"]);
    // One that somebody else removes leaves a note, which a collection takes.
    fs::remove_dir_all(two.path()).unwrap();
    assert!(store.instances().unwrap().is_empty());
    let report = store.verify(&VerifyOptions::default(), &mut ()).unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(report.findings[0].severity, Severity::Note);
    let (_, report) = store.gc(&Policy::default(), &mut ()).unwrap();
    assert_eq!(report.swept.len(), 1, "{report:?}");
    assert_eq!(names(store.layout().instances()), [""; 0]);
    assert!(store.verify(&VerifyOptions::default(), &mut ()).unwrap().findings.is_empty());
}

#[test]
fn only_an_instance_of_this_store_is_removed() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    fs::create_dir(vms.join("mine")).unwrap();
    let refused = store.remove_instance(vms.join("mine"), Removal::Forced);
    assert_error(refused, ErrorKind::Refused, &["mine", "instance.json"]);
    assert_error(store.remove_instance(vms.join("none"), Removal::Forced), ErrorKind::NotFound, &["nothing at"]);
    let vm = revision.instance(vms.join("1")).unwrap();
    std::os::unix::fs::symlink(vm.path(), vms.join("link")).unwrap();
    assert_error(store.remove_instance(vms.join("link"), Removal::Forced), ErrorKind::Refused, &["symbolic link"]);
    let other = Store::open_or_init(place.join("other")).unwrap();
    assert_error(other.remove_instance(vm.path(), Removal::Forced), ErrorKind::Refused, &["another store"]);
    assert_eq!(store.instances().unwrap().len(), 1);
}

#[test]
fn a_disk_that_is_open_for_writing_keeps_its_instance() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    let vm = revision.instance(vms.join("1")).unwrap();
    let disk = OpenOptions::new().write(true).open(vm.path().join("rootfs.ext4")).unwrap();
    let refused = store.remove_instance(vm.path(), Removal::Unused);
    assert_error(refused, ErrorKind::Refused, &["1/rootfs.ext4", "--force"]);
    assert!(vm.path().join("instance.json").exists());
    store.remove_instance(vm.path(), Removal::Forced).unwrap();
    drop(disk);
    assert_eq!(names(&vms), [""; 0]);
}

#[test]
fn a_damaged_revision_gives_no_instance() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    fs::remove_file(revision.kernel()).unwrap();
    assert_error(revision.instance(vms.join("1")), ErrorKind::Damaged, &["vmlinux", "missing"]);
    assert_eq!(names(&vms), [""; 0]);
}

#[test]
fn a_configuration_that_names_what_is_not_there_is_refused() {
    let place = Place::new();
    let store = place.store();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "a");
    fs::write(draft.path().join("fc-base.json"), r#"{ "drives": [{ "drive_id": "d", "path_on_host": "d.img" }] }"#)
        .unwrap();
    let revision = draft.seal().unwrap().publish().unwrap();
    assert_error(revision.instance(place.join("1")), ErrorKind::Failed, &["fc-base.json", "drive d", "d.img"]);
    let with_disk = InstanceOptions::default().data_disk_mib(8u32);
    let vm = revision.instance_with(place.join("1"), &with_disk, &mut ()).unwrap();
    assert_eq!(
        fs::metadata(vm.path().join("d.img")).unwrap().len(),
        8 << 20,
        "the data disk has the name it was given"
    );
}

#[test]
fn files_are_given_away_and_the_stores_stay_what_they_are() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let given = InstanceOptions::default().owner(Owner { uid: 12_345, gid: 23_456 });
    let vm = match revision.instance_with(vms.join("1"), &given, &mut ()) {
        Err(error) if !rustix::process::geteuid().is_root() => {
            assert!(matches!(error, Error::CannotGive { .. }), "{error}");
            assert_eq!(names(&vms), [""; 0]);
            println!("files are given away only by root: the rest is not tried");
            return;
        }
        made => made.unwrap(),
    };
    for entry in walkdir::WalkDir::new(vm.path()) {
        let (entry, owner) = (entry.unwrap(), |m: fs::Metadata| (m.uid(), m.gid()));
        assert_eq!(owner(entry.metadata().unwrap()), (12_345, 23_456), "{}", entry.path().display());
    }
    assert!(vm.files().iter().all(|file| file.strategy != Strategy::HardLink), "a link has one owner with the store's");
    assert_eq!(fs::metadata(revision.kernel()).unwrap().uid(), 0);
    assert_right(&revision);
}

#[test]
fn a_repair_takes_the_bytes_that_only_an_instance_has_left() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    revision.instance(vms.join("1")).unwrap();
    let (kernel, object) = (revision.kernel(), object_of(store.layout(), &revision.kernel()));
    fs::remove_file(&object).unwrap();
    fs::remove_file(&kernel).unwrap();
    let repaired = store.repair(&VerifyOptions::default(), &mut ()).unwrap();
    assert!(repaired.remaining.is_empty(), "{:?}", repaired.remaining);
    assert!(repaired.mended.iter().any(|mended| mended.path == kernel && mended.how.contains("vms/1/vmlinux")));
    assert_right(&revision);
    assert_ne!(inode(&kernel), inode(vms.join("1/vmlinux")), "whoever has the instance may change its file");
    drop(revision);
    assert_sound(&store);
}
