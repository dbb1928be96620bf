//! The catalog of a large store: it saves reading, and whatever it says, nothing is lost by it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use camino::Utf8Path;
use serde_json::Value;
use template_store::gc::{GcPlan, GcReport, Policy, SkipReason, Verdict};
use template_store::observe::{Observer, Op, Verdict as OpVerdict};
use template_store::{
    Activate, Depth, Durability, FindingKind, PublishOptions, Severity, Store, StoreOptions, TemplateId, VerifyOptions,
};

use crate::support::{Place, assert_clean, build, draft, edit_json, id, image, inode, inputs, read_json};

/// As many revisions as these stores need to have a catalog.
const MANY: usize = 315;

fn options() -> StoreOptions {
    StoreOptions::default().catalog_from(MANY)
}

fn web() -> TemplateId {
    id("web")
}

/// A store of so many revisions: one is published, and the others are written as it was.
fn store_of(place: &Place, count: usize) -> Store {
    let store = Store::init(place.root(), &options().durability(Durability::None)).unwrap();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "one");
    let options = PublishOptions::default().activate(Activate::No);
    let model = draft.seal().unwrap().publish_with(&options, &mut ()).unwrap().revision;
    let (model, record) = (model.path(), read_json(model.path().join("revision.json")));
    for number in 1..count {
        let published_at = format!("2026-01-01T{:02}:{:02}:00Z", number / 60, number % 60);
        make(&store, &model, &record, &format!("r{number:04}"), &published_at);
    }
    // What was changed just now is not trusted: the clock of a file system goes in steps.
    std::thread::sleep(Duration::from_millis(150));
    store
}

fn many() -> (Place, Store) {
    let place = Place::in_memory();
    let store = store_of(&place, MANY);
    (place, store)
}

/// A store that has a catalog of all its revisions.
fn with_catalog() -> (Place, Store) {
    let (place, store) = many();
    collect_nothing(&store);
    (place, store)
}

/// A collection that writes the catalog.
fn collect_nothing(store: &Store) {
    store.gc(&keep(u32::MAX), &mut ()).unwrap();
}

fn make(store: &Store, model: &Utf8Path, record: &Value, name: &str, published_at: &str) {
    let dir = store.layout().revision(&web(), &id(name));
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    for file in ["vmlinux", "rootfs.ext4", "fc-base.json"] {
        fs::hard_link(model.join(file), dir.join(file)).unwrap();
    }
    let mut record = record.clone();
    record["revision_hash"] = name.into();
    record["published_at"] = published_at.into();
    fs::write(dir.join("revision.json"), record.to_string()).unwrap();
}

fn keep(last: u32) -> Policy {
    Policy::default().keep_last(last).rollback(0_u32)
}

fn plan(store: &Store, keep_last: u32) -> GcPlan {
    store.plan_gc(&keep(keep_last)).unwrap()
}

/// What a plan says, but for when it was made.
fn verdicts(plan: &GcPlan) -> Vec<String> {
    plan.revisions.iter().map(|planned| format!("{planned:?}")).collect()
}

#[test]
fn only_a_collection_of_many_revisions_leaves_one() {
    let place = Place::in_memory();
    let store = store_of(&place, MANY - 1);
    collect_nothing(&store);
    assert!(!store.layout().catalog().exists(), "there are too few");

    let (place, store) = many();
    plan(&store, 10);
    place.done(&["gc", "--dry-run"]);
    place.done(&["list"]);
    place.done(&["verify", "--quick"]);
    assert!(!store.layout().catalog().exists(), "who only looks changes nothing");
    place.done(&["gc", "--keep-last", "2000"]);
    assert!(!store.layout().catalog().exists(), "the program waits for more");
    collect_nothing(&store);
    assert!(store.layout().catalog().exists());
    assert_eq!(store.overviews().unwrap().len(), MANY);
    place.done(&["verify", "--quick"]);
}

