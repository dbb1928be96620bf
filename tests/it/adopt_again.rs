//! An adoption that dies, meets another one, or runs as somebody else: the directory stays mvm's until it is a store.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;
use serde_json::Value;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{Durability, Error, Note, Revision, Store, StoreOptions};

use crate::adopt::{adopt, all_bytes, mvm_current, mvm_data, mvm_revision, mvm_template};
use crate::interning::{NOBODY, by_nobody};
use crate::support::{Heard, Place, Ran, assert_clean, assert_right, id, inode, listing};

/// What becomes of the steps after the one that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    /// They are taken.
    GoOn,
    /// None is taken any more, as if the process had died.
    Die,
}

#[derive(Debug)]
struct Failing {
    nth: usize,
    then: Then,
    seen: AtomicUsize,
    failed: Mutex<Option<Op>>,
}

impl Observer for Failing {
    fn before(&self, op: &Op) -> Verdict {
        let at = self.seen.fetch_add(1, Ordering::Relaxed);
        if at < self.nth || at > self.nth && self.then == Then::GoOn {
            return Verdict::Proceed;
        }
        self.failed.lock().unwrap().get_or_insert_with(|| op.clone());
        Verdict::Fail(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()))
    }
}

fn every_revision(store: &Store) -> Vec<Revision> {
    let templates = store.templates().unwrap().into_iter();
    let ids =
        templates.flat_map(|id| store.revisions(&id).unwrap().into_iter().map(move |revision| (id.clone(), revision)));
    ids.map(|(template, revision)| store.revision(&template, &revision).unwrap()).collect()
}

/// What an adoption leads to, without times and inodes.
fn outcome(root: &Utf8Path) -> Vec<String> {
    let store = Store::open(root).unwrap();
    store.check_writable().unwrap();
    assert!(!store.layout().adopting().exists());
    assert!(fs::metadata(store.layout().reserve()).is_ok_and(|reserve| reserve.blocks() > 0), "blocks are set aside");
    assert_clean(store.layout());
    let mut outcome = Vec::new();
    for revision in every_revision(&store) {
        assert_right(&revision);
        assert!(revision.record().adopted_at.is_some());
        let mut record: Value = serde_json::to_value(revision.record()).unwrap();
        record["adopted_at"] = Value::Null;
        let found = store.lookup(Some(revision.template()), &crate::support::inputs(&revision.build().flake_lock_hash));
        outcome.push(format!("{record} {:?}", found.unwrap().map(|found| found.id().clone())));
        let links = |name| fs::metadata(revision.path().join(name)).unwrap().nlink();
        outcome.push(format!("links: {} {}", links("rootfs.ext4"), links("vmlinux")));
    }
    for id in store.templates().unwrap() {
        outcome.push(format!("{id}: {:?}", fs::read_link(store.layout().current(&id)).unwrap()));
        let log = store.history(&id).unwrap().into_iter().map(|line| (line.revision, line.action));
        outcome.push(format!("{:?}", log.collect::<Vec<_>>()));
    }
    outcome
}

/// A directory with all that makes steps: a `current` in an old spelling, shared bytes, a name outside.
fn data(place: &Place) -> Utf8PathBuf {
    let root = mvm_data(place);
    mvm_template(&root, "db");
    mvm_revision(&root, "db", "r1", "one");
    let current = root.join("templates/db/current");
    fs::remove_file(&current).unwrap();
    std::os::unix::fs::symlink("r1", current).unwrap();
    fs::hard_link(root.join("templates/web/artifacts/r2/rootfs.ext4"), place.join("outside")).unwrap();
    root
}

fn interrupted_at_each_step(then: Then) {
    let reference = Place::new();
    let (before, expected) = (all_bytes(&data(&reference)), {
        adopt(&reference.root());
        outcome(&reference.root())
    });
    let mut failures = 0;
    for nth in 0.. {
        let place = Place::in_memory();
        let root = data(&place);
        let failing = Arc::new(Failing { nth, then, seen: AtomicUsize::new(0), failed: Mutex::default() });
        let result = Store::adopt(&root, &StoreOptions::default().observer(failing.clone()), &mut ());
        let Some(op) = failing.failed.lock().unwrap().clone() else {
            assert_eq!(outcome(&root), expected);
            break;
        };
        let after = format!("after step {nth}, {op:?}");
        failures += usize::from(result.is_err());
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(
                text.contains("collect what nobody needs with `template-store gc`, or free space"),
                "{after}: {text}"
            );
        }
        assert!(all_bytes(&root) == before, "{after}: no byte is lost");
        for template in ["web", "db"] {
            mvm_current(&root, template);
        }
        let store = Store::open(&root).unwrap_or_else(|error| panic!("{after}: {error}"));
        assert_eq!(store.current(&id("web")).unwrap().id().as_str(), "r2", "{after}");
        match Store::open_or_init(&root) {
            Ok(store) => assert!(store.layout().format_json().exists(), "{after}: it was not made one by the way"),
            Err(error) => assert!(matches!(error, Error::NotAdopted { .. }), "{after}: {error}"),
        }
        drop(store);
        let mut heard = Heard::default();
        Store::adopt(&root, &StoreOptions::default(), &mut heard).unwrap();
        let needless = |note: &Note| !matches!(note, Note::Detached { path, .. } if path.ends_with("r2/rootfs.ext4"));
        assert!(!heard.notes.iter().any(needless), "{after}: what was shared is not copied again: {:?}", heard.notes);
        assert_eq!(outcome(&root), expected, "{after}");
        assert!(all_bytes(&root) == before, "{after}: no byte is lost in the end");
    }
    assert!(failures > 50, "{failures} steps can fail");
}

