//! Instances: private disks, everything else read-only, and nothing half at their place.

mod beside;
mod files;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use template_store::gc::Policy;
use template_store::{
    Error, ErrorKind, Instance, InstanceOptions, Owner, Reflink, Removal, Result, Revision, Severity, Store, Strategy,
    VerifyOptions,
};

use crate::gc::{blocks, counts_exactly};
use crate::sound::assert_sound;
use crate::support::{
    Place, assert_error, assert_right, build, bytes, draft, id, image, inode, inputs, names, object_of, on_disk,
    read_json, script, when_free,
};

/// A store with a revision of `web`, and a directory `vms` for instances of it.
struct World {
    place: Place,
    store: Store,
    revision: Revision,
    vms: Utf8PathBuf,
}

impl World {
    fn new() -> World {
        World::of(Place::store)
    }

    fn of(store: fn(&Place) -> Store) -> World {
        let place = Place::new();
        let store = store(&place);
        let revision = build(&store, "web", &inputs("a"), "a");
        let vms = place.join("vms");
        fs::create_dir(&vms).unwrap();
        World { place, store, revision, vms }
    }

    /// Another revision of `web`: an image that something more was done to.
    fn revision_with(&self, lock: &str, change: impl FnOnce(&Utf8Path)) -> Revision {
        let draft = draft(&self.store, "web", &inputs(lock));
        image(draft.path(), "a");
        change(draft.path());
        draft.seal().unwrap().publish().unwrap()
    }

    /// Another revision of `web`, with two more disks and this Firecracker configuration.
    fn configured(&self, lock: &str, config: &str) -> Revision {
        self.revision_with(lock, |dir| {
            fs::create_dir(dir.join("disks")).unwrap();
            fs::write(dir.join("disks/state.img"), bytes("state", 100_000)).unwrap();
            fs::write(dir.join("usr.img"), bytes("usr", 70_000)).unwrap();
            fs::write(dir.join("fc-base.json"), config).unwrap();
        })
    }

    fn instance(&self, name: &str) -> Result<Instance> {
        self.revision.instance(self.vms.join(name))
    }

    fn instance_with(&self, name: &str, options: &InstanceOptions) -> Result<Instance> {
        self.revision.instance_with(self.vms.join(name), options, &mut ())
    }

    #[track_caller]
    fn assert_instances(&self, expected: &[&str]) {
        assert_eq!(names(&self.vms), expected, "what is in {}", self.vms);
    }
}

fn strategy(instance: &Instance, name: &str) -> Strategy {
    instance.files().iter().find(|file| file.path.as_str() == name).expect("it is listed").strategy
}

fn config(instance: &Instance) -> Value {
    read_json(instance.config())
}

fn mode(path: impl AsRef<Utf8Path>) -> u32 {
    fs::metadata(path.as_ref()).unwrap().mode() & 0o7777
}

fn with_data_disk(mib: u32) -> InstanceOptions {
    InstanceOptions::default().data_disk_mib(mib)
}

fn given_to(uid: u32, gid: u32) -> InstanceOptions {
    InstanceOptions::default().owner(Owner { uid, gid })
}

#[test]
fn an_instance_has_every_file_and_a_configuration_with_absolute_paths() {
    let world = World::new();
    let (vm, dir) = (world.instance("1").unwrap(), world.vms.join("1"));
    assert_eq!(vm.path(), dir);
    for content in world.revision.contents() {
        let (ours, theirs) = (dir.join(content.path.as_path()), world.revision.artifact(&content.path));
        assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "the bytes of {ours}");
    }
    let config = config(&vm);
    assert_eq!(config["boot-source"]["kernel_image_path"], dir.join("vmlinux").as_str());
    let root = config["drives"].as_array().unwrap().iter().find(|drive| drive["is_root_device"] == true).unwrap();
    assert_eq!(root["path_on_host"], dir.join("rootfs.ext4").as_str());
    let record = read_json(dir.join("instance.json"));
    let revision = world.revision.id().as_str();
    assert_eq!((record["template"].as_str(), record["revision"].as_str()), (Some("web"), Some(revision)));
    world.assert_instances(&["1"]);
}

