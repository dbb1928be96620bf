//! Collections of real stores: what the plan says is what happens, and the bytes are those of the disk.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::process::Signal;
use template_store::gc::{GcPlan, GcReport, Policy, Reason, Verdict};
use template_store::observe::{Observer, Op};
use template_store::{Expect, Known, RevisionId, Store, StoreOptions};

use crate::sound::{assert_keys_lead, assert_sound};
use crate::support::{
    Place, Ran, Running, assert_clean, assert_right, build, draft_with, id, image, inputs, is_dead, listing, names,
    object_of, reused, template, until,
};

/// The bytes of all blocks below a directory, each inode once.
pub fn blocks(dir: &Utf8Path) -> u64 {
    let mut seen = HashSet::new();
    let walk = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap().metadata().unwrap());
    walk.filter(|found| seen.insert(found.ino())).map(|found| found.blocks() * 512).sum()
}

/// Whether the blocks that files show are those that are freed with them.
pub fn counts_exactly(dir: &Utf8Path) -> bool {
    let kind = rustix::fs::statfs(dir.as_std_path()).unwrap().f_type as u32;
    let exact = [0xEF53, 0x0102_1994].contains(&kind);
    if !exact {
        println!("{dir} is neither on ext4 nor on tmpfs: blocks are not compared");
    }
    exact
}

fn document(ran: &Ran) -> (GcPlan, Option<GcReport>) {
    let mut json = ran.json();
    let read = |part: serde_json::Value| serde_json::from_value(part).unwrap();
    (read(json["plan"].take()), serde_json::from_value(json["report"].take()).unwrap())
}

fn is_leased(plan: &GcPlan) -> bool {
    let leased = |reason: &Reason| matches!(reason, Reason::Leased { .. });
    plan.revisions.iter().any(|planned| planned.reasons.iter().any(leased))
}

/// The plan that the program makes with these words, once nobody holds anything; see `when_free`.
pub fn dry_run(place: &Place, words: &[&str]) -> GcPlan {
    until("nobody uses anything", || {
        let (plan, report) = document(&place.done(&[&["--json", "gc", "--dry-run"], words].concat()));
        assert_eq!(report, None, "a dry run does nothing");
        Some(plan).filter(|plan| !is_leased(plan))
    })
}

/// What the program collects with these words, once nobody holds anything.
pub fn collect(place: &Place, words: &[&str]) -> (GcPlan, GcReport) {
    dry_run(place, words);
    let (plan, report) = document(&place.done(&[&["--json", "gc"], words].concat()));
    (plan, report.expect("a run reports"))
}

/// `template@revision` of all that a plan takes.
pub fn going(plan: &GcPlan) -> Vec<String> {
    plan.going().map(|planned| format!("{}@{}", planned.template, planned.revision)).collect()
}

