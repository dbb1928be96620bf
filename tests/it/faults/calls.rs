//! What callers do that no act of the power-cut model says, and what they may find.

use std::any::Any;
use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::XattrFlags;
use template_store::gc::Policy;
use template_store::{
    Activate, Build, Draft, Error, Import, ImportOptions, InstanceOptions, Note, Owner, PublishOptions, Removal,
    Revision, Start, Store, VerifyOptions,
};

use crate::powercut::acts::{Act, Place};
use crate::powercut::builds::{fill, id, inputs, revision, sealing};
use crate::powercut::mending::Work as Mending;
use crate::support::Heard;

/// Done, or what was said.
pub type Did = Result<(), String>;

type Alive = Box<dyn Any>;

/// What is said of an error.
pub fn said(error: Error) -> String {
    error.to_string()
}

fn store(place: &Place) -> Result<Store, String> {
    place.open().map_err(said)
}

fn web(place: &Place) -> Result<Revision, String> {
    store(place)?.current(&id("web")).map_err(said)
}

pub fn open(place: &Place) -> Did {
    store(place).map(drop)
}

/// Collects all but what is current, pinned, or the newest of its template; what could not be done is said.
pub fn collect(place: &Place) -> Did {
    let (_, report) = store(place)?.gc(&Policy::default().keep_last(1_u32), &mut ()).map_err(said)?;
    match report.skipped.is_empty() && report.failed.is_empty() {
        true => Ok(()),
        false => Err(format!("{:?} {:?}", report.skipped, report.failed)),
    }
}

fn new_draft(place: &Place, build: &str) -> Result<Draft, String> {
    let draft = store(place)?.rebuild(&id("web"), &inputs(build)).map_err(said)?;
    fill(draft.path(), build);
    Ok(draft)
}

/// Publishes; what could not be healed on the way is said.
fn publish(draft: Draft, build: &str) -> Did {
    let mut heard = Heard::default();
    let sealed = draft.seal_with(&sealing(build), &mut heard).map_err(said)?;
    sealed.publish_with(&PublishOptions::default(), &mut heard).map_err(said)?;
    all_healed(&heard)
}

fn all_healed(heard: &Heard) -> Did {
    match heard.notes.iter().find(|note| matches!(note, Note::NotHealed { .. })) {
        Some(note) => Err(format!("{note:?}")),
        None => Ok(()),
    }
}

/// A file of the draft has a name elsewhere, which keeps its bytes and its mode.
pub fn linked(place: &Place) -> Did {
    let draft = new_draft(place, "two")?;
    let other = place.dir().join("other");
    let _ = fs::remove_file(&other);
    fs::hard_link(draft.path().join("rootfs.ext4"), &other).unwrap();
    let mode = fs::metadata(&other).unwrap().mode();
    let published = publish(draft, "two");
    assert_eq!(fs::metadata(&other).unwrap().mode(), mode, "the other name is as it was");
    published
}

/// A build that no look-up of the model asks for.
fn other_draft(place: &Place, build: &str) -> Result<Draft, String> {
    let draft = store(place)?.rebuild(&id("web"), &inputs("other")).map_err(said)?;
    fill(draft.path(), build);
    Ok(draft)
}

/// What builders leave at times: long runs of zeros, attributes, directories that nobody may write to.
pub fn awkward(place: &Place) -> Did {
    let draft = other_draft(place, "one")?;
    let mut data = fs::File::create(draft.path().join("rootfs.ext4")).unwrap();
    data.write_all(&[0; 200_000]).unwrap();
    data.write_all(&[7; 5_000]).unwrap();
    drop(data);
    // Not every file system has them.
    let _ = rustix::fs::setxattr(draft.path().join("vmlinux").as_std_path(), "user.note", b"a", XattrFlags::empty());
    fs::set_permissions(draft.path().join("modules"), Permissions::from_mode(0o555)).unwrap();
    publish(draft, "two")
}

/// Other files under the same id: both stay.
pub fn another(place: &Place) -> Did {
    publish(other_draft(place, "two")?, "one")
}

/// Makes the directory that is to be published, if it is not there.
pub fn built(place: &Place) -> Alive {
    let dir = place.dir().join("built");
    if !dir.exists() {
        fs::create_dir(&dir).unwrap();
        fill(&dir, "one");
    }
    Box::new(())
}

