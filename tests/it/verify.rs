//! A verification finds each damage by name, changes nothing, and never cries wolf.

use std::collections::HashSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use template_store::{
    Build, Depth, FindingKind, PinOptions, Progress, Removal, Severity, Stage, Store, StoreOptions, VerifyOptions,
};

use crate::damages::{TO_FILES, TO_THE_REST, World, assert_finds, verify};
use crate::reuse::Watch;
use crate::support::{Place, build, draft, flip, id, inputs, listing, object_of, reused, template, until};

#[test]
fn a_store_in_order_is_clean_and_each_inode_is_read_once() {
    let world = World::new();
    reused(&world.store, "db", &inputs("a"));
    let report = verify(&world.store);
    assert_eq!(report.findings, [], "nothing to say");
    assert_eq!((report.revisions, report.files), (3, 12));
    let mut inodes = HashSet::new();
    let contents = world.revisions();
    let files = contents.iter().flat_map(|revision| revision.contents().iter().map(|c| revision.artifact(&c.path)));
    let metadata = files.map(|path| fs::metadata(path).unwrap());
    let bytes: u64 = metadata.filter(|m| inodes.insert(m.ino())).map(|m| m.len()).sum();
    assert_eq!(report.bytes_hashed, bytes);
}

/// The parts of the work, with what each had to do and has done.
#[derive(Default)]
struct Stages(Vec<(Stage, u64, u64)>);

impl Progress for Stages {
    fn begin(&mut self, stage: Stage, size: u64) {
        self.0.push((stage, size, 0));
    }

    fn advance(&mut self, by: u64) {
        self.0.last_mut().unwrap().2 += by;
    }
}

#[test]
fn it_says_how_far_it_has_looked_and_read() {
    let world = World::new();
    let mut stages = Stages::default();
    world.store.verify(&VerifyOptions::default(), &mut stages).unwrap();
    let templates = world.store.templates().unwrap().len() as u64;
    let large: HashSet<(u64, u64)> = world
        .revisions()
        .iter()
        .flat_map(|revision| revision.contents().iter().map(|content| revision.artifact(&content.path)))
        .map(|path| fs::metadata(path).unwrap())
        .filter(|metadata| metadata.len() >= 64 << 10)
        .map(|metadata| (metadata.ino(), metadata.len()))
        .collect();
    let bytes = large.iter().map(|(_, size)| size).sum::<u64>();
    assert_eq!(stages.0, [(Stage::Looking, templates, templates), (Stage::Verifying, bytes, bytes)]);
}

#[test]
fn each_damage_is_found_by_name_and_nothing_is_changed() {
    for (name, kind, damage) in TO_FILES.into_iter().chain(TO_THE_REST) {
        let world = World::with_copies();
        assert!(verify(&world.store).is_clean(), "before {name}: {:#?}", verify(&world.store));
        let path = damage(&world);
        let before = listing(&world.place.root());
        let watch = Arc::new(Watch::default());
        let options = StoreOptions::default().observer(watch.clone());
        let store = Store::open_with(world.place.root(), &options).unwrap();
        println!("{name}");
        assert_finds(&verify(&store), kind, &path);
        assert_eq!(watch.seen(), [], "{name}: a verification takes no step");
        assert_eq!(listing(&world.place.root()), before, "{name}");
        world.assert_outside_untouched();
    }
}

#[test]
fn two_revisions_with_one_damaged_inode_are_both_named_and_so_is_the_object() {
    let world = World::new();
    let shared = reused(&world.store, "db", &inputs("b"));
    flip(&world.kernel(), 70_000, true);
    let report = verify(&world.store);
    assert_finds(&report, FindingKind::Corrupt, &world.kernel());
    assert_finds(&report, FindingKind::Corrupt, &shared.kernel());
    assert_finds(&report, FindingKind::ObjectDiffers, &object_of_b(&world));
    assert_eq!(report.count(Severity::Error), 3, "{report:#?}");
    let finding = report.findings.iter().find(|finding| finding.path == shared.kernel()).unwrap();
    assert_eq!((finding.template.as_ref(), finding.revision.as_ref()), (Some(shared.template()), Some(shared.id())));
}

fn object_of_b(world: &World) -> camino::Utf8PathBuf {
    let good = crate::support::bytes("b: kernel", 128 << 10);
    world.layout().object(&template_store::Digest::of(&good))
}

