//! At each step of each operation somebody puts a link to a victim's directory in the place of one that the store works
//! in, for that step or for good. The victim's files stay as they are, and none of them gets into the store.

use std::fs;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::{
    Durability, Error, Import, ImportOptions, Removal, Result, Revision, SnapshotFiles, SnapshotOptions, Store,
    StoreOptions,
};

use super::trap::{Swap, Swapper, Victim, assert_no_secret, bait, exchange};
use crate::adopt::{mvm_revision, mvm_template};
use crate::support::{Place, assert_right, build, bytes, draft, id, image, inputs};

/// One operation, made ready up to the call in which names are swapped.
struct Act<'a> {
    /// What is swapped for a link to the victim.
    target: Utf8PathBuf,
    run: Box<dyn FnOnce() -> Result<()> + 'a>,
}

/// A place with a store that somebody watches.
struct Scene {
    place: Place,
    store: Store,
    swapper: Arc<Swapper>,
}

fn scene(swapper: &Arc<Swapper>, prepare: impl FnOnce(&Utf8Path)) -> Scene {
    let place = Place::in_memory();
    prepare(&place.root());
    let options = StoreOptions::default().durability(Durability::None).observer(swapper.clone());
    let store = Store::init(place.root(), &options).or_else(|error| match error {
        Error::NotAdopted { .. } => Store::open_with(place.root(), &options),
        error => Err(error),
    });
    Scene { store: store.unwrap(), place, swapper: swapper.clone() }
}

/// Small image files with a directory in it; two of them are large enough to be objects.
fn fill(dir: &Utf8Path) {
    for (name, size) in [("vmlinux", 4000), ("rootfs.ext4", 70_000)] {
        fs::write(dir.join(name), bytes(name, size)).unwrap();
    }
    fs::write(dir.join("fc-base.json"), r#"{"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#).unwrap();
    fs::create_dir_all(dir.join("lib/inner")).unwrap();
    fs::write(dir.join("lib/inner/module"), bytes("module", 70_000)).unwrap();
    fs::write(dir.join("lib/readme"), "text").unwrap();
}

/// Swaps at every step of an act, in both ways. How many times something was swapped.
fn at_every_step(name: &str, prepare: impl Fn(&Utf8Path), ready: impl for<'a> Fn(&'a Scene) -> Act<'a>) {
    let mut swaps = 0;
    for how in [Swap::Stays, Swap::Back] {
        for at in 0.. {
            let swapper = Arc::new(Swapper::new(at, how));
            let scene = scene(&swapper, &prepare);
            let Act { target, run } = ready(&scene);
            let victim = Victim::like(&scene.place.join("victim"), &target);
            let bait = bait(&scene.place.join("bait"), &victim.dir);
            swapper.arm(&target, &bait);
            let done = run();
            let took_place = swapper.disarm();
            let when = format!("{name}: {} ended with {:?}", swapper.step(), done.err());
            victim.assert_untouched(&when);
            assert_no_secret(&scene.place.root(), &when);
            for kept in ["files", "vms", "vm"] {
                let kept = scene.place.join(kept);
                if kept.exists() && !kept.is_symlink() {
                    assert_no_secret(&kept, &when);
                }
            }
            let mut all = true;
            for template in scene.store.templates().unwrap_or_default() {
                for revision in scene.store.revisions(&template).unwrap_or_default() {
                    all &= scene.store.revision(&template, &revision).is_ok_and(|revision| is_listed(&revision));
                }
            }
            assert!(all || !swapper.has_restored(), "{when}");
            if !took_place {
                break;
            }
            swaps += 1;
        }
    }
    assert!(swaps > 4, "{name}: {swaps} swaps");
    println!("{name}: swapped {swaps} times");
}

/// All that the revision lists is there, reached over real directories.
fn is_listed(revision: &Revision) -> bool {
    revision.contents().iter().all(|content| {
        let path = revision.artifact(&content.path);
        let real = path.canonicalize_utf8().is_ok_and(|real| real == path);
        real && fs::metadata(&path).is_ok_and(|found| found.len() == content.size)
    })
}

/// The targets below a directory that somebody else may write.
const INNER: [&str; 2] = ["lib", "lib/inner"];

#[test]
fn a_draft_that_is_sealed_and_published_leads_nowhere_else() {
    for inner in INNER.into_iter().chain(["lib/inner/module", "rootfs.ext4"]) {
        at_every_step(
            &format!("seal and publish, {inner}"),
            |_| {},
            |scene| {
                let draft = draft(&scene.store, "web", &inputs("lock"));
                fill(draft.path());
                Act {
                    target: draft.path().join(inner),
                    run: Box::new(move || draft.seal().and_then(|sealed| sealed.publish()).map(drop)),
                }
            },
        );
    }
}

