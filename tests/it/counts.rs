//! Counts that can't lie: how often an operation waits for the disk, and how much it changes there.
//!
//! The numbers are exact, so whoever changes one says here what the new wait protects, or why the old one is not
//! needed. These count at the store's own door to the disk; [`program`] counts the system calls of the program,
//! which no door can hide.

#[cfg(feature = "cli")]
mod program;
mod steps;

use std::fs;

use template_store::{Build, Durability, Expect, Known, Outcome, Resources, SnapshotFiles, SnapshotOptions};

use crate::support::{id, inode, inputs};
use steps::{Counts, World, fill, publish, reuse, say};

/// Waits for the disk of a publication of three files into a template that exists: the first test says what for.
const PUBLISH_SYNCS: usize = 9;

/// Those of a reuse in another template that exists: the files are durable already.
const REUSE_SYNCS: usize = PUBLISH_SYNCS - 3;

/// Those of a new template; the last of them is one of a publication anyway.
const CREATE_SYNCS: usize = 5;

/// The size of a kernel and a root file system that are just large enough to be objects.
const LARGE: usize = 64 * 1024;

#[test]
fn a_publication_of_three_new_files_waits_nine_times() {
    let world = World::with_template("web");
    let (_, mut counts) = world.count(|store| publish(store, "web", "lock", Known::Reuse, 1));
    counts.syncs[..3].sort_unstable(); // files are sealed in parallel
    assert_eq!(
        counts.syncs,
        [
            // The bytes, before a name that others believe leads to them: an object, and the revision.
            "draft/fc-base.json",
            "draft/rootfs.ext4",
            "draft/vmlinux",
            // The template's name: whoever made it may have died before it was durable.
            "templates",
            // The bytes of the record, before its name.
            "draft/revision.json",
            // The names of the four, before the directory has its final name.
            "draft",
            // The final name, before the log and `current` speak of it.
            "templates/web/artifacts",
            // The line of the log, before the `current` that it explains.
            "templates/web/activations.jsonl",
            // `current`, before anybody is told.
            "templates/web",
        ]
    );
    assert_eq!(counts.syncs.len(), PUBLISH_SYNCS);
    assert_eq!(
        counts.changes,
        [
            ("append", 1),                // the log
            ("chmod", 4),                 // three files read-only, the directory open to others
            ("create", 3),                // the record, the mark of a swap in progress, the entry of the key
            ("link", 2),                  // two objects
            ("mkdir", 4),                 // the draft, the shards of two objects and of the key
            ("rename", 2),                // `current`, the entry of the key
            ("rename to a free name", 1), // the revision
            ("set mtime", 3),
            ("symlink", 1),
            ("truncate", 3), // the attempt's lock file: who builds, where, and how it ended
            ("unlink", 2),   // the mark of the swap, the attempt's lock file
            ("write", 5),    // the record, the entry of the key, and the lock file again
        ]
    );
    assert_eq!(counts.in_vain, [("unlink", 1)], "what a crash may have left of an earlier swap");
}

#[test]
fn a_new_template_waits_four_times_more() {
    let world = World::new(Durability::Full);
    let (_, counts) = world.count(|store| publish(store, "web", "lock", Known::Reuse, 1));
    let new: Vec<_> = counts.syncs.iter().skip(3).take(CREATE_SYNCS).collect();
    assert_eq!(
        new,
        [
            // Everything in the template's directory, before it has its name.
            "draft/template.json",
            "draft/activations.jsonl",
            "draft/artifacts",
            "draft",
            // The name, before a revision is published in it.
            "templates",
        ]
    );
    assert_eq!(counts.syncs.len(), PUBLISH_SYNCS - 1 + CREATE_SYNCS);
}

#[test]
fn the_same_contents_again_add_nothing() {
    let world = World::with_template("web");
    let (first, _) = publish(&world.store, "web", "lock", Known::Reuse, 1);
    let ((again, outcome), mut counts) = world.count(|store| publish(store, "web", "lock", Known::BuildAgain, 1));
    assert_eq!((again.id(), outcome), (first.id(), Outcome::Unchanged));
    counts.syncs[..3].sort_unstable();
    assert_eq!(
        counts.syncs,
        [
            // Each file is durable before the store knows that it has the same bytes.
            "draft/fc-base.json",
            "draft/rootfs.ext4",
            "draft/vmlinux",
            "templates",
            // Whoever published the revision may have died before its name was durable.
            "templates/web/artifacts",
        ]
    );
    assert_eq!(
        counts.changes,
        [
            ("chmod", 4),
            ("link", 2),   // to the two objects that were there
            ("mkdir", 1),  // the draft
            ("rename", 2), // each link takes the place of the file
            ("rmdir", 1),
            ("set mtime", 3),
            ("truncate", 3),
            ("unlink", 4), // the draft's three files, the attempt's lock file
            ("write", 3),
        ],
        "what is published, `current`, the log and the key stay as they are"
    );
    assert_eq!(counts.in_vain, [("link", 2), ("mkdir", 2)], "objects and shards that exist");
}

