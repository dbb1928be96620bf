//! The same bytes are one inode, and nobody can change them: not a late writer, not another name, not a bad disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use camino::Utf8Path;
use template_store::{BuildInputs, Draft, Import, ImportOptions, Note, PublishOptions, Revision, SealOptions};

use crate::publish::import;
use crate::support::{
    Heard, Place, Ran, assert_clean, assert_right, build, bytes, draft, flip, fresh, fresh_quick, id, image, inode,
    inputs, object_of, program, reused,
};

/// Seals and publishes, and keeps the notes.
fn publish(draft: Draft) -> (Revision, Vec<Note>) {
    let mut heard = Heard::default();
    let sealed = draft.seal_with(&SealOptions::default(), &mut heard).unwrap();
    let published = sealed.publish_with(&PublishOptions::default(), &mut heard).unwrap();
    (published.revision, heard.notes)
}

fn links(path: impl AsRef<Utf8Path>) -> u64 {
    fs::symlink_metadata(path.as_ref()).unwrap().nlink()
}

/// What a file is, seen from outside the store.
fn state(path: &Utf8Path) -> (Vec<u8>, u32, i64, i64, u64, u64) {
    let m = fs::metadata(path).unwrap();
    (fs::read(path).unwrap(), m.mode(), m.mtime(), m.mtime_nsec(), m.nlink(), m.ino())
}

#[test]
fn the_same_bytes_are_one_inode_across_revisions_and_templates() {
    let (place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");

    let second = draft(&store, "web", &inputs("b"));
    image(second.path(), "one");
    fs::write(second.path().join("rootfs.ext4"), bytes("another", 256 << 10)).unwrap();
    // The kernel's bytes under a second name as well.
    fs::write(second.path().join("spare"), bytes("one: kernel", 128 << 10)).unwrap();
    let (second, _) = publish(second);

    let third = draft(&store, "db", &inputs("c"));
    image(third.path(), "one");
    fs::write(third.path().join("fc-base.json"), "{}").unwrap();
    let (third, _) = publish(third);

    let fourth = import(&store, "cache", &place.image("files", "one"), &ImportOptions::default()).unwrap().revision;
    let kernels = [first.kernel(), second.kernel(), second.path().join("spare"), third.kernel(), fourth.kernel()];
    assert!(kernels.iter().all(|kernel| inode(kernel) == inode(&kernels[0])), "all kernels are one inode");
    assert_eq!(inode(object_of(store.layout(), &first.kernel())), inode(first.kernel()), "which is the object");
    assert_eq!(links(first.kernel()), 6, "five names and the object");
    assert_eq!(inode(third.rootfs()), inode(first.rootfs()));
    assert_ne!(inode(second.rootfs()), inode(first.rootfs()), "other bytes are another inode");
    [&first, &second, &third, &fourth].into_iter().for_each(assert_right);
}

#[test]
fn files_are_objects_from_64_kib_on() {
    let (_place, store) = fresh();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "one");
    fs::write(draft.path().join("vmlinux"), bytes("small", (64 << 10) - 1)).unwrap();
    fs::write(draft.path().join("rootfs.ext4"), bytes("large", 64 << 10)).unwrap();
    let (revision, _) = publish(draft);
    assert_right(&revision);
    assert_eq!((links(revision.kernel()), links(revision.rootfs())), (1, 2));
    assert!(!object_of(store.layout(), &revision.kernel()).exists(), "64 KiB less a byte is no object");
    assert_eq!(inode(object_of(store.layout(), &revision.rootfs())), inode(revision.rootfs()));
}

