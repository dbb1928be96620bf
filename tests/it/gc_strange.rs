//! Collections where somebody has laid hands on the store: what can't be judged stays, and keeps nothing else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::{Policy, Reason, SkipReason, Verdict};
use template_store::{Depth, FindingKind, Removal, Severity, Store, VerifyOptions};

use crate::gc::{build_again, publish};
use crate::support::{
    assert_clean, assert_error, draft, fresh_quick, id, image, inputs, names, reused, until, when_free,
};

fn last(count: u32) -> Policy {
    Policy::default().keep_last(count).rollback(0u32)
}

/// What is collected once nobody holds anything; see `when_free`.
fn collect(store: &Store, policy: &Policy) -> Vec<String> {
    let leased = |reason: &Reason| matches!(reason, Reason::Leased { .. });
    until("nobody uses anything", || {
        let plan = store.plan_gc(policy).unwrap();
        (!plan.revisions.iter().any(|planned| planned.reasons.iter().any(leased))).then_some(())
    });
    collect_now(store, policy)
}

fn collect_now(store: &Store, policy: &Policy) -> Vec<String> {
    let (_, report) = store.gc(policy, &mut ()).unwrap();
    assert!(report.skipped.is_empty() && report.failed.is_empty(), "{report:?}");
    report.removed.iter().map(|one| format!("{}@{}", one.template, one.revision)).collect()
}

/// Something is put in the place of a path, or its rights are taken away; gives what mends it.
type Harm = fn(&Utf8Path, &Utf8Path);

fn another_thing(path: &Utf8Path, thing: fn(&Utf8Path)) {
    fs::rename(path, path.with_extension("was")).unwrap();
    thing(path);
}

fn shut(path: &Utf8Path) {
    fs::set_permissions(path, Permissions::from_mode(0o000)).unwrap();
}

#[test]
fn a_template_that_cannot_be_judged_loses_nothing_and_keeps_no_other_from_being_collected() {
    let harms: [(&str, Harm); 6] = [
        ("current is a file", |template, _| {
            another_thing(&template.join("current"), |path| fs::write(path, "").unwrap())
        }),
        ("current is a directory", |template, _| {
            another_thing(&template.join("current"), |path| fs::create_dir(path).unwrap());
        }),
        ("the log is a link", |_, log| another_thing(log, |path| symlink("/dev/null", path).unwrap())),
        ("the log is a directory", |_, log| another_thing(log, |path| fs::create_dir(path).unwrap())),
        ("nobody may look into it", |template, _| shut(template)),
        ("nobody may look into its artifacts", |template, _| shut(&template.join("artifacts"))),
    ];
    for (harm, act) in harms {
        let (_place, store) = fresh_quick();
        let (bad, good) = (publish(&store, "bad", &["a", "b", "c"]), publish(&store, "web", &["d", "e", "f"]));
        let (template, log) = (store.layout().template(&id("bad")), store.layout().activations(&id("bad")));
        act(&template, &log);
        let removed = collect(&store, &last(1));
        let (usage, kinds) = (store.usage(), findings(&store));
        let why = store.why(&id("web"), &good[2], &last(1));
        for shut in [template.clone(), template.join("artifacts")] {
            fs::set_permissions(shut, Permissions::from_mode(0o755)).unwrap();
        }
        if harm.starts_with("nobody") && !rustix::process::geteuid().is_root() {
            let kinds = kinds.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
            assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == FindingKind::Unreadable), "{kinds:?}");
        }
        usage.unwrap_or_else(|error| panic!("{harm}: {error}"));
        assert_eq!(why.unwrap().verdict, Verdict::Kept, "{harm}");
        assert!([&good[1], &good[0]].map(|one| format!("web@{one}")).iter().all(|one| removed.contains(one)), "{harm}");
        // Root looks into whatever it likes.
        if rustix::process::geteuid().is_root() && harm.starts_with("nobody") {
            println!("run as another user to see what a directory does that nobody may look into");
            continue;
        }
        assert_eq!(removed.len(), 2, "{harm}: {removed:?}");
        assert_eq!(names(store.layout().artifacts(&id("bad"))).len(), 3, "{harm}");
        let keys = names(store.layout().keys()).len();
        assert!(keys >= 4, "{harm}: {keys} directories of keys, and those of what stays are among them");
        if !harm.starts_with("nobody") {
            let plan = store.plan_gc(&last(1)).unwrap();
            let kept = plan.revisions.iter().filter(|planned| planned.template == id("bad"));
            assert!(
                kept.clone().count() == 3 && kept.clone().all(|one| one.reasons.contains(&Reason::CurrentUnreadable))
            );
            for path in [template.join("current"), log] {
                if fs::symlink_metadata(path.with_extension("was")).is_ok() {
                    let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
                    fs::rename(path.with_extension("was"), path).unwrap();
                }
            }
        }
        assert_eq!(collect(&store, &last(1)), [&bad[1], &bad[0]].map(|one| format!("bad@{one}")), "{harm}");
        assert_clean(store.layout());
    }
}

