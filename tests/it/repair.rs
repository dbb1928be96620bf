//! A repair mends from intact copies, marks what nothing can mend, deletes nothing, and can be cut short anywhere.

use std::fs::{self, File};
use std::sync::Arc;

use camino::Utf8Path;
use template_store::{
    Build, Depth, ErrorKind, FindingKind, Note, PinOptions, Repaired, Revision, Severity, Store, StoreOptions,
    VerifyOptions,
};

use crate::damages::{Damage, TO_FILES, TO_THE_REST, World, assert_finds, build, verify};
use crate::gc_sweep::DiesAt;
use crate::reuse::Watch;
use crate::support::{
    Heard, assert_error, assert_right, flip, fresh, id, inode, inputs, listing, names, object_of, reused, template,
    until,
};

fn repair(store: &Store) -> Repaired {
    store.repair(&VerifyOptions::default(), &mut ()).unwrap()
}

/// Every inode that was in the store is still there, below `damaged/` at the latest.
fn inodes(root: &Utf8Path) -> Vec<u64> {
    use std::os::unix::fs::MetadataExt;
    let walk = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let files = walk.filter(|entry| entry.file_type().is_file());
    let mut inodes: Vec<u64> = files.map(|entry| entry.metadata().unwrap().ino()).collect();
    inodes.sort_unstable();
    inodes.dedup();
    inodes
}

/// Does a damage and repairs it; all is well then.
fn is_mended(world: &World, (name, kind, damage): Damage) {
    println!("{name}");
    let path = damage(world);
    let before = inodes(&world.layout().templates());
    let repaired = repair(&world.store);
    assert_finds(&repaired.report, kind, &path);
    assert_eq!(repaired.remaining, [], "{name}: nothing remains; mended: {:#?}", repaired.mended);
    assert!(!repaired.mended.is_empty(), "{name}: it says what it did");
    let report = verify(&world.store);
    assert!(report.is_clean(), "{name}: {report:#?}");
    world.assert_whole();
    world.assert_outside_untouched();
    let after = inodes(&world.place.root());
    let lost = before.iter().filter(|inode| after.binary_search(inode).is_err());
    // A file that became a link to an object with its bytes, or a log that was written again, is not kept twice.
    assert!(lost.count() <= 6, "{name}: what was replaced is below damaged/");
    // What it was made from is known from its record alone.
    let found = world.store.lookup(Some(&id("web")), &inputs("b")).unwrap();
    assert_eq!(found.is_some(), !path.ends_with("revision.json"), "{name}");
}

#[test]
fn each_damage_to_a_file_is_mended_from_a_copy() {
    for damage in TO_FILES {
        is_mended(&World::with_copies(), damage);
    }
}

#[test]
fn each_damage_to_the_rest_is_mended_without_a_copy() {
    for damage in TO_THE_REST {
        is_mended(&World::new(), damage);
    }
}

#[test]
fn what_is_mended_is_one_inode_again_and_the_bad_one_is_kept() {
    let world = World::new();
    let shared = reused(&world.store, "cache", &inputs("b"));
    world.add_copies();
    let bad = inode(world.kernel());
    assert_eq!(inode(shared.kernel()), bad);
    flip(&world.kernel(), 70_000, true);
    assert!(repair(&world.store).remaining.is_empty());
    assert_right(&shared);
    world.assert_whole();
    assert_eq!(inode(world.kernel()), inode(shared.kernel()));
    assert_eq!(inode(object_of(world.layout(), &world.kernel())), inode(world.kernel()));
    let kept = walkdir::WalkDir::new(world.layout().damaged()).into_iter().map(Result::unwrap);
    let kept = kept.filter(|entry| walkdir::DirEntryExt::ino(entry) == bad).count();
    assert_eq!(kept, 1, "the damaged inode has one name below damaged/");
}

#[test]
fn files_with_blocks_of_their_own_become_one_inode_again() {
    let world = World::with_copies();
    let twin = world.store.current(&id("db")).unwrap();
    assert_ne!(inode(twin.kernel()), inode(world.kernel()));
    let repaired = repair(&world.store);
    assert!(repaired.report.is_clean() && repaired.remaining.is_empty());
    assert_eq!(inode(twin.kernel()), inode(world.kernel()));
    world.assert_whole();
}