#[test]
fn a_draft_that_is_dropped_is_all_that_is_removed() {
    for inner in INNER.into_iter().chain([""]) {
        at_every_step(
            &format!("drop, {inner:?}"),
            |_| {},
            |scene| {
                let draft = draft(&scene.store, "web", &inputs("lock"));
                fill(draft.path());
                let target = draft.path().join(inner);
                let target = Utf8PathBuf::from(target.as_str().trim_end_matches('/'));
                Act { target, run: Box::new(move || draft.abandon()) }
            },
        );
    }
}

fn import(how: Import) {
    for inner in INNER.into_iter().chain(["", "lib/inner/module"]) {
        at_every_step(
            &format!("{how:?}, {inner:?}"),
            |_| {},
            |scene| {
                let files = scene.place.join("files");
                fs::create_dir(&files).unwrap();
                fill(&files);
                let target = Utf8PathBuf::from(files.join(inner).as_str().trim_end_matches('/'));
                let options = ImportOptions::default().how(how);
                let publish = move || scene.store.publish_dir_with(&id("web"), &files, &options, &mut ()).map(drop);
                Act { target, run: Box::new(publish) }
            },
        );
    }
}

#[test]
fn a_directory_that_is_copied_leads_nowhere_else() {
    import(Import::Copy);
}

#[test]
fn a_directory_that_is_moved_leads_nowhere_else() {
    import(Import::Move);
}

/// Somebody who can write beside the directory has another one of the same names.
#[test]
fn what_is_moved_in_is_what_was_sealed() {
    let (mut published, mut refused) = (0, 0);
    for how in [Swap::Stays, Swap::Back] {
        for at in 0.. {
            let swapper = Arc::new(Swapper::new(at, how));
            let scene = scene(&swapper, |_| {});
            let (files, other) = (scene.place.join("files"), scene.place.join("other"));
            for (dir, label) in [(&files, "one"), (&other, "another")] {
                fs::create_dir(dir).unwrap();
                image(dir, label);
            }
            swapper.arm(&files, &other);
            let options = ImportOptions::default().how(Import::Move);
            let done = scene.store.publish_dir_with(&id("web"), &files, &options, &mut ());
            let took_place = swapper.disarm();
            match &done {
                Ok(done) => {
                    assert_right(&done.revision);
                    published += 1;
                }
                Err(_) => {
                    assert!(scene.store.revisions(&id("web")).unwrap_or_default().is_empty(), "{}", swapper.step());
                    refused += 1;
                }
            }
            if !took_place {
                break;
            }
        }
    }
    assert!(published > 0 && refused > 0, "{published} times it went on, {refused} times it was refused");
    println!("another directory in its place: {published} times published, {refused} times refused");
}

#[test]
fn a_collection_removes_nothing_behind_what_the_dead_left() {
    for (dir, inner) in [("drafts/dead", "lib"), ("drafts/dead", "lib/inner"), ("trash/dead/web@r1", "lib")] {
        at_every_step(
            &format!("gc of {dir}, {inner}"),
            |_| {},
            |scene| {
                let dead = scene.store.layout().private().join(dir);
                fs::create_dir_all(&dead).unwrap();
                fill(&dead);
                let collect = || {
                    let plan = scene.store.plan_gc(&Policy::default())?;
                    scene.store.apply_gc(&plan, &mut ()).map(drop)
                };
                Act { target: dead.join(inner), run: Box::new(collect) }
            },
        );
    }
}

#[test]
fn a_revision_is_removed_and_nothing_else() {
    for inner in INNER {
        at_every_step(
            &format!("rm, {inner}"),
            |_| {},
            |scene| {
                let files = scene.place.join("files");
                fs::create_dir(&files).unwrap();
                fill(&files);
                let revision = scene.store.publish_dir(&id("web"), &files).unwrap();
                build(&scene.store, "web", &inputs("lock"), "the next one");
                let (target, id) = (revision.path().join(inner), revision.id().clone());
                drop(revision);
                let remove = move || scene.store.remove(&"web".parse().unwrap(), &id, Removal::Forced).map(drop);
                Act { target, run: Box::new(remove) }
            },
        );
    }
}

#[test]
fn an_instance_is_removed_and_nothing_else() {
    for inner in ["vms/1/lib", "vms/1", "vms"] {
        at_every_step(
            &format!("instance rm, {inner}"),
            |_| {},
            |scene| {
                let files = scene.place.join("files");
                fs::create_dir_all(&files).unwrap();
                fs::create_dir(scene.place.join("vms")).unwrap();
                fill(&files);
                let revision = scene.store.publish_dir(&id("web"), &files).unwrap();
                let vm = revision.instance(scene.place.join("vms/1")).unwrap();
                let remove = move || scene.store.remove_instance(vm.path(), Removal::Forced);
                Act { target: scene.place.join(inner), run: Box::new(remove) }
            },
        );
    }
}

