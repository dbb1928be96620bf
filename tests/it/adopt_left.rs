//! What an adoption can't take is left as mvm had it, and named; all else is adopted.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::Arc;
use std::sync::Mutex;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde_json::Value;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{Adopted, Store, StoreOptions};

use crate::adopt::{adopt, mvm_data, mvm_revision, mvm_template};
use crate::interning::by_nobody;
use crate::support::{Place, Ran, assert_right, id, listing};

/// `web` with `r1` and `r2`, and `db` with `r1`.
fn data(place: &Place) -> Utf8PathBuf {
    let root = mvm_data(place);
    fs::remove_file(root.join("templates/stray-file")).unwrap();
    mvm_template(&root, "db");
    mvm_revision(&root, "db", "r1", "three");
    root
}

fn give_to_nobody(dir: &Utf8Path) {
    for entry in walkdir::WalkDir::new(dir) {
        let nobody = Some(crate::interning::NOBODY);
        std::os::unix::fs::lchown(entry.unwrap().path(), nobody, nobody).unwrap();
    }
}

/// Revisions that were adopted, and what was left, of a document of `adopt`.
fn said(document: &Value) -> (Vec<String>, Vec<(Utf8PathBuf, String)>) {
    let list = |name: &str| document[name].as_array().unwrap_or_else(|| panic!("{document}")).iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let adopted = list("adopted").map(|one| format!("{}@{}", text(&one["template"]), text(&one["revision"])));
    let left = list("left").map(|one| (text(&one["path"]).into(), text(&one["reason"])));
    (adopted.collect(), left.collect())
}

fn newly(adopted: &Adopted) -> Vec<String> {
    adopted.revisions.iter().map(|(template, revision)| format!("{template}@{revision}")).collect()
}

/// What of a directory must not change, and what does when somebody only looks at it.
fn modes(dir: &Utf8Path) -> Vec<(Utf8PathBuf, u32, i64, i64, u64)> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    let state = |entry: walkdir::DirEntry| {
        let found = fs::symlink_metadata(entry.path()).unwrap();
        let path = Utf8PathBuf::from_path_buf(entry.into_path()).unwrap();
        (path, found.mode(), found.mtime(), found.mtime_nsec(), found.ino())
    };
    walk.map(state).collect()
}

/// Something that an adopting user may not read or change, below `templates/`.
type Change = fn(&Utf8Path);

fn close(path: Utf8PathBuf) {
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
}

#[test]
fn what_another_user_may_not_read_or_change_is_left_and_all_else_is_adopted() {
    let cases: [(&str, &str, Change); 6] = [
        ("web", "web", |dir| close(dir.join("web"))),
        ("web", "web", |dir| close(dir.join("web/artifacts"))),
        ("web", "web", |dir| close(dir.join("web/template.json"))),
        ("web/artifacts/r1", "web@r1", |dir| close(dir.join("web/artifacts/r1"))),
        ("web/artifacts/r1", "web@r1", |dir| close(dir.join("web/artifacts/r1/vmlinux"))),
        ("web", "web", |dir| {
            for entry in walkdir::WalkDir::new(dir.join("web")) {
                std::os::unix::fs::lchown(entry.unwrap().path(), Some(0), Some(0)).unwrap();
            }
        }),
    ];
    for (at, (path, what, change)) in cases.into_iter().enumerate() {
        let place = Place::new();
        let root = data(&place);
        let Some(mut command) = by_nobody(&place, &["--json", "adopt", root.as_str()]) else { return };
        give_to_nobody(&root);
        change(&root.join("templates"));
        let left_dir = root.join("templates").join(path);
        let before = modes(&left_dir);
        let document = Ran::of(command.output().unwrap()).with_code(0).json();
        let (adopted, left) = said(&document);
        let expected = ["db@r1", "web@r1", "web@r2"].into_iter().filter(|name| !name.starts_with(what));
        assert_eq!(adopted, expected.collect::<Vec<_>>(), "case {at}: {document}");
        assert_eq!(left.len(), 1, "case {at}: {document}");
        assert_eq!(left[0].0, left_dir, "case {at}: {document}");
        assert!(left[0].1.contains("Permission denied") && left[0].1.contains("or as root"), "case {at}: {document}");
        assert_eq!(modes(&left_dir), before, "case {at}");
        assert!(root.join(".store/format.json").exists(), "case {at}");

        // Root may do all of it.
        let again = place.done(&["--json", "adopt", root.as_str()]).json();
        assert_eq!(again["left"].as_array().unwrap().len(), 0, "case {at}: {again}");
    }
}

