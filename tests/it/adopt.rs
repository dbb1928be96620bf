//! A data directory of mvm becomes a store where it is: nothing in it is lost, and mvm goes on reading it.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use template_store::{
    Action, Adopted, BuildInputs, Error, ErrorKind, Layout, Note, Revision, RevisionId, Store, StoreOptions,
    TemplateId, TemplateRevision, TemplateSpec,
};

use crate::program::mvm_directory;
use crate::reuse::{nar_hash, write_as_mvm};
use crate::support::{
    Heard, Place, assert_clean, assert_error, assert_right, bytes, id, image, inode, listing, names, object_of,
    until_closed,
};

/// Makes a template as mvm does.
pub fn mvm_template(root: &Utf8Path, template: &str) {
    let dir = root.join("templates").join(template);
    fs::create_dir_all(dir.join("artifacts/revisions")).unwrap();
    let spec = json!({
        "schema_version": 1, "template_id": template, "flake_ref": ".", "profile": "minimal", "role": "worker",
        "vcpus": 2, "mem_mib": 512, "data_disk_mib": 0, "created_at": "", "updated_at": "",
    });
    fs::write(dir.join("template.json"), spec.to_string()).unwrap();
}

/// Makes a revision as mvm does, and makes it current; its directory.
pub fn mvm_revision(root: &Utf8Path, template: &str, revision: &str, label: &str) -> Utf8PathBuf {
    let dir = root.join("templates").join(template);
    let artifacts = dir.join("artifacts").join(revision);
    write_as_mvm(&artifacts, label);
    image(&artifacts, label);
    // What somebody has open for writing is not adopted.
    until_closed(&artifacts);
    point(&dir, &format!("revisions/{revision}"));
    artifacts
}

fn point(template: &Utf8Path, target: &str) {
    let current = template.join("current");
    let _ = fs::remove_file(&current);
    symlink(target, current).unwrap();
}

/// A directory of mvm with `web`, whose revisions are `r1` and `r2`, and with what else mvm leaves in one.
pub fn mvm_data(place: &Place) -> Utf8PathBuf {
    let root = place.root();
    mvm_template(&root, "web");
    mvm_revision(&root, "web", "r1", "one");
    mvm_revision(&root, "web", "r2", "two");
    fs::create_dir_all(root.join("runtime/vm-1")).unwrap();
    fs::write(root.join("runtime/vm-1/pid"), "7").unwrap();
    fs::write(root.join("templates/stray-file"), "stray").unwrap();
    root
}

pub fn adopt(root: &Utf8Path) -> Adopted {
    Store::adopt(root, &StoreOptions::default(), &mut ()).unwrap()
}

/// The bytes of every file that is not the store's own, and not a record.
pub fn all_bytes(root: &Utf8Path) -> BTreeMap<String, Vec<u8>> {
    let walk = walkdir::WalkDir::new(root).into_iter().map(Result::unwrap);
    let files = walk.filter(|entry| entry.file_type().is_file()).filter_map(|entry| {
        let path = Utf8PathBuf::from_path_buf(entry.into_path()).unwrap();
        let relative = path.strip_prefix(root).unwrap();
        let ours = relative.starts_with(".store") || ["activations.jsonl", ".activating"].contains(&path.file_name()?);
        let record = path.file_name() == Some("revision.json");
        (!ours && !record).then(|| (relative.to_string(), fs::read(&path).unwrap()))
    });
    files.collect()
}

/// Reads the current revision as mvm 0.11 does.
pub fn mvm_current(root: &Utf8Path, template: &str) -> TemplateRevision {
    let dir = root.join("templates").join(template);
    let spec: TemplateSpec = serde_json::from_slice(&fs::read(dir.join("template.json")).unwrap()).unwrap();
    assert_eq!(spec.template_id, template);
    let target = fs::read_link(dir.join("current")).unwrap();
    let target = target.to_str().unwrap();
    let artifacts = dir.join("artifacts").join(target.strip_prefix("revisions/").unwrap_or(target));
    let record: TemplateRevision =
        serde_json::from_slice(&fs::read(artifacts.join("revision.json")).unwrap()).expect("mvm reads the record");
    for name in [&record.artifact_paths.vmlinux, &record.artifact_paths.rootfs, &record.artifact_paths.fc_base_config] {
        assert!(artifacts.join(name).is_file(), "{artifacts}/{name}");
    }
    record
}

fn newly(adopted: &Adopted) -> Vec<String> {
    adopted.revisions.iter().map(|(template, revision)| format!("{template}@{revision}")).collect()
}