pub fn removed(report: &GcReport) -> Vec<String> {
    report.removed.iter().map(|one| format!("{}@{}", one.template, one.revision)).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Publishes an image for each label in turn; nobody holds them.
pub fn publish(store: &Store, template: &str, labels: &[&str]) -> Vec<RevisionId> {
    labels.iter().map(|label| build(store, template, &inputs(label), label).id().clone()).collect()
}

/// What was built again from one key, with other bytes.
pub fn build_again(store: &Store, template: &str, key: &str, label: &str) -> RevisionId {
    let again = template_store::BuildOptions::default().known(Known::BuildAgain);
    let draft = draft_with(store, template, &inputs(key), &again);
    image(draft.path(), label);
    draft.seal().unwrap().publish().unwrap().id().clone()
}

/// `web` of four revisions, of which the first is in `db` as well.
fn shared_store(place: &Place) -> (Store, Vec<RevisionId>) {
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c", "d"]);
    drop(reused(&store, "db", &inputs("a")));
    (store, ids)
}

#[test]
fn the_run_does_what_the_dry_run_said_and_frees_what_it_said() {
    let place = Place::new();
    let (store, ids) = shared_store(&place);
    let (before, size) = (listing(store.layout().root()), blocks(store.layout().root()));
    let words = ["--keep-last", "1"];
    let plan = dry_run(&place, &words);
    assert_eq!(listing(store.layout().root()), before, "a dry run changes nothing");
    assert_eq!(going(&plan), [&ids[2], &ids[1], &ids[0]].map(|id| format!("web@{id}")), "the newest first");
    let shared = plan.going().find(|one| one.revision == ids[0]).unwrap();
    assert!(shared.frees_alone.unwrap() < 128 << 10, "its large files are in db as well");

    let (planned, report) = collect(&place, &words);
    assert_eq!(planned.frees, plan.frees);
    assert_eq!(sorted(removed(&report)), sorted(going(&plan)));
    assert_eq!((&report.skipped[..], &report.swept[..]), (&[][..], &[][..]));
    assert_eq!(report.freed, plan.frees);
    for one in &report.removed {
        let planned = plan.going().find(|planned| planned.revision == one.revision).unwrap();
        assert_eq!(planned.frees_together, Some(one.freed), "{one:?}");
    }
    if counts_exactly(place.path()) {
        assert_eq!(size - blocks(store.layout().root()), report.freed, "the disk says the same");
    }
    assert_clean(store.layout());
    assert_right(&store.current(&id("web")).unwrap());
    assert_right(&store.current(&id("db")).unwrap());
    assert!(dry_run(&place, &words).is_empty(), "and nothing is left to do");
}

#[test]
fn what_many_templates_share_is_counted_once_however_they_go() {
    let place = Place::new();
    let store = place.quick_store();
    let names: Vec<String> = (0..24).map(|at| format!("t{at}")).collect();
    drop(build(&store, &names[0], &inputs("twin"), "twin"));
    for name in &names[1..] {
        drop(reused(&store, name, &inputs("twin")));
    }
    for name in &names {
        drop(build(&store, name, &inputs(name), "newer"));
    }
    let size = blocks(store.layout().root());
    let (plan, report) = collect(&place, &["--keep-last", "1"]);
    assert_eq!(report.removed.len(), names.len(), "{:?}", report.skipped);
    assert_eq!(report.freed, plan.frees);
    if counts_exactly(place.path()) {
        assert_eq!(size - blocks(store.layout().root()), plan.frees, "the disk says the same");
    }
    assert_clean(store.layout());
}

/// Lets the first two who remove a configuration meet just before they do, if they are two.
#[derive(Debug, Default)]
struct Meeting {
    here: Mutex<u32>,
    both: Condvar,
}

impl Observer for Meeting {
    fn before(&self, op: &Op) -> template_store::observe::Verdict {
        if matches!(op, Op::Unlink { path } if path.as_str().ends_with("fc-base.json")) {
            let mut here = self.here.lock().unwrap();
            *here += 1;
            self.both.notify_all();
            // Where there is one thread, or they do it one after the other, nobody comes.
            let alone = |here: &mut u32| *here < 2;
            drop(self.both.wait_timeout_while(here, Duration::from_millis(500), alone).unwrap());
        }
        template_store::observe::Verdict::Proceed
    }
}

#[test]
fn what_two_threads_remove_at_once_is_counted_once() {
    let place = Place::new();
    let store = place.store();
    for (template, newer) in [("web", "b"), ("db", "c")] {
        match store.build(&id(template), &inputs("a")).unwrap() {
            template_store::Build::Draft(draft) => {
                image(draft.path(), "a");
                drop(draft.seal().unwrap().publish().unwrap());
            }
            template_store::Build::Reused(_) => {}
        }
        publish(&store, template, &[newer]);
    }
    dry_run(&place, &["--keep-last", "1"]);
    let options = StoreOptions::default().observer(Arc::new(Meeting::default()));
    let watched = Store::open_with(place.root(), &options).unwrap();
    let (plan, report) = watched.gc(&Policy::default().keep_last(1u32), &mut ()).unwrap();
    assert_eq!((report.removed.len(), report.freed), (2, plan.frees), "{:?}", report.skipped);
}

#[test]
fn without_words_the_last_three_and_the_target_of_a_rollback_stay() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c", "d", "e", "f"]);
    drop(store.activate(&id("web"), &ids[0], Expect::Any).unwrap());
    drop(store.activate(&id("web"), &ids[5], Expect::Any).unwrap());
    let (_, report) = collect(&place, &[]);
    assert_eq!(sorted(removed(&report)), sorted([&ids[1], &ids[2]].map(|id| format!("web@{id}")).into()));
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[0], "a rollback finds what it goes back to");
}