#[test]
fn it_says_what_the_records_say() {
    let (place, store) = many();
    let (planned, listed) = (verdicts(&plan(&store, 10)), place.done(&["list", "--json"]).out);
    collect_nothing(&store);
    assert_eq!(store.overviews().unwrap().len(), MANY);
    assert_eq!(verdicts(&plan(&store, 10)), planned);
    assert_eq!(place.done(&["list", "--json"]).out, listed);

    let (_, report) = store.gc(&keep(10), &mut ()).unwrap();
    assert_eq!(report.removed.len(), MANY - 10);
    assert_eq!(store.overviews().unwrap().len(), 10, "nobody hears of what is gone");
}

#[test]
fn a_damaged_one_is_not_used() {
    let (_place, store) = many();
    let planned = verdicts(&plan(&store, 10));
    collect_nothing(&store);
    let path = store.layout().catalog();
    let good = fs::read(&path).unwrap();
    let flipped = [&good[..5000], &[good[5000] ^ 1], &good[5001..]].concat();
    for bad in [&b""[..], b"\n", b"{}\n{}\n", &good[..good.len() / 2], &good[..good.len() - 1], &good[300..], &flipped]
    {
        fs::write(&path, bad).unwrap();
        assert!(store.overviews().unwrap().is_empty());
        assert_eq!(verdicts(&plan(&store, 10)), planned);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(verdicts(&plan(&store, 10)), planned);
    collect_nothing(&store);
    fs::remove_dir(&path).unwrap();
    collect_nothing(&store);
    assert_eq!(store.overviews().unwrap().len(), MANY, "it is written again");
}

#[test]
fn what_was_changed_since_is_read() {
    let (place, store) = with_catalog();
    date(&store.layout().revision_json(&web(), &id("r0200")), &place.join("new"));
    // Another one that gets the name of one that went, and perhaps its inode.
    let (model, went) = (store.layout().revision(&web(), &id("r0001")), store.layout().revision(&web(), &id("r0002")));
    let record = read_json(model.join("revision.json"));
    fs::remove_dir_all(&went).unwrap();
    make(&store, &model, &record, "r0002", "2026-02-03T00:00:00Z");

    assert_eq!(store.overviews().unwrap().len(), MANY - 2);
    let kept = kept(&plan(&store, 3));
    assert!(kept.contains(&"r0200".to_owned()) && kept.contains(&"r0002".to_owned()), "{kept:?}");
}

#[test]
fn what_is_marked_as_damaged_or_was_built_again_is_not_offered() {
    let (_place, store) = with_catalog();
    let mark = store.layout().damage_mark(&web(), &id("r0007"));
    fs::create_dir(mark.parent().unwrap()).unwrap();
    fs::write(&mark, "{}").unwrap();
    assert_eq!(store.overviews().unwrap().len(), MANY - 1, "all but the damaged one");

    let revision = build(&store, "web", &inputs("b"), "one");
    assert_eq!(revision.record().also_made_from.len(), 1, "a build that gives the same revision changes its record");
    let (id, overviews) = (revision.id().clone(), store.overviews().unwrap());
    assert_eq!(overviews.len(), MANY - 2);
    assert!(!overviews.contains_key(&(web(), id)));
}

fn kept(plan: &GcPlan) -> Vec<String> {
    let kept = plan.revisions.iter().filter(|planned| planned.verdict == Verdict::Kept);
    kept.map(|planned| planned.revision.to_string()).collect()
}

/// Gives a record another time, as the store itself changes a record: a new file takes the name.
fn date(path: &Utf8Path, staged: &Utf8Path) {
    fs::copy(path, staged).unwrap();
    edit_json(staged, |record| record["published_at"] = "2026-02-02T00:00:00Z".into());
    fs::rename(staged, path).unwrap();
}

/// Does something at the first step of a kind.
struct At<F> {
    is_it: fn(&Op) -> bool,
    act: F,
    done: AtomicBool,
}

impl<F> std::fmt::Debug for At<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("At")
    }
}

impl<F: Fn() -> OpVerdict + Send + Sync> Observer for At<F> {
    fn before(&self, op: &Op) -> OpVerdict {
        if (self.is_it)(op) && !self.done.swap(true, Ordering::Relaxed) { (self.act)() } else { OpVerdict::Proceed }
    }
}

