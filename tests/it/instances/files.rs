//! What the files of an instance are: private where a VM may write, whatever the revision and its configuration say.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use camino::Utf8Path;
use template_store::{Error, ErrorKind, Instance, InstanceOptions, Owner, Reflink, Revision, Store, Strategy};

use super::{config, strategy, with_image};
use crate::support::{Place, assert_error, draft, id, image, inode, inputs, names};

/// Makes a revision one that mvm published: its files are as its builder left them, and nobody has listed them.
fn unseal(revision: Revision, store: &Store) -> Revision {
    for content in revision.contents() {
        let path = revision.artifact(&content.path);
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    }
    let path = revision.path().join("revision.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record.as_object_mut().unwrap().remove("contents");
    fs::write(&path, record.to_string()).unwrap();
    store.revision(revision.template(), revision.id()).unwrap()
}

#[test]
fn an_instance_shares_no_file_that_is_not_sealed() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    let revision = unseal(revision, &store);
    let vm = revision.instance(vms.join("1")).unwrap();
    let kernel = fs::read(revision.kernel()).unwrap();
    for name in ["vmlinux", "fc-base.json"] {
        assert_ne!(strategy(&vm, name), Strategy::HardLink, "{name}");
        assert_ne!(inode(vm.path().join(name)), inode(revision.path().join(name)), "{name}");
        assert_eq!(fs::metadata(vm.path().join(name)).unwrap().mode() & 0o7777, 0o444, "{name}");
    }
    fs::set_permissions(vm.path().join("vmlinux"), Permissions::from_mode(0o644)).unwrap();
    fs::write(vm.path().join("vmlinux"), "what the VM's user wrote").unwrap();
    assert!(fs::read(revision.kernel()).unwrap() == kernel);
}

#[test]
fn a_file_that_is_written_to_is_refused_when_nobody_has_sealed_it() {
    let place = Place::new();
    let (store, revision, vms) = with_image(&place);
    let revision = unseal(revision, &store);
    for name in ["rootfs.ext4", "vmlinux"] {
        let writer = OpenOptions::new().write(true).open(revision.path().join(name)).unwrap();
        assert_error(revision.instance(vms.join("1")), ErrorKind::Refused, &[name, "open for writing", "stop the VM"]);
        assert_eq!(names(&vms), [""; 0]);
        drop(writer);
    }
    revision.instance(vms.join("1")).unwrap();
}

/// A revision with this Firecracker configuration.
fn configured(store: &Store, lock: &str, config: &str) -> Revision {
    let draft = draft(store, "web", &inputs(lock));
    image(draft.path(), "a");
    fs::write(draft.path().join("usr.img"), crate::support::bytes("usr", 70_000)).unwrap();
    fs::write(draft.path().join("fc-base.json"), config).unwrap();
    draft.seal().unwrap().publish().unwrap()
}

