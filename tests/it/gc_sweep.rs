//! What the dead leave behind goes, and what the living work on stays.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8PathBuf;
use rustix::process::Signal;
use template_store::gc::{GcPlan, GcReport, LeftoverKind, Policy, SkipReason, Skipped};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{PinOptions, Store, StoreOptions};

use crate::disk::SmallDisk;
use crate::gc::{blocks, build_again, collect, counts_exactly, dry_run, publish, removed};
use crate::reuse::Watch;
use crate::sound::assert_sound;
use crate::support::{
    Place, assert_clean, assert_right, build, bytes, draft, fresh, fresh_quick, id, inputs, listing, names, reused,
    script, until,
};

/// The kinds and paths of what a plan sweeps.
fn leftovers(plan: &GcPlan) -> Vec<(LeftoverKind, String)> {
    plan.leftovers.iter().map(|one| (one.kind, one.path.clone())).collect()
}

fn swept(report: &GcReport) -> Vec<(LeftoverKind, String)> {
    report.swept.iter().map(|one| (one.kind, one.path.clone())).collect()
}

/// Kills a builder while its command runs: its draft and its lock stay.
fn kill_a_builder(place: &Place) {
    // What the builder started dies with it, and would go on if it were the shell's child.
    let wait = format!("{}; touch {}/ready; exec sleep 1000", script("dead"), place.path());
    let running = place.start_build("web", "dead", &[], &wait);
    until("it builds", || place.join("ready").exists().then_some(()));
    running.signal(Signal::KILL);
    assert_eq!(running.end().code, None);
}

/// Leaves one of each kind, but for trash; gives their paths below the store.
fn leave_all(place: &Place, store: &Store) -> Vec<(LeftoverKind, Utf8PathBuf)> {
    let layout = store.layout();
    kill_a_builder(place);
    let lock = layout.locks().join(&names(layout.locks())[0]);
    assert_eq!(names(layout.drafts()).len(), 1, "the draft");
    for name in ["file-stale", "link-stale"] {
        fs::write(layout.drafts().join(name), "half a document").unwrap();
    }
    symlink(place.path(), layout.drafts().join("strange")).unwrap();
    let drafts = names(layout.drafts()).into_iter();
    let mut left: Vec<_> = drafts.map(|name| (LeftoverKind::Draft, layout.drafts().join(name))).collect();

    let write = |path: Utf8PathBuf, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let object = write(layout.objects().join("00").join("0".repeat(62)), &bytes("object", 100_000));
    let key = write(layout.keys().join("00").join(format!("{}.json", "0".repeat(62))), b"{}");
    let note = write(layout.leases().join("web@none/4-4.json"), b"{}");
    let mark = write(layout.damaged().join("web@none.json"), b"{}");
    let gone = PinOptions::default().until(jiff::Timestamp::now());
    let current = store.current_id(&id("web")).unwrap().unwrap();
    store.pin(&id("expired"), &id("web"), &current, &gone).unwrap();
    left.extend([
        (LeftoverKind::Lock, lock),
        (LeftoverKind::Object, object),
        (LeftoverKind::Key, key),
        (LeftoverKind::Pin, layout.pins().join("expired.json")),
        (LeftoverKind::Lease, layout.leases().join("web@none")),
        (LeftoverKind::Lease, note),
        (LeftoverKind::Mark, mark),
    ]);
    left
}

#[test]
fn what_the_dead_left_goes_with_its_bytes() {
    let (place, store) = fresh();
    publish(&store, "web", &["a"]);
    let left = leave_all(&place, &store);
    let below = |path: &Utf8PathBuf| path.strip_prefix(store.layout().root()).unwrap().to_string();
    let mut expected: Vec<_> = left.iter().map(|(kind, path)| (*kind, below(path))).collect();
    expected.sort();
    let size = blocks(store.layout().root());

    let before = listing(store.layout().root());
    let plan = dry_run(&place, &[]);
    assert_eq!(listing(store.layout().root()), before, "looking changes nothing");
    let mut planned = leftovers(&plan);
    planned.sort();
    assert_eq!(planned, expected);
    let (_, report) = collect(&place, &[]);
    let mut found = swept(&report);
    found.sort();
    assert_eq!(found, expected);
    for (kind, path) in &left {
        assert!(fs::symlink_metadata(path).is_err(), "{kind:?} {path}");
    }
    assert_eq!(report.freed, plan.frees);
    if counts_exactly(place.path()) {
        assert_eq!(size - blocks(store.layout().root()), report.freed, "the disk says the same");
    }
    assert_sound(&store);
    assert!(dry_run(&place, &[]).is_empty());
}

