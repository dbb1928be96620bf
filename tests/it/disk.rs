//! A disk that fails: whichever step it is, the store stays whole, says so, and the next try succeeds.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{
    Error, ErrorKind, Expect, Import, ImportOptions, Note, Removal, Result, Revision, Store, StoreOptions, TemplateSpec,
};

use crate::support::{
    Heard, Place, assert_clean, assert_error, assert_right, build, bytes, draft, id, image, inode, inputs, listing,
    names, object_of, reused_with, template, when_free,
};

/// Fails one step, and says which.
#[derive(Debug)]
struct Failing {
    nth: usize,
    seen: AtomicUsize,
    failed: std::sync::Mutex<Option<Op>>,
}

impl Failing {
    fn at(nth: usize) -> Arc<Failing> {
        Arc::new(Failing { nth, seen: AtomicUsize::new(0), failed: Default::default() })
    }
}

impl Observer for Failing {
    fn before(&self, op: &Op) -> Verdict {
        if self.seen.fetch_add(1, Ordering::Relaxed) != self.nth {
            return Verdict::Proceed;
        }
        *self.failed.lock().unwrap() = Some(op.clone());
        Verdict::Fail(io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error()))
    }
}

/// A place with `web`, whose revisions `a` and `b` were current one after the other.
fn two() -> Place {
    let place = Place::new();
    let store = place.store();
    for label in ["a", "b"] {
        build(&store, "web", &inputs(label), label);
    }
    place.image("files", "c");
    place
}

/// Every revision is right, and what `current` names is one of them.
fn assert_whole(store: &Store, after: &str) {
    for id in store.templates().unwrap() {
        for revision in store.revisions(&id).unwrap() {
            assert_right(&store.revision(&id, &revision).unwrap_or_else(|error| panic!("after {after}: {error}")));
        }
        match store.current(&id) {
            Ok(revision) => assert_right(&revision),
            Err(Error::NoCurrent { .. }) => {}
            Err(error) => panic!("after {after}: {error}"),
        }
        store.history(&id).unwrap();
    }
}

/// Fails each step of some work in turn; `done` says whether its effect is there.
fn fail_each_step(work: impl Fn(&Place, &Store) -> Result<()>, done: impl Fn(&Store) -> bool) {
    let mut failures = 0;
    for nth in 0.. {
        let place = two();
        let failing = Failing::at(nth);
        let result = {
            let store = Store::open_with(place.root(), &StoreOptions::default().observer(failing.clone())).unwrap();
            work(&place, &store)
        };
        let Some(op) = failing.failed.lock().unwrap().clone() else {
            result.expect("nothing failed");
            break;
        };
        let after = format!("step {nth}, {op:?}, which gave {result:?}");
        let store = Store::open(place.root()).unwrap();
        assert_whole(&store, &after);
        if let Err(error) = &result {
            failures += 1;
            let text = error.to_string();
            assert!(text.contains("No space left") && text.contains("free space"), "after {after}: {text}");
        } else {
            assert!(done(&store), "it reported success after {after}");
        }
        if result.is_err() {
            work(&place, &store).unwrap_or_else(|error| panic!("the next try after {after}: {error}"));
        }
        assert_whole(&store, &after);
        assert!(done(&store), "the next try after {after}");
    }
    assert!(failures > 3, "{failures} steps can fail");
}

fn current(store: &Store) -> Revision {
    store.current(&id("web")).unwrap()
}

fn kernel_is(store: &Store, label: &str) -> bool {
    let kernel = bytes(&format!("{label}: kernel"), 128 << 10);
    std::fs::read(current(store).kernel()).unwrap() == kernel
}

#[test]
fn a_build_survives_each_failure() {
    let work = |_: &Place, store: &Store| {
        let draft = match store.build(&template("web"), &inputs("c"))? {
            template_store::Build::Draft(draft) => draft,
            template_store::Build::Reused(_) => return Ok(()),
        };
        image(draft.path(), "c");
        draft.seal()?.publish().map(drop)
    };
    fail_each_step(work, |store| kernel_is(store, "c"));
}

#[test]
fn a_publication_of_a_directory_survives_each_failure() {
    let work = |place: &Place, store: &Store| store.publish_dir(&id("web"), place.join("files")).map(drop);
    fail_each_step(work, |store| kernel_is(store, "c"));
}

#[test]
fn a_move_survives_each_failure() {
    let work = |place: &Place, store: &Store| {
        if !place.join("files").exists() {
            // The failure came after the move: what was moved is in the store.
            return store.publish_dir(&id("web"), place.image("again", "c")).map(drop);
        }
        let all = ["fc-base.json", "rootfs.ext4", "vmlinux"];
        assert_eq!(names(place.join("files")), all, "the directory is as the user left it");
        let options = ImportOptions::default().how(Import::Move);
        store.publish_dir_with(&id("web"), place.join("files"), &options, &mut ()).map(drop)
    };
    fail_each_step(work, |store| kernel_is(store, "c"));
}