/// Makes a file or directory immutable until this is dropped.
struct Immutable(Utf8PathBuf);

impl Immutable {
    fn new(path: &Utf8Path) -> Option<Immutable> {
        let ran = Command::new("chattr").args(["+i", path.as_str()]).output();
        let immutable = Immutable(path.to_owned());
        if ran.is_ok_and(|ran| ran.status.success()) {
            return Some(immutable);
        }
        println!("{path} can't be made immutable by this user, or here: not tried");
        None
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-i", self.0.as_str()]).output();
    }
}

#[test]
fn what_is_immutable_is_left_and_all_else_is_adopted() {
    let revision = "web/artifacts/r1";
    let cases = [
        (format!("{revision}/vmlinux"), revision),
        (format!("{revision}/revision.json"), revision),
        (revision.to_owned(), revision),
        ("web".to_owned(), "web"),
    ];
    for (immutable, left) in cases {
        let place = Place::new();
        let root = data(&place);
        let left_dir = root.join("templates").join(left);
        let before = modes(&left_dir);
        let Some(guard) = Immutable::new(&root.join("templates").join(&immutable)) else { return };
        let document = place.done(&["--json", "adopt", root.as_str()]).json();
        let (adopted, found) = said(&document);
        let gone = if left == "web" { "web@" } else { "web@r1" };
        let expected = ["db@r1", "web@r1", "web@r2"].into_iter().filter(|name| !name.starts_with(gone));
        assert_eq!(adopted, expected.collect::<Vec<_>>(), "{immutable}: {document}");
        assert_eq!((found.len(), &found[0].0), (1, &left_dir), "{immutable}: {document}");
        let reason = &found[0].1;
        assert!(reason.contains("not permitted") && reason.contains("chattr -i"), "{immutable}: {reason}");
        assert!(reason.contains(immutable.as_str()), "{immutable}: {reason}");
        assert_eq!(modes(&left_dir), before, "{immutable}");
        drop(guard);
        assert_eq!(adopt(&root).left, [], "{immutable}");
    }
}

/// Knows a step by what it does, and where.
type Step = fn(&Op) -> bool;

/// Refuses one kind of step, in one place, until it is told not to.
#[derive(Debug)]
struct Refusing {
    step: Step,
    refused: Mutex<usize>,
}

impl Observer for Refusing {
    fn before(&self, op: &Op) -> Verdict {
        if !(self.step)(op) {
            return Verdict::Proceed;
        }
        *self.refused.lock().unwrap() += 1;
        Verdict::Fail(io::Error::from_raw_os_error(Errno::ACCESS.raw_os_error()))
    }
}

#[test]
fn what_is_refused_half_way_gets_its_modes_and_times_back() {
    let steps: [(&str, Step); 5] = [
        ("mode", |op| matches!(op, Op::Chmod { path, mode: 0o444 } if path.ends_with("web/artifacts/r1/vmlinux"))),
        ("time", |op| matches!(op, Op::SetMtime { path } if path.ends_with("web/artifacts/r1/vmlinux"))),
        ("sync", |op| matches!(op, Op::Fsync { path } if path.ends_with("web/artifacts/r1/vmlinux"))),
        ("names", |op| matches!(op, Op::FsyncDir { path } if path.ends_with("web/artifacts/r1"))),
        ("record", |op| matches!(op, Op::Rename { to, .. } if to.ends_with("web/artifacts/r1/revision.json"))),
    ];
    for (name, step) in steps {
        let place = Place::new();
        let root = data(&place);
        let dir = root.join("templates/web/artifacts/r1");
        // What is small has no second name, and its mode is given back whatever fails.
        fs::create_dir(dir.join("lib")).unwrap();
        fs::write(dir.join("lib/small"), "x").unwrap();
        fs::set_permissions(dir.join("lib/small"), Permissions::from_mode(0o640)).unwrap();
        let before = modes(&dir);
        let refusing = Arc::new(Refusing { step, refused: Mutex::default() });
        let options = StoreOptions::default().observer(refusing.clone());
        let adopted = Store::adopt(&root, &options, &mut ()).unwrap();
        assert!(*refusing.refused.lock().unwrap() > 0, "{name}");
        assert_eq!(newly(&adopted), ["db@r1", "web@r2"], "{name}");
        assert_eq!(adopted.left.len(), 1, "{name}: {:?}", adopted.left);
        assert_eq!(adopted.left[0].path, dir, "{name}");
        assert!(adopted.left[0].reason.contains("Permission denied"), "{name}: {:?}", adopted.left);
        let changed = |a: &Vec<_>, b: &Vec<(Utf8PathBuf, u32, i64, i64, u64)>| {
            let differ =
                a.iter().zip(b).filter(|(a, b)| a != b).map(|(a, _): (&(Utf8PathBuf, _, _, _, _), _)| a.0.clone());
            differ.map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        };
        // A file that is an object already stays sealed: its bytes may be another revision's.
        let sealed = match name {
            "names" | "record" => vec!["rootfs.ext4", "vmlinux"],
            _ => vec![],
        };
        assert_eq!(changed(&before, &modes(&dir)), sealed, "{name}");
        assert_eq!(newly(&adopt(&root)), ["web@r1"], "{name}");
        assert_right(&adopted.store.revision(&id("web"), &id("r1")).unwrap());
    }
}