#[test]
fn the_disk_is_private_and_all_else_is_the_stores_own_inode_and_read_only() {
    let world = World::new();
    let [vm, other] = ["1", "2"].map(|name| world.instance(name).unwrap());
    for name in ["vmlinux", "fc-base.json"] {
        assert_eq!(strategy(&vm, name), Strategy::HardLink);
        assert_eq!(inode(vm.path().join(name)), inode(world.revision.path().join(name)), "{name}");
        assert_eq!(mode(vm.path().join(name)), 0o444, "{name}");
    }
    let disk = vm.path().join("rootfs.ext4");
    assert_ne!(inode(&disk), inode(world.revision.rootfs()));
    assert_eq!((mode(vm.path()), mode(&disk)), (0o700, 0o600), "nobody else looks into it");

    let published = fs::read(world.revision.rootfs()).unwrap();
    OpenOptions::new().write(true).open(disk).unwrap().write_all_at(b"written by a VM", 5).unwrap();
    assert!(fs::read(other.path().join("rootfs.ext4")).unwrap() == published, "what a VM writes is its own");
    assert_right(&world.revision);
}

#[test]
fn every_disk_that_a_vm_may_write_to_is_private() {
    let world = World::new();
    let base = r#"{ "drives": [
        { "drive_id": "state", "path_on_host": "disks/state.img", "is_root_device": false, "is_read_only": false },
        { "drive_id": "usr", "path_on_host": "usr.img", "is_root_device": false, "is_read_only": true }
    ] }"#;
    let revision = world.configured("drives", base);
    let vm = revision.instance(world.vms.join("1")).unwrap();
    assert_ne!(strategy(&vm, "disks/state.img"), Strategy::HardLink);
    assert_eq!(strategy(&vm, "usr.img"), Strategy::HardLink);
    File::options().write(true).open(vm.path().join("disks/state.img")).unwrap().write_all_at(b"x", 0).unwrap();
    assert_right(&revision);
    assert_eq!(config(&vm)["drives"][0]["path_on_host"], vm.path().join("rootfs.ext4").as_str(), "the root is added");
}

#[test]
fn holes_stay_holes() {
    let world = World::new();
    let revision = world.revision_with("holes", |dir| {
        let disk = File::create(dir.join("rootfs.ext4")).unwrap();
        disk.set_len(256 << 20).unwrap();
        for at in [0, 77 << 20, 200 << 20] {
            disk.write_all_at(&bytes("some", 300_000), at).unwrap();
        }
    });
    let vm = revision.instance_with(world.vms.join("1"), &with_data_disk(512), &mut ()).unwrap();
    let (ours, theirs) = (on_disk(vm.path().join("rootfs.ext4")), on_disk(revision.rootfs()));
    assert!(ours <= theirs + (64 << 10), "{ours} bytes of blocks, where the template has {theirs}");
    let data = fs::metadata(vm.path().join("data.img")).unwrap();
    assert_eq!((data.len(), data.blocks()), (512 << 20, 0), "an empty disk takes nothing");
}

#[test]
fn the_data_disk_is_the_one_of_the_definition_unless_said_otherwise() {
    let place = Place::new();
    place.build("web", "a", &["--data-disk", "64"], &script("a")).with_code(0);
    let cases: [(&[&str], _); 3] = [(&[], Some(64)), (&["--extra-disk", "3"], Some(3)), (&["--extra-disk", "0"], None)];
    for (number, (more, mib)) in cases.into_iter().enumerate() {
        let vm = place.join(&number.to_string());
        place.done(&[&["instance", "web", vm.as_str()], more].concat());
        let len = fs::metadata(vm.join("data.img")).map(|metadata| metadata.len() >> 20).ok();
        assert_eq!(len, mib, "{more:?}");
    }
}