#[test]
fn a_lookup_and_a_reuse_of_what_is_current_change_nothing_and_wait_for_nothing() {
    let world = World::with_template("web");
    let published = publish(&world.store, "web", "lock", Known::Reuse, 1).0.id().clone();
    let (hit, counts) = world.count(|store| store.lookup(None, &inputs("lock")).unwrap());
    assert_eq!((hit.unwrap().id(), counts), (&published, Counts::nothing()));
    let (miss, counts) = world.count(|store| store.lookup(None, &inputs("other")).unwrap());
    assert!(miss.is_none());
    assert_eq!(counts, Counts::nothing());
    let (reused, counts) = world.count(|store| reuse(store, "web", "lock"));
    assert_eq!((reused.id(), counts), (&published, Counts::nothing()));
}

#[test]
fn a_reuse_into_another_template_waits_six_times() {
    let world = World::with_template("web");
    let _ = publish(&world.store, "web", "lock", Known::Reuse, 1);
    world.create("api", Resources::default().mem_mib);
    let (_, counts) = world.count(|store| reuse(store, "api", "lock"));
    assert_eq!(
        counts.syncs,
        [
            // The files are durable since they were published; their new names and the record are not.
            "templates",
            "draft/revision.json",
            "draft",
            "templates/api/artifacts",
            "templates/api/activations.jsonl",
            "templates/api",
        ]
    );
    assert_eq!(counts.syncs.len(), REUSE_SYNCS);
    assert_eq!(
        counts.changes,
        [
            ("append", 1),
            ("chmod", 1),
            ("create", 3),
            ("link", 3),
            ("mkdir", 1),
            ("rename", 2),
            ("rename to a free name", 1),
            ("symlink", 1),
            ("unlink", 1),
            ("write", 2),
        ]
    );
    assert_eq!(counts.in_vain, [("unlink", 1)]);

    world.create("big", 4096);
    let (_, other_machine) = world.count(|store| reuse(store, "big", "lock"));
    assert_eq!(other_machine.syncs[0], "draft/fc-base.json", "the configuration has other bytes");
    assert_eq!(other_machine.syncs.len(), REUSE_SYNCS + 1);
}

#[test]
fn an_activation_waits_three_times() {
    let world = World::with_template("web");
    let (first, _) = publish(&world.store, "web", "lock", Known::Reuse, 1);
    let _ = publish(&world.store, "web", "other", Known::Reuse, 2);
    let (_, counts) = world.count(|store| store.activate(&id("web"), first.id(), Expect::Any).unwrap());
    assert_eq!(
        counts.syncs,
        [
            // The revision's name: whoever published it may have died before it was durable.
            "templates/web/artifacts",
            // The line of the log, before the `current` that it explains.
            "templates/web/activations.jsonl",
            // `current`, before anybody is told.
            "templates/web",
        ]
    );
    assert_eq!(counts.changes, [("append", 1), ("create", 1), ("rename", 1), ("symlink", 1), ("unlink", 1)]);
    assert_eq!(counts.in_vain, [("unlink", 1)]);

    let (_, again) = world.count(|store| store.activate(&id("web"), first.id(), Expect::Any).unwrap());
    assert_eq!(again.syncs, ["templates/web/artifacts"]);
    assert_eq!((again.changes, again.in_vain), (vec![], vec![]), "it is current already");
}

#[test]
fn an_activation_reads_as_little_of_a_long_history_as_of_a_short_one() {
    let world = World::with_template("web");
    let (first, _) = publish(&world.store, "web", "lock", Known::Reuse, 1);
    let (second, _) = publish(&world.store, "web", "other", Known::Reuse, 2);
    let activate = |revision| bytes_read(|| world.store.activate(&id("web"), revision, Expect::Any).unwrap()).1;
    let short = activate(first.id());
    let path = world.store.layout().activations(&id("web"));
    let lines = fs::read(&path).unwrap();
    fs::write(&path, lines.repeat(10_000)).unwrap();
    let long = activate(second.id());
    if long == 0 {
        return say("bytes that are read were not counted: this kernel does not tell");
    }
    assert!(long <= short + (64 << 10), "{long} bytes where {short} were read before");
    assert_eq!(world.store.history(&id("web")).unwrap().len(), 30_001);
}

/// What this thread reads for something, from the cache or not (proc(5), `/proc/[pid]/io`); 0 where the kernel does not
/// count it.
fn bytes_read<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let by_now = || {
        let counts = fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        counts.lines().find_map(|line| line.strip_prefix("rchar: ")).map_or(0, |count| count.parse().unwrap())
    };
    let before: u64 = by_now();
    let done = work();
    (done, by_now() - before)
}

