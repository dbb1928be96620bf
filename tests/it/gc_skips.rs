//! What changed between a plan and its execution: the plan is the most that is done, never the least.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use template_store::gc::{GcPlan, GcReport, Policy, SkipReason};
use template_store::{Expect, PinOptions, Removal, RevisionId, SealOptions, Store};

use crate::gc::{all, dry_run, going, publish, removed, save_plan};
use crate::proof;
use crate::support::{
    Place, Running, assert_clean, assert_right, build, draft, id, image, inputs, listing, template, until, when_free,
};

/// `web` of three revisions, and a saved plan that takes the two older ones.
fn planned() -> (Place, Store, Vec<RevisionId>, Utf8PathBuf) {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c"]);
    let plan = save_plan(&place, &["--keep-last", "1"]);
    (place, store, ids, plan)
}

fn apply(place: &Place, plan: &Utf8PathBuf) -> GcReport {
    let ran = place.done(&["--json", "gc", "--plan", plan.as_str()]);
    serde_json::from_value(ran.json()["report"].take()).unwrap()
}

/// As `apply`, by this process.
fn apply_here(store: &Store, plan: &Utf8PathBuf) -> GcReport {
    let mut document: Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
    let plan: GcPlan = serde_json::from_value(document["plan"].take()).unwrap();
    store.apply_gc(&plan, &mut ()).unwrap()
}

/// Applies the plan, which skips this revision, and says why.
#[track_caller]
fn skipped(place: &Place, plan: &Utf8PathBuf, revision: &RevisionId) -> SkipReason {
    let report = apply(place, plan);
    assert!(!removed(&report).contains(&format!("web@{revision}")));
    let found = report.skipped.into_iter().find(|skipped| skipped.revision == *revision);
    found.expect("it is skipped").why
}

/// As `skipped`, once nobody uses the revision any more.
#[track_caller]
fn skipped_when_free(place: &Place, plan: &Utf8PathBuf, revision: &RevisionId) -> SkipReason {
    until("nobody uses it", || {
        Some(skipped(place, plan, revision)).filter(|why| !matches!(why, SkipReason::Leased { .. }))
    })
}

#[test]
fn a_saved_plan_is_done_as_it_was_saved() {
    let (place, store, ids, plan) = planned();
    // What came later is not in the plan.
    let later = publish(&store, "web", &["d", "e"]);
    let report = apply(&place, &plan);
    let mut gone = removed(&report);
    gone.sort();
    let mut expected = vec![format!("web@{}", ids[0]), format!("web@{}", ids[1])];
    expected.sort();
    assert_eq!(gone, expected);
    assert_eq!(report.skipped, []);
    assert_eq!(store.revisions(&id("web")).unwrap().len(), 1 + later.len());
    assert_clean(store.layout());
}

#[test]
fn a_saved_plan_can_be_looked_at_again() {
    let (place, store, _, plan) = planned();
    let before = listing(store.layout().root());
    let again = place.done(&["--json", "gc", "--dry-run", "--plan", plan.as_str()]);
    let saved: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    assert_eq!(again.json(), saved);
    assert_eq!(listing(store.layout().root()), before);
    place.run(&["gc", "--plan", plan.as_str(), "--keep-last", "1"]).with_code(2);
    fs::write(&plan, "{}").unwrap();
    place.run(&["gc", "--plan", plan.as_str()]).with_code(2).says(&["plan.json", "--dry-run --json"]);
    place.run(&["gc", "--plan", "none.json"]).with_code(1).says(&["none.json"]);
}

#[test]
fn what_is_gone_since_is_neither_kept_nor_to_be_removed() {
    let (place, store, ids, plan) = planned();
    store.remove(&id("web"), &ids[0], Removal::Unused).unwrap();
    let dry = ["gc", "--dry-run", "--plan", plan.as_str()];
    let gone = format!("gone already: web@{}", ids[0]);
    let text = place.done(&dry).out;
    assert!(text.contains(&gone), "{text}");
    assert!(text.contains("would remove 1 revision and free about"), "{text}");
    assert!(text.contains("; 1 kept, 1 gone already\n") && text.contains("this is a saved plan"), "{text}");
    let document = place.done(&[&["--json"], &dry[..]].concat()).json();
    assert_eq!(document["gone"], json!([{ "template": "web", "revision": ids[0] }]), "{document}");
    fs::write(place.join("again.json"), document.to_string()).unwrap();

    let text = place.done(&["gc", "--plan", "again.json"]).out;
    assert!(text.contains("removed 1 revision and freed") && text.contains("; 1 kept, 1 gone already\n"), "{text}");
    let text = place.done(&["gc", "--plan", plan.as_str()]).out;
    assert!(text.contains("removed 0 revisions") && text.contains("; 1 kept, 2 gone already\n"), "{text}");
    store.remove_template(&id("web"), Removal::Forced).unwrap();
    let text = place.done(&dry).out;
    assert!(text.contains("would remove 0 revisions") && text.contains("; 0 kept, 3 gone already\n"), "{text}");
}