#[test]
fn a_quick_look_reads_no_artifact() {
    let world = World::new();
    let quick = VerifyOptions::default().depth(Depth::Quick);
    flip(&world.kernel(), 70_000, true);
    let report = world.store.verify(&quick, &mut ()).unwrap();
    assert!(report.is_clean() && report.bytes_hashed == 0, "{report:#?}");
    flip(&world.dir().join("rootfs.ext4"), 7, false);
    let report = world.store.verify(&quick, &mut ()).unwrap();
    assert_finds(&report, FindingKind::WrongTime, &world.dir().join("rootfs.ext4"));
}

#[test]
fn a_scrub_reads_what_is_new_or_a_part() {
    let world = World::new();
    flip(&world.layout().revision(&id("web"), &world.old).join("vmlinux"), 7, true);
    let published = world.store.revision(&id("web"), &world.new).unwrap().record().published_at.unwrap();
    let all = verify(&world.store).bytes_hashed;

    let since = world.store.verify(&VerifyOptions::default().since(published), &mut ()).unwrap();
    assert!(since.is_clean(), "only the revision that is damaged is older: {since:#?}");
    assert_eq!(since.bytes_hashed, all / 2);
    let none = VerifyOptions::default().since(published + jiff::SignedDuration::from_secs(1));
    assert_eq!(world.store.verify(&none, &mut ()).unwrap().bytes_hashed, 0);

    let sampled = |percent: f64| world.store.verify(&VerifyOptions::default().sample(percent), &mut ()).unwrap();
    assert_eq!(sampled(100.0).bytes_hashed, all);
    assert_eq!(sampled(1e-12).bytes_hashed, 0);
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let world = World::new();
    if rustix::process::geteuid().is_root() {
        return println!("root can read everything: not tried");
    }
    fs::set_permissions(world.kernel(), Permissions::from_mode(0o000)).unwrap();
    let report = verify(&world.store);
    assert_finds(&report, FindingKind::Unreadable, &world.kernel());
    assert!(report.bytes_hashed > 0, "the rest is read");
}

#[test]
fn pins_are_looked_at() {
    let world = World::new();
    let pin = |name: &str, options: &PinOptions| {
        world.store.pin(&id(name), &id("web"), &world.old, options).unwrap();
        world.layout().pin(&id(name))
    };
    let damaged = pin("damaged", &PinOptions::default());
    pin("expired", &PinOptions::default().until(jiff::Timestamp::UNIX_EPOCH));
    let dangling = pin("dangling", &PinOptions::default());
    let text = fs::read_to_string(&dangling).unwrap().replace(world.old.as_str(), "gone");
    fs::write(&dangling, text).unwrap();
    fs::write(&damaged, "{").unwrap();
    let report = verify(&world.store);
    assert_finds(&report, FindingKind::Invalid, &damaged);
    assert_finds(&report, FindingKind::DanglingPin, &dangling);
    let kinds: Vec<_> = report.findings.iter().map(|finding| (finding.kind, finding.severity)).collect();
    let expected = [
        (FindingKind::Invalid, Severity::Error),
        (FindingKind::DanglingPin, Severity::Warning),
        (FindingKind::ExpiredPin, Severity::Note),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn leftovers_are_notes() {
    let world = World::new();
    let dead = [world.layout().drafts().join("dead"), world.layout().trash().join("half")];
    for dir in &dead {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("vmlinux"), "x").unwrap();
    }
    let alive = draft(&world.store, "web", &inputs("c"));
    let object = world.layout().object(&template_store::Digest::of(b"lone"));
    fs::create_dir_all(object.parent().unwrap()).unwrap();
    fs::write(&object, "lone").unwrap();
    // A program that another test starts has the descriptors of this process for a moment.
    let found = until("all are found", || {
        let report = verify(&world.store);
        assert!(report.is_clean(), "{report:#?}");
        let found: Vec<_> = report.findings.iter().map(|finding| (finding.kind, finding.path.clone())).collect();
        (found.len() == 3).then_some(found)
    });
    for expected in [
        (FindingKind::DeadDraft, dead[0].clone()),
        (FindingKind::HalfDeletion, dead[1].clone()),
        (FindingKind::UnusedObject, object),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:?}");
    }
    drop(alive);
}

#[test]
fn a_stale_key_is_a_note() {
    let world = World::new();
    fs::remove_dir_all(world.layout().revision(&id("web"), &world.old)).unwrap();
    let report = verify(&world.store);
    assert!(report.is_clean(), "{report:#?}");
    let path = world.layout().key(&inputs("a").key());
    assert!(report.findings.iter().any(|finding| finding.kind == FindingKind::StaleKey && finding.path == path));
}