#[test]
fn where_an_instance_can_not_be_nothing_is_made() {
    let world = World::new();
    let (store, vms) = (&world.store, &world.vms);
    fs::create_dir(vms.join("taken")).unwrap();
    fs::write(vms.join("file"), "mine").unwrap();
    std::os::unix::fs::symlink("nowhere", vms.join("link")).unwrap();
    for name in ["taken", "file", "link"] {
        assert_error(world.instance(name), ErrorKind::Refused, &[vms.join(name).as_str(), "exists already"]);
    }
    let cases: [(_, &[&str]); 5] = [
        (vms.join("no/vm"), &["no/vm", "make that first"]),
        (vms.join("file/vm"), &["file"]),
        (store.layout().root().join("vm"), &["in the store"]),
        (store.layout().templates().join("vm"), &["in the store"]),
        ("/".into(), &["has no name"]),
    ];
    for (dest, words) in cases {
        assert_error(world.revision.instance(dest), ErrorKind::Failed, words);
    }
    fs::remove_file(world.revision.kernel()).unwrap();
    assert_error(world.instance("1"), ErrorKind::Damaged, &["vmlinux", "missing"]);
    assert_eq!(fs::read_to_string(vms.join("file")).unwrap(), "mine");
    world.assert_instances(&["file", "link", "taken"]);
    assert!(store.instances().unwrap().is_empty());
}