#[test]
fn the_rest_of_a_template_is_adopted_when_its_current_can_not_be_changed() {
    let place = Place::new();
    let root = data(&place);
    let current = root.join("templates/web/current");
    fs::remove_file(&current).unwrap();
    symlink("r1", &current).unwrap();
    let step = |op: &Op| matches!(op, Op::Rename { to, .. } if to.ends_with("web/current"));
    let refusing = Arc::new(Refusing { step, refused: Mutex::default() });
    let adopted = Store::adopt(&root, &StoreOptions::default().observer(refusing), &mut ()).unwrap();
    assert_eq!(newly(&adopted), ["db@r1", "web@r1", "web@r2"]);
    assert_eq!((adopted.left.len(), &adopted.left[0].path), (1, &root.join("templates/web")));
    assert_eq!(fs::read_link(&current).unwrap().to_str(), Some("r1"));
    assert_eq!(adopt(&root).left, []);
    assert_eq!(fs::read_link(&current).unwrap().to_str(), Some("revisions/r1"));
}

/// What was left as it was is mvm's: no damage, nothing for a repair, nothing for a collection.
fn is_calm(place: &Place, left: &Utf8Path) {
    let before = (listing(left), modes(left));
    let found = place.run(&["--json", "verify"]).with_code(0).json();
    let findings = found["findings"].as_array().unwrap();
    assert!(findings.iter().all(|finding| finding["severity"] == "note"), "{found}");
    place.run(&["verify", "--repair"]).with_code(0);
    let gone = place.run(&["--json", "gc", "--keep-last", "0", "--include-adopted"]).with_code(0).json();
    let removed = gone["report"]["removed"].as_array().unwrap();
    let of_left = |one: &Value| left.ends_with(one["template"].as_str().unwrap());
    assert!(!removed.iter().any(of_left), "{gone}");
    assert!((listing(left), modes(left)) == before);
}

#[test]
fn a_template_whose_artifacts_are_a_link_is_left() {
    let place = Place::new();
    let root = data(&place);
    let dir = root.join("templates/web");
    fs::rename(dir.join("artifacts"), place.join("elsewhere")).unwrap();
    symlink(place.join("elsewhere"), dir.join("artifacts")).unwrap();
    let before = modes(&dir);
    let document = place.run(&["--json", "adopt", root.as_str()]).with_code(0).json();
    let (adopted, left) = said(&document);
    assert_eq!(adopted, ["db@r1"]);
    assert_eq!((left.len(), &left[0].0), (1, &dir), "{document}");
    assert!(left[0].1.contains("symbolic link") && left[0].1.contains("adopt it again"), "{document}");
    assert_eq!(modes(&dir), before);
    is_calm(&place, &dir);

    fs::remove_file(dir.join("artifacts")).unwrap();
    fs::rename(place.join("elsewhere"), dir.join("artifacts")).unwrap();
    assert_eq!(newly(&adopt(&root)), ["web@r1", "web@r2"]);
}

#[test]
fn a_record_of_another_revision_is_left() {
    let place = Place::new();
    let root = data(&place);
    let dir = root.join("templates/web/artifacts/r2");
    let record = dir.join("revision.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"r2\"", "\"qqq\"")).unwrap();
    let before = modes(&dir);
    let adopted = adopt(&root);
    assert_eq!(newly(&adopted), ["db@r1", "web@r1"]);
    assert_eq!((adopted.left.len(), &adopted.left[0].path), (1, &dir));
    assert!(adopted.left[0].reason.contains("the record of \"qqq\""), "{:?}", adopted.left);
    assert_eq!(modes(&dir), before);
    is_calm(&place, &dir);
    fs::write(&record, text).unwrap();
    assert_eq!(newly(&adopt(&root)), ["web@r2"]);
}