#[test]
fn a_reuse_survives_each_failure() {
    let work = |_: &Place, store: &Store| match store.build(&template("db"), &inputs("a"))? {
        template_store::Build::Reused(_) => Ok(()),
        template_store::Build::Draft(_) => panic!("it was built already"),
    };
    fail_each_step(work, |store| store.current(&id("db")).is_ok());
}

#[test]
fn an_activation_survives_each_failure() {
    let first = |store: &Store| store.lookup(None, &inputs("a")).unwrap().unwrap().id().clone();
    let work = |_: &Place, store: &Store| store.activate(&id("web"), &first(store), Expect::Any).map(drop);
    fail_each_step(work, |store| kernel_is(store, "a"));
}

#[test]
fn a_rollback_survives_each_failure() {
    let work = |_: &Place, store: &Store| match store.rollback(&id("web")) {
        // The failure came after `current` had moved.
        Err(Error::NothingToRollBack { .. }) => Ok(()),
        result => result.map(drop),
    };
    fail_each_step(work, |store| kernel_is(store, "a"));
}

#[test]
fn a_removal_survives_each_failure() {
    let work = |_: &Place, store: &Store| {
        let Some(first) = store.lookup(None, &inputs("a"))?.map(|revision| revision.id().clone()) else {
            return Ok(());
        };
        when_free(|| store.remove(&id("web"), &first, Removal::Unused))
    };
    fail_each_step(work, |store| store.revisions(&id("web")).unwrap().len() == 1);
}

#[test]
fn the_creation_of_a_template_survives_each_failure() {
    let spec = TemplateSpec::new(&id("db"), ".", &id("minimal"), &id("worker"), "now");
    fail_each_step(|_, store| store.create(&spec), |store| store.template(&id("db")).is_ok());
}

#[test]
fn the_creation_of_a_store_survives_each_failure() {
    for nth in 0.. {
        let place = Place::new();
        let failing = Failing::at(nth);
        let made = Store::init(place.root(), &StoreOptions::default().observer(failing.clone()));
        let Some(op) = failing.failed.lock().unwrap().clone() else { break };
        assert_error(made, ErrorKind::Failed, &["No space left"]);
        let store = Store::open_or_init(place.root()).unwrap_or_else(|error| panic!("after {op:?}: {error}"));
        assert_right(&build(&store, "web", &inputs("a"), "a"));
        drop(draft(&store, "web", &inputs("b")));
        assert_clean(store.layout());
    }
}

/// A file system that can't do some steps.
#[derive(Debug)]
struct Unable {
    step: fn(&Op) -> bool,
    answer: Errno,
}

impl Observer for Unable {
    fn before(&self, op: &Op) -> Verdict {
        match (self.step)(op) {
            true => Verdict::Fail(io::Error::from_raw_os_error(self.answer.raw_os_error())),
            false => Verdict::Proceed,
        }
    }
}

fn unable(place: &Place, answer: Errno, step: fn(&Op) -> bool) -> Store {
    let observer = Arc::new(Unable { step, answer });
    Store::open_with(place.root(), &StoreOptions::default().observer(observer)).unwrap()
}

#[test]
fn an_object_with_as_many_names_as_can_be_is_followed_by_a_new_one() {
    let place = two();
    let old = current(&place.store());
    let store =
        unable(&place, Errno::MLINK, |op| matches!(op, Op::Link { from, .. } if from.as_str().contains("/objects/")));
    let new = build(&store, "db", &inputs("c"), "b");
    assert_right(&new);
    assert_right(&old);
    assert_ne!(inode(new.rootfs()), inode(old.rootfs()));
    assert_eq!(
        inode(object_of(store.layout(), &new.rootfs())),
        inode(new.rootfs()),
        "the next one links to this inode"
    );
    assert_clean(store.layout());
}

#[test]
fn what_cannot_be_linked_keeps_its_own_blocks_and_says_so() {
    for answer in [Errno::PERM, Errno::XDEV] {
        let place = two();
        let old = current(&place.store());
        let store = unable(&place, answer, |op| matches!(op, Op::Link { .. }));
        let mut heard = Heard::default();
        let published = store.publish_dir_with(&id("db"), place.image("again", "b"), &Default::default(), &mut heard);
        let new = published.unwrap().revision;
        assert_right(&new);
        assert_ne!(inode(new.rootfs()), inode(old.rootfs()));
        let notes = heard.notes.iter().filter(|note| matches!(note, Note::NotShared { .. }));
        assert_eq!(notes.count(), 2, "{:?}", heard.notes);
    }
}