/// The reason for which this was left.
#[track_caller]
fn reason<'a>(adopted: &'a Adopted, path: &Utf8Path) -> &'a str {
    let left = adopted.left.iter().find(|left| left.path == path);
    &left.unwrap_or_else(|| panic!("{path} is not in {:?}", adopted.left)).reason
}

fn revision(store: &Store, template: &str, name: &str) -> Revision {
    store.revision(&id::<TemplateId>(template), &id::<RevisionId>(name)).unwrap()
}

#[test]
fn the_directory_that_mvm_made_becomes_a_store() {
    let place = Place::new();
    mvm_directory(&place);
    let root = place.root();
    fs::create_dir(root.join("runtime")).unwrap();
    fs::write(root.join("runtime/vm.json"), "{}").unwrap();
    let record_path = root.join("templates/base/artifacts/3c7f1e/revision.json");
    let (before, record) = (all_bytes(&root), fs::read_to_string(&record_path).unwrap());

    let words = ["--json", "adopt", root.as_str()];
    let ran = place.run(&words).with_code(0).says(&["stray-file was left"]);
    let said = ran.json();
    assert_eq!(said["adopted"], json!([{ "template": "base", "revision": "3c7f1e" }]), "{said}");
    assert_eq!((said["store"].as_str(), said["left"].as_array().unwrap().len()), (Some(root.as_str()), 1), "{said}");

    assert_eq!(all_bytes(&root), before, "no file is lost or changed");
    let now = fs::read_to_string(&record_path).unwrap();
    assert!(now.starts_with(record.trim_end().strip_suffix('}').unwrap().trim_end()), "the record is kept: {now}");
    assert!(root.join("templates/base/artifacts/revisions").is_dir());
    assert_eq!(fs::canonicalize(root.join("templates/base/current")).unwrap(), record_path.parent().unwrap());
    let theirs = mvm_current(&root, "base");
    assert_eq!((theirs.revision_hash.as_str(), theirs.snapshot.unwrap().boot_args.as_str()), ("3c7f1e", "b"));

    let store = Store::open(&root).unwrap();
    let revision = store.current(&id("base")).unwrap();
    assert_right(&revision);
    let listed: Vec<_> = revision.contents().iter().map(|content| content.path.as_str()).collect();
    assert_eq!(listed, ["checksums.json", "fc-base.json", "initrd", "rootfs.ext4", "vmlinux"]);
    assert!(revision.record().adopted_at.is_some() && revision.record().published_at.is_none());
    let found = store.lookup(None, &BuildInputs::new(id("l"), id("minimal"), id("worker"))).unwrap();
    assert_eq!(found.expect("its key is known").id(), revision.id());
    for words in [&["list"][..], &["show", "base"], &["path", "base", "initrd"], &["history", "base"]] {
        place.done(words);
    }
    assert_clean(store.layout());
    store.publish_dir(&id("base"), place.image("files", "new")).unwrap();
    assert_eq!(store.rollback(&id("base")).unwrap().id(), revision.id(), "it can be gone back to");
}

#[test]
fn the_program_says_in_words_what_it_adopted_and_what_it_left() {
    let place = Place::new();
    let root = mvm_data(&place);
    let ran = place.done(&["adopt", root.as_str()]);
    assert!(ran.out.contains("adopted 2 revisions of 1 template;"), "{ran:?}");
    assert!(ran.out.contains("stray-file: no template"), "{ran:?}");
    assert!(place.done(&["adopt", root.as_str()]).out.contains("adopted 0 revisions"));
}

#[test]
fn a_current_in_each_spelling_resolves_afterwards() {
    let spellings =
        ["r1", "revisions/r1", "artifacts/r1", "artifacts/revisions/r1", "./revisions/r1", "revisions/r1/", "./r1//"];
    for target in spellings {
        let place = Place::new();
        let root = mvm_data(&place);
        point(&root.join("templates/web"), target);
        let store = adopt(&root).store;
        let current = store.layout().current(&id("web"));
        assert_eq!(fs::read_link(&current).unwrap().to_str(), Some("revisions/r1"), "{target}");
        assert_eq!(
            inode(fs::canonicalize(&current).map(|path| Utf8PathBuf::try_from(path).unwrap()).unwrap()),
            inode(revision(&store, "web", "r1").path())
        );
        assert_eq!(mvm_current(&root, "web").revision_hash, "r1", "{target}");
        assert!(!store.layout().activating(&id("web")).exists());
        let log: Vec<_> =
            store.history(&id("web")).unwrap().into_iter().map(|line| (line.revision, line.action)).collect();
        assert_eq!(log, [(id("r1"), Action::Other)], "{target}");
    }
}