#[test]
fn what_is_no_clone_is_refused_when_clones_are_required() {
    let world = World::new();
    match world.instance_with("1", &InstanceOptions::default().reflink(Reflink::Require)) {
        Ok(vm) => assert_eq!(strategy(&vm, "rootfs.ext4"), Strategy::Reflink),
        Err(error @ Error::CannotClone { .. }) => {
            assert!(error.to_string().contains("can't share blocks"), "{error}");
            world.assert_instances(&[]);
            let (vm, size) = (world.instance("1").unwrap(), on_disk(world.revision.rootfs()));
            assert!(matches!(strategy(&vm, "rootfs.ext4"), Strategy::Copy { bytes } if bytes <= size + (64 << 10)));
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_instance_keeps_what_it_has_when_its_revision_goes() {
    let world = World::new();
    let vm = world.instance("1").unwrap();
    let World { place, store, revision, .. } = world;
    let (kernel, disk) = (fs::read(revision.kernel()).unwrap(), fs::read(revision.rootfs()).unwrap());
    let object = object_of(store.layout(), &revision.kernel());
    let (id_of_it, kernel_size) = (revision.id().clone(), on_disk(revision.kernel()));
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
    assert!(fs::read(vm.path().join("vmlinux")).unwrap() == kernel, "the instance keeps its kernel");
    assert!(fs::read(vm.path().join("rootfs.ext4")).unwrap() == disk, "the instance keeps its disk");
    assert!(object.exists(), "an instance has it");
    let (plan, _) = store.gc(&policy, &mut ()).unwrap();
    assert!(plan.is_empty(), "{plan:?}");
    store.remove_instance(vm.path(), Removal::Unused).unwrap();
    assert!(!object.exists(), "nobody has it any more");
    assert_sound(&store);
}

#[test]
fn instances_are_listed_until_they_are_gone() {
    let world = World::new();
    let (place, store) = (&world.place, &world.store);
    let [one, two] = ["1", "2"].map(|name| world.instance(name).unwrap());
    assert_eq!(store.instances().unwrap(), [one.clone(), two.clone()]);
    let json = place.done(&["--json", "instance", "list"]).json();
    assert_eq!(json["instances"][1]["path"], two.path().as_str());
    place.done(&["instance", "rm", one.path().as_str()]);
    world.assert_instances(&["2"]);
    // One that somebody else removes leaves a note, which a collection takes.
    fs::remove_dir_all(two.path()).unwrap();
    assert!(store.instances().unwrap().is_empty());
    let findings = || store.verify(&VerifyOptions::default(), &mut ()).unwrap().findings;
    let found = findings();
    assert!(matches!(&found[..], [finding] if finding.severity == Severity::Note), "{found:?}");
    let (_, report) = store.gc(&Policy::default(), &mut ()).unwrap();
    assert_eq!(report.swept.len(), 1, "{report:?}");
    assert_eq!(names(store.layout().instances()), [""; 0]);
    assert!(findings().is_empty());
}

#[test]
fn only_an_instance_of_this_store_is_removed() {
    let world = World::new();
    let (store, vms) = (&world.store, &world.vms);
    let vm = world.instance("1").unwrap();
    fs::create_dir(vms.join("mine")).unwrap();
    std::os::unix::fs::symlink(vm.path(), vms.join("link")).unwrap();
    let other = Store::open_or_init(world.place.join("other")).unwrap();
    let cases: [(_, _, _, &[&str]); 4] = [
        (store, "mine", ErrorKind::Refused, &["mine", "instance.json"]),
        (store, "none", ErrorKind::NotFound, &["nothing at"]),
        (store, "link", ErrorKind::Refused, &["symbolic link"]),
        (&other, "1", ErrorKind::Refused, &["another store"]),
    ];
    for (store, name, kind, words) in cases {
        assert_error(store.remove_instance(vms.join(name), Removal::Forced), kind, words);
    }
    assert_eq!(store.instances().unwrap().len(), 1);
}

#[test]
fn a_disk_that_is_open_for_writing_keeps_its_instance() {
    let world = World::new();
    let vm = world.instance("1").unwrap();
    let disk = OpenOptions::new().write(true).open(vm.path().join("rootfs.ext4")).unwrap();
    let refused = world.store.remove_instance(vm.path(), Removal::Unused);
    assert_error(refused, ErrorKind::Refused, &["1/rootfs.ext4", "--force"]);
    assert!(vm.path().join("instance.json").exists());
    world.store.remove_instance(vm.path(), Removal::Forced).unwrap();
    drop(disk);
    world.assert_instances(&[]);
}

#[test]
fn a_configuration_that_names_what_is_not_there_is_refused() {
    let world = World::new();
    let revision = world.configured("d", r#"{ "drives": [{ "drive_id": "d", "path_on_host": "d.img" }] }"#);
    let dest = world.vms.join("1");
    assert_error(revision.instance(&dest), ErrorKind::Failed, &["fc-base.json", "drive d", "d.img"]);
    let vm = revision.instance_with(&dest, &with_data_disk(8), &mut ()).unwrap();
    let len = fs::metadata(vm.path().join("d.img")).unwrap().len();
    assert_eq!(len, 8 << 20, "the data disk has the name it was given");
}

#[test]
fn files_are_given_away_and_the_stores_stay_what_they_are() {
    let world = World::new();
    let vm = match world.instance_with("1", &given_to(12_345, 23_456)) {
        Err(error) if !rustix::process::geteuid().is_root() => {
            assert!(matches!(error, Error::CannotGive { .. }), "{error}");
            world.assert_instances(&[]);
            println!("files are given away only by root: the rest is not tried");
            return;
        }
        made => made.unwrap(),
    };
    for entry in walkdir::WalkDir::new(vm.path()).into_iter().map(|entry| entry.unwrap()) {
        let metadata = entry.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (12_345, 23_456), "{}", entry.path().display());
    }
    assert!(vm.files().iter().all(|file| file.strategy != Strategy::HardLink), "a link has one owner with the store's");
    assert_eq!(fs::metadata(world.revision.kernel()).unwrap().uid(), 0);
    assert_right(&world.revision);
}

#[test]
fn a_repair_takes_the_bytes_that_only_an_instance_has_left() {
    let world = World::new();
    world.instance("1").unwrap();
    let World { store, revision, vms, place: _place } = world;
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