#[test]
fn what_a_dead_builder_locked_itself_out_of_goes() {
    let (_place, store) = fresh_quick();
    publish(&store, "web", &["a"]);
    let drafts = store.layout().drafts();
    for (draft, inner) in [("one/inner", "one/inner"), ("two", "two")] {
        fs::create_dir_all(drafts.join(draft)).unwrap();
        fs::write(drafts.join(draft).join("file"), [1; 100_000]).unwrap();
        fs::set_permissions(drafts.join(inner), Permissions::from_mode(0o000)).unwrap();
    }
    store.usage().unwrap();
    store.plan_gc(&last(1).max_size(1u64 << 40)).unwrap();
    let (_, report) = store.gc(&last(1), &mut ()).unwrap();
    assert_eq!((report.failed.len(), names(&drafts)), (0, Vec::new()), "{report:?}");
    assert!(report.freed >= 100_000);
    assert_clean(store.layout());
}

/// A command may close the descriptor of the lock that it was started with: `sudo` does.
#[test]
fn the_note_of_a_living_process_keeps_what_it_uses() {
    let (_place, store) = fresh_quick();
    let ids = publish(&store, "web", &["a", "b"]);
    let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
    let plan =
        until("nobody uses it", || Some(store.plan_gc(&last(1)).unwrap()).filter(|plan| plan.going().count() == 1));
    let note = store.revision(&id("web"), &ids[0]).unwrap().note_holder(child.id(), "a VM").unwrap();

    let report = store.apply_gc(&plan, &mut ()).unwrap();
    let SkipReason::Leased { holders } = &report.skipped[0].why else { panic!("{report:?}") };
    assert_eq!((holders[0].pid, &*holders[0].purpose), (child.id(), "a VM"));
    assert_eq!(collect_now(&store, &last(1)), [""; 0]);
    assert_error(store.remove(&id("web"), &ids[0], Removal::Unused), template_store::ErrorKind::Refused, &["in use"]);
    let dir = store.layout().leases_of(&id("web"), &ids[0]);
    assert_eq!(names(&dir).len(), 1, "the note is not that of a dead one");

    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(collect(&store, &last(1)), [format!("web@{}", ids[0])]);
    assert!(!dir.exists());
    drop(note);
}

#[test]
fn the_key_of_a_revision_that_was_deleted_by_hand_leads_to_another_that_has_it() {
    let (_place, store) = fresh_quick();
    let ids = ["a", "b", "c"].map(|label| build_again(&store, "web", "key", label));
    store.activate(&id("web"), &ids[0], template_store::Expect::Any).unwrap();
    let lookup = || store.lookup(Some(&id("web")), &inputs("key")).unwrap().map(|found| found.id().clone());
    assert_eq!(lookup().as_ref(), Some(&ids[2]));
    fs::remove_dir_all(store.layout().revision(&id("web"), &ids[2])).unwrap();
    let plan = store.plan_gc(&last(9)).unwrap();
    let keys = plan.leftovers.iter().filter(|leftover| leftover.path.contains("/keys/")).map(|leftover| leftover.frees);
    assert_eq!(keys.collect::<Vec<_>>(), [0]);
    collect(&store, &last(9));
    assert_eq!(lookup().as_ref(), Some(&ids[1]), "the newest that is left");
    assert!(store.plan_gc(&last(9)).unwrap().is_empty(), "and nothing is left to do");
    assert_clean(store.layout());
}