#[test]
fn a_draft_file_that_is_a_link_to_a_file_elsewhere_leaves_that_file_alone() {
    let (place, store) = fresh();
    for name in ["rootfs.ext4", "fc-base.json", "vmlinux"] {
        fs::write(place.join(name), bytes(name, 100_000)).unwrap();
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o640)).unwrap();
    }
    let fill = |dir: &Utf8Path| {
        image(dir, "one");
        for name in ["rootfs.ext4", "fc-base.json"] {
            fs::remove_file(dir.join(name)).unwrap();
            fs::hard_link(place.join(name), dir.join(name)).unwrap();
        }
        // Two names in the draft, and none elsewhere.
        fs::hard_link(dir.join("vmlinux"), dir.join("second-name")).unwrap();
    };
    let outside = || ["rootfs.ext4", "fc-base.json", "vmlinux"].map(|name| state(&place.join(name)));
    let before = outside();

    let built = draft(&store, "built", &inputs("a"));
    fill(built.path());
    let (built, notes) = publish(built);
    for name in ["rootfs.ext4", "fc-base.json"] {
        let copied = |note: &Note| matches!(note, Note::Copied { path, reason } if path.as_str() == name && reason.contains("another name"));
        assert!(notes.iter().any(copied), "it says why {name} was copied: {notes:?}");
    }
    let mut revisions = vec![built];
    for (template, how) in [("copied", Import::Copy), ("moved", Import::Move)] {
        let files = place.join(template);
        fs::create_dir(&files).unwrap();
        fill(&files);
        revisions.push(import(&store, template, &files, &ImportOptions::default().how(how)).unwrap().revision);
        if how == Import::Copy {
            fs::remove_dir_all(files).unwrap();
        }
    }
    assert_eq!(outside(), before, "bytes, mode, time, links and inode of what is outside");

    fs::write(place.join("rootfs.ext4"), "written later").unwrap();
    for revision in &revisions {
        assert_ne!(inode(revision.rootfs()), before[0].5, "the published file is another inode");
        assert_right(revision);
        assert_eq!(fs::read(revision.rootfs()).unwrap(), before[0].0, "with the bytes that were there then");
    }
    assert_clean(store.layout());
}

#[test]
fn who_still_has_a_file_open_for_writing_changes_nothing_that_was_published() {
    let (_place, store) = fresh();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "one");
    let open = |name: &str| File::options().write(true).open(draft.path().join(name)).unwrap();
    let late: Vec<File> = ["rootfs.ext4", "vmlinux", "fc-base.json"].map(open).into();

    let sealed = draft.seal().unwrap();
    late.iter().for_each(|file| file.write_all_at(b"LATE", 70_000).unwrap());
    let revision = sealed.publish().unwrap();
    assert_right(&revision);
    late.iter().for_each(|file| file.write_all_at(b"LATER", 0).unwrap());
    assert_right(&revision);
    assert_eq!(fs::read(revision.rootfs()).unwrap(), bytes("one: rootfs", 256 << 10));
}

/// Publishes one image twice, with a damage to the shared object between, and looks at both revisions.
fn heals_what_rotted(damage: impl Fn(&Utf8Path)) {
    let (_place, store) = fresh();
    let old = build(&store, "web", &inputs("a"), "one");
    let shared = reused(&store, "other", &inputs("a"));
    let (log, current) = (fs::read(store.layout().activations(&id("web"))).unwrap(), inode(old.path()));
    let object = object_of(store.layout(), &old.rootfs());
    damage(&object);

    let new = draft(&store, "db", &inputs("b"));
    image(new.path(), "one");
    let (new, notes) = publish(new);
    assert_right(&new);
    assert_right(&old);
    assert_right(&shared);
    assert_eq!(inode(&object), inode(new.rootfs()), "the object is the good inode");
    assert_eq!((inode(old.rootfs()), inode(shared.rootfs())), (inode(&object), inode(&object)), "and all have it");
    for healed in [old.rootfs(), shared.rootfs()] {
        assert!(notes.contains(&Note::Healed { path: healed.clone() }), "it says that {healed} was healed: {notes:?}");
    }
    assert_eq!(fs::read(store.layout().activations(&id("web"))).unwrap(), log, "nobody else became current");
    assert_eq!(inode(old.path()), current, "the directory of a revision is never replaced");
    assert_clean(store.layout());
}

#[test]
fn an_object_that_rotted_is_not_linked_to_and_is_healed() {
    let writable = |object: &Utf8Path| fs::set_permissions(object, fs::Permissions::from_mode(0o644)).unwrap();
    heals_what_rotted(|object| flip(object, 70_000, false));
    heals_what_rotted(|object| flip(object, 70_000, true));
    heals_what_rotted(writable);
    heals_what_rotted(|object| {
        writable(object);
        File::options().write(true).open(object).unwrap().set_len(1000).unwrap();
    });
}

