//! Others remove and make again what somebody looks at: nobody takes that for damage, and nothing is lost by it.

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::{Policy, Reason};
use template_store::{Depth, Error, ErrorKind, Removal, Revision, Severity, Store, TemplateSpec, VerifyOptions};

use crate::proof;
use crate::support::{Place, build, id, inode, inputs, template, until};

/// How often something is done beside something else, of so many times.
fn rounds(all: u32) -> u32 {
    if proof::quick() { all / 4 } else { all }
}

/// Does one thing so often, and the other all the time until that is done, but so often at least.
fn beside(rounds: u32, looks: u32, change: impl Fn(u32) + Sync, mut look: impl FnMut()) {
    let (done, looked) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let changes = scope.spawn(|| {
            // Also when it panics.
            let _ends = Ends(&done);
            let goes_on = |round: &u32| *round < rounds || looked.load(Ordering::Relaxed) < looks;
            (0..).take_while(goes_on).for_each(&change);
        });
        // Also when it panics.
        let _looked = Looked(&looked);
        while !done.load(Ordering::Relaxed) {
            look();
            looked.fetch_add(1, Ordering::Relaxed);
        }
        changes.join().unwrap();
    });
}

struct Looked<'a>(&'a AtomicU32);

impl Drop for Looked<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::Relaxed);
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A directory with an image of a few bytes.
fn little_image(place: &Place, label: &str) -> Utf8PathBuf {
    let dir = place.join(label);
    fs::create_dir(&dir).unwrap();
    for name in ["vmlinux", "rootfs.ext4"] {
        fs::write(dir.join(name), format!("{name} of {label}")).unwrap();
    }
    fs::write(dir.join("fc-base.json"), "{}").unwrap();
    dir
}

fn publish(store: &Store, dir: &Utf8Path) -> Revision {
    store.publish_dir(&template("web"), dir).unwrap()
}

/// Which of two comes, and which goes.
fn turn(round: u32) -> (usize, usize) {
    if round.is_multiple_of(2) { (0, 1) } else { (1, 0) }
}

/// Publishes two revisions by turns, each time the same; removes the one that is not current by force, as nobody asks
/// then who holds it, and at times the template.
fn swaps(place: &Place, store: &Store) -> impl Fn(u32) + Sync + use<> {
    let images = ["a", "b"].map(|label| little_image(place, label));
    let (store, web) = (store.clone(), template("web"));
    let ids = images.clone().map(|image| publish(&store, &image).id().clone());
    move |round| {
        let (new, old) = turn(round);
        publish(&store, &images[new]);
        if let Err(error) = store.remove(&web, &ids[old], Removal::Forced) {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
        if round.is_multiple_of(5) {
            store.remove_template(&web, Removal::Forced).unwrap();
        }
    }
}

#[test]
fn what_is_looked_up_is_there_or_not() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let change = swaps(&place, &store);
    beside(rounds(1500), 100, change, || {
        let found = [
            store.current(&id("web")),
            store.revisions(&id("web")).and_then(|all| match all.first() {
                Some(first) => store.revision(&id("web"), first),
                None => Err(Error::NoCurrent { template: id("web") }),
            }),
        ];
        for found in found {
            let checked = found.and_then(|revision| revision.check());
            assert!(
                matches!(
                    checked,
                    Ok(())
                        | Err(Error::NoCurrent { .. }
                            | Error::RevisionNotFound { .. }
                            | Error::TemplateNotFound { .. })
                ),
                "{checked:?}"
            );
        }
    });
}

#[test]
fn a_verification_finds_no_damage() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let change = swaps(&place, &store);
    beside(rounds(1500), 100, change, || {
        for depth in [Depth::Quick, Depth::Full] {
            let report = store.verify(&VerifyOptions::default().depth(depth), &mut ()).unwrap();
            let damage: Vec<_> = report.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
            assert!(damage.is_empty(), "{damage:?}");
        }
    });
}

#[test]
fn a_plan_sees_no_current_that_points_to_nothing() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let change = swaps(&place, &store);
    beside(rounds(1500), 100, change, || {
        let plan = store.plan_gc(&Policy::default()).unwrap();
        let reasons: Vec<_> = plan.revisions.iter().flat_map(|planned| &planned.reasons).collect();
        let damaged = |reason: &&Reason| matches!(reason, Reason::CurrentUnknown | Reason::Unreadable);
        assert!(!reasons.iter().any(damaged), "{reasons:?}");
    });
}

#[test]
fn show_and_list_tell_of_what_is_there() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let change = swaps(&place, &store);
    let images = ["c", "d"].map(|label| little_image(&place, label));
    beside(
        rounds(400),
        20,
        |round| {
            images.iter().for_each(|image| drop(publish(&store, image)));
            change(round);
        },
        || {
            let ran = place.done(&["list"]);
            assert_eq!(ran.err, "", "no problem is told of");
            let ran = place.run(&["show", "web"]);
            assert!(matches!(ran.code, Some(0 | 3)), "{ran:?}");
        },
    );
}

#[test]
fn a_template_is_made_whoever_removes_it() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let spec = TemplateSpec::new(&id("web"), ".", &id("minimal"), &id("worker"), "2026-01-01T00:00:00Z");
    beside(
        rounds(3000),
        300,
        |_| store.create(&spec).unwrap(),
        || {
            if let Err(error) = store.remove_template(&id("web"), Removal::Unused) {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
            }
        },
    );
}

#[test]
fn what_is_current_is_pinned_whatever_that_is() {
    // In memory, a round is over before a program has started.
    let place = Place::new();
    let store = place.quick_store();
    let images = ["a", "b"].map(|label| little_image(&place, label));
    let web = template("web");
    let ids = images.clone().map(|image| publish(&store, &image).id().clone());
    // Not by force: who pins holds what is current.
    let change = |round: u32| {
        let (new, old) = turn(round);
        publish(&store, &images[new]);
        if let Err(error) = store.remove(&web, &ids[old], Removal::Unused) {
            assert!(matches!(error, Error::Pinned { .. } | Error::InUse { .. }), "{error}");
        }
    };
    beside(rounds(1200), 100, change, || {
        place.done(&["pin", "release", "web"]);
        store.unpin(&id("release")).unwrap();
    });
}

/// How many wait for a lock on this.
fn waiting_for(path: &Utf8Path) -> usize {
    let inode = format!(":{} ", inode(path));
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().filter(|line| line.contains("->") && line.contains(&inode)).count()
}

#[test]
fn a_revision_that_is_published_again_while_it_is_removed_keeps_its_key() {
    let place = Place::new();
    let store = place.quick_store();
    let (web, key) = (template("web"), inputs("k"));
    let revision = build(&store, "web", &key, "a").id().clone();
    let shard = store.layout().key(&key.key()).parent().unwrap().to_owned();
    let held = File::open(&shard).unwrap();
    held.lock().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| store.remove_template(&web, Removal::Forced).unwrap());
        until("the removal comes to the key", || (waiting_for(&shard) == 1).then_some(()));
        let again = scope.spawn(|| drop(build(&store, "web", &key, "a")));
        until("it is published, or comes to the key", || {
            (again.is_finished() || waiting_for(&shard) == 2).then_some(())
        });
        held.unlock().unwrap();
    });
    let found = store.lookup(Some(&web), &key).unwrap().expect("it is there, and so is its key");
    assert_eq!(found.id(), &revision);
}
