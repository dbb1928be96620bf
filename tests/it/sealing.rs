//! What a draft may hold, and what becomes of its files.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, Dev, FileType, Mode, XattrFlags, mknodat, setxattr};
use rustix::io::Errno;
use template_store::{ErrorKind, Import, ImportOptions, Note, Outcome, Published, Result, Store};

use crate::interning::{NOBODY, by_nobody};
use crate::publish::{called, import};
use crate::support::{
    ARTIFACTS, Heard, Place, Ran, assert_clean, assert_error, assert_right, build, bytes, draft, fresh, id, image,
    inode, inputs, listing, names,
};

/// Makes a node that is neither file nor directory.
fn node(path: &Utf8Path, kind: FileType) -> bool {
    let made = mknodat(CWD, path.as_std_path(), kind, Mode::RUSR | Mode::WUSR, Dev::default());
    if made == Err(Errno::PERM) {
        println!("only root can make a {kind:?}: not tried");
        return false;
    }
    made.unwrap();
    true
}

/// A draft is refused with these words, in whichever way it comes; nothing of it stays.
fn assert_refused(words: &[&str], spoil: impl Fn(&Utf8Path) -> bool) {
    let (place, store) = fresh();
    let before = listing(store.layout().root());

    let spoilt = draft(&store, "web", &inputs("lock"));
    image(spoilt.path(), "one");
    if !spoil(spoilt.path()) {
        return;
    }
    assert_error(spoilt.seal(), ErrorKind::Failed, words);
    assert_eq!(listing(store.layout().root()), before, "nothing is left of the draft");

    let files = place.image("files", "one");
    spoil(&files);
    let untouched = listing(&files);
    for how in [Import::Copy, Import::Move] {
        let result = import(&store, "web", &files, &ImportOptions::default().how(how));
        assert_error(result, ErrorKind::Failed, words);
        assert_eq!(listing(store.layout().root()), before, "nothing is left of an import by {how:?}");
        assert_eq!(listing(&files), untouched, "the directory of an import by {how:?} is as it was");
    }
}

#[test]
fn what_is_neither_file_nor_directory_is_refused() {
    let gone = |file: Utf8PathBuf| fs::remove_file(&file).map(|()| file).unwrap();
    let link = |to: &str, path: Utf8PathBuf| symlink(to, path).is_ok();
    assert_refused(&["passwords", "symbolic link"], |dir| link("/etc/passwd", dir.join("passwords")));
    assert_refused(&["sub/etc", "symbolic link"], |dir| {
        fs::create_dir(dir.join("sub")).is_ok() && link("/etc", dir.join("sub/etc"))
    });
    assert_refused(&["vmlinux", "symbolic link"], |dir| link("rootfs.ext4", gone(dir.join("vmlinux"))));
    assert_refused(&["wire", "pipe"], |dir| node(&dir.join("wire"), FileType::Fifo));
    assert_refused(&["plug", "socket"], |dir| node(&dir.join("plug"), FileType::Socket));
    assert_refused(&["null", "device"], |dir| node(&dir.join("null"), FileType::CharacterDevice));
    assert_refused(&["rootfs.ext4", "pipe"], |dir| node(&gone(dir.join("rootfs.ext4")), FileType::Fifo));
}

#[test]
fn a_name_that_no_revision_can_have_is_refused() {
    let named = |dir: &Utf8Path, name: &[u8]| dir.as_std_path().join(OsStr::from_bytes(name));
    assert_refused(&["name", "UTF-8"], |dir| fs::write(named(dir, b"\xffname"), "").is_ok());
    assert_refused(&["sub", "UTF-8"], |dir| fs::create_dir(named(dir, b"sub\xff")).is_ok());
    assert_refused(&["revision.json", "reserved"], |dir| fs::write(dir.join("revision.json"), "{}").is_ok());
    assert_refused(&["snapshot", "reserved"], |dir| fs::create_dir(dir.join("snapshot")).is_ok());
    assert_refused(&["a", "control character"], |dir| fs::write(dir.join("a\nb"), "").is_ok());
}

#[test]
fn a_draft_without_what_every_revision_has_is_refused() {
    for name in ARTIFACTS {
        let gone = |dir: &Utf8Path| fs::remove_file(dir.join(name)).is_ok();
        assert_refused(&[&format!("no {name}")], gone);
        assert_refused(&[&format!("no {name}")], |dir| gone(dir) && fs::create_dir(dir.join(name)).is_ok());
    }
    let empty = |dir: &Utf8Path| names(dir).iter().all(|name| fs::remove_file(dir.join(name)).is_ok());
    assert_refused(&["is empty"], empty);
    assert_refused(&["is empty"], |dir| empty(dir) && fs::create_dir(dir.join("nothing")).is_ok());
}

