//! What the files of an instance are: private where a VM may write, whatever the revision and its configuration say.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::process::Command;

use camino::Utf8Path;
use template_store::{Error, ErrorKind, Instance, InstanceOptions, Reflink, Revision, Strategy};

use super::{World, config, given_to, mode, strategy, with_data_disk};
use crate::support::{assert_error, build, edit_json, id, inode, inputs, names, on_disk};

/// A world whose revision is one that mvm published: its files are as its builder left them, and nobody has listed them.
fn unsealed() -> World {
    let mut world = World::new();
    let revision = &world.revision;
    for content in revision.contents() {
        let path = revision.artifact(&content.path);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    edit_json(revision.path().join("revision.json"), |record| {
        record.as_object_mut().unwrap().remove("contents");
    });
    world.revision = world.store.revision(revision.template(), revision.id()).unwrap();
    world
}

#[test]
fn an_instance_shares_no_file_that_is_not_sealed() {
    let world = unsealed();
    let vm = world.instance("1").unwrap();
    let kernel = fs::read(world.revision.kernel()).unwrap();
    for name in ["vmlinux", "fc-base.json"] {
        assert_ne!(strategy(&vm, name), Strategy::HardLink, "{name}");
        assert_ne!(inode(vm.path().join(name)), inode(world.revision.path().join(name)), "{name}");
        assert_eq!(mode(vm.path().join(name)), 0o444, "{name}");
    }
    fs::set_permissions(vm.path().join("vmlinux"), Permissions::from_mode(0o644)).unwrap();
    fs::write(vm.path().join("vmlinux"), "what the VM's user wrote").unwrap();
    assert!(fs::read(world.revision.kernel()).unwrap() == kernel);
}

#[test]
fn a_file_that_is_written_to_is_refused_when_nobody_has_sealed_it() {
    let world = unsealed();
    for name in ["rootfs.ext4", "vmlinux"] {
        let _writer = OpenOptions::new().write(true).open(world.revision.path().join(name)).unwrap();
        assert_error(world.instance("1"), ErrorKind::Refused, &[name, "open for writing", "stop the VM"]);
        world.assert_instances(&[]);
    }
    world.instance("1").unwrap();
}

/// The drive `d` alone.
fn with_drive(path: &Utf8Path, more: &str) -> String {
    format!(r#"{{ "drives": [{{ "drive_id": "d", "path_on_host": "{path}", "is_root_device": false{more} }}] }}"#)
}

#[test]
fn no_two_vms_write_to_a_file_of_the_host() {
    let world = World::new();
    let (vm, rootfs) = (world.vms.join("1"), world.revision.rootfs());
    let [shared, missing, link] = ["shared.img", "missing.img", "link.img"].map(|name| world.place.join(name));
    fs::write(&shared, "of the host").unwrap();
    std::os::unix::fs::symlink(&rootfs, &link).unwrap();
    let cases = [(&shared, "every VM"), (&missing, "every VM"), (&link, "of the store"), (&rootfs, "of the store")];
    for (number, (path, whose)) in cases.into_iter().enumerate() {
        for (how, more) in [("missing", ""), ("false", r#", "is_read_only": false"#)] {
            let revision = world.configured(&format!("{number}-{how}"), &with_drive(path, more));
            let words = ["drive d", path.as_str(), whose, "relative path"];
            assert_error(revision.instance(&vm), ErrorKind::Failed, &words);
        }
    }
    let pmem = format!(r#"{{ "pmem": [{{ "id": "p", "path_on_host": "{shared}" }}] }}"#);
    assert_error(world.configured("p", &pmem).instance(&vm), ErrorKind::Failed, &["drive p", "every VM"]);
    world.assert_instances(&[]);

    let read_only = world.configured("r", &with_drive(&shared, r#", "is_read_only": true"#));
    assert_eq!(config(&read_only.instance(vm).unwrap())["drives"][1]["path_on_host"], shared.as_str());
}

#[test]
fn a_block_device_of_the_host_is_left_as_it_is() {
    let mut devices = fs::read_dir("/dev").unwrap().map(Result::unwrap);
    let Some(device) = devices.find(|device| device.file_type().unwrap().is_block_device()) else {
        println!("there is no block device here: not tried");
        return;
    };
    let device = device.path().into_os_string().into_string().unwrap();
    let world = World::new();
    let revision = world.configured("d", &with_drive(Utf8Path::new(&device), ""));
    let vm = revision.instance(world.vms.join("1")).unwrap();
    assert_eq!(config(&vm)["drives"][1]["path_on_host"], device);
}

#[test]
fn the_data_disk_has_an_id_that_no_other_drive_has() {
    let world = World::new();
    let base = r#"{ "drives": [{ "drive_id": "data", "path_on_host": "usr.img", "is_root_device": false }] }"#;
    let revision = world.configured("data", base);
    let vm = revision.instance_with(world.vms.join("1"), &with_data_disk(8), &mut ()).unwrap();
    let config = config(&vm);
    let drives = config["drives"].as_array().unwrap().iter();
    let drives: Vec<_> = drives.map(|drive| (drive["drive_id"].clone(), drive["path_on_host"].clone())).collect();
    let path = |name: &str| vm.path().join(name).into_string().into();
    let expected = [("rootfs", "rootfs.ext4"), ("data", "usr.img"), ("data_2", "data.img")];
    assert_eq!(drives, expected.map(|(id, name)| (id.into(), path(name))));
}

#[test]
fn a_data_disk_with_a_name_that_can_not_be_is_refused() {
    let world = World::new();
    let cases = [
        ("snapshot/data.img", "reserved"),
        ("revision.json", "reserved"),
        ("a\\u0007b", "control character"),
        ("fc.json", "in the place of fc.json"),
        ("fc.json/d", "in the place of fc.json"),
        ("instance.json", "instance.json"),
    ];
    for (name, problem) in cases {
        let revision = world.configured(&name.replace(['/', '\\'], "-"), &with_drive(Utf8Path::new(name), ""));
        let refused = revision.instance_with(world.vms.join("1"), &with_data_disk(8), &mut ());
        assert_error(refused, ErrorKind::Failed, &[problem]);
    }
    world.assert_instances(&[]);
}

#[test]
fn no_user_has_the_largest_number() {
    let world = World::new();
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        let refused = world.instance_with("1", &given_to(uid, gid));
        assert_error(refused, ErrorKind::Invalid, &["4294967295", "not a valid user id"]);
    }
    world.place.run(&["instance", "web", world.vms.join("1").as_str(), "--owner", "4294967295:0"]).with_code(2);
    world.assert_instances(&[]);
}

/// Makes an instance that must share its blocks, and says how it went.
fn required(revision: &Revision, dest: &Utf8Path) -> Result<Instance, Error> {
    revision.instance_with(dest, &InstanceOptions::default().reflink(Reflink::Require), &mut ())
}

#[test]
fn a_clone_is_tried_where_another_device_is_named() {
    let world = World::new();
    let volume = world.vms.join("volume");
    let made = Command::new("btrfs").args(["subvolume", "create", volume.as_str()]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("there is no btrfs here: not tried");
        return;
    }
    assert_eq!(strategy(&required(&world.revision, &volume.join("1")).unwrap(), "rootfs.ext4"), Strategy::Reflink);
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn what_can_not_be_cloned_to_another_file_system_is_refused() {
    let World { place, revision, .. } = World::new();
    let device = |path: &str| fs::metadata(path).map(|found| found.dev()).ok();
    let is_another = |dir: &&str| device(dir).is_some_and(|found| Some(found) != device(place.path().as_str()));
    let others = ["/dev/shm", "/tmp", "/var/tmp"].into_iter().filter(is_another);
    let Some(dir) = others.filter_map(|dir| tempfile::tempdir_in(dir).ok()).next() else {
        println!("there is one file system only: not tried");
        return;
    };
    let vms = Utf8Path::from_path(dir.path()).unwrap();
    assert_error(required(&revision, &vms.join("1")), ErrorKind::Refused, &["clone", "--require-reflink"]);
    assert_eq!(names(vms), [""; 0]);
    assert_eq!(strategy(&revision.instance(vms.join("1")).unwrap(), "vmlinux"), Strategy::Copy { bytes: 128 << 10 });
}

#[test]
fn a_removal_says_what_instances_keep_of_what_it_removed() {
    let world = World::new();
    let [vm, _] = ["1", "2"].map(|name| world.instance(name).unwrap());
    let World { place, store, revision: first, vms } = world;
    let shared = on_disk(first.kernel()) + on_disk(first.fc_base_config());
    let (one, two) = (first.id().clone(), build(&store, "web", &inputs("b"), "b").id().clone());
    drop(first);
    let target = format!("web@{one}");
    let removed = place.done_when_free(&["rm", &target, "--json"]).json();
    assert_eq!(removed, serde_json::json!({ "removed": target, "held_by_instances": shared }));
    assert!(vm.path().join("vmlinux").exists());
    store.revision(&id("web"), &two).unwrap().instance(vms.join("3")).unwrap();
    let ran = place.done_when_free(&["rm", "web"]);
    assert!(ran.out.contains("stay for instances that have links to them"), "{}", ran.out);
}
