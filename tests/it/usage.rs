//! `du`: what the disk says, and who of the store it belongs to.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;
use template_store::{Bytes, Expect, Removal, Revision, RevisionId, Store, Usage};

use crate::gc::{blocks, counts_exactly, dry_run, publish};
use crate::support::{Place, build, bytes, draft, id, image, inputs, on_disk, reused, when_free};

/// The bytes of a template.
fn of(usage: &Usage, template: &str) -> Bytes {
    usage.templates.iter().find(|one| one.template.as_str() == template).expect("it is listed").bytes
}

/// The bytes of a revision.
fn of_revision(usage: &Usage, template: &str, revision: &RevisionId) -> Bytes {
    let mut revisions =
        usage.templates.iter().filter(|one| one.template.as_str() == template).flat_map(|one| &one.revisions);
    revisions.find(|one| one.revision == *revision).expect("it is listed").bytes
}

/// The bytes of the blocks of each inode below a directory, and the sizes of its files.
fn walk(dir: &Utf8Path) -> (HashMap<u64, u64>, u64) {
    let (mut inodes, mut apparent) = (HashMap::new(), 0);
    for found in walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap().metadata().unwrap()) {
        inodes.insert(found.ino(), found.blocks() * 512);
        apparent += if found.is_dir() { 0 } else { found.len() };
    }
    (inodes, apparent)
}

/// The inodes that revisions outside of `dir` have.
fn held_elsewhere(store: &Store, dir: &Utf8Path) -> HashSet<u64> {
    let walk = walkdir::WalkDir::new(store.layout().templates()).into_iter().map(|entry| entry.unwrap());
    let others = walk.filter(|entry| !entry.path().starts_with(dir));
    others.map(|entry| entry.metadata().unwrap().ino()).collect()
}

/// A revision's bytes are those that a walk counts.
#[track_caller]
fn assert_counted(store: &Store, usage: &Usage, revision: &Revision) {
    let bytes = of_revision(usage, revision.template().as_str(), revision.id());
    let (inodes, apparent) = walk(&revision.path());
    let elsewhere = held_elsewhere(store, &revision.path());
    let sum = |shared: bool| -> u64 {
        inodes.iter().filter(|(inode, _)| elsewhere.contains(inode) == shared).map(|(_, bytes)| bytes).sum()
    };
    assert_eq!(bytes.apparent, apparent, "apparent");
    if counts_exactly(store.layout().root()) {
        assert_eq!((bytes.shared, bytes.exclusive), (sum(true), sum(false)), "shared and exclusive");
        assert_eq!(bytes.on_disk, sum(true) + sum(false));
    }
    // XFS keeps some of the inodes.
    assert!(bytes.freed_if_removed + 8192 >= bytes.exclusive);
}

#[test]
fn twins_across_templates_are_shared_and_the_rest_is_exclusive() {
    let place = Place::new();
    let store = place.store();
    let first = build(&store, "web", &inputs("a"), "a");
    let twin = reused(&store, "db", &inputs("a"));
    let other = build(&store, "web", &inputs("b"), "b");
    let usage = store.usage().unwrap();
    for revision in [&first, &twin, &other] {
        assert_counted(&store, &usage, revision);
    }
    let (shared, lone) = (of(&usage, "db"), of_revision(&usage, "web", other.id()));
    assert!(shared.shared >= 384 << 10 && shared.exclusive < 64 << 10, "{shared:?}");
    assert!(lone.exclusive >= 384 << 10 && lone.shared == 0, "{lone:?}");
    assert_eq!(of(&usage, "web").apparent, of_revision(&usage, "web", first.id()).apparent + lone.apparent);
}