#[test]
fn a_repair_of_a_store_in_order_takes_no_step() {
    let world = World::new();
    let watch = Arc::new(Watch::default());
    let store = Store::open_with(world.place.root(), &StoreOptions::default().observer(watch.clone())).unwrap();
    let before = listing(&world.place.root());
    let repaired = repair(&store);
    assert_eq!((repaired.mended, repaired.remaining), (vec![], vec![]));
    assert_eq!(watch.seen(), []);
    assert_eq!(listing(&world.place.root()), before);
}

/// Nobody is given the revision: not by key, not by a build, not as current.
fn assert_not_offered(world: &World) {
    let store = &world.store;
    assert!(store.lookup(None, &inputs("b")).unwrap().is_none());
    let Build::Draft(draft) = store.build(&id("web"), &inputs("b")).unwrap() else { panic!("it is not reused") };
    draft.fail("only asked").unwrap();
    if let Ok(revision) = store.revision(&id("web"), &world.new) {
        assert_error(revision.check(), ErrorKind::Damaged, &["a verification found damage"]);
        assert_error(store.activate(&id("web"), &world.new, Default::default()), ErrorKind::Damaged, &["damage"]);
    }
}

#[test]
fn what_nothing_can_mend_is_marked_moved_aside_and_not_offered_and_current_goes_back() {
    for (name, kind, damage) in TO_FILES {
        let world = World::new();
        println!("{name}");
        let path = damage(&world);
        let mut heard = Heard::default();
        let repaired = world.store.repair(&VerifyOptions::default(), &mut heard).unwrap();
        // A directory of a revision may be held by a program that another test starts just now.
        until("it is moved aside", || {
            repair(&world.store);
            (!world.dir().exists() || repaired.remaining.is_empty()).then_some(())
        });
        world.assert_outside_untouched();
        if repaired.remaining.is_empty() {
            // Another name of the inode was left: the object.
            assert!(kind == FindingKind::Swapped || kind == FindingKind::Missing, "{name}");
            world.assert_whole();
            continue;
        }
        assert!(repaired.remaining.iter().any(|finding| finding.severity == Severity::Error), "{name}");
        assert_eq!(world.store.current(&id("web")).unwrap().id(), &world.old, "{name}: the one before is current");
        let moved = Note::CurrentMoved { template: id("web"), from: world.new.to_string(), to: world.old.clone() };
        assert!(heard.notes.contains(&moved), "{name}: it says so: {:?}", heard.notes);
        assert_not_offered(&world);
        let aside = names(world.layout().damaged());
        assert!(aside.iter().any(|aside| aside.starts_with(&format!("web@{}-", world.new))), "{name}: {aside:?}");
        assert!(verify(&world.store).is_clean(), "{name}: what is left is in order: {path}");
        assert_right(&world.store.current(&id("web")).unwrap());
        // The same contents come back under the same id.
        build_again(&world);
        assert_right(&world.store.current(&id("web")).unwrap());
        assert_eq!(world.store.lookup(None, &inputs("b")).unwrap().unwrap().id(), &world.new);
    }
}

fn build_again(world: &World) -> Revision {
    assert_eq!(build(&world.store, "web", "b"), world.new);
    world.store.revision(&id("web"), &world.new).unwrap()
}

#[test]
fn what_is_leased_or_pinned_is_marked_and_stays_and_comes_back_with_the_next_publication() {
    for pinned in [false, true] {
        let world = World::new();
        let lease = (!pinned).then(|| world.store.revision(&id("web"), &world.new).unwrap());
        if pinned {
            world.store.pin(&id("keep"), &id("web"), &world.new, &PinOptions::default()).unwrap();
        }
        flip(&world.kernel(), 70_000, true);
        let repaired = repair(&world.store);
        assert!(repaired.remaining.iter().any(|finding| finding.path == world.kernel()));
        assert!(world.dir().exists(), "it stays where it is used");
        assert_eq!(world.store.current(&id("web")).unwrap().id(), &world.old);
        assert_not_offered(&world);
        let quick = world.store.verify(&VerifyOptions::default().depth(Depth::Quick), &mut ()).unwrap();
        let mark = world.layout().damage_mark(&id("web"), &world.new);
        assert_finds(&quick, FindingKind::Marked, &mark);

        assert_right(&build_again(&world));
        assert!(!mark.exists(), "the mark is off");
        assert!(verify(&world.store).is_clean());
        world.assert_whole();
        drop(lease);
    }
}