#[test]
fn objects_that_were_lost_come_back_with_the_next_publication() {
    let (_place, store) = fresh();
    let old = build(&store, "web", &inputs("a"), "one");
    fs::remove_dir_all(store.layout().objects()).unwrap();
    assert_right(&store.current(&id("web")).unwrap());

    let new = build(&store, "db", &inputs("b"), "one");
    assert_right(&new);
    assert_eq!(inode(object_of(store.layout(), &new.rootfs())), inode(new.rootfs()));
    assert_right(&old);
}

#[test]
fn many_who_publish_the_same_bytes_at_once_share_one_inode() {
    let (_place, store) = fresh_quick();
    let build = |n: usize| build(&store, &format!("web-{n}"), &inputs(&format!("lock-{n}")), "one");
    let revisions: Vec<Revision> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || build(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for revision in &revisions {
        assert_right(revision);
        assert_eq!(inode(revision.rootfs()), inode(revisions[0].rootfs()), "{revision:?}");
    }
    assert_eq!(links(revisions[0].rootfs()), 9);
}

/// The user nobody, who can do only what everybody can.
pub const NOBODY: u32 = 65534;

/// The program in a place that everybody can use, run by nobody; `None` where that can't be.
pub fn by_nobody(place: &Place, words: &[&str]) -> Option<Command> {
    if !rustix::process::geteuid().is_root() {
        println!("only root can run the program as another user: not tried");
        return None;
    }
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = place.join("template-store");
    if !copy.exists() {
        fs::copy(program(), &copy).unwrap();
    }
    let mut command = Command::new(&copy);
    command.uid(NOBODY).gid(NOBODY).current_dir("/").env("HOME", place.path());
    command.args(["--store", place.root().as_str()]).args(words);
    if !Command::new(&copy).arg("--version").uid(NOBODY).gid(NOBODY).output().is_ok_and(|ran| ran.status.success()) {
        println!("{} can't be used by other users: not tried", place.path());
        return None;
    }
    Some(command)
}

fn open_to_all(dir: &Utf8Path) {
    for entry in walkdir::WalkDir::new(dir).into_iter().flatten() {
        let mode = match entry.file_type() {
            kind if kind.is_dir() => 0o777,
            // Published files stay as they are: they are what the other user may not link to.
            kind if kind.is_file() && entry.metadata().unwrap().mode() & 0o222 != 0 => 0o666,
            _ => continue,
        };
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).unwrap();
    }
}

#[test]
fn a_second_user_publishes_the_same_bytes_beside_an_object_that_is_not_theirs() {
    let place = Place::new();
    let Some(mut publish) = by_nobody(&place, &["--json", "publish", "other"]) else { return };
    if !fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.trim() == "1") {
        return println!("fs.protected_hardlinks is off: not tried");
    }
    let store = place.store();
    let old = build(&store, "web", &inputs("a"), "one");
    open_to_all(&place.root());
    let object = object_of(store.layout(), &old.rootfs());
    let before = state(&object);

    let files = place.image("files", "one");
    let ran = Ran::of(publish.arg(files.as_str()).output().unwrap()).with_code(0);
    let notes = ran.json()["notes"].to_string();
    assert!(notes.contains("rootfs.ext4") && notes.contains("another user"), "it says why it did not share: {notes}");
    let new = store.current(&id("other")).unwrap();
    assert_right(&new);
    assert_right(&old);
    assert_ne!(inode(new.rootfs()), inode(old.rootfs()));
    assert_eq!(fs::metadata(new.rootfs()).unwrap().uid(), NOBODY, "the files are those of who published them");
    assert_eq!(state(&object), before, "the object of the first user is as it was");
}

#[test]
fn a_second_user_reuses_files_that_are_not_theirs_by_copies() {
    let place = Place::new();
    let lock = place.lock("a");
    let words = ["--json", "build", "other", "--flake-lock", lock.as_str(), "--role", "worker", "--", "false"];
    let Some(mut reuse) = by_nobody(&place, &words) else { return };
    let store = place.store();
    let from_lock = BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap();
    let old = build(&store, "web", &from_lock, "one");
    open_to_all(&place.root());

    let ran = Ran::of(reuse.output().unwrap()).with_code(0);
    assert_eq!(ran.json()["result"], "reused", "{ran:?}");
    assert_right(&store.current(&id("other")).unwrap());
    assert_right(&old);
}