fn import(place: &Place, build: &str, how: Import, activate: Activate) -> Did {
    let publish = PublishOptions::default().activate(activate);
    let options = ImportOptions::default().how(how).inputs(inputs(build)).seal(sealing(build)).publish(publish);
    let store = store(place)?;
    store.publish_dir_with(&id("web"), place.dir().join("built"), &options, &mut ()).map(drop).map_err(said)
}

/// What is copied stays as it is.
pub fn copy_in(place: &Place) -> Did {
    built(place);
    let published = import(place, "one", Import::Copy, Activate::No);
    assert_eq!(names_below(&place.dir().join("built")), BUILT);
    published
}

/// What is moved is here or there, whole.
pub fn move_in(place: &Place) -> Did {
    built(place);
    let published = import(place, "one", Import::Move, Activate::Yes);
    let dir = place.dir().join("built");
    if dir.exists() {
        let mut names = names_below(&dir);
        names.retain(|name| name != "revision.json");
        assert_eq!(names, BUILT, "the user's directory, as it was");
    }
    published
}

const BUILT: [&str; 4] = ["fc-base.json", "modules/net.ko", "rootfs.ext4", "vmlinux"];

fn names_below(dir: &Utf8Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    let files = walk.filter(|entry| entry.file_type().is_file());
    files.map(|file| file.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned()).collect()
}

pub fn abandon(place: &Place) -> Did {
    new_draft(place, "two")?.abandon().map_err(said)
}

pub fn drop_draft(place: &Place) -> Did {
    new_draft(place, "two").map(drop)
}

pub fn drop_sealed(place: &Place) -> Did {
    new_draft(place, "two")?.seal_with(&sealing("two"), &mut ()).map(drop).map_err(said)
}

pub fn compare(place: &Place) -> Did {
    let current = web(place)?;
    let found = new_draft(place, "two")?.compare(&current, &sealing("two"), &mut ()).map_err(said)?;
    assert_eq!(found.len(), 2, "{found:?}");
    Ok(())
}

/// Removes `one` while this process holds it.
pub fn remove_used(place: &Place) -> Did {
    let store = store(place)?;
    match store.revision(&id("web"), &revision("one")) {
        Err(Error::RevisionNotFound { .. }) => Ok(()),
        held => {
            let _held = held.map_err(said)?;
            store.remove(&id("web"), &revision("one"), Removal::Forced).map(drop).map_err(said)
        }
    }
}

pub fn note_holder(place: &Place) -> Did {
    let revision = web(place)?;
    let noted = revision.note_holder(std::process::id(), "a test").map_err(said)?;
    assert_eq!(names_below(&place.root().join(".store/leases")).len(), 1, "it is noted");
    drop(noted);
    Ok(())
}

pub fn warm(place: &Place) -> Did {
    if place.vm("1").exists() {
        return Ok(());
    }
    let options = InstanceOptions::default().start(Start::Snapshot);
    web(place)?.instance_with(place.vm("1"), &options, &mut ()).map(drop).map_err(said)
}

/// Gives all files to somebody: this user.
pub fn given(place: &Place) -> Did {
    if place.vm("1").exists() {
        return Ok(());
    }
    let us = fs::metadata(place.dir()).unwrap();
    let options = InstanceOptions::default().owner(Owner { uid: us.uid(), gid: us.gid() });
    web(place)?.instance_with(place.vm("1"), &options, &mut ()).map(drop).map_err(said)
}

pub fn verify(place: &Place) -> Did {
    let report = store(place)?.verify(&VerifyOptions::default(), &mut ()).map_err(said)?;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    Ok(())
}

pub fn build_again(place: &Place) -> Did {
    publish(new_draft(place, "one")?, "one")
}

pub fn build_two(place: &Place) -> Did {
    publish(new_draft(place, "two")?, "two")
}

/// Publishes under the id that says what it holds.
pub fn publish_derived(place: &Place) -> Did {
    built(place);
    let store = store(place)?;
    store.publish_dir(&id("web"), place.dir().join("built")).map(drop).map_err(said)
}