#[test]
fn a_copy_of_a_template_under_another_name_is_left() {
    let place = Place::new();
    let root = data(&place);
    let copy = root.join("templates/web2");
    let ran = Command::new("cp").args(["-a", root.join("templates/web").as_str(), copy.as_str()]).status();
    assert!(ran.unwrap().success());
    let before = modes(&copy);
    let adopted = adopt(&root);
    assert_eq!(newly(&adopted), ["db@r1", "web@r1", "web@r2"]);
    assert_eq!((adopted.left.len(), &adopted.left[0].path), (1, &copy));
    assert!(adopted.left[0].reason.contains("the definition of \"web\""), "{:?}", adopted.left);
    assert_eq!(modes(&copy), before);
    is_calm(&place, &copy);
}

#[test]
fn a_lost_template_of_the_store_is_not_taken_for_one_of_mvm() {
    let place = Place::new();
    let root = data(&place);
    adopt(&root);
    let dir = root.join("templates/web");
    for name in ["revisions", "template.json"] {
        fs::remove_file(dir.join(name)).unwrap();
    }
    let _ = fs::remove_file(dir.join("activations.jsonl"));
    let found = place.run(&["--json", "verify"]).with_code(4).json();
    assert!(found.to_string().contains("template.json"), "{found}");
    for name in ["r1", "r2"] {
        fs::remove_dir_all(dir.join("artifacts").join(name)).unwrap();
    }
    fs::remove_dir_all(dir.join("artifacts")).unwrap();
    place.run(&["verify"]).with_code(4);
}

#[test]
fn a_current_by_its_whole_path_is_taken_over() {
    let link = |place: &Place| {
        let link = place.join("given");
        if !link.exists() {
            symlink(place.root(), &link).unwrap();
        }
        link
    };
    for below in ["artifacts/r1", "revisions/r1", "artifacts/revisions/r1", "artifacts/r1/"] {
        for through_link in [false, true] {
            let place = Place::new();
            let root = data(&place);
            let start = if through_link { link(&place) } else { root.clone() };
            let target = start.join("templates/web").join(below);
            let current = root.join("templates/web/current");
            fs::remove_file(&current).unwrap();
            symlink(&target, &current).unwrap();
            let adopted = Store::adopt(&start, &StoreOptions::default(), &mut ()).unwrap();
            assert_eq!(adopted.left, [], "{target}");
            assert_eq!(fs::read_link(&current).unwrap().to_str(), Some("revisions/r1"), "{target}");
            assert_eq!(adopted.store.current(&id("web")).unwrap().id().as_str(), "r1");
            place.run(&["verify"]).with_code(0);
        }
    }
}

#[test]
fn a_current_by_the_path_of_another_template_is_left() {
    let place = Place::new();
    let root = data(&place);
    let current = root.join("templates/web/current");
    fs::remove_file(&current).unwrap();
    symlink(root.join("templates/db/artifacts/r1"), &current).unwrap();
    let adopted = adopt(&root);
    assert_eq!((adopted.left.len(), &adopted.left[0].path), (1, &current));
    assert!(fs::read_link(&current).unwrap().ends_with("db/artifacts/r1"));
}

/// Called by `waits`, as it takes the time that an adoption waits for a lock.
pub fn a_revision_that_somebody_holds_for_himself_alone_is_left() {
    let place = Place::new();
    let root = data(&place);
    let dirs = ["web/artifacts/r1", "web/artifacts/r2"].map(|name| root.join("templates").join(name));
    let locks = dirs.each_ref().map(|dir| {
        let lock = File::open(dir).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        lock
    });
    let before = modes(&root.join("templates/web/artifacts"));
    let document = place.done(&["--json", "adopt", root.as_str()]).json();
    let (adopted, left) = said(&document);
    assert_eq!(adopted, ["db@r1"]);
    assert_eq!(left.iter().map(|(path, _)| path).collect::<Vec<_>>(), dirs.iter().collect::<Vec<_>>());
    // Or a process that another test starts just now, which has our locks until it runs its program.
    assert!(left.iter().all(|(_, reason)| reason.contains("in use by ")), "{document}");
    assert_eq!(modes(&root.join("templates/web/artifacts")), before);
    drop(locks);
    assert_eq!(newly(&adopt(&root)), ["web@r1", "web@r2"]);
}