#[test]
fn a_saved_plan_can_come_through_a_pipe() {
    let (place, store, ids, plan) = planned();
    let through = |words: &[&str]| {
        let mut command = place.program(words);
        command.stdin(fs::File::open(&plan).unwrap());
        command.output().unwrap()
    };
    let dry = through(&["--json", "gc", "--dry-run", "--plan", "-"]);
    let saved: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&dry.stdout).unwrap(), saved);
    assert!(through(&["gc", "--plan", "-"]).status.success());
    assert_eq!(store.revisions(&id("web")).unwrap(), [ids[2].clone()]);
    fs::write(&plan, "{}").unwrap();
    let refused = through(&["gc", "--plan", "-"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text.contains("standard input is not a plan"), "{text}");
}

#[test]
fn what_became_current_stays() {
    let (place, store, ids, plan) = planned();
    drop(store.activate(&id("web"), &ids[0], Expect::Any).unwrap());
    assert_eq!(skipped_when_free(&place, &plan, &ids[0]), SkipReason::BecameCurrent);
    assert_right(&store.current(&id("web")).unwrap());
    assert_eq!(all(&store).len(), 2, "the other one went");
}

#[test]
fn what_became_the_target_of_a_rollback_stays() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b", "c"]);
    let plan = save_plan(&place, &["--keep-last", "1", "--rollback", "1"]);
    // The plan keeps b. Now b is current, then c again: b stays the target; after a and c, a is.
    drop(store.activate(&id("web"), &ids[0], Expect::Any).unwrap());
    drop(store.activate(&id("web"), &ids[2], Expect::Any).unwrap());
    assert_eq!(skipped_when_free(&place, &plan, &ids[0]), SkipReason::BecameRollbackTarget);
    assert_eq!(store.rollback(&id("web")).unwrap().id(), &ids[0]);
}

#[test]
fn what_was_pinned_stays() {
    let (place, store, ids, plan) = planned();
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    let release = PinOptions::default().until(until).reason("shipped");
    store.pin(&id("release"), &id("web"), &ids[0], &release).unwrap();
    let gone = PinOptions::default().until(jiff::Timestamp::now());
    store.pin(&id("expired"), &id("web"), &ids[1], &gone).unwrap();
    let why = skipped_when_free(&place, &plan, &ids[0]);
    assert_eq!(why, SkipReason::Pinned { name: "release".into(), until: Some(until) });
    until_gone(&place, &store, &plan, &ids[1]);
}

/// Applies the plan until the revision is gone: a pin that has expired keeps nothing.
fn until_gone(place: &Place, store: &Store, plan: &Utf8PathBuf, revision: &RevisionId) {
    until("it goes", || {
        apply(place, plan);
        (!store.layout().revision(&id("web"), revision).exists()).then_some(())
    });
}

#[test]
fn what_is_gone_is_told_to_be_gone() {
    let (place, store, ids, plan) = planned();
    when_free(|| store.remove(&id("web"), &ids[0], Removal::Unused)).unwrap();
    assert_eq!(skipped(&place, &plan, &ids[0]), SkipReason::Gone);
    let (place, store, ids, plan) = planned();
    when_free(|| store.remove_template(&id("web"), Removal::Unused)).unwrap();
    assert_eq!(skipped(&place, &plan, &ids[0]), SkipReason::Gone);
    assert_eq!(skipped(&place, &plan, &ids[1]), SkipReason::Gone);
}

