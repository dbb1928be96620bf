//! What lies beside an instance while it is made or removed, what only looks like that, and what is mounted in one.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{ErrorKind, InstanceOptions, Removal, Result, Store, StoreOptions};

use super::{World, given_to};
use crate::support::{Place, assert_error, build, id, inputs, names, program, until};

/// A directory as a process leaves it that dies while it makes an instance.
fn half_made(vms: &Utf8Path, name: &str) -> Utf8PathBuf {
    let dir = vms.join(name);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o1700)).unwrap();
    fs::write(dir.join("rootfs.ext4"), "half").unwrap();
    dir
}

#[test]
fn what_the_dead_left_goes_with_the_next_and_what_the_living_make_stays() {
    let world = World::new();
    half_made(&world.vms, ".template-store-9.dead00000000");
    let alive = half_made(&world.vms, ".template-store-9.alive0000000");
    let lock = File::open(&alive).unwrap();
    fs2::FileExt::lock_shared(&lock).unwrap();
    world.instance("1").unwrap();
    world.assert_instances(&[".template-store-9.alive0000000", "1"]);
}

#[test]
fn what_only_has_such_a_name_is_not_touched() {
    let place = Place::new();
    let vms = place.join("vms");
    fs::create_dir(&vms).unwrap();
    // A store, what a user keeps, and names that are those of half-made instances but for what makes them ours.
    let store = Store::open_or_init(vms.join(".template-store-main")).unwrap();
    let revision = build(&store, "web", &inputs("a"), "a");
    for name in [".template-store-backup", ".template-store-vm.20261127abcd", ".template-store-x.aB3dE6gH9jK2"] {
        fs::create_dir(vms.join(name)).unwrap();
        fs::write(vms.join(name).join("precious"), "mine").unwrap();
    }
    fs::set_permissions(vms.join(".template-store-x.aB3dE6gH9jK2"), Permissions::from_mode(0o700)).unwrap();
    half_made(&vms, ".template-store-tmp");
    let before = names(&vms);
    let vm = revision.instance(vms.join("vm")).unwrap();
    store.remove_instance(vm.path(), Removal::Unused).unwrap();
    assert_eq!(names(&vms), before);
    assert_eq!(fs::read(vms.join(".template-store-x.aB3dE6gH9jK2/precious")).unwrap(), b"mine");
    assert_eq!(Store::open(vms.join(".template-store-main")).unwrap().current(&id("web")).unwrap().id(), revision.id());
}

#[test]
fn an_instance_may_not_look_half_made() {
    let world = World::new();
    let refused = world.instance(".template-store-vm1");
    assert_error(refused, ErrorKind::Failed, &["vms/.template-store-vm1", "choose another"]);
    world.assert_instances(&[]);
}

/// A process that dies before one of its steps: neither that one nor any after it is taken.
#[derive(Debug)]
struct Dying {
    left: AtomicUsize,
}

impl Observer for Dying {
    fn before(&self, _op: &Op) -> Verdict {
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Verdict::Proceed,
            Err(_) => Verdict::Fail(std::io::Error::other("it is dead")),
        }
    }
}

/// Dies before each step of something in turn, and makes an instance after each: nothing may be left beside that one.
fn nothing_is_left(
    place: &Place,
    vms: &Utf8Path,
    next: &InstanceOptions,
    act: impl Fn(&Store, &Utf8Path) -> Result<()>,
) {
    for steps in 0.. {
        assert!(steps < 200, "it comes to an end");
        let dying = Arc::new(Dying { left: AtomicUsize::new(steps) });
        let store = Store::open_with(place.root(), &StoreOptions::default().observer(dying)).unwrap();
        let done = act(&store, &vms.join("1")).is_ok();
        drop(store);
        let store = place.store();
        // A program that another test starts just now has the lock of the dead one until it runs.
        until(&format!("after {steps} steps, what is left goes"), || {
            let next = store.current(&id("web")).unwrap().instance_with(vms.join("2"), next, &mut ()).unwrap();
            let left = names(vms);
            store.remove_instance(next.path(), Removal::Unused).unwrap();
            (!left.iter().any(|name| name.starts_with('.'))).then_some(())
        });
        if done {
            return;
        }
        if vms.join("1").exists() {
            store.remove_instance(vms.join("1"), Removal::Unused).unwrap();
        }
        assert_eq!(names(vms), [""; 0]);
    }
}

