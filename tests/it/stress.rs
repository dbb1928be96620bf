//! Many processes publish, reuse, hold, activate, pin and remove while others collect: nobody notices.
//!
//! For some seconds, or as long as [`proof`] says.

mod worker;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use template_store::gc::{GcReport, SkipReason};
use template_store::{Removal, Store};

use crate::proof;
use crate::sound::{assert_sound, assert_undamaged};
use crate::support::{Place, Ran, until};
use worker::{assert_current_right, work};

const PROCESSES: u64 = 8;

/// Set for the processes that this test starts: the store, and a number that is another for each.
const WORKER: &str = "TEMPLATE_STORE_TEST_WORKER";

#[test]
fn nothing_is_missed_while_collections_run_beside_everything() {
    if let Ok(words) = std::env::var(WORKER) {
        let (seed, root) = words.split_once(' ').unwrap();
        return work(Utf8Path::new(root), seed.parse().unwrap());
    }
    let seconds = proof::scaled(4, 60) as u64;
    let place = Place::new();
    let store = place.quick_store();
    let vms = place.join("vms");
    fs::create_dir(&vms).unwrap();
    let mut crowd = Crowd::start(&place);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut collected = 0;
    while Instant::now() < end {
        collected += collect(&place);
        crowd.assert_alive();
        look(&store);
        crowd.kill_one();
    }
    let done = crowd.end();
    println!("collections removed {collected} revisions; the others did {done:?}");
    for act in ["build", "reuse", "hold", "activate", "rollback", "pin", "remove", "instance"] {
        assert!(done.get(act).is_some_and(|count| *count > 0), "{act} never came to its end: {done:?}");
    }
    assert!(collected > 0, "nothing was collected");
    remove_instances(&store, &vms);
    // The children that other tests start just now may have leases of this process for a moment.
    until("nobody uses anything", || {
        let report = gc(&place);
        report.skipped.is_empty().then_some(())
    });
    gc(&place);
    assert_sound(&store);
    assert!(crate::support::names(store.layout().leases()).is_empty(), "notes of the dead");
}

/// Those of the processes that were killed; the last one that is made takes what they left beside.
fn remove_instances(store: &Store, vms: &Utf8Path) {
    let any = store.templates().unwrap().iter().find_map(|id| store.current(id).ok()).expect("something is current");
    any.instance(vms.join("last")).unwrap();
    drop(any);
    for instance in store.instances().unwrap() {
        store.remove_instance(instance.path(), Removal::Unused).unwrap();
    }
    assert_eq!(crate::support::names(vms), [""; 0], "what is no instance, and beside none");
}

fn gc(place: &Place) -> GcReport {
    let ran = place.done(&["--json", "gc", "--keep-last", "1"]);
    serde_json::from_value(ran.json()["report"].take()).unwrap()
}

/// Collects; nothing that was skipped may have failed. Gives how many went.
fn collect(place: &Place) -> usize {
    let report = gc(place);
    for skipped in &report.skipped {
        assert!(!matches!(skipped.why, SkipReason::Failed { .. } | SkipReason::Busy), "{skipped:?}");
    }
    report.removed.len()
}

/// What must hold at every moment, whoever does what.
fn look(store: &Store) {
    for id in store.templates().unwrap() {
        assert_current_right(store, &id);
    }
    assert_undamaged(store);
}

/// The processes that work on the store.
struct Crowd<'a> {
    place: &'a Place,
    running: Vec<Child>,
    started: u64,
}

impl Crowd<'_> {
    fn start(place: &Place) -> Crowd<'_> {
        let mut crowd = Crowd { place, running: Vec::new(), started: 0 };
        (0..PROCESSES).for_each(|_| crowd.add());
        crowd
    }

    fn add(&mut self) {
        self.started += 1;
        let name = module_path!().split_once("::").unwrap().1;
        let test = format!("{name}::nothing_is_missed_while_collections_run_beside_everything");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([&test, "--exact", "--nocapture"]).env(WORKER, format!("{} {}", self.started, self.place.root()));
        let output = || fs::File::options().create(true).append(true).open(self.place.join("said")).unwrap();
        command.stdin(Stdio::null()).stdout(output()).stderr(output());
        self.running.push(command.spawn().unwrap());
    }

    /// A process that ends before it is told to has failed.
    fn assert_alive(&mut self) {
        for child in &mut self.running {
            assert_eq!(child.try_wait().unwrap(), None, "a process ended: {}", said(self.place));
        }
    }

    /// Kills one, wherever it is, and starts another.
    fn kill_one(&mut self) {
        let mut child = self.running.remove(0);
        child.kill().unwrap();
        child.wait().unwrap();
        self.add();
    }

    /// Tells all to end, and gives what they did.
    fn end(mut self) -> BTreeMap<String, u64> {
        fs::write(self.place.join("stop"), "").unwrap();
        for child in std::mem::take(&mut self.running) {
            let ran = Ran::of(child.wait_with_output().unwrap());
            assert_eq!(ran.code, Some(0), "{}", said(self.place));
        }
        let mut done = BTreeMap::new();
        for line in said(self.place).lines().filter_map(|line| line.strip_prefix("done: ")) {
            for (act, count) in line.split(' ').filter_map(|word| word.split_once('=')) {
                *done.entry(act.to_owned()).or_default() += count.parse::<u64>().unwrap();
            }
        }
        done
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        for child in &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn said(place: &Place) -> String {
    fs::read_to_string(place.join("said")).unwrap_or_default()
}
