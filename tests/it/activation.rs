//! `current`: it moves at once, goes back again and again, and always resolves.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use template_store::gc::Policy;
use template_store::{Action, ErrorKind, Expect, Revision, RevisionId, Store, VerifyOptions};

use crate::proof;
use crate::support::{
    Place, assert_clean, assert_error, assert_right, build, bytes, flip, id, inputs, listing, names, template,
    when_free,
};

/// Publishes one revision after the other.
fn publish(store: &Store, labels: &[&str]) -> Vec<RevisionId> {
    labels.iter().map(|label| build(store, "web", &inputs(label), label).id().clone()).collect()
}

fn current(store: &Store) -> RevisionId {
    let revision = store.current(&id("web")).unwrap();
    assert_right(&revision);
    assert_eq!(fs::canonicalize(store.layout().current(&id("web"))).unwrap(), revision.path(), "the link resolves");
    revision.id().clone()
}

/// The log as far as it counts.
fn log(store: &Store) -> Vec<(RevisionId, Action)> {
    let history = store.history(&template("web")).unwrap();
    history.into_iter().map(|line| (line.revision, line.action)).collect()
}

fn log_path(store: &Store) -> Utf8PathBuf {
    store.layout().activations(&id("web"))
}

#[test]
fn a_rollback_goes_back_again_and_again_to_the_first_revision() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b", "c"]);
    for expected in [&ids[1], &ids[0]] {
        assert_eq!(store.rollback(&id("web")).unwrap().id(), expected);
        assert_eq!(current(&store), *expected);
    }
    let before = listing(store.layout().root());
    assert_error(store.rollback(&id("web")), ErrorKind::NotFound, &["web", "no earlier revision"]);
    assert_eq!(listing(store.layout().root()), before, "a rollback that can't be changes nothing");
    use Action::{Publish, Rollback};
    let expected: Vec<_> = [(0, Publish), (1, Publish), (2, Publish), (1, Rollback), (0, Rollback)]
        .map(|(n, action): (usize, Action)| (ids[n].clone(), action))
        .into();
    assert_eq!(log(&store), expected);
}

#[test]
fn an_activation_after_a_rollback_can_be_rolled_back() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b", "c"]);
    store.rollback(&id("web")).unwrap();
    store.activate(&id("web"), &ids[2], Expect::Current(ids[1].clone())).unwrap();
    assert_eq!(current(&store), ids[2]);
    for expected in [&ids[1], &ids[0]] {
        assert_eq!(store.rollback(&id("web")).unwrap().id(), expected);
    }
    publish(&store, &["d"]);
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[0]);
}

#[test]
fn a_rollback_passes_over_revisions_that_are_gone() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b", "c"]);
    when_free(|| store.remove(&id("web"), &ids[1], Default::default())).unwrap();
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[0]);
    assert_error(store.rollback(&id("web")), ErrorKind::NotFound, &["no earlier"]);
}

#[test]
fn activating_what_is_current_changes_nothing() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    let before = listing(store.layout().root());
    store.activate(&id("web"), &ids[1], Expect::Any).unwrap();
    assert_eq!(listing(store.layout().root()), before);
}

#[test]
fn what_is_missing_or_damaged_is_not_activated() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    let activate = |revision: &RevisionId| store.activate(&id("web"), revision, Expect::Any);
    assert_error(activate(&id("none")), ErrorKind::NotFound, &["web", "none"]);
    assert_error(store.activate(&id("none"), &ids[0], Expect::Any), ErrorKind::NotFound, &["template none"]);
    let first = store.revision(&id("web"), &ids[0]).unwrap();
    flip(&first.rootfs(), 9, false);
    assert_error(activate(&ids[0]), ErrorKind::Damaged, &["rootfs.ext4"]);
    fs::remove_file(first.rootfs()).unwrap();
    assert_error(activate(&ids[0]), ErrorKind::Damaged, &["rootfs.ext4", "missing"]);
    assert_eq!(current(&store), ids[1], "current stayed");
    assert_eq!(log(&store).len(), 2);
}