#[test]
fn a_current_revision_that_is_the_only_one_stays_marked() {
    let (place, store) = fresh();
    let only = build(&store, "web", "a");
    let dir = store.layout().revision(&id("web"), &only);
    flip(&dir.join("vmlinux"), 70_000, true);
    let ran = place.run(&["--json", "verify", "--repair"]).with_code(4);
    assert!(!ran.json()["remaining"].as_array().unwrap().is_empty());
    assert!(dir.exists() && store.layout().damage_mark(&id("web"), &only).exists());
    assert_eq!(store.current_id(&id("web")).unwrap(), Some(only));
}

#[test]
fn a_mark_on_an_intact_revision_is_cleared() {
    let world = World::new();
    let twin = reused(&world.store, "db", &inputs("b"));
    let twin_kernel = twin.kernel();
    let _lease = world.store.revision(&id("web"), &world.new).unwrap();
    flip(&world.kernel(), 70_000, true);
    assert!(!repair(&world.store).remaining.is_empty());
    // The same byte again: what was read wrongly is read rightly now.
    let damaged = if world.dir().exists() { world.kernel() } else { twin_kernel };
    flip(&damaged, 70_000, true);
    let report = verify(&world.store);
    let mark = world.layout().damage_mark(&id("web"), &world.new);
    assert!(
        report.findings.iter().any(|found| found.kind == FindingKind::StaleMark && found.path == mark),
        "{report:#?}"
    );
    repair(&world.store);
    assert!(!mark.exists());
    assert_eq!(world.store.lookup(Some(&id("web")), &inputs("b")).unwrap().unwrap().id(), &world.new);
}

#[test]
fn a_record_that_nothing_proves_costs_the_revision_not_its_files() {
    let (place, store) = fresh();
    let files = place.image("files", "one");
    let seal = template_store::SealOptions::default().revision(id::<template_store::RevisionId>("by-hand"));
    let options = template_store::ImportOptions::default().seal(seal);
    store.publish_dir_with(&template("web"), &files, &options, &mut ()).unwrap();
    fs::write(store.layout().revision_json(&id("web"), &id("by-hand")), "").unwrap();
    let dir = store.layout().revision(&id("web"), &id("by-hand"));
    let kernel = inode(dir.join("vmlinux"));
    let repaired = repair(&store);
    assert_eq!(repaired.remaining[0].kind, FindingKind::Invalid);
    assert!(inodes(&place.root()).contains(&kernel));
}

#[test]
fn a_record_is_written_again_from_the_twin_in_another_template() {
    let world = World::new();
    let twin = reused(&world.store, "db", &inputs("b"));
    fs::write(world.dir().join("revision.json"), "").unwrap();
    assert!(repair(&world.store).remaining.is_empty());
    let mended = world.store.revision(&id("web"), &world.new).unwrap();
    assert_eq!(mended.contents(), twin.contents());
    assert_eq!(mended.cache_key(), twin.cache_key(), "what it was made from is known as well");
}

#[test]
fn a_flipped_digest_in_a_record_is_told_from_a_flipped_file() {
    let world = World::new();
    let path = world.dir().join("revision.json");
    let text = fs::read_to_string(&path).unwrap();
    let kernel = world.store.revision(&id("web"), &world.new).unwrap().contents()[3].blake3.to_hex();
    let other = if kernel.starts_with('0') { "1" } else { "0" };
    fs::write(&path, text.replace(&kernel, &format!("{other}{}", &kernel[1..]))).unwrap();
    assert_finds(&verify(&world.store), FindingKind::Corrupt, &world.kernel());
    let repaired = repair(&world.store);
    assert_eq!(repaired.remaining, [], "{:#?}", repaired.mended);
    world.assert_whole();
    let key = world.store.revision(&id("web"), &world.new).unwrap().cache_key();
    assert_eq!(key, Some(inputs("b").key()), "the rest of the record stays");
}

