//! Zeros take no blocks, however an image comes in; its bytes and its digest are those that it had.

use std::fs::{self, File};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{Digest, Import, ImportOptions, Revision};

use crate::adopt::{adopt, mvm_revision, mvm_template};
use crate::interning::by_nobody;
use crate::publish::import;
use crate::support::{Place, Ran, assert_right, bytes, draft, id, image, inode, inputs, on_disk, until_closed};

/// Of an image whose root file system is dense, and mostly zeros.
const SIZE: usize = 16 << 20;
const LEAST_SAVED: u64 = 15 << 20;

/// 16 MiB of which five pages are not zeros: one at the start, two in the midst, one that is not aligned, the last bytes.
fn mostly_zeros() -> Vec<u8> {
    let mut image = vec![0; SIZE - 100];
    for at in [0, 5 << 20, (5 << 20) + 4096, (9 << 20) + 77, SIZE - 110] {
        image[at..at + 10].copy_from_slice(&bytes(&at.to_string(), 10));
    }
    image
}

/// Makes a directory with the image; the path of its root file system.
fn dense(dir: &Utf8Path) -> Utf8PathBuf {
    fs::create_dir_all(dir).unwrap();
    image(dir, "dense");
    let path = dir.join("rootfs.ext4");
    fs::write(&path, mostly_zeros()).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    until_closed(&path);
    path
}

#[track_caller]
fn assert_has_holes(revision: &Revision) {
    assert_holes_take_nothing(revision);
    let listed = revision.contents().iter().find(|content| content.path.as_str() == "rootfs.ext4").unwrap();
    assert_eq!(listed.blake3, Digest::of(&mostly_zeros()), "the bytes are those of the builder");
}

#[track_caller]
fn assert_holes_take_nothing(revision: &Revision) {
    assert_right(revision);
    let on_disk = on_disk(revision.rootfs());
    assert!(on_disk <= SIZE as u64 - LEAST_SAVED, "{on_disk} bytes are on the disk");
}

#[test]
fn what_a_builder_left_dense_has_holes_when_it_is_published() {
    let place = Place::new();
    let store = place.store();
    let built = draft(&store, "web", &inputs("lock"));
    let before = inode(dense(built.path()));
    let revision = built.seal().unwrap().publish().unwrap();
    assert_has_holes(&revision);
    assert_eq!(inode(revision.rootfs()), before, "the builder's file was kept");
}

#[test]
fn a_copy_has_holes_and_its_source_stays_as_it_is() {
    let place = Place::new();
    let store = place.store();
    let files = place.join("files");
    let source = dense(&files);
    let before = on_disk(&source);
    assert_has_holes(&import(&store, "web", &files, &ImportOptions::default()).unwrap().revision);
    assert_eq!(on_disk(source), before);
}

#[test]
fn what_is_moved_in_has_holes() {
    let place = Place::new();
    let store = place.store();
    let files = place.join("files");
    let before = inode(dense(&files));
    let revision = import(&store, "web", &files, &ImportOptions::default().how(Import::Move)).unwrap().revision;
    assert_has_holes(&revision);
    assert_eq!(inode(revision.rootfs()), before);
}

#[test]
fn what_is_adopted_has_holes_unless_somebody_has_it_open() {
    let place = Place::new();
    let root = place.root();
    mvm_template(&root, "web");
    let revisions = ["r1", "r2"].map(|revision| mvm_revision(&root, "web", revision, revision));
    let other = [&mostly_zeros()[..], b"r2"].concat();
    fs::write(revisions[0].join("rootfs.ext4"), mostly_zeros()).unwrap();
    fs::write(revisions[1].join("rootfs.ext4"), &other).unwrap();
    until_closed(revisions[0].join("rootfs.ext4"));
    let reader = File::open(revisions[1].join("rootfs.ext4")).unwrap();
    let adopted = adopt(&root);
    assert_eq!(adopted.left, []);
    assert_has_holes(&adopted.store.revision(&id("web"), &id("r1")).unwrap());
    assert!(on_disk(revisions[1].join("rootfs.ext4")) > LEAST_SAVED, "it was adopted as it was");
    assert_right(&adopted.store.revision(&id("web"), &id("r2")).unwrap());
    drop(reader);
}

/// Who is not root may not write to a file that is read-only.
#[test]
fn holes_are_made_by_whoever_builds() {
    let place = Place::new();
    let script =
        r#"head -c 16777216 /dev/zero >"$OUT/rootfs.ext4"; echo kernel >"$OUT/vmlinux"; echo {} >"$OUT/fc-base.json""#;
    let words = place.build_words("web", "a", &[], script);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let Some(mut build) = by_nobody(&place, &words) else { return };
    Ran::of(build.output().unwrap()).with_code(0);
    assert_holes_take_nothing(&place.store().current(&id("web")).unwrap());
}

#[test]
fn a_file_with_another_name_is_copied_with_holes_and_stays_as_it_is() {
    let place = Place::new();
    let store = place.store();
    let built = draft(&store, "web", &inputs("lock"));
    let other = place.join("other");
    fs::hard_link(dense(built.path()), &other).unwrap();
    let before = on_disk(&other);
    assert_has_holes(&built.seal().unwrap().publish().unwrap());
    assert_eq!(on_disk(&other), before);
    assert!(fs::read(&other).unwrap() == mostly_zeros());
}