#[test]
fn what_cannot_be_linked_is_copied_by_a_reuse() {
    for answer in [Errno::PERM, Errno::XDEV, Errno::MLINK] {
        let place = two();
        let old = current(&place.store());
        let store = unable(&place, answer, |op| matches!(op, Op::Link { .. }));
        let mut heard = Heard::default();
        let new = reused_with(&store, "db", &inputs("b"), &Default::default(), &mut heard);
        assert_right(&new);
        assert_eq!(new.contents(), old.contents());
        assert_ne!(inode(new.rootfs()), inode(old.rootfs()));
        assert!(heard.notes.iter().any(|note| matches!(note, Note::NotShared { .. })), "{:?}", heard.notes);
        assert_clean(store.layout());
    }
}

#[test]
fn a_file_system_without_noreplace_publishes_all_the_same() {
    let place = two();
    let store = unable(&place, Errno::INVAL, |op| matches!(op, Op::RenameNoReplace { .. }));
    assert_right(&build(&store, "new", &inputs("c"), "c"));
    let files = place.image("other", "other");
    assert_right(&store.publish_dir(&id("web"), &files).unwrap());
    assert!(store.publish_dir(&id("web"), &files).is_ok(), "and again");
    let first = store.lookup(None, &inputs("a")).unwrap().unwrap().id().clone();
    when_free(|| store.remove(&id("web"), &first, Removal::Unused)).unwrap();
    assert_whole(&store, "all this");
    assert_clean(store.layout());
}

/// A small file system, unmounted in the end.
struct SmallDisk(camino::Utf8PathBuf);

impl SmallDisk {
    fn mount(at: camino::Utf8PathBuf, options: &str) -> Option<SmallDisk> {
        std::fs::create_dir(&at).unwrap();
        let words = ["-t", "tmpfs", "-o", options, "tmpfs", at.as_str()];
        match Command::new("mount").args(words).output() {
            Ok(ran) if ran.status.success() => Some(SmallDisk(at)),
            _ => {
                println!("only root can mount a small disk: not tried");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", self.0.as_str()]).status();
    }
}

#[test]
fn a_disk_with_10_mib_left_refuses_what_does_not_fit_before_the_first_byte() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(place.join("small"), "size=16m") else { return };
    let store = Store::open_or_init(disk.0.join("store")).unwrap();
    let old = build(&store, "web", &inputs("a"), "a");
    std::fs::write(disk.0.join("ballast"), bytes("ballast", 5 << 20)).unwrap();

    let files = place.image("files", "b");
    std::fs::write(files.join("rootfs.ext4"), bytes("large", 12 << 20)).unwrap();
    let before = listing(store.layout().root());
    let watch = Arc::new(crate::reuse::Watch::default());
    let watched = Store::open_with(store.layout().root(), &StoreOptions::default().observer(watch.clone())).unwrap();
    let refused = watched.publish_dir(&id("web"), &files);
    assert_error(refused, ErrorKind::Failed, &["bytes", "free space"]);
    assert!(!watch.seen().iter().any(|op| matches!(op, Op::Write { .. })), "nothing was written");
    assert_eq!(listing(store.layout().root()), before, "nothing is left behind");

    // A builder fills the disk itself: it fails, and its draft gives the space back.
    let draft = draft(&store, "web", &inputs("b"));
    assert!(std::fs::write(draft.path().join("rootfs.ext4"), bytes("large", 12 << 20)).is_err(), "it does not fit");
    draft.fail("the disk is full").unwrap();
    assert_eq!(listing(store.layout().root()), before);
    assert_right(&old);
    assert_right(&build(&store, "web", &inputs("c"), "c"));
}

#[test]
fn a_disk_that_is_mounted_read_only_can_be_read() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(place.join("small"), "size=16m") else { return };
    let root = disk.0.join("store");
    let store = Store::open_or_init(&root).unwrap();
    let first = build(&store, "web", &inputs("a"), "a").id().clone();
    build(&store, "web", &inputs("b"), "b");
    let remounted = Command::new("mount").args(["-o", "remount,ro", disk.0.as_str()]).status().unwrap();
    assert!(remounted.success());

    let store = Store::open_or_init(&root).unwrap();
    assert_right(&store.current(&id("web")).unwrap());
    assert_right(&store.lookup(None, &inputs("a")).unwrap().expect("it was built"));
    assert_eq!(store.history(&id("web")).unwrap().len(), 2);
    crate::support::reused(&store, "web", &inputs("b"));
    let advice = ["Read-only file system", "mounted writable"];
    assert_error(store.activate(&id("web"), &first, Expect::Any), ErrorKind::Failed, &advice);
    assert_error(store.rollback(&id("web")), ErrorKind::Failed, &advice);
    assert_error(when_free(|| store.remove(&id("web"), &first, Removal::Unused)), ErrorKind::Failed, &advice);
    assert_error(store.build(&id("web"), &inputs("c")), ErrorKind::Failed, &advice);
    assert_error(store.publish_dir(&id("web"), place.image("files", "c")), ErrorKind::Failed, &advice);
}