#[test]
fn what_a_template_has_twice_it_has_for_itself() {
    let place = Place::new();
    let store = place.store();
    let first = build(&store, "web", &inputs("a"), "a");
    // The same kernel in another revision.
    let draft = draft(&store, "web", &inputs("b"));
    image(draft.path(), "b");
    fs::copy(first.kernel(), draft.path().join("vmlinux")).unwrap();
    let second = draft.seal().unwrap().publish().unwrap();
    let usage = store.usage().unwrap();
    for revision in [&first, &second] {
        assert_counted(&store, &usage, revision);
        assert!(of_revision(&usage, "web", revision.id()).shared >= 128 << 10);
    }
    let web = of(&usage, "web");
    assert_eq!((web.shared, web.exclusive), (0, web.on_disk), "nobody else has any of it: {web:?}");
}

#[test]
fn a_hole_is_apparent_and_takes_nothing() {
    let place = Place::new();
    let store = place.store();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "a");
    File::create(draft.path().join("data.img")).unwrap().set_len(1 << 30).unwrap();
    let revision = draft.seal().unwrap().publish().unwrap();
    let usage = store.usage().unwrap();
    assert_counted(&store, &usage, &revision);
    let web = of(&usage, "web");
    assert!(web.apparent > 1 << 30 && web.on_disk < 1 << 22, "{web:?}");
}

#[test]
fn the_whole_is_what_the_disk_says() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c", "gone"]);
    drop(reused(&store, "db", &inputs("a")));
    // What a dead collection left: a file, a revision whose files are objects as well, and one more name of a file that
    // a revision has.
    let [kept, gone] = [&ids[0], &ids[3]].map(|revision| store.layout().revision(&id("web"), revision));
    store.activate(&id("web"), &ids[0], Expect::Any).unwrap();
    let left = store.layout().trash().join("left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("file"), bytes("left", 50_000)).unwrap();
    fs::rename(gone, left.join(format!("web@{}", ids[3]))).unwrap();
    fs::hard_link(kept.join("rootfs.ext4"), left.join("rootfs.ext4")).unwrap();
    let usage = store.usage().unwrap();
    if counts_exactly(place.path()) {
        assert_eq!(usage.on_disk, blocks(store.layout().root()) - on_disk(store.layout().root()));
        let mut revisions = HashMap::new();
        for template in store.templates().unwrap() {
            for revision in store.revisions(&template).unwrap() {
                revisions.extend(walk(&store.layout().revision(&template, &revision)).0);
            }
        }
        assert_eq!(usage.own, usage.on_disk - revisions.values().sum::<u64>(), "what belongs to no revision");
    }
    assert_eq!(usage.apparent, usage.templates.iter().map(|one| one.bytes.apparent).sum::<u64>());
    assert!(usage.disk_total >= usage.disk_available && usage.disk_available > 0);
    let json = place.done(&["--json", "du"]).json();
    assert_eq!(json["templates"][0]["template"], "db");
    assert_eq!(json["on_disk"], usage.on_disk);
    let one = place.done(&["--json", "du", "web"]).json();
    assert_eq!(one["templates"].as_array().unwrap().len(), 1);
    place.run(&["du", "none"]).with_code(3);
}

#[test]
fn what_would_be_freed_is_what_a_removal_frees() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c"]);
    drop(reused(&store, "db", &inputs("a")));
    drop(reused(&store, "own", &inputs("b")));
    if !counts_exactly(place.path()) {
        return;
    }
    let freed_by_removing = |template: &str, revision: &RevisionId| {
        dry_run(&place, &["--keep-last", "0"]);
        let (usage, before) = (store.usage().unwrap(), blocks(&place.root()));
        let said = of_revision(&usage, template, revision);
        when_free(|| store.remove(&id(template), revision, Removal::Unused)).unwrap();
        assert_eq!(before - blocks(&place.root()), said.freed_if_removed, "{template}@{revision}: {said:?}");
        said.freed_if_removed
    };
    freed_by_removing("web", &ids[0]);
    freed_by_removing("web", &ids[1]);
    publish(&store, "own", &["z"]);
    assert!(freed_by_removing("own", &ids[1]) >= 384 << 10, "nobody else has it any more");
}
