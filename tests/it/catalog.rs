//! The catalog of a large store: it saves reading, and whatever it says, nothing is lost by it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use camino::Utf8Path;
use serde_json::Value;
use template_store::gc::{GcPlan, Policy, SkipReason, Verdict};
use template_store::{Activate, Durability, PublishOptions, Store, StoreOptions, TemplateId};

use crate::support::{Place, draft, id, image, inputs};

/// As many revisions as a store needs to have a catalog.
const MANY: usize = 1000;

fn web() -> TemplateId {
    id("web")
}

/// A store of so many revisions: one is published, and the others are written as it was.
fn store_of(place: &Place, count: usize) -> Store {
    let store = Store::init(place.root(), &StoreOptions::default().durability(Durability::None)).unwrap();
    let draft = draft(&store, "web", &inputs("a"));
    image(draft.path(), "one");
    let options = PublishOptions::default().activate(Activate::No);
    let model = draft.seal().unwrap().publish_with(&options, &mut ()).unwrap().revision;
    let record = fs::read_to_string(model.path().join("revision.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    for number in 1..count {
        make(
            &store,
            &model.path(),
            &record,
            &format!("r{number:04}"),
            &format!("2026-01-01T{:02}:{:02}:00Z", number / 60, number % 60),
        );
    }
    // What was changed just now is not trusted: the clock of a file system goes in steps.
    std::thread::sleep(Duration::from_millis(150));
    store
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

fn everything() -> Policy {
    Policy::default().keep_last(u32::MAX)
}

fn plan(store: &Store, keep_last: u32) -> GcPlan {
    store.plan_gc(&Policy::default().keep_last(keep_last).rollback(0_u32)).unwrap()
}

/// What a plan says, but for when it was made.
fn verdicts(plan: &GcPlan) -> Vec<String> {
    plan.revisions.iter().map(|planned| format!("{planned:?}")).collect()
}

#[test]
fn only_a_collection_of_many_revisions_leaves_one() {
    let place = Place::new();
    let store = store_of(&place, MANY - 1);
    store.gc(&everything(), &mut ()).unwrap();
    assert!(!store.layout().catalog().exists(), "there are too few");

    let place = Place::new();
    let store = store_of(&place, MANY);
    plan(&store, 10);
    place.done(&["gc", "--dry-run"]);
    place.done(&["list"]);
    place.done(&["verify", "--quick"]);
    assert!(!store.layout().catalog().exists(), "who only looks changes nothing");
    store.gc(&everything(), &mut ()).unwrap();
    assert!(store.layout().catalog().exists());
    assert_eq!(store.overviews().unwrap().len(), MANY);
    place.done(&["verify", "--quick"]);
}

#[test]
fn it_says_what_the_records_say() {
    let place = Place::new();
    let store = store_of(&place, MANY);
    let (planned, listed) = (verdicts(&plan(&store, 10)), place.done(&["list", "--json"]).out);
    store.gc(&everything(), &mut ()).unwrap();
    assert_eq!(store.overviews().unwrap().len(), MANY);
    assert_eq!(verdicts(&plan(&store, 10)), planned);
    assert_eq!(place.done(&["list", "--json"]).out, listed);

    let (_, report) = store.gc(&Policy::default().keep_last(10_u32).rollback(0_u32), &mut ()).unwrap();
    assert_eq!(report.removed.len(), MANY - 10);
    assert_eq!(store.overviews().unwrap().len(), 10, "nobody hears of what is gone");
}

#[test]
fn a_damaged_one_is_not_used() {
    let place = Place::new();
    let store = store_of(&place, MANY);
    let planned = verdicts(&plan(&store, 10));
    store.gc(&everything(), &mut ()).unwrap();
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
    store.gc(&everything(), &mut ()).unwrap();
    fs::remove_dir(&path).unwrap();
    store.gc(&everything(), &mut ()).unwrap();
    assert_eq!(store.overviews().unwrap().len(), MANY, "it is written again");
}

#[test]
fn what_was_changed_since_is_read() {
    let place = Place::new();
    let store = store_of(&place, MANY);
    store.gc(&everything(), &mut ()).unwrap();
    let dir = store.layout().revision(&web(), &id("r0500"));
    // As the store itself changes a record: a new file takes the name.
    let record =
        fs::read_to_string(dir.join("revision.json")).unwrap().replace("2026-01-01T08:20:00Z", "2026-02-02T00:00:00Z");
    fs::write(place.join("new"), record).unwrap();
    fs::rename(place.join("new"), dir.join("revision.json")).unwrap();
    // Another one that gets the name of one that went, and perhaps its inode.
    let (model, went) = (store.layout().revision(&web(), &id("r0001")), store.layout().revision(&web(), &id("r0002")));
    let record: Value = serde_json::from_slice(&fs::read(model.join("revision.json")).unwrap()).unwrap();
    fs::remove_dir_all(&went).unwrap();
    make(&store, &model, &record, "r0002", "2026-02-03T00:00:00Z");

    assert_eq!(store.overviews().unwrap().len(), MANY - 2);
    let kept: Vec<String> = plan(&store, 3)
        .revisions
        .into_iter()
        .filter(|planned| planned.verdict == Verdict::Kept)
        .map(|planned| planned.revision.to_string())
        .collect();
    assert!(kept.contains(&"r0500".to_owned()) && kept.contains(&"r0002".to_owned()), "{kept:?}");
}

#[test]
fn whatever_it_says_what_is_kept_is_what_the_records_say() {
    let place = Place::new();
    let store = store_of(&place, MANY);
    store.gc(&everything(), &mut ()).unwrap();
    let path = store.layout().catalog();
    let text = fs::read_to_string(&path).unwrap();
    // The newest is said to be the oldest, in a file that is whole.
    let newest =
        text.lines().filter(|line| line.contains("published_at")).max_by_key(|line| published_at(line)).unwrap();
    let lie = newest.replace(&published_at(newest), "2020-01-01T00:00:00Z");
    let body = text.replace(newest, &lie);
    let body = &body[..body.trim_end().rfind('\n').unwrap() + 1];
    fs::write(&path, format!("{body}{{\"blake3\":\"{}\"}}\n", blake3::hash(body.as_bytes()).to_hex())).unwrap();
    assert_eq!(store.overviews().unwrap().len(), MANY, "it is believed");

    let revision = serde_json::from_str::<Value>(newest).unwrap()["revision"].as_str().unwrap().to_owned();
    let (plan, report) = store.gc(&Policy::default().keep_last(10_u32).rollback(0_u32), &mut ()).unwrap();
    assert!(plan.going().any(|planned| planned.revision.as_str() == revision), "the plan follows the lie");
    assert!(store.layout().revision(&web(), &id(&revision)).exists());
    let skipped = report.skipped.iter().find(|skipped| skipped.revision.as_str() == revision).unwrap();
    assert_eq!(skipped.why, SkipReason::Replaced);
}

fn published_at(line: &str) -> String {
    serde_json::from_str::<Value>(line).unwrap()["published_at"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_marked_as_damaged_is_not_offered() {
    let place = Place::new();
    let store = store_of(&place, MANY);
    store.gc(&everything(), &mut ()).unwrap();
    let mark = store.layout().damage_mark(&web(), &id("r0007"));
    fs::create_dir(mark.parent().unwrap()).unwrap();
    fs::write(&mark, "{}").unwrap();
    assert_eq!(store.overviews().unwrap().len(), MANY - 1);
}
