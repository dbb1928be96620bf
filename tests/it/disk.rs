//! A file system that can't do some things, has no room, or takes no changes. What each failing step does is in `faults`.

use std::io;
use std::process::Command;
use std::sync::Arc;

use rustix::io::Errno;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{Error, ErrorKind, Expect, Note, Removal, Revision, Store, StoreOptions};

use crate::support::{
    Heard, Place, assert_clean, assert_error, assert_right, build, bytes, draft, id, inode, inputs, listing, object_of,
    reused_with, until_closed, when_free,
};

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

fn current(store: &Store) -> Revision {
    store.current(&id("web")).unwrap()
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
    unable_at(&place.root(), answer, step)
}

/// A store on a disk that answers some steps so.
pub fn unable_at(root: &camino::Utf8Path, answer: Errno, step: fn(&Op) -> bool) -> Store {
    let observer = Arc::new(Unable { step, answer });
    Store::open_with(root, &StoreOptions::default().observer(observer)).unwrap()
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
pub struct SmallDisk(camino::Utf8PathBuf);

impl SmallDisk {
    pub fn path(&self) -> &camino::Utf8Path {
        &self.0
    }

    pub fn mount(at: camino::Utf8PathBuf, options: &str) -> Option<SmallDisk> {
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
    until_closed(draft.path().join("rootfs.ext4"));
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