#[test]
fn another_revision_of_the_same_name_stays() {
    let place = Place::new();
    let store = place.store();
    let publish_as = |label: &str| {
        let draft = draft(&store, "web", &inputs(label));
        image(draft.path(), label);
        let options = SealOptions::default().revision(id::<RevisionId>("r1"));
        drop(draft.seal_with(&options, &mut ()).unwrap().publish().unwrap());
    };
    publish_as("a");
    publish(&store, "web", &["b"]);
    let plan = save_plan(&place, &["--keep-last", "1"]);
    when_free(|| store.remove(&id("web"), &id("r1"), Removal::Unused)).unwrap();
    publish_as("new");
    drop(store.rollback(&id("web")).unwrap());
    assert_eq!(skipped_when_free(&place, &plan, &id("r1")), SkipReason::Replaced);
    assert_right(&store.revision(&id("web"), &id("r1")).unwrap());
}

#[test]
fn what_this_process_uses_stays_and_it_is_named() {
    let (place, store, ids, plan) = planned();
    let lease = store.revision(&id("web"), &ids[0]).unwrap();
    let SkipReason::Leased { holders } = skipped(&place, &plan, &ids[0]) else { panic!("it is in use") };
    assert!(holders.iter().any(|holder| holder.pid == std::process::id()), "{holders:?}");
    assert_right(&lease);
    // A collection of this process sees its own handles as well.
    let policy = Policy::default().keep_last(1u32);
    let why = store.why(&id("web"), &ids[0], &policy).unwrap();
    assert!(format!("{:?}", why.reasons).contains(&format!("pid: {}", std::process::id())), "{why:?}");
    drop(lease);
    until_gone(&place, &store, &plan, &ids[0]);
}