#[test]
fn an_adoption_survives_the_failure_of_each_step() {
    interrupted_at_each_step(Then::GoOn);
}

#[test]
fn an_adoption_that_dies_at_any_step_is_completed_by_the_next() {
    interrupted_at_each_step(Then::Die);
}

#[test]
fn a_directory_with_nothing_but_templates_is_not_made_a_store_by_the_way() {
    for mark in [false, true] {
        let place = Place::new();
        let root = mvm_data(&place);
        fs::remove_dir_all(root.join("runtime")).unwrap();
        fs::create_dir(root.join(".store")).unwrap();
        if mark {
            fs::write(root.join(".store/adopting"), "").unwrap();
            fs::create_dir_all(root.join(".store/objects/ab")).unwrap();
        }
        let before = listing(&root);
        assert!(matches!(Store::open_or_init(&root), Err(Error::NotAdopted { .. })), "mark: {mark}");
        let open = Store::open(&root).unwrap();
        assert!(matches!(open.check_writable(), Err(Error::NotAdopted { .. })), "mark: {mark}");
        place.run(&["init"]).with_code(5).says(&["adopt"]);
        assert_eq!(listing(&root), before);
        assert_eq!(adopt(&root).revisions.len(), 2);
    }
}

#[test]
fn an_adopted_directory_is_left_as_it_is_by_the_next_adoption() {
    let place = Place::new();
    let root = data(&place);
    adopt(&root);
    let before = listing(&root);
    let again = adopt(&root);
    assert_eq!((again.revisions.len(), again.left.len()), (0, 1), "{again:?}");
    assert_eq!(listing(&root), before);

    // mvm goes on building into it.
    mvm_revision(&root, "web", "r3", "one");
    let again = adopt(&root);
    assert_eq!(again.revisions, [(id("web"), id("r3"))]);
    let of = |name: &str| root.join("templates/web/artifacts").join(name).join("rootfs.ext4");
    assert_eq!(inode(of("r3")), inode(of("r1")));
    assert_eq!(again.store.current(&id("web")).unwrap().id().as_str(), "r3");
    outcome(&root);
}

#[test]
fn of_two_adoptions_at_once_each_revision_is_adopted_by_one() {
    let place = Place::new();
    let root = data(&place);
    let before = all_bytes(&root);
    let adopted: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| adopt(&root).revisions)).collect();
        let words = ["--json", "adopt", root.as_str()];
        let ran = place.done(&words).json();
        let by_program = ran["adopted"].as_array().unwrap().len();
        threads.into_iter().map(|thread| thread.join().unwrap().len()).chain([by_program]).collect()
    });
    assert_eq!(adopted.iter().sum::<usize>(), 3, "{adopted:?}");
    assert!(all_bytes(&root) == before);
    outcome(&root);
}

/// Sees whether a second adoption would have to wait, at each step that changes what mvm made.
#[derive(Debug)]
struct Second {
    private: Utf8PathBuf,
    waits: Mutex<Vec<bool>>,
}

impl Observer for Second {
    fn before(&self, op: &Op) -> Verdict {
        if let Op::SetMtime { .. } | Op::Symlink { .. } = op {
            let dir = File::open(&self.private).unwrap();
            let taken = rustix::fs::flock(dir, rustix::fs::FlockOperation::NonBlockingLockExclusive);
            self.waits.lock().unwrap().push(taken == Err(Errno::WOULDBLOCK));
        }
        Verdict::Proceed
    }
}

#[test]
fn a_second_adoption_waits_for_the_first() {
    let place = Place::new();
    let root = data(&place);
    let second = Arc::new(Second { private: root.join(".store"), waits: Mutex::default() });
    Store::adopt(&root, &StoreOptions::default().observer(second.clone()), &mut ()).unwrap();
    let waits = second.waits.lock().unwrap();
    assert!(waits.len() > 5 && waits.iter().all(|&waits| waits), "{waits:?}");
}

/// The steps before which something happens.
type When = fn(&Op) -> bool;

/// A VM that opens a file for writing while the file is hashed.
#[derive(Debug)]
struct Vm {
    file: Utf8PathBuf,
    when: When,
    open: Mutex<Option<File>>,
}