/// The drive `d` alone.
fn with_drive(path: &Utf8Path, more: &str) -> String {
    format!(r#"{{ "drives": [{{ "drive_id": "d", "path_on_host": "{path}", "is_root_device": false{more} }}] }}"#)
}

#[test]
fn no_two_vms_write_to_a_file_of_the_host() {
    let place = Place::new();
    let (store, other, vms) = with_image(&place);
    fs::write(place.join("shared.img"), "of the host").unwrap();
    std::os::unix::fs::symlink(other.rootfs(), place.join("link.img")).unwrap();
    let paths = [place.join("shared.img"), place.join("missing.img"), place.join("link.img"), other.rootfs()];
    for (number, path) in paths.iter().enumerate() {
        for (how, more) in [("missing", ""), ("false", r#", "is_read_only": false"#)] {
            let revision = configured(&store, &format!("{number}-{how}"), &with_drive(path, more));
            let refused = revision.instance(vms.join("1"));
            let words =
                ["drive d", path.as_str(), if number < 2 { "every VM" } else { "of the store" }, "relative path"];
            assert_error(refused, ErrorKind::Failed, &words);
        }
    }
    let pmem = format!(r#"{{ "pmem": [{{ "id": "p", "path_on_host": "{}" }}] }}"#, paths[0]);
    assert_error(configured(&store, "p", &pmem).instance(vms.join("1")), ErrorKind::Failed, &["drive p", "every VM"]);
    assert_eq!(names(&vms), [""; 0]);

    let read_only = configured(&store, "r", &with_drive(&paths[0], r#", "is_read_only": true"#));
    let vm = read_only.instance(vms.join("1")).unwrap();
    assert_eq!(config(&vm)["drives"][1]["path_on_host"], paths[0].as_str());
}

#[test]
fn a_block_device_of_the_host_is_left_as_it_is() {
    let is_device = |path: &fs::DirEntry| std::os::unix::fs::FileTypeExt::is_block_device(&path.file_type().unwrap());
    let devices = fs::read_dir("/dev").unwrap().map(Result::unwrap);
    let Some(device) = devices.filter(is_device).find_map(|device| device.path().into_os_string().into_string().ok())
    else {
        println!("there is no block device here: not tried");
        return;
    };
    let place = Place::new();
    let (store, _revision, vms) = with_image(&place);
    let revision = configured(&store, "d", &with_drive(Utf8Path::new(&device), ""));
    let vm = revision.instance(vms.join("1")).unwrap();
    assert_eq!(config(&vm)["drives"][1]["path_on_host"], device);
}

#[test]
fn the_data_disk_has_an_id_that_no_other_drive_has() {
    let place = Place::new();
    let (store, _revision, vms) = with_image(&place);
    let base = r#"{ "drives": [{ "drive_id": "data", "path_on_host": "usr.img", "is_root_device": false }] }"#;
    let options = InstanceOptions::default().data_disk_mib(8u32);
    let vm = configured(&store, "data", base).instance_with(vms.join("1"), &options, &mut ()).unwrap();
    let drives = config(&vm)["drives"].as_array().unwrap().clone();
    let drives: Vec<_> =
        drives.iter().map(|drive| (drive["drive_id"].clone(), drive["path_on_host"].clone())).collect();
    let path = |name: &str| vm.path().join(name).into_string().into();
    let expected = [("rootfs", "rootfs.ext4"), ("data", "usr.img"), ("data_2", "data.img")];
    assert_eq!(drives, expected.map(|(id, name)| (id.into(), path(name))));
}

#[test]
fn a_data_disk_with_a_name_that_can_not_be_is_refused() {
    let place = Place::new();
    let (store, _revision, vms) = with_image(&place);
    let options = InstanceOptions::default().data_disk_mib(8u32);
    let cases = [
        ("snapshot/data.img", "reserved"),
        ("revision.json", "reserved"),
        ("a\\u0007b", "control character"),
        ("fc.json", "in the place of fc.json"),
        ("fc.json/d", "in the place of fc.json"),
        ("instance.json", "instance.json"),
    ];
    for (name, problem) in cases {
        let revision = configured(&store, &name.replace(['/', '\\'], "-"), &with_drive(Utf8Path::new(name), ""));
        let refused = revision.instance_with(vms.join("1"), &options, &mut ());
        assert_error(refused, ErrorKind::Failed, &[problem]);
    }
    assert_eq!(names(&vms), [""; 0]);
}

#[test]
fn no_user_has_the_largest_number() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        let given = InstanceOptions::default().owner(Owner { uid, gid });
        let refused = revision.instance_with(vms.join("1"), &given, &mut ());
        assert_error(refused, ErrorKind::Invalid, &["4294967295", "not a valid user id"]);
    }
    let words = ["instance", "web", vms.join("1").as_str(), "--owner", "4294967295:0"].map(str::to_owned);
    place.run(&words.each_ref().map(String::as_str)).with_code(2);
    assert_eq!(names(&vms), [""; 0]);
}

/// Makes an instance that must share its blocks, and says how it went.
fn required(revision: &Revision, dest: &Utf8Path) -> Result<Instance, Error> {
    revision.instance_with(dest, &InstanceOptions::default().reflink(Reflink::Require), &mut ())
}

#[test]
fn a_clone_is_tried_where_another_device_is_named() {
    let place = Place::new();
    let (_store, revision, vms) = with_image(&place);
    let volume = vms.join("volume");
    let made = Command::new("btrfs").args(["subvolume", "create", volume.as_str()]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        println!("there is no btrfs here: not tried");
        return;
    }
    assert_eq!(strategy(&required(&revision, &volume.join("1")).unwrap(), "rootfs.ext4"), Strategy::Reflink);
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn what_can_not_be_cloned_to_another_file_system_is_refused() {
    let place = Place::new();
    let (_store, revision, _vms) = with_image(&place);
    let device = |path: &str| fs::metadata(path).map(|found| found.dev()).ok();
    let other = ["/dev/shm", "/tmp", "/var/tmp"].into_iter().find(|dir| {
        device(dir).is_some_and(|found| Some(found) != device(place.path().as_str()))
            && tempfile::tempdir_in(dir).is_ok()
    });
    let Some(other) = other else {
        println!("there is one file system only: not tried");
        return;
    };
    let dir = tempfile::tempdir_in(other).unwrap();
    let vms = Utf8Path::from_path(dir.path()).unwrap();
    assert_error(required(&revision, &vms.join("1")), ErrorKind::Refused, &["clone", "--require-reflink"]);
    assert_eq!(names(vms), [""; 0]);
    assert_eq!(strategy(&revision.instance(vms.join("1")).unwrap(), "vmlinux"), Strategy::Copy { bytes: 128 << 10 });
}

#[test]
fn a_removal_says_what_instances_keep_of_what_it_removed() {
    let place = Place::new();
    let (store, first, vms) = with_image(&place);
    let kernel = fs::metadata(first.kernel()).unwrap().blocks() * 512;
    let config = fs::metadata(first.fc_base_config()).unwrap().blocks() * 512;
    let vm = first.instance(vms.join("1")).unwrap();
    first.instance(vms.join("2")).unwrap();
    let (one, two) = (first.id().clone(), crate::support::build(&store, "web", &inputs("b"), "b").id().clone());
    drop(first);
    let target = format!("web@{one}");
    let removed = place.done_when_free(&["rm", &target, "--json"]).json();
    assert_eq!(removed, serde_json::json!({ "removed": target, "held_by_instances": kernel + config }));
    assert!(vm.path().join("vmlinux").exists());
    let revision = store.revision(&id("web"), &two).unwrap();
    revision.instance(vms.join("3")).unwrap();
    drop(revision);
    let ran = place.done_when_free(&["rm", "web"]);
    assert!(ran.out.contains("stay for instances that have links to them"), "{}", ran.out);
}