#[test]
fn who_dies_while_an_instance_is_made_or_removed_leaves_what_the_next_takes_away() {
    let World { place, store, vms, .. } = World::of(Place::quick_store);
    let user = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // Root has given a part of it away by then.
    let (uid, gid) = if user.0 == 0 { (12_345, 23_456) } else { user };
    let default = InstanceOptions::default();
    for options in [default.clone(), given_to(uid, gid)] {
        nothing_is_left(&place, &vms, &default, |store, dest| {
            store.current(&id("web"))?.instance_with(dest, &options, &mut ()).map(drop)
        });
        store.remove_instance(vms.join("1"), Removal::Unused).unwrap();
        nothing_is_left(&place, &vms, &options, |dying, dest| {
            if !dest.exists() {
                store.current(&id("web"))?.instance_with(dest, &options, &mut ())?;
            }
            dying.remove_instance(dest, Removal::Unused)
        });
    }
}

#[test]
fn only_root_takes_away_what_is_somebody_elses() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can make what is somebody else's: not tried");
        return;
    }
    let world = World::new();
    let given = half_made(&world.vms, ".template-store-9.given0000000");
    chown(&given, Some(12_345), Some(23_456)).unwrap();
    world.instance("1").unwrap();
    world.assert_instances(&["1"]);
}

/// Runs a script that mounts `precious` where it should not be emptied; `None` where that is not allowed.
fn with_own_mounts(place: &Place, script: &str) -> Option<String> {
    fs::create_dir(place.join("precious")).unwrap();
    fs::write(place.join("precious/data"), "mine").unwrap();
    let root = rustix::process::geteuid().is_root();
    let more: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(more).arg("--mount").current_dir(place.path());
        command
    };
    let can = unshare().args(["sh", "-c", "mkdir -p a b && mount --bind a b"]).output();
    if !can.is_ok_and(|can| can.status.success()) {
        println!("mounts of one's own are not allowed here: not tried");
        return None;
    }
    let script = format!("store() {{ {} --store {} \"$@\" 2>&1; }}\n{script}", program(), place.root());
    let ran = unshare().args(["sh", "-c", &script]).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap() + &String::from_utf8(ran.stderr).unwrap();
    assert_eq!(fs::read(place.join("precious/data")).unwrap(), b"mine", "{said}");
    Some(said)
}

#[test]
fn what_is_mounted_in_an_instance_is_not_emptied() {
    let world = World::new();
    let (vm, dead) = (world.instance("1").unwrap(), half_made(&world.vms, ".template-store-9.dead00000000"));
    for dir in [vm.path().join("a share"), dead.join("share")] {
        fs::create_dir(dir).unwrap();
    }
    let script = "
        mount --bind precious 'vms/1/a share' && mount --bind precious vms/.template-store-9.dead00000000/share
        store instance rm vms/1; store instance rm vms/1 --force; store instance web vms/2
        umount 'vms/1/a share'; store instance rm vms/1";
    let Some(said) = with_own_mounts(&world.place, script) else { return };
    assert_eq!(said.matches("something is mounted at").count(), 2, "{said}");
    assert!(said.contains("vms/1/a share") && said.contains("removed vms/1"), "{said}");
    world.assert_instances(&[".template-store-9.dead00000000", "2"]);
}

#[test]
fn a_tree_is_not_deleted_beyond_what_is_mounted_in_it() {
    let world = World::new();
    fs::create_dir_all(world.store.layout().drafts().join("dead/share")).unwrap();
    let script = "mount --bind precious store/.store/drafts/dead/share; store gc";
    let Some(said) = with_own_mounts(&world.place, script) else { return };
    assert!(said.contains("something is mounted there"), "{said}");
}

/// Makes another instance where one was, as soon as it has its other name.
#[derive(Debug)]
struct Restarting {
    root: Utf8PathBuf,
    dest: Utf8PathBuf,
}

impl Observer for Restarting {
    fn after(&self, op: &Op, _outcome: Result<(), &std::io::Error>) {
        if matches!(op, Op::RenameNoReplace { from, .. } if *from == self.dest) {
            let store = Store::open(&self.root).unwrap();
            store.current(&id("web")).unwrap().instance(&self.dest).unwrap();
        }
    }
}

#[test]
fn who_removes_an_instance_leaves_the_note_of_the_next_one_there() {
    let world = World::new();
    let vm = world.instance("1").unwrap();
    let restarting = Restarting { root: world.place.root(), dest: vm.path().to_owned() };
    let options = StoreOptions::default().observer(Arc::new(restarting));
    Store::open_with(world.place.root(), &options).unwrap().remove_instance(vm.path(), Removal::Unused).unwrap();
    let paths: Vec<_> = world.store.instances().unwrap().iter().map(|vm| vm.path().to_owned()).collect();
    assert_eq!(paths, [vm.path()]);
}
