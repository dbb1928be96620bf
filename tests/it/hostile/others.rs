//! What other users of the machine put in the way, and what builders leave that is hard to take away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};

use camino::Utf8Path;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use template_store::gc::Policy;
use template_store::{ErrorKind, Import, ImportOptions, SnapshotFiles, SnapshotOptions};

use crate::interning::NOBODY;
use crate::support::{Place, assert_clean, assert_error, assert_right, build, draft, id, image, inputs, names};

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("only root can give files to others: not tried");
    }
    is_root
}

#[test]
fn a_link_of_somebody_else_is_not_followed() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = place.store();
    let revision = build(&store, "web", &inputs("lock"), "one");
    for dir in ["real", "real/files", "real/vms"] {
        fs::create_dir(place.join(dir)).unwrap();
    }
    image(&place.join("real/files"), "two");
    fs::write(place.join("real/mem"), vec![0; 512 << 20 >> 9]).unwrap();
    symlink("real", place.join("link")).unwrap();
    lchown(place.join("link"), Some(NOBODY), Some(NOBODY)).unwrap();
    let (link, words) = (place.join("link"), &["symbolic link of user 65534", "name what it leads to"]);
    let before = names(store.layout().root());

    for how in [Import::Copy, Import::Move] {
        let options = ImportOptions::default().how(how);
        let published = store.publish_dir_with(&id("web"), link.join("files"), &options, &mut ());
        assert_error(published, ErrorKind::Failed, words);
    }
    assert_error(revision.instance(link.join("vms/1")), ErrorKind::Failed, words);
    assert_error(store.remove_instance(link.join("vms/1"), Default::default()), ErrorKind::Failed, words);
    let files = SnapshotFiles::new(link.join("mem"), link.join("mem")).drive(id("rootfs"), link.join("mem"));
    let attached = revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ());
    assert_error(attached, ErrorKind::Failed, words);
    assert_eq!(names(store.layout().root()), before);
    assert_clean(store.layout());

    // The same link, if it is one's own.
    lchown(&link, Some(0), Some(0)).unwrap();
    assert_right(&store.publish_dir(&id("web"), link.join("files")).unwrap());
}

#[test]
fn a_directory_of_somebody_else_is_taken_from_them_before_it_is_published() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = place.store();
    let fill = |dir: &Utf8Path, label: &str| {
        image(dir, label);
        fs::create_dir_all(dir.join("lib/inner")).unwrap();
        fs::write(dir.join("lib/inner/module"), label).unwrap();
        for name in ["lib", "lib/inner", "lib/inner/module", "vmlinux"] {
            chown(dir.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    };
    let files = place.join("files");
    fs::create_dir(&files).unwrap();
    fill(&files, "moved");
    let built = draft(&store, "built", &inputs("lock"));
    fill(built.path(), "built");
    let moved = store.publish_dir_with(&id("moved"), &files, &ImportOptions::default().how(Import::Move), &mut ());
    for revision in [moved.unwrap().revision, built.seal().unwrap().publish().unwrap()] {
        assert_right(&revision);
        for entry in walkdir::WalkDir::new(revision.path()) {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().uid(), 0, "{}", entry.path().display());
        }
    }
}

/// Makes directories one in the other: more than a path can say.
fn deep(dir: &Utf8Path, depth: usize) {
    let open = |at: &dyn Fn() -> rustix::io::Result<rustix::fd::OwnedFd>| at().unwrap();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = open(&|| openat(CWD, dir.as_std_path(), flags, Mode::empty()));
    for _ in 0..depth {
        mkdirat(&at, "a directory in a directory", Mode::from_raw_mode(0o700)).unwrap();
        at = open(&|| openat(&at, "a directory in a directory", flags, Mode::empty()));
        mkdirat(&at, "beside", Mode::from_raw_mode(0o500)).unwrap();
    }
}

#[test]
fn a_tree_that_is_deeper_than_a_path_can_say_is_refused_and_removed() {
    let place = Place::in_memory();
    let store = place.quick_store();
    for depth in [10, 47, 48, 49, 97, 1500] {
        let built = draft(&store, "web", &inputs("lock"));
        image(built.path(), "deep");
        deep(built.path(), depth);
        if depth > 200 {
            assert_error(built.seal(), ErrorKind::Failed, &["too long"]);
        } else {
            built.abandon().unwrap();
        }
        assert_clean(store.layout());
        let dead = store.layout().drafts().join("dead");
        fs::create_dir(&dead).unwrap();
        deep(&dead, depth);
        fs::set_permissions(&dead, fs::Permissions::from_mode(0o500)).unwrap();
        let report = store.gc(&Policy::default(), &mut ()).unwrap().1;
        assert_eq!(report.failed.len(), 0, "{:?}", report.failed);
        assert_clean(store.layout());
    }
}