#[test]
fn what_the_living_work_on_stays() {
    let (place, store) = fresh();
    publish(&store, "web", &["a", "b"]);
    let draft = draft(&store, "web", &inputs("living"));
    crate::support::image(draft.path(), "living");
    let staged = store.layout().drafts().join("file-living");
    fs::write(&staged, "").unwrap();
    let written = File::open(&staged).unwrap();
    written.lock_shared().unwrap();
    let pin = PinOptions::default().until(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1));
    let current = store.current(&id("web")).unwrap();
    store.pin(&id("living"), &id("web"), current.id(), &pin).unwrap();
    let note = current.note_holder(std::process::id(), "a test").unwrap();
    // Without a wait for what the test itself holds.
    let json = place.done(&["--json", "gc", "--keep-last", "0"]).json();
    assert_eq!(json["report"]["swept"], serde_json::json!([]));
    let kept = [draft.path().to_owned(), staged.clone(), store.layout().pins().join("living.json")];
    assert!(kept.iter().all(|path| path.exists()), "{kept:?}");
    assert_eq!(names(store.layout().locks()).len(), 1, "the lock of the build");
    assert_eq!(names(store.layout().leases()), [format!("web@{}", current.id())]);

    drop((written, note));
    let built = draft.seal().unwrap().publish().unwrap();
    assert_right(&built);
    drop((built, current));
    let (_, report) = collect(&place, &[]);
    assert_eq!(swept(&report), [(LeftoverKind::Draft, ".store/drafts/file-living".to_owned())]);
    assert_clean(store.layout());
}

#[test]
fn what_is_linked_into_the_trash_is_not_followed() {
    let (place, store) = fresh();
    publish(&store, "web", &["a"]);
    let outside = place.image("outside", "outside");
    let batch = store.layout().trash().join("batch");
    fs::create_dir_all(batch.join("web@r1")).unwrap();
    symlink(&outside, batch.join("web@r2")).unwrap();
    symlink(&outside, batch.join("web@r1").join("inner")).unwrap();
    symlink(&outside, store.layout().trash().join("whole")).unwrap();
    let before = listing(&outside);
    collect(&place, &[]);
    assert_eq!(listing(&outside), before);
    assert_eq!(names(store.layout().trash()), [""; 0]);
}

/// From one step on, everything fails: as if the process had died, but for the locks.
#[derive(Debug)]
pub struct DiesAt {
    nth: usize,
    /// Only this step fails, and the rest is done.
    once: bool,
    seen: AtomicUsize,
}

impl DiesAt {
    pub fn step(nth: usize, once: bool) -> Arc<DiesAt> {
        Arc::new(DiesAt { nth, once, seen: AtomicUsize::new(0) })
    }

    pub fn died(&self) -> bool {
        self.seen.load(Ordering::Relaxed) > self.nth
    }
}

impl Observer for DiesAt {
    fn before(&self, _: &Op) -> Verdict {
        let at = self.seen.fetch_add(1, Ordering::Relaxed);
        match at == self.nth || at > self.nth && !self.once {
            true => Verdict::Fail(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())),
            false => Verdict::Proceed,
        }
    }
}

/// Two templates that share bytes and keys, with something to collect in both, and an older revision with the key of
/// a newer one that goes.
fn much_to_do() -> (Place, Store) {
    let place = Place::in_memory();
    let store = place.quick_store();
    publish(&store, "web", &["a", "b"]);
    drop(reused(&store, "db", &inputs("a")));
    let kept = build(&store, "db", &inputs("k"), "k").id().clone();
    build_again(&store, "db", "k", "again");
    drop(store.activate(&id("db"), &kept, template_store::Expect::Any).unwrap());
    fs::create_dir_all(store.layout().trash().join("old").join("web@none").join("deep")).unwrap();
    fs::write(store.layout().drafts().join("file-stale"), "stale").unwrap();
    (place, store)
}

/// The plan of a policy, once no child of this process holds what is to go.
fn free_plan(store: &Store, policy: &Policy) -> GcPlan {
    until("nobody uses anything", || {
        let plan = store.plan_gc(policy).unwrap();
        (!format!("{plan:?}").contains("Leased")).then_some(plan)
    })
}