#[test]
fn an_instance_waits_six_times() {
    let world = World::with_template("web");
    let (revision, _) = publish(&world.store, "web", "lock", Known::Reuse, 1);
    let vms = world.beside("vms");
    let (_, counts) = world.count(|_| revision.instance(vms.join("1")).unwrap());
    assert_eq!(
        counts.syncs,
        [
            // The bytes, before a name leads to them; those of a hard link are durable.
            "../vms/half/rootfs.ext4",
            "../vms/half/fc.json",
            "../vms/half/instance.json",
            // Their names, before the directory has its own.
            "../vms/half",
            // The note, before there is something to note.
            ".store/instances",
            // The name, before anybody is told.
            "../vms",
        ]
    );
    let once = ["rename to a free name", "mkdir", "symlink"];
    let counted = |name: &str| counts.changes.iter().chain(&counts.in_vain).find(|(kind, _)| *kind == name);
    assert!(once.iter().all(|name| counted(name) == Some(&(*name, 1))), "{:?}", counts.changes);
    assert_eq!(counted("link"), Some(&("link", 2)), "the kernel and the configuration");
    assert_eq!(counted("clone"), Some(&("clone", 1)), "the disk; where it fails, it is copied");
}

#[test]
fn a_dense_file_is_opened_once_more_and_sealed_again() {
    let world = World::with_template("web");
    let Build::Draft(draft) = world.store.build(&id("web"), &inputs("lock")).unwrap() else { unreachable!() };
    fill(draft.path(), 1, LARGE);
    fs::write(draft.path().join("rootfs.ext4"), [[0; LARGE], [7; LARGE], [0; LARGE]].concat()).unwrap();
    let (_, mut counts) = world.count(|_| draft.seal().unwrap());
    counts.syncs.sort_unstable();
    assert_eq!(counts.syncs, ["draft/fc-base.json", "draft/rootfs.ext4", "draft/vmlinux"], "each file once");
    let changes = counts
        .changes
        .iter()
        .filter(|(kind, _)| !["link", "mkdir", "rmdir", "truncate", "unlink", "write"].contains(kind));
    assert_eq!(
        changes.copied().collect::<Vec<_>>(),
        [
            ("chmod", 6),        // the directory, three files read-only, one of them writable and read-only again
            ("punch a hole", 2), // its two runs of zeros
            ("set mtime", 4),    // of three files, and once more after the holes
        ]
    );
}

#[test]
fn a_snapshot_waits_nine_times_and_as_often_when_it_is_replaced() {
    let world = World::with_template("web");
    let (revision, _) = publish(&world.store, "web", "lock", Known::Reuse, 1);
    let vm = world.beside("vm");
    for (name, size) in [("vmstate", 100), ("disk", LARGE + 1)] {
        fs::write(vm.join(name), vec![7; size]).unwrap();
    }
    fs::File::create(vm.join("mem")).unwrap().set_len(512 << 20).unwrap();
    let files =
        SnapshotFiles::new(vm.join("vmstate"), vm.join("mem")).drive("rootfs".parse().unwrap(), vm.join("disk"));
    let attach = || revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ()).unwrap();
    let (_, mut counts) = world.count(|_| attach());
    let (made, dir) = (format!("draft/web@{}", revision.id()), format!("templates/web/artifacts/{}", revision.id()));
    counts.syncs[..3].sort_unstable(); // files are copied in parallel
    assert_eq!(
        counts.syncs,
        [
            // The bytes, before the directory has its final name.
            format!("{made}/drives/rootfs"),
            format!("{made}/mem.bin"),
            format!("{made}/vmstate.bin"),
            format!("{made}/snapshot.json"),
            // The names of the five.
            format!("{made}/drives"),
            made.clone(),
            // The final name, before the old snapshot is deleted and the record speaks of the new one.
            dir.clone(),
            // The record, and its name.
            "draft".to_owned(),
            dir,
        ]
    );
    let (_, mut replaced) = world.count(|_| attach());
    replaced.syncs[..3].sort_unstable();
    assert_eq!(replaced.syncs, counts.syncs);
    let number = |kind| replaced.changes.iter().find(|(found, _)| *found == kind).map(|(_, number)| *number);
    assert_eq!((number("exchange"), number("unlink"), number("rename to a free name")), (Some(1), Some(4), None));
}

#[test]
fn a_store_without_durability_never_waits() {
    let world = World::new(Durability::None);
    let (_, counts) = world.count(|store| {
        let (first, _) = publish(store, "web", "lock", Known::Reuse, 1);
        let _ = publish(store, "web", "other", Known::Reuse, 2);
        let _ = reuse(store, "api", "lock");
        first.instance(world.beside("vms").join("1")).unwrap();
        store.activate(&id("web"), first.id(), Expect::Any).unwrap()
    });
    assert_eq!(counts.syncs, Vec::<String>::new());
}

#[test]
fn a_reuse_into_another_template_reads_no_data_of_large_artifacts() {
    let world = World::new(Durability::Full);
    let Build::Draft(draft) = world.store.build(&id("web"), &inputs("lock")).unwrap() else { unreachable!() };
    fill(draft.path(), 1, 8 << 20);
    let source = draft.seal().unwrap().publish().unwrap();
    let (reused, read) = bytes_read(|| reuse(&world.store, "api", "lock"));
    assert_eq!(inode(source.rootfs()), inode(reused.rootfs()));
    assert_eq!(inode(source.kernel()), inode(reused.kernel()));
    if read == 0 {
        return say("bytes that are read were not counted: this kernel does not tell");
    }
    assert!(read < LARGE as u64, "{read} bytes were read");
}