#[test]
fn why_says_all_that_speaks_for_a_revision() {
    let place = Place::new();
    let (_, ids) = shared_store(&place);
    let target = |at: usize| format!("web@{}", ids[at]);
    place.done(&["pin", "release", &target(3), "--reason", "shipped"]);
    let why = |at: usize, words: &[&str]| place.done(&[&["why", &target(at)], words].concat()).out;
    let newest = why(3, &[]);
    for words in ["is kept", "it is current", "pinned as release", "number 1 of the newest 3"] {
        assert!(newest.contains(words), "{words}: {newest}");
    }
    let before = why(2, &["--keep-last", "2"]);
    assert!(before.contains("the next rollback goes back to it") && before.contains("number 2"), "{before}");
    until("nobody uses it", || Some(why(0, &[])).filter(|why| why.contains("goes with the next gc")));
    assert!(why(0, &[]).contains("number 4 from the newest, 3 are kept"));
    let young = why(0, &["--keep-within", "14d"]);
    assert!(young.contains("is kept") && young.contains("kept for 14 days"), "{young}");
    place.run(&["why", "web@none"]).with_code(3);
    place.run(&["why", "none@none"]).with_code(3);
}

#[test]
fn objects_go_with_the_last_who_has_them() {
    let place = Place::new();
    let (store, ids) = shared_store(&place);
    let first = store.revision(&id("web"), &ids[0]).unwrap();
    let shared = [first.kernel(), first.rootfs()].map(|file| object_of(store.layout(), &file));
    drop(first);
    collect(&place, &["--keep-last", "1"]);
    assert!(shared.iter().all(|object| object.exists()), "db has these bytes");
    assert_right(&store.current(&id("db")).unwrap());
    drop(build(&store, "db", &inputs("z"), "z"));
    collect(&place, &["--keep-last", "1"]);
    assert!(shared.iter().all(|object| !object.exists()), "nobody has them any more");
    assert_clean(store.layout());
}

#[test]
fn a_key_leads_to_the_older_revision_when_the_newer_one_goes() {
    let place = Place::new();
    let store = place.store();
    let older = build(&store, "web", &inputs("a"), "one").id().clone();
    let newer = build_again(&store, "web", "a", "two");
    drop(store.activate(&id("web"), &older, Expect::Any).unwrap());
    let (_, report) = collect(&place, &["--keep-last", "0"]);
    assert_eq!(removed(&report), [format!("web@{newer}")]);
    assert_eq!(reused(&store, "web", &inputs("a")).id(), &older);
    assert_keys_lead(&store);
}

#[test]
fn a_key_still_leads_to_the_newer_revision_when_the_older_one_goes() {
    let place = Place::new();
    let store = place.store();
    let older = build(&store, "web", &inputs("a"), "one").id().clone();
    let newer = build_again(&store, "web", "a", "two");
    let (_, report) = collect(&place, &["--keep-last", "1"]);
    assert_eq!(removed(&report), [format!("web@{older}")]);
    assert_eq!(reused(&store, "web", &inputs("a")).id(), &newer);
    assert_keys_lead(&store);
}

#[test]
fn a_key_leads_to_another_template_when_its_first_one_goes() {
    let place = Place::new();
    let store = place.store();
    let first = build(&store, "web", &inputs("a"), "one").id().clone();
    drop(reused(&store, "db", &inputs("a")));
    publish(&store, "web", &["b"]);
    let (_, report) = collect(&place, &["--keep-last", "1"]);
    assert_eq!(removed(&report), [format!("web@{first}")]);
    let found = store.lookup(None, &inputs("a")).unwrap().expect("db has it");
    assert_eq!(found.template(), &template("db"));
    assert_keys_lead(&store);
}

#[test]
fn a_key_goes_with_the_last_who_has_it() {
    let place = Place::new();
    let store = place.store();
    publish(&store, "web", &["a", "b"]);
    let key = store.layout().key(&inputs("a").key());
    assert!(key.exists());
    collect(&place, &["--keep-last", "1"]);
    assert!(!key.exists());
    assert!(store.lookup(None, &inputs("a")).unwrap().is_none());
    assert_keys_lead(&store);
}

