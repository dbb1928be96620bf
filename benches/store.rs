//! The main job, each part beside a floor of plain system calls: `cargo bench --bench store`, some minutes.
//!
//! All happens in the temporary directory: `TMPDIR=/some/file/system cargo bench` measures another file system.
//! `cargo bench -- lookup` measures one group.

mod floor;
mod support;

use std::time::Duration;

use camino::Utf8Path;
use template_store::{
    Activate, Build, BuildInputs, Durability, Expect, PublishOptions, Removal, Revision, SealOptions, Store,
    StoreOptions, TemplateId, TemplateSpec,
};

use floor::Floor;
use support::{Case, Image, Pair, Random, settle, time};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn main() {
    support::run(&[
        // Between two revisions, in a template whose `current` has hardly moved before.
        Case { group: "activate", name: "new-history", rounds: 100, prepare: |dir| activate(dir, 2) },
        // `current` has moved so often before.
        Case { group: "activate", name: "history-of-10000", rounds: 100, prepare: |dir| activate(dir, 10_000) },
        // Built already, and current.
        Case { group: "reuse", name: "current", rounds: 2000, prepare: reuse_current },
        // Built already for another template: links to its files.
        Case { group: "reuse", name: "other-template", rounds: 100, prepare: reuse_other },
        // Three files of 128 KiB in all, which a builder wrote into the draft.
        Case {
            group: "publish",
            name: "small",
            rounds: 500,
            prepare: |dir| publish(dir, small(), Durability::Full, Then::Keep),
        },
        // The same in a store, and beside a floor, that waits for no disk.
        Case {
            group: "publish",
            name: "small-not-durable",
            rounds: 2000,
            prepare: |dir| publish(dir, small(), Durability::None, Then::Keep),
        },
        // A kernel and a root file system of 64 MiB, in the draft as well.
        Case {
            group: "publish",
            name: "large",
            rounds: 20,
            prepare: |dir| publish(dir, large(), Durability::Full, Then::Remove),
        },
        // The same from a directory elsewhere: cloned, or copied where the file system can't clone.
        Case { group: "publish", name: "large-copied", rounds: 20, prepare: publish_copies },
        // A hit, with so many keys in the index.
        Case { group: "lookup", name: "1-key", rounds: 2000, prepare: |dir| lookup(dir, 1) },
        Case { group: "lookup", name: "1000-keys", rounds: 2000, prepare: |dir| lookup(dir, 1000) },
        Case { group: "lookup", name: "100000-keys", rounds: 2000, prepare: |dir| lookup(dir, 100_000) },
        // What is current, and its lease.
        Case { group: "read", name: "current", rounds: 2000, prepare: read_current },
    ]);
}

/// What becomes of what was published.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Keep,
    /// It is too large to pile up.
    Remove,
}

fn small() -> Image {
    Image::new(64 * KIB, 64 * KIB)
}

fn large() -> Image {
    Image::new(16 * MIB, 48 * MIB)
}

fn store_in(dir: &Utf8Path, durability: Durability) -> Store {
    Store::init(dir.join("store"), &StoreOptions::default().durability(durability)).unwrap()
}

fn id(name: &str) -> TemplateId {
    name.parse().unwrap()
}

fn create(store: &Store, name: &str) -> TemplateId {
    let (profile, role) = ("minimal".parse().unwrap(), "worker".parse().unwrap());
    store.create(&TemplateSpec::new(&id(name), ".", &profile, &role, "2026-01-01T00:00:00Z")).unwrap();
    id(name)
}

fn inputs(number: u64) -> BuildInputs {
    let lock = format!("lock-{number}").parse().unwrap();
    BuildInputs::new(lock, "minimal".parse().unwrap(), "worker".parse().unwrap())
}

fn key(number: u64) -> String {
    inputs(number).key().to_hex()
}