pub fn repair(place: &Place) -> Did {
    let mut heard = Heard::default();
    store(place)?.repair(&VerifyOptions::default(), &mut heard).map_err(said)?;
    all_healed(&heard)
}

pub fn adopt(place: &Place) -> Did {
    let adopted = place.adopt().map_err(said)?;
    match adopted.left.is_empty() {
        true => Ok(()),
        false => Err(format!("{:?}", adopted.left)),
    }
}

// What is there before.

/// The maker of the store died before all its names were durable.
pub fn unfinished(place: &Place) -> Alive {
    fs::remove_dir(place.root().join(".store/locks")).unwrap();
    Box::new(())
}

/// Who builds `one` dies half-way.
pub fn dead_builder(place: &Place) -> Alive {
    let Ok(Build::Draft(draft)) = place.open().unwrap().build(&id("web"), &inputs("one")) else { panic!("no draft") };
    fs::write(draft.path().join("vmlinux"), "half").unwrap();
    Box::new(draft)
}

/// Who builds `two` dies when it is sealed.
pub fn dead_sealed(place: &Place) -> Alive {
    let Ok(Build::Draft(draft)) = place.open().unwrap().build(&id("web"), &inputs("two")) else { panic!("no draft") };
    fill(draft.path(), "two");
    Box::new(draft.seal_with(&sealing("two"), &mut ()).unwrap())
}

/// Who activated died before its swap was synced.
pub fn unsettled(place: &Place) -> Alive {
    fs::write(place.root().join("templates/web/.activating"), "").unwrap();
    Box::new(())
}

/// Who repaired died half-way.
pub fn half_repaired(place: &Place) -> Alive {
    fs::write(place.root().join(".store/repairing"), "").unwrap();
    Box::new(())
}

/// Who removed `one` died after it was moved away.
pub fn half_removed(place: &Place) -> Alive {
    let grave = place.root().join(".store/trash/dead");
    fs::create_dir(&grave).unwrap();
    fs::rename(place.root().join("templates/web/artifacts/one"), grave.join("web@one")).unwrap();
    Box::new(())
}

/// Somebody removed an instance with `rm`.
pub fn lost_instance(place: &Place) -> Alive {
    place.run(Act::Instance("web", "1")).unwrap();
    fs::remove_dir_all(place.vm("1")).unwrap();
    Box::new(())
}

/// Who made an instance died half-way.
pub fn dead_instance(place: &Place) -> Alive {
    let dir = place.vm(".template-store-1.dead00000000");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o1700)).unwrap();
    fs::write(dir.join("vmlinux"), "half").unwrap();
    Box::new(())
}

fn web_file(place: &Place, path: &str) -> Utf8PathBuf {
    place.root().join("templates/web/artifacts").join(path)
}

/// A file of its own in the place of the one that was published.
fn rot(path: &Utf8Path) {
    fs::remove_file(path).unwrap();
    fs::write(path, "rotten").unwrap();
}

pub fn rot_file(place: &Place) -> Alive {
    rot(&web_file(place, "one/modules/net.ko"));
    Box::new(())
}

pub fn rot_record(place: &Place) -> Alive {
    publish_derived(place).unwrap();
    let artifacts = web_file(place, "");
    let id = crate::support::names(&artifacts).remove(0);
    fs::write(artifacts.join(id).join("revision.json"), "{").unwrap();
    Box::new(())
}

/// The kernel of both, in place: the object rots with it.
pub fn rot_object(place: &Place) -> Alive {
    crate::support::flip(&web_file(place, "one/vmlinux"), 100, true);
    Box::new(())
}

pub fn lose_index(place: &Place) -> Alive {
    for dir in ["objects", "keys"] {
        fs::remove_dir_all(place.root().join(".store").join(dir)).unwrap();
    }
    Box::new(())
}

pub fn rot_snapshot(place: &Place) -> Alive {
    crate::support::flip(&web_file(place, "one/snapshot/mem.bin"), 9_050, true);
    Box::new(())
}

pub fn prepare_repair(place: &Place) -> Alive {
    Mending::Repair.prepare(place);
    Box::new(())
}

pub fn prepare_adopt(place: &Place) -> Alive {
    fs::create_dir(place.root()).unwrap();
    Mending::Adopt.prepare(place);
    Box::new(())
}