fn gc(store: &Store, policy: &Policy) -> template_store::Result<GcReport> {
    until("nobody uses anything", || match store.apply_gc(&free_plan(store, policy), &mut ()) {
        Ok(report) if format!("{report:?}").contains("Leased") => None,
        done => Some(done),
    })
}

fn dies_at_each_step(once: bool) {
    let policy = Policy::default().keep_last(0u32);
    let mut steps = 0;
    loop {
        let (place, store) = much_to_do();
        free_plan(&store, &policy);
        let dies = DiesAt::step(steps, once);
        let dying = Store::open_with(place.root(), &StoreOptions::default().observer(dies.clone())).unwrap();
        let result = dying.gc(&policy, &mut ());
        drop(dying);
        let after = format!("step {steps}, which gave {result:?}");
        if once && dies.died() {
            let skipped = |one: &Skipped| matches!(one.why, SkipReason::Failed { .. });
            let failed = |report: &GcReport| !report.failed.is_empty() || report.skipped.iter().any(skipped);
            let told = result.as_ref().map_or(true, |(_, report)| failed(report));
            assert!(told || all_is_done(&store), "nothing was said of {after}");
        }
        // A program that another test starts at this moment has copies of the dead one's locks until it runs.
        until("what the dead one left is gone", || {
            gc(&store, &policy).unwrap_or_else(|error| panic!("{error} after {after}"));
            all_is_done(&store).then_some(())
        });
        assert_sound(&store);
        for template in ["web", "db"] {
            assert_right(&store.current(&id(template)).unwrap());
            assert_eq!(store.revisions(&id(template)).unwrap().len(), 1, "{after}");
        }
        let found = store.lookup(None, &inputs("k")).unwrap();
        assert_eq!(found.map(|found| found.template().to_string()).as_deref(), Some("db"), "its key, after {after}");
        if !dies.died() {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps} steps");
}

fn all_is_done(store: &Store) -> bool {
    let empty = [store.layout().trash(), store.layout().drafts()].iter().all(|dir| names(dir).is_empty());
    empty && ["web", "db"].iter().all(|template| store.revisions(&id(template)).unwrap().len() == 1)
}

#[test]
fn a_collection_that_dies_at_any_step_is_completed_by_the_next_one() {
    dies_at_each_step(false);
}

#[test]
fn a_collection_of_which_any_step_fails_says_so_and_is_completed_by_the_next_one() {
    dies_at_each_step(true);
}

#[test]
fn a_full_disk_is_collected_with_the_blocks_of_the_reserve() {
    let place = Place::new();
    let Some(disk) = SmallDisk::mount(place.join("small"), "size=32m") else { return };
    let store = Store::open_or_init(disk.path().join("store")).unwrap();
    for label in ["a", "b"] {
        let draft = draft(&store, "web", &inputs(label));
        crate::support::image(draft.path(), label);
        fs::write(draft.path().join("data.img"), bytes(label, 8 << 20)).unwrap();
        drop(draft.seal().unwrap().publish().unwrap());
    }
    let reserve = store.layout().reserve();
    assert!(fs::metadata(&reserve).unwrap().blocks() > 0, "blocks are set aside");
    let mut ballast = File::create(disk.path().join("ballast")).unwrap();
    let full = io::copy(&mut io::repeat(1), &mut ballast).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);

    let watch = Arc::new(Watch::default());
    let watched = Store::open_with(store.layout().root(), &StoreOptions::default().observer(watch.clone())).unwrap();
    let report = gc(&watched, &Policy::default().keep_last(1u32)).unwrap();
    assert_eq!(removed(&report).len(), 1, "{report:?}");
    assert_eq!(watch.seen().first(), Some(&Op::Unlink { path: reserve.clone() }), "its blocks are given up first");
    assert!(reserve.exists(), "and set aside again from what was freed");
    assert_clean(store.layout());
    assert_right(&store.current(&id("web")).unwrap());
}

#[test]
fn a_directory_among_the_locks_stays_and_fails_nothing() {
    let (place, store) = fresh_quick();
    let mine = store.layout().locks().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("notes.txt"), "mine").unwrap();
    let (plan, report) = collect(&place, &[]);
    assert_eq!((leftovers(&plan), report.failed), (vec![], vec![]));
    assert!(mine.join("notes.txt").exists());
}