impl Observer for Vm {
    fn before(&self, op: &Op) -> Verdict {
        let mut open = self.open.lock().unwrap();
        if (self.when)(op) && open.is_none() {
            // Root may open what is read-only; the rest of the world was there before it was.
            *open = File::options().write(true).open(&self.file).ok();
        }
        Verdict::Proceed
    }
}

#[test]
fn a_vm_that_starts_meanwhile_keeps_its_file() {
    let sealing = |op: &Op| matches!(op, Op::Chmod { path, .. } if path.ends_with("r1/rootfs.ext4"));
    let hashing = |op: &Op| matches!(op, Op::SetMtime { path } if path.ends_with("r1/rootfs.ext4"));
    let copying = |op: &Op| matches!(op, Op::Create { path } if path.as_str().contains("/.copy-"));
    let sharing = |op: &Op| matches!(op, Op::SetMtime { path } if path.ends_with("r1/vmlinux"));
    let cases: [(When, bool); 4] = [(sealing, false), (hashing, false), (copying, true), (sharing, false)];
    for (when, second_name) in cases {
        let place = Place::new();
        let root = mvm_data(&place);
        let file = root.join("templates/web/artifacts/r1/rootfs.ext4");
        if second_name {
            fs::hard_link(&file, place.join("outside")).unwrap();
        }
        let (before, was) = (all_bytes(&root), fs::metadata(&file).unwrap());
        let vm = Arc::new(Vm { file: file.clone(), when, open: Mutex::default() });
        let adopted = Store::adopt(&root, &StoreOptions::default().observer(vm.clone()), &mut ()).unwrap();
        if vm.open.lock().unwrap().is_none() {
            println!("the file could not be opened: only root can");
            continue;
        }
        assert_eq!(adopted.revisions, [(id("web"), id("r2"))]);
        let now = fs::metadata(&file).unwrap();
        assert_eq!(now.ino(), was.ino(), "the VM and the name have one file");
        assert_eq!(now.mode(), was.mode(), "its mode is {:o} again", now.mode());
        assert!(all_bytes(&root) == before);
        *vm.open.lock().unwrap() = None;
        assert_eq!(adopt(&root).revisions, [(id("web"), id("r1"))]);
        assert_right(&adopted.store.revision(&id("web"), &id("r1")).unwrap());
    }
}

fn give_to_nobody(dir: &Utf8Path) {
    for entry in walkdir::WalkDir::new(dir) {
        std::os::unix::fs::lchown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

fn ran(mut command: Command) -> Ran {
    Ran::of(command.output().unwrap())
}

#[test]
fn another_user_adopts_what_is_theirs() {
    let place = Place::new();
    let root = mvm_data(&place);
    let Some(command) = by_nobody(&place, &["--json", "adopt", root.as_str()]) else { return };
    give_to_nobody(&root);
    // One revision is somebody else's: who does not own a file is not told who writes to it.
    let theirs = root.join("templates/web/artifacts/r1/vmlinux");
    chown(&theirs, Some(0), Some(0)).unwrap();
    let (before, was) = (all_bytes(&root), listing(theirs.parent().unwrap()));
    let said = ran(command).with_code(0).json();
    assert_eq!(said["adopted"].as_array().unwrap().len(), 1, "{said}");
    let reason = said["left"][1]["reason"].as_str().unwrap();
    assert!(reason.contains("vmlinux") && reason.contains("as its owner, or as root"), "{said}");
    assert_eq!(listing(theirs.parent().unwrap()), was);

    // Root may ask, and takes what is not root's as a copy.
    let again = place.done(&["--json", "adopt", root.as_str()]).json();
    assert_eq!(again["adopted"][0]["revision"], "r1", "{again}");
    assert!(again["notes"].to_string().contains("belongs to another user"), "{again}");
    assert!(all_bytes(&root) == before);
    every_revision(&Store::open(&root).unwrap()).iter().for_each(assert_right);
}

#[test]
fn a_user_who_may_not_write_changes_nothing() {
    let place = Place::new();
    let root = mvm_data(&place);
    let Some(command) = by_nobody(&place, &["adopt", root.as_str()]) else { return };
    let before = listing(&root);
    ran(command).with_code(1).says(&["denied"]);
    assert_eq!(listing(&root), before);
}

#[test]
fn the_durability_is_that_of_the_first_adoption() {
    let place = Place::new();
    let root = mvm_data(&place);
    let quick = StoreOptions::default().durability(Durability::None);
    Store::adopt(&root, &quick, &mut ()).unwrap();
    assert!(adopt(&root).revisions.is_empty());
    let other = Store::adopt(&root, &StoreOptions::default().durability(Durability::Full), &mut ());
    assert!(matches!(other, Err(Error::DurabilityFixed { .. })), "{other:?}");
    outcome(&root);
}