#[test]
fn what_a_command_uses_stays_and_it_is_named() {
    let (place, store, ids, plan) = planned();
    let mut command = place.program(&["run", &format!("web@{}", ids[0]), "--", "sh", "-c", "echo; exec cat"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let stdin = running.take_stdin();
    BufReader::new(running.take_stdout()).read_line(&mut String::new()).unwrap();
    let SkipReason::Leased { holders } = skipped(&place, &plan, &ids[0]) else { panic!("it is in use") };
    assert!(holders.iter().any(|holder| holder.pid == running.pid() && holder.command.contains("run web")));
    assert!(holders.iter().any(|holder| holder.pid != running.pid() && holder.command.contains("cat")), "{holders:?}");
    let text = place.done(&["gc", "--plan", plan.as_str()]).out;
    assert!(text.contains("skipped web@") && text.contains(&format!("process {}", running.pid())), "{text}");
    drop(stdin);
    running.end();
    until_gone(&place, &store, &plan, &ids[0]);
}

#[test]
fn a_template_whose_current_dangles_loses_nothing() {
    let (place, store, ids, plan) = planned();
    let current = store.layout().revision(&id("web"), &ids[2]);
    fs::rename(&current, place.join("lost")).unwrap();
    assert_eq!(going(&dry_run(&place, &["--keep-last", "0"])), [""; 0]);
    let report = apply(&place, &plan);
    assert_eq!(removed(&report), [""; 0], "nor by a plan of before: {:?}", report.skipped);
    assert_eq!(store.revisions(&id("web")).unwrap().len(), 2);
}

/// A plan that sweeps this, as if a dead process had left it.
fn hostile(plan: &Utf8PathBuf, kind: &str, path: &str) {
    let mut document: Value = serde_json::from_slice(&fs::read(plan).unwrap()).unwrap();
    document["plan"]["leftovers"] = json!([{"kind": kind, "path": path, "frees": 0}]);
    document["plan"]["revisions"] = json!([]);
    fs::write(plan, document.to_string()).unwrap();
}

#[test]
fn a_plan_sweeps_nothing_but_what_the_dead_left() {
    let (place, store, ids, plan) = planned();
    let outside = place.image("outside", "outside");
    store.pin(&id("release"), &id("web"), &ids[0], &PinOptions::default()).unwrap();
    let held = draft(&store, "web", &inputs("held"));
    let held_name = held.path().file_name().unwrap().to_owned();
    let key = store.layout().key(&inputs("a").key());
    let below = |path: &Utf8PathBuf| path.strip_prefix(store.layout().root()).unwrap().to_string();
    let object = crate::support::names(store.layout().objects())[0].clone();
    let object_name = crate::support::names(store.layout().objects().join(&object))[0].clone();
    let before = listing(store.layout().root());
    let (revision, layout) = (below(&store.layout().revision(&id("web"), &ids[0])), store.layout());
    let paths = [
        "../outside".to_owned(),
        outside.to_string(),
        revision.clone(),
        format!(".store/trash/../../{revision}"),
        format!(".store/drafts/../../{revision}"),
        format!(".store/drafts/./{held_name}"),
        format!(".store/drafts/{held_name}"),
        format!(".store/drafts/{held_name}/vmlinux"),
        ".store/trash/..".into(),
        ".store/trash/".into(),
        ".store/trash".into(),
        ".store/drafts//".into(),
        ".store/leases/..".into(),
        ".store/leases/../format.json".into(),
        ".store/locks/../format.json".into(),
        ".store/pins/release.json".into(),
        ".store/format.json".into(),
        ".store/reserve".into(),
        ".store".into(),
        below(&key),
        format!(".store/objects/{object}/{object_name}"),
        format!(".store/objects/{object}"),
        below(&layout.template_json(&id("web"))),
        below(&layout.current(&id("web"))),
        "templates/web".into(),
        String::new(),
        ".".into(),
        "/".into(),
    ];
    let kinds = ["trash", "draft", "object", "key", "lock", "lease", "pin", "mark"];
    for (number, (kind, path)) in kinds.iter().flat_map(|kind| paths.iter().map(move |path| (kind, path))).enumerate() {
        hostile(&plan, kind, path);
        // The program hands what it has read to the library, which decides.
        let report = if proof::chosen(number, 27) { apply(&place, &plan) } else { apply_here(&store, &plan) };
        assert_eq!(report.swept, [], "{kind} {path:?}");
    }
    assert_eq!(listing(store.layout().root()), before);
    assert!(outside.join("vmlinux").exists());
    assert_right(&store.revision(&id("web"), &ids[0]).unwrap());
    held.abandon().unwrap();
}

#[test]
fn a_plan_for_names_that_are_none_is_refused() {
    let (place, store, _, plan) = planned();
    let before = listing(store.layout().root());
    let saved: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    for (field, bad) in
        [("template", "../web"), ("revision", "../../web"), ("revision", "revisions"), ("verdict", "no")]
    {
        let mut document = saved.clone();
        document["plan"]["revisions"][1][field] = json!(bad);
        fs::write(&plan, document.to_string()).unwrap();
        place.run(&["gc", "--plan", plan.as_str()]).with_code(2).says(&["plan.json"]);
    }
    assert_eq!(listing(store.layout().root()), before);
}

#[test]
fn a_plan_that_takes_what_is_current_takes_nothing() {
    let (place, store, ids, plan) = planned();
    let mut document: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    document["plan"]["revisions"][0]["verdict"] = json!("goes");
    fs::write(&plan, document.to_string()).unwrap();
    assert_eq!(skipped_when_free(&place, &plan, &ids[2]), SkipReason::BecameCurrent);
    assert_eq!(store.current(&template("web")).unwrap().id(), &ids[2]);
}

/// Called by `waits`, as it takes the time that a collection waits for a lock.
pub fn a_template_whose_lock_is_held_all_the_time_does_not_stop_the_others() {
    let place = Place::new();
    let store = place.store();
    let ids = publish(&store, "web", &["a", "b"]);
    drop(build(&store, "db", &inputs("c"), "c"));
    drop(build(&store, "db", &inputs("d"), "d"));
    let plan = save_plan(&place, &["--keep-last", "1"]);
    let stuck = fs::File::open(store.layout().template(&id("web"))).unwrap();
    stuck.lock().unwrap();
    let ran = place.run(&["--json", "gc", "--plan", plan.as_str()]).with_code(1);
    let report: GcReport = serde_json::from_value(ran.json()["report"].take()).unwrap();
    assert_eq!((&report.skipped[0].revision, &report.skipped[0].why), (&ids[0], &SkipReason::Busy));
    assert_eq!(report.removed.len(), 1, "db lost one");
    drop(stuck);
    assert_clean(store.layout());
}

#[test]
fn a_link_in_the_place_of_a_templates_revisions_ends_no_collection_in_a_circle() {
    let place = Place::new();
    let store = place.store();
    crate::gc::publish(&store, "web", &["a", "b"]);
    let (artifacts, outside) = (store.layout().artifacts(&"web".parse().unwrap()), place.join("outside"));
    std::fs::rename(&artifacts, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &artifacts).unwrap();
    let plan = store.plan_gc(&Default::default()).unwrap();
    assert_eq!(plan.going().count(), 0, "{plan:?}");
    assert_eq!(crate::support::names(&outside).len(), 2, "what is outside stays");
}