fn at<F: Fn() -> OpVerdict + Send + Sync + 'static>(place: &Place, is_it: fn(&Op) -> bool, act: F) -> Store {
    let observer = Arc::new(At { is_it, act, done: AtomicBool::new(false) });
    Store::open_with(place.root(), &options().observer(observer)).unwrap()
}

fn is_staged(path: &Utf8Path) -> bool {
    path.as_str().contains("/drafts/file-")
}

#[test]
fn what_changes_while_one_is_written_is_not_in_it() {
    let moments: [fn(&Op) -> bool; 3] = [
        // All records are read.
        |op| matches!(op, Op::Create { path } if path.ends_with(".store/reserve")),
        // It is put together.
        |op| matches!(op, Op::Create { path } if is_staged(path)),
        |op| matches!(op, Op::Rename { to, .. } if to.ends_with(".store/catalog")),
    ];
    for (number, moment) in moments.into_iter().enumerate() {
        let place = Place::in_memory();
        let plain = store_of(&place, MANY);
        fs::remove_file(plain.layout().reserve()).unwrap();
        let (record, staged) = (plain.layout().revision_json(&web(), &id("r0200")), place.join("new"));
        let store = at(&place, moment, move || {
            date(&record, &staged);
            OpVerdict::Proceed
        });
        collect_nothing(&store);
        assert!(!place.join("new").exists() && store.layout().catalog().exists(), "{number}");
        assert_eq!(store.overviews().unwrap().len(), MANY - 1, "{number}");
        assert_eq!(kept(&plan(&store, 2))[1], "r0200", "{number}: it is the newest but for one");
    }
}

#[test]
fn a_collection_does_without_one_that_cannot_be_written() {
    let steps: [fn(&Op) -> bool; 3] = [
        |op| matches!(op, Op::Create { path } if is_staged(path)),
        |op| matches!(op, Op::Write { path, .. } if is_staged(path)),
        |op| matches!(op, Op::Rename { to, .. } if to.ends_with(".store/catalog")),
    ];
    let place = Place::in_memory();
    store_of(&place, MANY);
    for step in steps {
        let store = at(&place, step, || OpVerdict::Fail(std::io::ErrorKind::StorageFull.into()));
        collect_nothing(&store);
        assert!(!store.layout().catalog().exists());
        assert_clean(store.layout());
    }
}

#[test]
fn one_that_says_nearly_all_is_not_written_again() {
    let (_place, store) = many();
    let written = || {
        collect_nothing(&store);
        inode(store.layout().catalog())
    };
    let first = written();
    let model = store.layout().revision(&web(), &id("r0001"));
    let record = read_json(model.join("revision.json"));
    // Of so many, five are many.
    for number in 0..5 {
        assert_eq!(written(), first, "after {number} more");
        make(&store, &model, &record, &format!("s{number:02}"), "2026-02-01T00:00:00Z");
    }
    std::thread::sleep(Duration::from_millis(150));
    assert_ne!(written(), first);
    assert_eq!(store.overviews().unwrap().len(), MANY + 5);
}

#[test]
fn a_damaged_one_is_a_note_and_a_repair_puts_it_out_of_the_way() {
    let (_place, store) = with_catalog();
    let path = store.layout().catalog();
    let good = fs::read(&path).unwrap();
    let noted = || {
        let report = store.verify(&VerifyOptions::default().depth(Depth::Quick), &mut ()).unwrap();
        assert_eq!(report.count(Severity::Error), 0);
        report.findings.into_iter().filter(|finding| finding.path == path).collect::<Vec<_>>()
    };
    assert_eq!(noted(), []);
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    let found = noted();
    assert_eq!((found.len(), found[0].severity, found[0].kind), (1, Severity::Note, FindingKind::Invalid));
    store.repair(&VerifyOptions::default().depth(Depth::Quick), &mut ()).unwrap();
    assert!(!path.exists());
    assert_eq!(noted(), []);
    // What a newer program writes is for that program to read.
    write(&path, "{\"catalog\":2}\n");
    assert_eq!((noted().len(), store.overviews().unwrap().len()), (0, 0));
}