#[test]
fn a_torn_line_at_the_end_of_the_log_is_cut() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    let whole = fs::read(log_path(&store)).unwrap();
    let line = whole.len() / 2;
    for torn in [1, line / 2, line - 1] {
        fs::write(log_path(&store), [&whole[..], &whole[..torn]].concat()).unwrap();
        assert_eq!(log(&store).len(), 2, "a torn line is not shown");
        assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[0]);
        assert_eq!(log(&store).len(), 3);
        let text = fs::read_to_string(log_path(&store)).unwrap();
        assert!(text.as_bytes().starts_with(&whole) && text.lines().count() == 3, "{text}");
        assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
        store.activate(&id("web"), &ids[1], Expect::Any).unwrap();
    }
}

/// A line is written before `current` is swapped: a crash between the two leaves one that did not take effect.
#[test]
fn a_line_whose_activation_did_not_happen_counts_for_nothing() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b", "c"]);
    store.rollback(&id("web")).unwrap();
    let mut file = File::options().append(true).open(log_path(&store)).unwrap();
    writeln!(file, r#"{{"revision":"{}","at":"2026-01-01T00:00:00Z","action":"activate"}}"#, ids[0]).unwrap();
    assert_eq!(log(&store).last().unwrap().0, ids[1], "it is not shown");
    store.activate(&id("web"), &ids[2], Expect::Any).unwrap();
    assert_eq!(log(&store).len(), 5);
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[1], "nor gone back to");
}

/// More than an activation reads of the end of a log at first.
#[test]
fn the_line_that_counts_is_found_however_much_follows_it() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    let whole = fs::read(log_path(&store)).unwrap();
    let of_first = &whole[..whole.len() / 2];
    fs::write(log_path(&store), [&whole[..], &of_first.repeat(1000)].concat()).unwrap();
    store.activate(&id("web"), &ids[0], Expect::Any).unwrap();
    use Action::{Activate, Publish};
    assert_eq!(log(&store), [(0, Publish), (1, Publish), (0, Activate)].map(|(n, action)| (ids[n].clone(), action)));
    assert_eq!(fs::read(log_path(&store)).unwrap().iter().filter(|&&byte| byte == b'\n').count(), 3);
}

#[test]
fn a_log_that_is_longer_than_what_is_looked_at_is_used_from_there_and_never_cut() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let revisions = publish(&store, &["one", "two", "three"]);
    let line = format!(r#"{{"revision":"{}","at":"2026-01-01T00:00:00Z","action":"activate","of":"#, revisions[0]);
    let line = format!("{line}\"{}\"}}\n", "x".repeat(1024 * 1024));
    let old = line.repeat(70) + &fs::read_to_string(log_path(&store)).unwrap();
    fs::write(log_path(&store), &old).unwrap();

    let history = log(&store);
    assert!((60..70).contains(&history.len()), "{} lines", history.len());
    assert_eq!(history.last().unwrap().0, revisions[2]);
    let report = store.verify(&VerifyOptions::default(), &mut ()).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(store.gc(&Policy::default(), &mut ()).unwrap().1.removed.is_empty());
    store.rollback(&id("web")).unwrap();
    assert_eq!(current(&store), revisions[1]);
    store.activate(&id("web"), &revisions[2], Expect::Any).unwrap();
    assert_eq!(log(&store).last().unwrap().0, revisions[2]);
    // Nobody knows where a log ends that names another revision.
    point(&store, &format!("revisions/{}", "0".repeat(16)));
    store.activate(&id("web"), &revisions[1], Expect::Any).unwrap();
    let new = fs::read_to_string(log_path(&store)).unwrap();
    assert!(new.starts_with(&old) && new[old.len()..].lines().count() == 4, "{:?}", &new[old.len()..]);
}

#[test]
fn a_log_that_is_lost_is_begun_anew() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    fs::remove_file(log_path(&store)).unwrap();
    assert_eq!(current(&store), ids[1]);
    assert_eq!(log(&store), []);
    store.activate(&id("web"), &ids[0], Expect::Any).unwrap();
    assert_eq!(log(&store), [(ids[1].clone(), Action::Other), (ids[0].clone(), Action::Activate)]);
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[1], "what was current is known again");
}