/// Asks, lets `build` write, publishes; the time of the asking and of the publishing.
fn publish_one(store: &Store, name: &TemplateId, number: u64, build: impl FnOnce(&Utf8Path)) -> (Revision, Duration) {
    let (asked, asking) = time(|| store.build(name, &inputs(number)).unwrap());
    let Build::Draft(draft) = asked else { panic!("it was built already") };
    build(draft.path());
    let (revision, publishing) = time(|| draft.seal().unwrap().publish().unwrap());
    (revision, asking + publishing)
}

fn publish(dir: &Utf8Path, mut image: Image, durability: Durability, then: Then) -> Pair {
    let (store, floor) = (store_in(dir, durability), Floor::new(dir.join("floor"), durability));
    let (dir, mut other) = (dir.to_owned(), image.clone());
    let (mut number, mut floor_number) = (0, 0);
    let store = Box::new({
        let dir = dir.clone();
        move || {
            number += 1;
            image.number(number);
            let name = create(&store, &format!("t{number}"));
            settle(&dir);
            let (_, took) = publish_one(&store, &name, number, |draft| image.write(draft));
            if then == Then::Remove {
                store.remove_template(&name, Removal::Forced).unwrap();
            }
            took
        }
    });
    let floor = Box::new(move || {
        floor_number += 1;
        other.number(floor_number);
        let (name, key) = (format!("t{floor_number}"), key(floor_number));
        floor.create(&name);
        settle(&dir);
        let (draft, asking) = time(|| floor.ask(&name, &key));
        other.write(&draft.dir);
        let ((), publishing) = time(|| floor.publish(draft, &name, "revision", &key));
        if then == Then::Remove {
            floor.remove(&name);
        }
        asking + publishing
    });
    Pair { store, floor }
}

fn publish_copies(dir: &Utf8Path) -> Pair {
    let (store, floor) = (store_in(dir, Durability::Full), Floor::new(dir.join("floor"), Durability::Full));
    let files = dir.join("files");
    std::fs::create_dir(&files).unwrap();
    large().write(&files);
    let (other, dir) = (files.clone(), dir.to_owned());
    let store = Box::new({
        let dir = dir.clone();
        move || {
            let name = create(&store, "web");
            settle(&dir);
            let (_, took) = time(|| store.publish_dir(&name, &files).unwrap());
            store.remove_template(&name, Removal::Forced).unwrap();
            took
        }
    });
    let floor = Box::new(move || {
        floor.create("web");
        settle(&dir);
        let ((), took) = time(|| floor.publish_copies(&other, "web", "revision"));
        floor.remove("web");
        took
    });
    Pair { store, floor }
}

fn reuse_current(dir: &Utf8Path) -> Pair {
    let (store, floor) = (store_in(dir, Durability::Full), Floor::new(dir.join("floor"), Durability::Full));
    let name = create(&store, "web");
    let _ = publish_one(&store, &name, 0, |draft| small().write(draft));
    floor.create("web");
    let (draft, key) = (floor.ask("web", &key(0)), key(0));
    small().write(&draft.dir);
    floor.publish(draft, "web", "revision", &key);

    let inputs = inputs(0);
    let store = Box::new(move || {
        let (found, took) = time(|| store.build(&name, &inputs).unwrap());
        assert!(matches!(found, Build::Reused(_)));
        took
    });
    let floor = Box::new(move || time(|| floor.reuse_current(&key, "web", "revision")).1);
    Pair { store, floor }
}

fn read_current(dir: &Utf8Path) -> Pair {
    let store = store_in(dir, Durability::None);
    let name = create(&store, "web");
    let revision = publish_one(&store, &name, 0, |draft| small().write(draft)).0;
    let template = store.layout().template(&name);
    drop(revision);
    let store = Box::new(move || {
        let (revision, took) = time(|| store.current(&name).unwrap());
        drop(revision);
        took
    });
    let floor = Box::new(move || time(|| floor::current(&template)).1);
    Pair { store, floor }
}