#[test]
fn whatever_it_says_what_is_kept_is_what_the_records_say() {
    let (_place, store) = with_catalog();
    let revision = "r0314";
    lie(&store, revision, "2020-01-01T00:00:00Z");
    let (plan, report) = store.gc(&keep(10), &mut ()).unwrap();
    assert!(plan.going().any(|planned| planned.revision.as_str() == revision), "the plan follows the lie");
    assert!(store.layout().revision(&web(), &id(revision)).exists());
    assert_eq!(why(&report, revision), Some(SkipReason::Replaced));
    assert_eq!(report.removed.len(), MANY - 11, "what is said of the others is true");
    assert!(!store.layout().catalog().exists(), "what has lied once is not asked again");
}

#[test]
fn nothing_goes_because_others_are_said_to_be_newer() {
    let (place, store) = with_catalog();
    let truth = verdicts(&plan(&store, 10));
    lie(&store, "r0001", "2030-01-01T00:00:00Z");
    let saved = place.join("plan.json");
    fs::write(&saved, place.done(&["--json", "gc", "--dry-run", "--keep-last", "10"]).out).unwrap();
    let (plan, report) = store.gc(&keep(10), &mut ()).unwrap();
    assert!(plan.going().all(|planned| planned.revision.as_str() != "r0001"), "the plan follows the lie");
    assert_eq!((report.removed.len(), report.skipped.len()), (0, MANY - 10));
    assert!(report.skipped.iter().all(|skipped| skipped.why == SkipReason::Misjudged));
    assert!(!store.layout().catalog().exists());
    // Nor does anything by a plan that was saved, now that the records are read.
    let told = place.done(&["gc", "--plan", saved.as_str()]).out;
    assert!(told.contains("collect once more"), "{told}");
    assert_eq!(verdicts(&self::plan(&store, 10)), truth, "all of them are there");

    let (_, report) = store.gc(&keep(10), &mut ()).unwrap();
    assert_eq!((report.removed.len(), report.skipped.len()), (MANY - 10, 0));
}

#[test]
fn what_is_not_the_stores_to_take_stays() {
    let (_place, store) = with_catalog();
    // In place, as nobody should: the directory does not show it.
    let record_of = |revision: &str| store.layout().revision_json(&web(), &id(revision));
    edit_json(record_of("r0100"), |record| drop(record.as_object_mut().unwrap().remove("contents")));
    edit_json(record_of("r0101"), |record| {
        let at = record.as_object_mut().unwrap().remove("published_at").unwrap();
        record["adopted_at"] = at;
    });
    assert_eq!(store.overviews().unwrap().len(), MANY, "the catalog is believed");
    let (plan, report) = store.gc(&keep(10), &mut ()).unwrap();
    for revision in ["r0100", "r0101"] {
        assert!(plan.going().any(|planned| planned.revision.as_str() == revision));
        assert_eq!(why(&report, revision), Some(SkipReason::Replaced));
        assert!(record_of(revision).exists());
    }
    assert_eq!(report.removed.len(), MANY - 12);
}

/// Writes the catalog anew, whole, with another time at which a revision was published.
fn lie(store: &Store, revision: &str, published_at: &str) {
    let path = store.layout().catalog();
    let text = fs::read_to_string(&path).unwrap();
    let name = format!("\"revision\":\"{revision}\"");
    let line = text.lines().find(|line| line.contains(&name)).unwrap();
    let mut lie: Value = serde_json::from_str(line).unwrap();
    lie["published_at"] = published_at.into();
    let body = text.replace(line, &lie.to_string());
    write(&path, &body[..body.trim_end().rfind('\n').unwrap() + 1]);
    assert_eq!(store.overviews().unwrap().len(), MANY, "it is believed");
}

/// Writes a catalog with the last line that fits it.
fn write(path: &Utf8Path, body: &str) {
    fs::write(path, format!("{body}{{\"blake3\":\"{}\"}}\n", blake3::hash(body.as_bytes()).to_hex())).unwrap();
}

/// Why a revision was skipped.
fn why(report: &GcReport, revision: &str) -> Option<SkipReason> {
    report.skipped.iter().find(|skipped| skipped.revision.as_str() == revision).map(|skipped| skipped.why.clone())
}