#[test]
fn a_revision_or_template_swapped_for_a_link_is_said_to_be_lost_and_the_link_is_moved() {
    for whole_template in [false, true] {
        let world = World::new();
        let swapped = if whole_template { world.layout().template(&id("web")) } else { world.dir() };
        fs::rename(&swapped, world.place.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("/", &swapped).unwrap();
        assert_finds(&verify(&world.store), FindingKind::Swapped, &swapped);
        let lost = repair(&world.store).remaining;
        assert!(lost.iter().any(|found| found.kind == FindingKind::Swapped && found.path == swapped), "{lost:?}");
        assert!(fs::symlink_metadata(&swapped).is_err(), "the link {swapped} is moved");
        if !whole_template {
            assert_eq!(world.store.current(&id("web")).unwrap().id(), &world.old);
        }
        assert!(verify(&world.store).is_clean());
        world.assert_outside_untouched();
    }
}

#[test]
fn a_file_that_somebody_can_still_write_to_is_replaced_by_a_sealed_one() {
    let world = World::new();
    reused(&world.store, "db", &inputs("b"));
    fs::set_permissions(world.kernel(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let late = File::options().write(true).open(world.kernel()).unwrap();
    assert_eq!(repair(&world.store).remaining, []);
    std::os::unix::fs::FileExt::write_all_at(&late, b"LATE", 0).unwrap();
    world.assert_whole();
}

/// Cuts a repair of these damages short at each of its steps; the next one completes it.
fn cut_short_everywhere(damages: &[&str]) {
    for nth in 0.. {
        let world = World::quick();
        for (name, _, damage) in TO_FILES.into_iter().chain(TO_THE_REST) {
            if damages.contains(&name) {
                damage(&world);
            }
        }
        let dies = DiesAt::step(nth, false);
        let store = Store::open_with(world.place.root(), &StoreOptions::default().observer(dies.clone())).unwrap();
        if store.repair(&VerifyOptions::default(), &mut ()).is_ok_and(|cut| cut.remaining.is_empty()) {
            assert!(verify(&world.store).is_clean(), "step {nth}: what it says is mended is");
        }
        let again = repair(&world.store);
        assert_eq!(again.remaining, [], "after step {nth}");
        assert!(verify(&world.store).is_clean(), "after step {nth}");
        world.assert_whole();
        world.assert_outside_untouched();
        if !dies.died() {
            assert!(nth > 5, "{nth} steps");
            return;
        }
    }
}

#[test]
fn a_repair_of_files_can_be_cut_short_at_each_step() {
    cut_short_everywhere(&["a flipped bit, with the old time"]);
    cut_short_everywhere(&["a directory swapped for a link to /"]);
}

#[test]
fn a_repair_of_documents_and_current_can_be_cut_short_at_each_step() {
    cut_short_everywhere(&[
        "revision.json emptied",
        "template.json emptied",
        "current an empty file",
        "the alias removed",
    ]);
}

#[test]
fn a_repair_of_the_index_can_be_cut_short_at_each_step() {
    cut_short_everywhere(&["objects/ removed", "keys/ swapped for a link to /"]);
}

#[test]
fn the_program_says_what_it_mended_and_ends_with_0() {
    let world = World::with_copies();
    flip(&world.kernel(), 70_000, true);
    fs::remove_file(world.layout().current(&id("web"))).unwrap();
    let ran = world.place.done(&["verify", "--repair"]);
    let path = format!("templates/web/artifacts/{}/vmlinux", world.new);
    for word in ["MENDED", &path, "replaced by the intact copy", "0 remain"] {
        assert!(ran.out.contains(word), "{word:?} in {}", ran.out);
    }
    ran.says(&["ATTENTION", "is current in web now"]);
    let document = world.place.done(&["--json", "verify", "--repair"]).json();
    assert_eq!((document["clean"].as_bool(), document["repaired"].as_array().unwrap().len()), (Some(true), 0));
}

#[test]
fn a_store_whose_own_directory_became_a_link_is_no_store_until_it_is_adopted() {
    let world = World::new();
    let private = world.layout().private();
    fs::rename(&private, world.place.join("was")).unwrap();
    std::os::unix::fs::symlink(world.canary(), &private).unwrap();
    for words in [&["verify"][..], &["verify", "--repair"], &["list"], &["gc"], &["adopt", world.place.root().as_str()]]
    {
        world.place.run(words).with_code(4).says(&[private.as_str(), "adopt"]);
    }
    world.assert_outside_untouched();
    fs::remove_file(&private).unwrap();
    world.place.done(&["adopt", world.place.root().as_str()]);
    world.place.done(&["verify", "--repair"]);
    world.place.done(&["verify"]);
    world.assert_whole();
    world.assert_outside_untouched();
}