/// The label that is in every file of an image of these tests.
fn label_of(revision: &Revision) -> String {
    let config: Value = serde_json::from_slice(&fs::read(revision.fc_base_config()).unwrap()).unwrap();
    config["boot-source"]["boot_args"].as_str().unwrap().strip_prefix("label=").unwrap().to_owned()
}

/// Ends the readers, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_never_fail_and_never_see_two_revisions_in_one_while_current_moves() {
    let moves = proof::scaled(400, 2000);
    let place = Place::in_memory();
    let store = place.quick_store();
    let labels = ["a", "b"];
    let ids = publish(&store, &labels);
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let kernels = labels.map(|label| bytes(&format!("{label}: kernel"), 128 << 10));
    let known = |found: &str| ids.iter().any(|revision| revision.as_str() == found);
    // Counts when it is called, and says whether to go on.
    let next = || {
        reads.fetch_add(1, Ordering::Relaxed);
        !done.load(Ordering::Relaxed)
    };
    let by_path = || {
        let current = store.layout().current(&id("web"));
        while next() {
            let kernel = fs::read(current.join("vmlinux")).expect("current/vmlinux can always be read");
            assert!(kernels.contains(&kernel), "and is one of the two");
            let record = fs::read(current.join("revision.json")).expect("current/revision.json can always be read");
            let record: Value = serde_json::from_slice(&record).expect("and is whole");
            assert!(known(record["revision_hash"].as_str().unwrap()), "{record}");
        }
    };
    let by_handle = || {
        while next() {
            let revision = store.current(&id("web")).expect("there is always a current revision");
            let at = ids.iter().position(|id| id == revision.id()).unwrap();
            assert_eq!(label_of(&revision), labels[at], "the configuration is of this revision");
            assert!(fs::read(revision.kernel()).unwrap() == kernels[at], "and so is the kernel");
            assert_eq!(revision.build().revision_hash, revision.id().as_str(), "and the record");
        }
    };
    let like_mvm = || {
        while next() {
            let read = read_like_mvm(&place.root(), "web");
            assert!(known(&read.0), "{read:?}");
        }
    };
    thread::scope(|scope| {
        let stop = Stop(&done);
        let readers = [scope.spawn(by_path), scope.spawn(by_handle), scope.spawn(like_mvm)];
        for n in 0..moves {
            store.activate(&id("web"), &ids[n % 2], Expect::Any).unwrap();
            assert!(!readers.iter().any(|reader| reader.is_finished()), "no reader failed");
        }
        drop(stop);
    });
    assert!(reads.load(Ordering::Relaxed) > 3, "the readers read");
    assert_eq!(store.history(&id("web")).unwrap().len(), 2 + moves, "2 publications, and each activation");
    assert_clean(store.layout());
}

/// What mvm 0.11 does to find the current revision, and its files.
fn read_like_mvm(root: &Utf8Path, template: &str) -> (String, Vec<Vec<u8>>) {
    let dir = root.join("templates").join(template);
    let target = fs::read_link(dir.join("current")).expect("current is a link").into_os_string().into_string().unwrap();
    let revision = target.strip_prefix("revisions/").expect("its text is what mvm takes apart").to_owned();
    let artifacts = dir.join("artifacts").join(&revision);
    let record = fs::read(artifacts.join("revision.json")).unwrap();
    let record: template_store::TemplateRevision = serde_json::from_slice(&record).expect("mvm reads the record");
    assert_eq!(record.revision_hash, revision);
    let paths = record.artifact_paths;
    let files = [paths.vmlinux, paths.rootfs, paths.fc_base_config].map(|name| fs::read(artifacts.join(name)).unwrap());
    (revision, files.into())
}

#[test]
fn mvm_finds_the_current_revision() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    for expected in [&ids[1], &ids[0]] {
        store.activate(&id("web"), expected, Expect::Any).unwrap();
        let (found, files) = read_like_mvm(&place.root(), "web");
        let revision = store.current(&id("web")).unwrap();
        assert_eq!(found, expected.as_str());
        let ours = [revision.kernel(), revision.rootfs(), revision.fc_base_config()];
        assert_eq!(files, ours.map(|path| fs::read(path).unwrap()));
    }
}