#[test]
fn a_current_that_names_nothing_is_left() {
    for (target, word) in [("revisions/gone", "gone"), ("/etc", "no revision")] {
        let place = Place::new();
        let root = mvm_data(&place);
        point(&root.join("templates/web"), target);
        let adopted = adopt(&root);
        let current = root.join("templates/web/current");
        assert!(reason(&adopted, &current).contains(word), "{:?}", adopted.left);
        assert_eq!(fs::read_link(&current).unwrap().to_str(), Some(target));
        assert_eq!(newly(&adopted), ["web@r1", "web@r2"]);
    }
}

#[test]
fn a_file_that_is_open_for_writing_is_not_touched() {
    let place = Place::new();
    let root = mvm_data(&place);
    let dir = root.join("templates/web/artifacts/r2");
    let before = listing(&dir);
    let writer = File::options().write(true).open(dir.join("rootfs.ext4")).unwrap();
    let adopted = adopt(&root);
    assert_eq!(newly(&adopted), ["web@r1"]);
    let reason = reason(&adopted, &dir);
    assert!(reason.contains("rootfs.ext4 open for writing") && reason.contains("stop its VM"), "{reason}");
    assert_eq!(listing(&dir), before, "no inode, mode or time has changed");
    assert_eq!(mvm_current(&root, "web").revision_hash, "r2");
    assert!(adopted.store.current(&id("web")).unwrap().contents().is_empty());

    drop(writer);
    let again = adopt(&root);
    assert_eq!(newly(&again), ["web@r2"]);
    assert_right(&revision(&again.store, "web", "r2"));
    assert!(!again.store.layout().adopting().exists());
}

#[test]
fn the_same_bytes_in_two_revisions_become_one_inode() {
    let place = Place::new();
    let root = mvm_data(&place);
    mvm_template(&root, "db");
    mvm_revision(&root, "db", "r9", "one");
    let mut heard = Heard::default();
    let store = Store::adopt(&root, &StoreOptions::default(), &mut heard).unwrap().store;
    let (a, b) = (revision(&store, "web", "r1"), revision(&store, "db", "r9"));
    for name in ["rootfs.ext4", "vmlinux"] {
        assert_eq!(inode(a.path().join(name)), inode(b.path().join(name)), "{name}");
        assert_eq!(inode(object_of(store.layout(), &a.path().join(name))), inode(a.path().join(name)), "{name}");
    }
    assert_right(&a);
    assert_right(&b);
    assert_eq!(heard.notes, [], "nothing was copied");
}

#[test]
fn a_file_with_a_name_outside_keeps_it_as_it_is() {
    let place = Place::new();
    let root = mvm_data(&place);
    let (inside, outside) = (root.join("templates/web/artifacts/r1/rootfs.ext4"), place.join("outside"));
    fs::hard_link(&inside, &outside).unwrap();
    let state = |path: &Utf8Path| {
        let m = fs::metadata(path).unwrap();
        (fs::read(path).unwrap(), m.mode(), m.mtime(), m.mtime_nsec(), m.ino())
    };
    let before = state(&outside);
    let mut heard = Heard::default();
    let store = Store::adopt(&root, &StoreOptions::default(), &mut heard).unwrap().store;
    assert!(state(&outside) == before, "the other name has what it had");
    assert_right(&revision(&store, "web", "r1"));
    assert_ne!(inode(&inside), inode(&outside));
    let noted = |note: &Note| matches!(note, Note::Detached { path, .. } if *path == inside);
    assert!(heard.notes.iter().any(noted), "{:?}", heard.notes);
}

/// Something that happens to a revision's directory.
type Change = fn(&Utf8Path);

#[test]
fn what_a_revision_cannot_hold_leaves_the_revision() {
    let changes: [(&str, Change); 6] = [
        ("symbolic link", |dir| symlink("/etc/passwd", dir.join("link")).unwrap()),
        ("socket", |dir| drop(std::os::unix::net::UnixListener::bind(dir.join("v.sock")).unwrap())),
        ("control character", |dir| fs::write(dir.join("a\nb"), "x").unwrap()),
        ("it has no vmlinux", |dir| fs::remove_file(dir.join("vmlinux")).unwrap()),
        ("no revision.json", |dir| fs::remove_file(dir.join("revision.json")).unwrap()),
        ("not a valid revision.json", |dir| fs::write(dir.join("revision.json"), "{").unwrap()),
    ];
    for (word, change) in changes {
        let place = Place::new();
        let root = mvm_data(&place);
        let dir = root.join("templates/web/artifacts/r1");
        change(&dir);
        let before = listing(&dir);
        let adopted = adopt(&root);
        assert!(reason(&adopted, &dir).contains(word), "{word}: {:?}", adopted.left);
        assert_eq!(listing(&dir), before, "{word}");
        assert_eq!(newly(&adopted), ["web@r2"], "{word}");
    }
}