/// The files below a directory, and their digests: links of the same inode elsewhere may go.
fn files_and_bytes(dir: &Utf8Path) -> Vec<(Utf8PathBuf, blake3::Hash)> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|entry| entry.unwrap());
    let files = walk.filter(|entry| entry.file_type().is_file());
    let paths = files.map(|entry| Utf8PathBuf::from_path_buf(entry.into_path()).unwrap());
    paths.map(|path| (path.clone(), blake3::hash(&fs::read(&path).unwrap()))).collect()
}

/// A directory of instances in which somebody lets another one appear, with an instance of the same store.
#[test]
fn an_instance_elsewhere_is_not_taken_for_the_one_that_is_removed() {
    for at in 0..12 {
        let swapper = Arc::new(Swapper::new(at, Swap::Back));
        let scene = scene(&swapper, |_| {});
        let revision = build(&scene.store, "web", &inputs("lock"), "one");
        for dir in ["vms", "others"] {
            fs::create_dir(scene.place.join(dir)).unwrap();
            revision.instance(scene.place.join(dir).join("1")).unwrap();
        }
        let victim = scene.place.join("others");
        let before = files_and_bytes(&victim);
        let bait = bait(&scene.place.join("bait"), &victim);
        swapper.arm(&scene.place.join("vms"), &bait);
        let _ = scene.store.remove_instance(scene.place.join("vms/1"), Removal::Forced);
        let _ = swapper.disarm();
        assert_eq!(files_and_bytes(&victim), before, "{}", swapper.step());
    }
}

#[test]
fn an_instance_is_made_where_it_was_asked_for_or_not_at_all() {
    at_every_step(
        "instance",
        |_| {},
        |scene| {
            let revision = build(&scene.store, "web", &inputs("lock"), "one");
            let vms = scene.place.join("vms");
            fs::create_dir(&vms).unwrap();
            let make = move || revision.instance(scene.place.join("vms/1")).map(drop);
            Act { target: vms, run: Box::new(make) }
        },
    );
}

#[test]
fn adopting_follows_nothing_out_of_the_directory() {
    let prepare = |root: &Utf8Path| {
        mvm_template(root, "web");
        let revision = mvm_revision(root, "web", "r1", "one");
        fill(&revision);
    };
    for inner in ["r1/lib", "r1/lib/inner", "r1/rootfs.ext4", "r1", ""] {
        at_every_step(&format!("adopt, {inner}"), prepare, |scene| {
            let target = scene.place.root().join("templates/web/artifacts").join(inner);
            let options = StoreOptions::default().durability(Durability::None).observer(scene.swapper.clone());
            let adopt = move || Store::adopt(scene.place.root(), &options, &mut ()).map(drop);
            Act { target: Utf8PathBuf::from(target.as_str().trim_end_matches('/')), run: Box::new(adopt) }
        });
    }
}

#[test]
fn a_snapshot_has_the_files_that_were_given() {
    for inner in ["vm", "vm/mem", "vm/rootfs.ext4"] {
        at_every_step(
            &format!("snapshot attach, {inner}"),
            |_| {},
            |scene| {
                let options = template_store::BuildOptions::default().resources(template_store::Resources {
                    vcpus: 2,
                    mem_mib: 1,
                    data_disk_mib: 0,
                });
                let draft = crate::support::draft_with(&scene.store, "web", &inputs("lock"), &options);
                fill(draft.path());
                let revision = draft.seal().unwrap().publish().unwrap();
                let vm = scene.place.join("vm");
                fs::create_dir(&vm).unwrap();
                for (name, size) in [("vmstate", 5000), ("mem", 1 << 20), ("rootfs.ext4", 256 << 10)] {
                    fs::write(vm.join(name), bytes(name, size)).unwrap();
                }
                let files =
                    SnapshotFiles::new(vm.join("vmstate"), vm.join("mem")).drive(id("rootfs"), vm.join("rootfs.ext4"));
                let attach = move || revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ()).map(drop);
                Act { target: scene.place.join(inner), run: Box::new(attach) }
            },
        );
    }
}

/// The trap works: who follows links falls into it.
#[test]
fn a_trap_catches_who_follows_links() {
    let place = Place::new();
    let target = place.image("target", "one");
    let victim = Victim::like(&place.join("victim"), &target);
    let bait = bait(&place.join("bait"), &victim.dir);
    assert!(exchange(&target, &bait));
    fs::copy(target.join("vmlinux"), place.join("copy")).unwrap();
    fs::remove_file(place.join("bait/rootfs.ext4")).unwrap();
    victim.assert_untouched("only the other directory lost a file");
    assert!(std::panic::catch_unwind(|| assert_no_secret(place.path(), "")).is_err());
    fs::File::options()
        .append(true)
        .open(target.join("vmlinux"))
        .unwrap()
        .set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| victim.assert_untouched(""))).is_err());
}