/// Replaces `current` by a link with this text.
fn point(store: &Store, text: &str) {
    let current = store.layout().current(&id("web"));
    fs::remove_file(&current).unwrap();
    symlink(text, current).unwrap();
}

#[test]
fn current_is_read_in_every_spelling_of_mvm() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    let first = &ids[0];
    for text in [
        format!("revisions/{first}"),
        first.to_string(),
        format!("artifacts/{first}"),
        format!("artifacts/revisions/{first}"),
    ] {
        point(&store, &text);
        assert_eq!(store.current(&id("web")).unwrap().id(), first, "{text}");
        assert_eq!(store.current_id(&id("web")).unwrap().as_ref(), Some(first), "{text}");
        store.activate(&id("web"), &ids[1], Expect::Current(first.clone())).unwrap();
        assert_eq!(current(&store), ids[1], "the next activation writes our spelling");
    }
}

#[test]
fn a_current_that_dangles_is_damage_that_a_build_or_an_activation_mends() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, &["a", "b"]);
    for text in ["revisions/none", "none", "/etc", "../../web", "revisions/../artifacts", ""] {
        if text.is_empty() {
            // No link holds an empty text; the directory of the revision is gone instead.
            fs::remove_dir_all(store.layout().revision(&id("web"), &ids[1])).unwrap();
        } else {
            point(&store, text);
        }
        assert_error(store.current(&id("web")), ErrorKind::Damaged, &["web/current", text, "activate"]);
        place.run(&["show", "web"]).with_code(4).says(&["web/current"]);
        place.run(&["path", "web"]).with_code(4).says(&["web/current"]);
        place.run(&["run", "web", "--", "true"]).with_code(4).says(&["web/current"]);
        place.done(&["show", &format!("web@{}", ids[0])]);
        store.activate(&id("web"), &ids[0], Expect::Any).unwrap();
        assert_eq!(current(&store), ids[0], "{text}");
        if !text.is_empty() {
            point(&store, text);
            assert_eq!(build_again(&store), ids[1], "{text}");
        } else {
            assert_eq!(build(&store, "web", &inputs("b"), "b").id(), &ids[1], "what is gone is built again");
            assert_eq!(current(&store), ids[1]);
        }
    }
}

fn build_again(store: &Store) -> RevisionId {
    crate::support::reused(store, "web", &inputs("b"));
    current(store)
}

#[test]
fn a_template_without_a_current_revision_says_so() {
    let place = Place::new();
    let store = place.store();
    let spec = template_store::TemplateSpec::new(&id("web"), ".", &id("minimal"), &id("worker"), "now");
    store.create(&spec).unwrap();
    assert_error(store.current(&id("web")), ErrorKind::NotFound, &["web", "no current revision"]);
    assert_eq!(store.current_id(&id("web")).unwrap(), None);
    assert_error(store.current(&id("none")), ErrorKind::NotFound, &["no template none"]);
    assert_error(store.current_id(&id("none")), ErrorKind::NotFound, &["no template none"]);
    assert_error(store.rollback(&id("web")), ErrorKind::NotFound, &["no earlier"]);
    place.run(&["path", "web"]).with_code(3).says(&["no current revision"]);
    place.done(&["show", "web"]);
    assert_eq!(names(store.layout().artifacts(&id("web"))), [""; 0]);
}

#[test]
fn many_who_activate_at_once_leave_one_current_and_a_whole_log() {
    let place = Place::new();
    let store = place.quick_store();
    let ids = publish(&store, &["a", "b", "c", "d"]);
    thread::scope(|scope| {
        for revision in &ids {
            let store = &store;
            scope.spawn(move || {
                for _ in 0..20 {
                    store.activate(&id("web"), revision, Expect::Any).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(log_path(&store)).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "each line is whole");
    assert_eq!(log(&store).last().unwrap().0, current(&store), "the last line names what is current");
}