#[test]
fn a_store_in_use_gives_no_false_findings() {
    let place = Place::new();
    let store = place.quick_store();
    build(&store, "web", &inputs("b"), "b");
    let web = template("web");
    let rounds = 25;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publish = || {
            for round in 0..rounds {
                for (name, label) in [("web", "a"), ("db", "a"), ("cache", "b")] {
                    if let Build::Draft(draft) = store.build(&template(name), &inputs(label)).unwrap() {
                        crate::support::image(draft.path(), label);
                        draft.seal().unwrap().publish().unwrap();
                    }
                }
                let files = place.image(&format!("moved-{round}"), &format!("moved-{}", round % 3));
                let options = template_store::ImportOptions::default().how(template_store::Import::Move);
                store.publish_dir_with(&template("moved"), files, &options, &mut ()).unwrap();
                for name in ["db", "cache", "moved"] {
                    let _ = store.remove_template(&template(name), Removal::Forced);
                }
                let back = store.lookup(Some(&web), &inputs("b")).unwrap().unwrap().id().clone();
                store.activate(&web, &back, Default::default()).unwrap();
                if let Some(found) = store.lookup(Some(&web), &inputs("a")).unwrap().map(|found| found.id().clone()) {
                    let _ = store.remove(&web, &found, Removal::Forced);
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        scope.spawn(publish);
        let mut looks = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) || looks < 3 {
            let report = verify(&store);
            assert!(report.is_clean(), "{report:#?}");
            looks += 1;
        }
    });
    assert!(verify(&store).is_clean());
}

#[test]
fn the_program_shows_what_it_found_and_ends_with_4() {
    let world = World::new();
    let clean = world.place.done(&["verify"]);
    assert!(clean.out.contains("2 revisions, 8 files") && clean.out.contains("0 errors"), "{}", clean.out);
    let document = world.place.done(&["--json", "verify"]).json();
    assert_eq!((document["clean"].as_bool(), document["findings"].as_array().unwrap().len()), (Some(true), 0));

    fs::remove_file(world.kernel()).unwrap();
    let ran = world.place.run(&["verify", "--quick"]).with_code(4);
    let path = format!("templates/web/artifacts/{}/vmlinux", world.new);
    for word in ["SEVERITY", "error", "missing", &path, "1 errors"] {
        assert!(ran.out.contains(word), "{word:?} in {}", ran.out);
    }
    let document = world.place.run(&["--json", "verify", "--since", "7d"]).with_code(4).json();
    let finding = &document["findings"][0];
    assert_eq!((finding["kind"].as_str(), finding["severity"].as_str()), (Some("missing"), Some("error")));
    assert_eq!(finding["path"], world.kernel().as_str());
    assert_eq!((document["clean"].as_bool(), document["revisions"].as_u64()), (Some(false), Some(2)));
    assert_eq!(document["remaining"].as_array().unwrap().len(), 1);
}

#[test]
fn the_program_takes_times_ages_and_percentages() {
    let world = World::new();
    for words in [["--since", "2026-01-31T12:00:00Z"], ["--since", "12h"], ["--sample", "5%"], ["--sample", "100"]] {
        world.place.done(&[&["verify"], &words[..]].concat());
    }
    for words in [["--since", "yesterday"], ["--since", "-7d"], ["--sample", "0"], ["--sample", "101%"]] {
        world.place.run(&["verify", &words.join("=")]).with_code(2);
    }
}

#[test]
fn a_damaged_format_is_named() {
    let world = World::new();
    fs::write(world.layout().format_json(), "").unwrap();
    world.place.run(&["verify"]).with_code(4).says(&["format.json", "it is empty"]);
}

#[test]
fn objects_are_found_by_the_bytes_that_they_should_hold() {
    let world = World::new();
    let object = object_of(world.layout(), &world.kernel());
    let other = object_of(world.layout(), &world.dir().join("rootfs.ext4"));
    fs::remove_file(&object).unwrap();
    fs::hard_link(&other, &object).unwrap();
    assert_finds(&verify(&world.store), FindingKind::ObjectDiffers, &object);
}

#[test]
fn a_directory_of_the_store_that_can_not_be_listed_is_told_of() {
    let world = World::new();
    let layout = world.layout();
    for dir in [layout.objects(), layout.keys(), layout.drafts(), layout.pins()] {
        fs::set_permissions(&dir, Permissions::from_mode(0o300)).unwrap();
        // Who may read all of it finds nothing wrong.
        if fs::read_dir(&dir).is_err() {
            assert_finds(&verify(&world.store), FindingKind::Unreadable, &dir);
        }
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        assert!(verify(&world.store).is_clean());
    }
}