/// Starts a command that lives until its stdin ends; gives its process as well.
fn run_until_told(place: &Place, target: &str) -> (Running, u32) {
    let mut command = place.program(&["run", target, "--", "sh", "-c", "echo $$; exec cat"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(running.take_stdout()).read_line(&mut line).unwrap();
    (running, line.trim().parse().unwrap())
}

/// Why a revision is kept by a collection that would take it.
fn kept_for(place: &Place, revision: &RevisionId) -> String {
    let (plan, report) = document(&place.done(&["--json", "gc", "--keep-last", "1"]));
    let planned = plan.revisions.iter().find(|planned| planned.revision == *revision).expect("it is there");
    assert_eq!((planned.verdict, removed(&report.unwrap())), (Verdict::Kept, vec![]));
    format!("{:?}", planned.reasons)
}

#[test]
fn what_a_command_uses_stays_until_the_program_and_the_command_are_dead() {
    let place = Place::new();
    let store = place.store();
    let used = build(&store, "web", &inputs("a"), "a").id().clone();
    let (mut running, command) = run_until_told(&place, "web");
    let stdin = running.take_stdin();
    publish(&store, "web", &["b"]);
    let program = running.pid().to_string();
    let said = kept_for(&place, &used);
    assert!(said.contains(&format!("pid: {program}")) && said.contains("run web"), "the program: {said}");
    assert!(said.contains(&format!("pid: {command}")) && said.contains("cat"), "and the command: {said}");
    let text = place.done(&["gc", "--keep-last", "1"]).out;
    assert!(text.contains(&format!("process {program}")), "people are told as well: {text}");

    running.signal(Signal::KILL);
    assert_eq!(running.end().code, None, "it was killed");
    let said = kept_for(&place, &used);
    assert!(said.contains(&format!("pid: {command}")) && !said.contains(&format!("pid: {program}")), "{said}");
    assert_right(&store.revision(&id("web"), &used).unwrap());

    drop(stdin);
    until("the command ends", || is_dead(command).then_some(()));
    let (_, report) = collect(&place, &["--keep-last", "1"]);
    assert_eq!(removed(&report), [format!("web@{used}")]);
    assert_eq!(names(store.layout().leases()), [""; 0], "no note is left of the dead");
    assert_clean(store.layout());
}

#[test]
fn a_collection_that_is_killed_is_completed_by_the_next_one() {
    let place = Place::in_memory();
    let store = place.quick_store();
    let mut killed = 0;
    for round in 0..20 {
        // Each round is killed a little later than the one before; the last ones may come to their end.
        for (template, label) in [("web", "x"), ("web", "y"), ("db", "x"), ("db", "z"), ("own", "w")] {
            drop(build(&store, template, &inputs(&format!("{template} {label} {round}")), &format!("{label} {round}")));
        }
        for template in ["web", "db", "own"] {
            drop(build_again(&store, template, &format!("{template} x {round}"), &format!("last {template} {round}")));
        }
        dry_run(&place, &["--keep-last", "1"]);
        let running = Running::start(&mut place.program(&["gc", "--keep-last", "1"]));
        std::thread::sleep(Duration::from_millis(round * 2));
        running.signal(Signal::KILL);
        killed += u32::from(running.end().code.is_none());
        let (_, report) = collect(&place, &["--keep-last", "1"]);
        assert_eq!(report.skipped, [], "round {round}");
        assert_sound(&store);
    }
    assert!(killed > 0, "none was killed while it worked");
}

/// The names of all revisions: `template@revision`.
pub fn all(store: &Store) -> Vec<String> {
    let templates = store.templates().unwrap();
    let of = |id: &template_store::TemplateId| {
        store.revisions(id).unwrap().into_iter().map(|revision| format!("{id}@{revision}")).collect::<Vec<_>>()
    };
    templates.iter().flat_map(of).collect()
}

/// Writes what `gc --dry-run --json` says of these words to a file.
pub fn save_plan(place: &Place, words: &[&str]) -> Utf8PathBuf {
    dry_run(place, words);
    let file = place.join("plan.json");
    fs::write(&file, place.done(&[&["--json", "gc", "--dry-run"], words].concat()).out).unwrap();
    file
}