fn findings(store: &Store) -> Vec<(FindingKind, Utf8PathBuf)> {
    let report = store.verify(&VerifyOptions::default().depth(Depth::Quick), &mut ()).unwrap();
    let counts = report.findings.into_iter().filter(|finding| finding.severity != Severity::Note);
    counts.map(|finding| (finding.kind, finding.path)).collect()
}

#[test]
fn a_log_that_is_lost_is_found_and_what_was_published_before_stays_meanwhile() {
    for harm in [|log: &Utf8Path| fs::remove_file(log).unwrap(), |log: &Utf8Path| fs::write(log, "").unwrap()] {
        let (_place, store) = fresh_quick();
        let ids = publish(&store, "web", &["a", "b", "c"]);
        assert_eq!(findings(&store), []);
        let log = store.layout().activations(&id("web"));
        harm(&log);
        assert_eq!(findings(&store), [(FindingKind::Missing, log.clone())]);
        assert_eq!(collect(&store, &Policy::default().keep_last(1u32).rollback(1u32)), [format!("web@{}", ids[0])]);
        store.repair(&VerifyOptions::default(), &mut ()).unwrap();
        assert_eq!(findings(&store), []);
        assert_eq!(store.history(&id("web")).unwrap()[0].revision, ids[2]);
    }
}

#[test]
fn a_mark_of_damage_goes_with_its_revision() {
    let (_place, store) = fresh_quick();
    let ids = publish(&store, "web", &["a", "b", "c"]);
    let mark = |revision| {
        fs::create_dir_all(store.layout().damaged()).unwrap();
        fs::write(store.layout().damage_mark(&id("web"), revision), "{}").unwrap();
    };
    mark(&ids[0]);
    collect(&store, &last(2));
    assert!(!store.layout().damage_mark(&id("web"), &ids[0]).exists());
    assert!(store.plan_gc(&last(2)).unwrap().is_empty(), "a second collection finds nothing");
    mark(&ids[1]);
    when_free(|| store.remove_template(&id("web"), Removal::Unused)).unwrap();
    assert!(!store.layout().damage_mark(&id("web"), &ids[1]).exists());
}

#[test]
fn what_is_marked_as_damaged_drives_no_intact_one_out() {
    let (_place, store) = fresh_quick();
    let ids = publish(&store, "web", &["a", "b", "c", "d"]);
    store.activate(&id("web"), &ids[0], template_store::Expect::Any).unwrap();
    fs::create_dir_all(store.layout().damaged()).unwrap();
    fs::write(store.layout().damage_mark(&id("web"), &ids[3]), "{}").unwrap();
    assert_eq!(collect(&store, &last(1)), [format!("web@{}", ids[1])], "the damaged one has the place of the next");
    assert!(store.layout().revision(&id("web"), &ids[3]).exists());
}

/// Of a store that several users share, the object of a file may have been another user's.
#[test]
fn a_file_without_an_object_is_only_noted_where_several_users_publish() {
    for (mode, severity) in [(0o755, Severity::Warning), (0o2775, Severity::Note)] {
        let (_place, store) = fresh_quick();
        let draft = draft(&store, "web", &inputs("a"));
        image(draft.path(), "a");
        drop(draft.seal().unwrap().publish().unwrap());
        drop(reused(&store, "db", &inputs("a")));
        fs::set_permissions(store.layout().templates(), Permissions::from_mode(mode)).unwrap();
        fs::remove_dir_all(store.layout().objects()).unwrap();
        fs::create_dir(store.layout().objects()).unwrap();
        let report = store.verify(&VerifyOptions::default(), &mut ()).unwrap();
        let worst = report.findings.iter().map(|finding| finding.severity).max().unwrap();
        assert_eq!(worst, severity, "{:?}", report.findings);
    }
}

/// What the library warns of may have any name, and goes to a pipe as often as to a terminal.
#[test]
fn a_warning_is_one_plain_line() {
    let (place, store) = fresh_quick();
    publish(&store, "web", &["a"]);
    another_thing(&store.layout().current(&id("web")), |path| fs::create_dir(path).unwrap());
    let ran = place.done(&["gc", "--dry-run"]);
    let warnings: Vec<_> =
        ran.err.lines().filter(|line| line.starts_with("warning: nothing is collected in")).collect();
    assert_eq!(warnings.len(), 1, "{}", ran.err);
    assert!(!ran.err.contains('\u{1b}') && warnings[0].contains("template web: cannot read link"), "{}", ran.err);
}