fn reuse_other(dir: &Utf8Path) -> Pair {
    let (store, floor) = (store_in(dir, Durability::Full), Floor::new(dir.join("floor"), Durability::Full));
    let (mut image, dir) = (small(), dir.to_owned());
    let mut other = image.clone();
    let (mut number, mut floor_number) = (0, 0);
    let store = Box::new({
        let dir = dir.clone();
        move || {
            number += 1;
            image.number(number);
            let (from, to) = (create(&store, &format!("from{number}")), create(&store, &format!("to{number}")));
            let _ = publish_one(&store, &from, number, |draft| image.write(draft));
            settle(&dir);
            let inputs = inputs(number);
            let (found, took) = time(|| store.build(&to, &inputs).unwrap());
            assert!(matches!(found, Build::Reused(_)));
            took
        }
    });
    let floor = Box::new(move || {
        floor_number += 1;
        other.number(floor_number);
        let (key, from, to) = (key(floor_number), format!("from{floor_number}"), format!("to{floor_number}"));
        floor.create(&from);
        floor.create(&to);
        let draft = floor.ask(&from, &key);
        other.write(&draft.dir);
        floor.publish(draft, &from, "revision", &key);
        settle(&dir);
        let source = floor.revision(&from, "revision");
        time(|| floor.reuse(&key, &source, &to, "revision")).1
    });
    Pair { store, floor }
}

/// Both sides look into the same store, for keys in a random order.
fn lookup(dir: &Utf8Path, keys: u64) -> Pair {
    let store = store_in(dir, Durability::None);
    let options = PublishOptions::default().activate(Activate::No);
    let mut found = Vec::new();
    for number in 0..keys {
        let name = id(&format!("t{}", number / 100));
        let Build::Draft(draft) = store.build(&name, &inputs(number)).unwrap() else { panic!("it is new") };
        for file in support::FILES {
            std::fs::write(draft.path().join(file), format!("{file} {number}")).unwrap();
        }
        let sealed = draft.seal_with(&SealOptions::default(), &mut ()).unwrap();
        let published = sealed.publish_with(&options, &mut ()).unwrap();
        let inputs = inputs(number);
        let entry = store.layout().key(&inputs.key());
        found.push((inputs, entry, published.revision.path()));
    }
    settle(dir);
    let (mut random, mut floor_random, places) = (Random::new(), Random::new(), found.clone());
    let at = move |random: &mut Random| (random.next() % keys) as usize;
    let store = Box::new(move || {
        let (inputs, ..) = &found[at(&mut random)];
        let (hit, took) = time(|| store.lookup(None, inputs).unwrap());
        assert!(hit.is_some());
        took
    });
    let floor = Box::new(move || {
        let (_, entry, revision) = &places[at(&mut floor_random)];
        time(|| floor::find(entry, revision)).1
    });
    Pair { store, floor }
}

fn activate(dir: &Utf8Path, history: usize) -> Pair {
    let (store, floor) = (store_in(dir, Durability::Full), Floor::new(dir.join("floor"), Durability::Full));
    let name = create(&store, "web");
    let mut image = small();
    let revisions = [1, 2].map(|number| {
        image.number(number);
        publish_one(&store, &name, number, |draft| image.write(draft)).0.id().clone()
    });
    floor.create("web");
    for id in &revisions {
        std::fs::create_dir(floor.revision("web", id.as_str())).unwrap();
    }
    // The last line must name what is current.
    let log = std::fs::read_to_string(store.layout().activations(&name)).unwrap();
    std::fs::write(store.layout().activations(&name), log.repeat(history / 2)).unwrap();
    settle(dir);

    let (mut turn, mut floor_turn, ids) = (0, 0, revisions.clone());
    let store = Box::new(move || {
        turn += 1;
        time(|| store.activate(&name, &revisions[turn % 2], Expect::Any).unwrap()).1
    });
    let floor = Box::new(move || {
        floor_turn += 1;
        time(|| floor.activate("web", ids[floor_turn % 2].as_str())).1
    });
    Pair { store, floor }
}