/// A draft and directories elsewhere, filled alike, published each in a store of its own: each way is looked at.
fn both_ways(fill: impl Fn(&Utf8Path), look: impl Fn(&Utf8Path, &[Note])) {
    let place = Place::new();
    let (store, mut heard) = (place.store(), Heard::default());
    let built = draft(&store, "built", &inputs("lock"));
    fill(built.path());
    let revision = built.seal_with(&Default::default(), &mut heard).unwrap().publish().unwrap();
    assert_right(&revision);
    look(&revision.path(), &heard.notes);
    assert_clean(store.layout());

    for (template, how) in [("copied", Import::Copy), ("moved", Import::Move)] {
        let place = Place::new();
        let (store, mut heard) = (place.store(), Heard::default());
        let files = place.join("files");
        fs::create_dir(&files).unwrap();
        fill(&files);
        let untouched = listing(&files);
        let options = ImportOptions::default().how(how);
        let published = store.publish_dir_with(&id(template), &files, &options, &mut heard).unwrap();
        assert_right(&published.revision);
        assert_eq!(published.revision.id(), revision.id(), "{how:?}");
        look(&published.revision.path(), &heard.notes);
        match how {
            Import::Copy => assert_eq!(listing(&files), untouched, "the files that were copied are as they were"),
            Import::Move => assert!(!files.exists(), "the directory was moved"),
        }
        assert_clean(store.layout());
        // Else who is not root can't remove the place.
        for entry in walkdir::WalkDir::new(&files).into_iter().flatten().filter(|entry| entry.file_type().is_dir()) {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
}

#[test]
fn modes_and_times_are_those_of_a_sealed_file() {
    let modes = [("vmlinux", 0o755), ("rootfs.ext4", 0o666), ("fc-base.json", 0o400), ("setuid", 0o4755)];
    let fill = |dir: &Utf8Path| {
        image(dir, "modes");
        fs::write(dir.join("setuid"), "#!/bin/sh").unwrap();
        for (name, mode) in modes {
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    both_ways(fill, |dir, _| {
        for (name, _) in modes {
            let metadata = fs::metadata(dir.join(name)).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o444, 1), "{name}");
        }
    });
}

#[test]
fn extended_attributes_are_dropped_and_named() {
    let attribute = |path: &Utf8Path, name: &str| setxattr(path.as_std_path(), name, b"x", XattrFlags::CREATE);
    let probe = Place::new();
    fs::write(probe.join("file"), "").unwrap();
    if attribute(&probe.join("file"), "user.test") == Err(Errno::OPNOTSUPP) {
        return println!("the temporary directory keeps no user attributes: not tried");
    }
    let fill = |dir: &Utf8Path| {
        image(dir, "attributes");
        for name in ["user.one", "user.two"] {
            attribute(&dir.join("vmlinux"), name).unwrap();
        }
    };
    both_ways(fill, |dir, notes| {
        let mut list = [0; 1000];
        let len = rustix::fs::listxattr(dir.join("vmlinux").as_std_path(), &mut list[..]).unwrap();
        let left = String::from_utf8_lossy(&list[..len]).into_owned();
        assert!(!left.contains("user."), "{left:?} is left");
        // A copy never had them; the builder's own file says what it lost.
        if dir.as_str().contains("/copied/") {
            return;
        }
        let dropped = |note: &Note| match note {
            Note::AttributesDropped { path, names } => {
                path.as_str() == "vmlinux"
                    && ["user.one", "user.two"].iter().all(|name| names.iter().any(|n| n == name))
            }
            _ => false,
        };
        assert!(notes.iter().any(dropped), "{notes:?}");
    });
}

/// A user who is not root may change the attributes of files only that they may write.
#[test]
fn extended_attributes_are_dropped_whoever_publishes() {
    let place = Place::new();
    let files = place.image("files", "one");
    let Some(mut publish) = by_nobody(&place, &["publish", "web", files.as_str(), "--move"]) else { return };
    let kernel = files.join("vmlinux");
    if setxattr(kernel.as_std_path(), "user.test", b"x", XattrFlags::CREATE) == Err(Errno::OPNOTSUPP) {
        return println!("the temporary directory keeps no user attributes: not tried");
    }
    for name in ["", "vmlinux", "rootfs.ext4", "fc-base.json"] {
        std::os::unix::fs::chown(files.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let ran = Ran::of(publish.output().unwrap()).with_code(0).says(&["vmlinux", "user.test"]);
    assert!(ran.out.starts_with("published web@"), "{ran:?}");
    assert_right(&place.store().current(&id("web")).unwrap());
}

#[test]
fn nested_and_read_only_directories_are_published() {
    let fill = |dir: &Utf8Path| {
        image(dir, "nested");
        fs::create_dir_all(dir.join("lib/modules/6.1")).unwrap();
        fs::create_dir_all(dir.join("lib/empty")).unwrap();
        fs::write(dir.join("lib/modules/6.1/virtio.ko"), bytes("module", 100_000)).unwrap();
        fs::write(dir.join("lib/readme"), "text").unwrap();
        // As in a Nix store.
        for inner in ["lib/modules/6.1", "lib/modules", "lib/empty", "lib", ""] {
            fs::set_permissions(dir.join(inner), fs::Permissions::from_mode(0o555)).unwrap();
        }
    };
    both_ways(fill, |dir, _| {
        assert_eq!(fs::read(dir.join("lib/modules/6.1/virtio.ko")).unwrap(), bytes("module", 100_000));
        assert_eq!(fs::read_to_string(dir.join("lib/readme")).unwrap(), "text");
        let templates = dir.ancestors().nth(3).unwrap();
        let public = fs::metadata(templates).unwrap().mode() & 0o777;
        for inner in ["", "lib", "lib/modules", "lib/modules/6.1"] {
            let mode = fs::metadata(dir.join(inner)).unwrap().mode() & 0o777;
            assert_eq!(mode, public, "{inner:?} can be read by those who can read the store");
        }
    });
}

#[test]
fn holes_are_kept() {
    const SIZE: u64 = 64 << 20;
    let fill = |dir: &Utf8Path| {
        image(dir, "holes");
        let file = File::create(dir.join("rootfs.ext4")).unwrap();
        file.set_len(SIZE).unwrap();
        for at in [1 << 20, 30 << 20, SIZE - 5000] {
            file.write_all_at(&bytes("data", 5000), at).unwrap();
        }
        file.sync_all().unwrap();
    };
    let probe = Place::new();
    fill(probe.path());
    let used = fs::metadata(probe.join("rootfs.ext4")).unwrap().blocks() * 512;
    if used > SIZE / 2 {
        return println!("the temporary directory keeps no holes: not tried");
    }
    both_ways(fill, |dir, _| {
        let metadata = fs::metadata(dir.join("rootfs.ext4")).unwrap();
        assert_eq!(metadata.len(), SIZE);
        assert!(metadata.blocks() * 512 <= used + (1 << 20), "{} bytes are used, not {used}", metadata.blocks() * 512);
    });
}

#[test]
fn a_move_keeps_the_inodes_of_files_and_directory() {
    let (place, store) = fresh();
    let files = place.image("files", "one");
    let before = (inode(&files), inode(files.join("rootfs.ext4")), inode(files.join("fc-base.json")));
    let published = import(&store, "web", &files, &ImportOptions::default().how(Import::Move)).unwrap();
    let revision = published.revision;
    assert_eq!((published.outcome, files.exists()), (Outcome::New, false));
    assert_eq!((inode(revision.path()), inode(revision.rootfs()), inode(revision.fc_base_config())), before);
    assert_right(&revision);
}

#[test]
fn a_move_of_what_is_there_already_removes_the_directory() {
    let (place, store) = fresh();
    let revision = build(&store, "web", &inputs("lock"), "one");
    let before = listing(store.layout().root());
    let published =
        import(&store, "web", &place.image("files", "one"), &ImportOptions::default().how(Import::Move)).unwrap();
    assert_eq!((published.outcome, published.revision.id()), (Outcome::Unchanged, revision.id()));
    assert!(!place.join("files").exists(), "its files are in the store");
    assert_eq!(listing(store.layout().root()), before);
}

fn move_in(store: &Store, files: &Utf8Path, revision: &str) -> Result<Published> {
    import(store, "web", files, &called(revision).how(Import::Move))
}

#[test]
fn a_move_that_is_refused_leaves_the_directory_and_its_files() {
    let (place, store) = fresh();
    import(&store, "web", &place.image("first", "one"), &called("r1")).unwrap();
    let files = place.image("files", "two");
    let bytes = || names(&files).into_iter().map(|name| (fs::read(files.join(&name)).unwrap(), name));
    let before: Vec<_> = bytes().collect();

    assert_error(move_in(&store, &files, "r1"), ErrorKind::Refused, &["r1", "fc-base.json differs"]);
    assert!(bytes().eq(before), "all is there, and nothing more");
    assert_clean(store.layout());
    assert_right(&move_in(&store, &files, "r2").unwrap().revision);
}

#[test]
fn a_move_from_another_file_system_is_refused_and_leaves_the_directory() {
    let (place, store) = fresh();
    let here = fs::metadata(place.path()).unwrap().dev();
    let elsewhere = ["/dev/shm", "/var/tmp", "/tmp"].into_iter().find_map(|dir| {
        let other = fs::metadata(dir).is_ok_and(|metadata| metadata.dev() != here);
        other.then(|| tempfile::tempdir_in(dir).ok()).flatten()
    });
    let Some(elsewhere) = elsewhere else {
        return println!("there is no second file system that this user can write: not tried");
    };
    let files = Utf8Path::from_path(elsewhere.path()).unwrap();
    image(files, "one");
    let before = listing(files);
    assert_error(move_in(&store, files, "r1"), ErrorKind::Failed, &["move", "one file system"]);
    assert_eq!(listing(files), before);
    assert_right(&import(&store, "web", files, &called("r1")).unwrap().revision);
}