#[test]
fn a_snapshot_and_the_directories_of_a_revision_are_kept() {
    let place = Place::new();
    let root = mvm_data(&place);
    let dir = root.join("templates/web/artifacts/r1");
    fs::create_dir_all(dir.join("snapshot")).unwrap();
    fs::create_dir_all(dir.join("modules/net")).unwrap();
    fs::write(dir.join("snapshot/mem.bin"), bytes("memory", 100_000)).unwrap();
    fs::write(dir.join("modules/net/virtio.ko"), bytes("module", 100_000)).unwrap();
    fs::set_permissions(dir.join("modules/net"), Permissions::from_mode(0o555)).unwrap();
    let _vm = File::options().write(true).open(dir.join("snapshot/mem.bin")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("snapshot/v.sock")).unwrap();
    let before = listing(&dir.join("snapshot"));
    let store = adopt(&root).store;
    assert_eq!(listing(&dir.join("snapshot")), before);
    let revision = revision(&store, "web", "r1");
    assert_right(&revision);
    let listed: Vec<_> = revision.contents().iter().map(|content| content.path.as_str()).collect();
    assert_eq!(listed, ["fc-base.json", "modules/net/virtio.ko", "rootfs.ext4", "vmlinux"]);
}

#[test]
fn a_template_that_is_none_or_whose_alias_is_taken_is_left() {
    let place = Place::new();
    let root = mvm_data(&place);
    for (name, word) in [("none", "definition"), ("BAD", "template id"), ("taken", "move it away"), ("newer", "99")] {
        let dir = root.join("templates").join(name);
        mvm_template(&root, name);
        mvm_revision(&root, name, "r1", "three");
        match name {
            "none" => fs::remove_file(dir.join("template.json")).unwrap(),
            "taken" => fs::create_dir(dir.join("revisions")).unwrap(),
            "newer" => fs::write(dir.join("template.json"), r#"{"schema_version":99}"#).unwrap(),
            _ => {}
        }
        let before = listing(&dir);
        let adopted = adopt(&root);
        assert!(reason(&adopted, &dir).contains(word), "{name}: {:?}", adopted.left);
        assert_eq!(listing(&dir), before, "{name}");
    }
}

#[test]
fn what_is_no_directory_of_mvm_is_refused_and_left_alone() {
    let place = Place::new();
    fs::create_dir_all(place.join("empty")).unwrap();
    fs::create_dir_all(place.join("foreign/src")).unwrap();
    fs::create_dir_all(place.join("site/templates/pages")).unwrap();
    fs::create_dir_all(place.join("begun/templates")).unwrap();
    for name in ["missing", "empty", "foreign", "site", "begun"] {
        let dir = place.join(name);
        let before = dir.exists().then(|| listing(&dir));
        let refused = Store::adopt(&dir, &StoreOptions::default(), &mut ());
        assert!(matches!(refused, Err(Error::NotMvm { .. })), "{name}: {refused:?}");
        assert_error(refused, ErrorKind::Failed, &["templates/", name]);
        place.run(&["adopt", dir.as_str()]).with_code(1).says(&["not a data directory of mvm"]);
        assert_eq!(dir.exists().then(|| listing(&dir)), before, "{name}");
    }
}

#[test]
fn what_mvm_built_is_a_hit_for_the_lock_file_that_it_was_built_from() {
    let place = Place::new();
    let root = mvm_data(&place);
    let lock = place.lock("a");
    let dir = root.join("templates/web/artifacts/r1");
    write_as_mvm(&dir, &nar_hash(&fs::read(&lock).unwrap()));
    let store = adopt(&root).store;
    let from_lock = BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap();
    assert_eq!(store.lookup(None, &from_lock).unwrap().expect("it is found").id().as_str(), "r1");
    let words = ["--json", "lookup", "--flake-lock", lock.as_str(), "--role", "worker"];
    assert_eq!(place.done(&words).json()["revision"], Value::from("r1"));
}

#[test]
fn an_mvm_directory_without_templates_or_builds_becomes_a_store() {
    let place = Place::new();
    let root = place.root();
    fs::create_dir_all(root.join("templates")).unwrap();
    fs::create_dir_all(root.join("runtime")).unwrap();
    assert_eq!(newly(&adopt(&root)), [""; 0]);
    mvm_template(&root, "later");
    fs::remove_dir_all(root.join("templates/later/artifacts")).unwrap();
    let adopted = adopt(&root);
    assert_eq!(adopted.left, []);
    assert_right(&adopted.store.publish_dir(&id("later"), place.image("files", "a")).unwrap());
    assert_eq!(names(Layout::new(&root).locks()), [""; 0]);
}
