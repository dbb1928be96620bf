//! A verification finds each damage by name, changes nothing, and never cries wolf.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use template_store::{
    Build, Depth, FindingKind, PinOptions, Progress, Removal, Revision, Severity, Stage, Store, StoreOptions,
    VerifyOptions,
};

use crate::damages::{TO_FILES, TO_THE_REST, World, assert_finds, verify};
use crate::reuse::Watch;
use crate::support::{build, draft, flip, fresh_quick, id, inputs, listing, reused, template, until};

#[test]
fn a_store_in_order_is_clean_and_each_inode_is_read_once() {
    let world = World::new();
    let sizes = || -> HashMap<u64, u64> {
        let artifacts =
            |one: &Revision| one.contents().iter().map(|content| one.artifact(&content.path)).collect::<Vec<_>>();
        let files: Vec<_> = world.revisions().iter().flat_map(artifacts).collect();
        files.iter().map(|path| fs::metadata(path).unwrap()).map(|m| (m.ino(), m.len())).collect()
    };
    let mut stages = Stages::default();
    world.store.verify(&VerifyOptions::default(), &mut stages).unwrap();
    let large = sizes().values().filter(|size| **size >= 64 << 10).sum::<u64>();
    assert_eq!(stages.0, [(Stage::Looking, 1, 1), (Stage::Verifying, large, large)], "how far it looked and read");

    reused(&world.store, "db", &inputs("a"));
    let report = verify(&world.store);
    assert_eq!(report.findings, [], "nothing to say");
    assert_eq!((report.revisions, report.files), (3, 12));
    assert_eq!(report.bytes_hashed, sizes().values().sum::<u64>());
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
    let object = world.object();
    flip(&world.kernel(), 70_000, true);
    let report = verify(&world.store);
    assert_finds(&report, FindingKind::Corrupt, &world.kernel());
    assert_finds(&report, FindingKind::Corrupt, &shared.kernel());
    assert_finds(&report, FindingKind::ObjectDiffers, &object);
    assert_eq!(report.count(Severity::Error), 3, "{report:#?}");
    let finding = report.findings.iter().find(|finding| finding.path == shared.kernel()).unwrap();
    assert_eq!((finding.template.as_ref(), finding.revision.as_ref()), (Some(shared.template()), Some(shared.id())));
}

#[test]
fn a_quick_look_reads_no_artifact() {
    let world = World::new();
    let quick = || world.store.verify(&VerifyOptions::default().depth(Depth::Quick), &mut ()).unwrap();
    flip(&world.kernel(), 70_000, true);
    let report = quick();
    assert!(report.is_clean() && report.bytes_hashed == 0, "{report:#?}");
    flip(&world.file("rootfs.ext4"), 7, false);
    assert_finds(&quick(), FindingKind::WrongTime, &world.file("rootfs.ext4"));
}

#[test]
fn a_scrub_reads_what_is_new_or_a_part() {
    let world = World::new();
    flip(&world.layout().revision(&id("web"), &world.old).join("vmlinux"), 7, true);
    let published = world.store.revision(&id("web"), &world.new).unwrap().record().published_at.unwrap();
    let scrub = |options: VerifyOptions| world.store.verify(&options, &mut ()).unwrap();
    let all = verify(&world.store).bytes_hashed;
    let since = scrub(VerifyOptions::default().since(published));
    assert!(since.is_clean(), "only the revision that is damaged is older: {since:#?}");
    assert_eq!(since.bytes_hashed, all / 2);
    let later = published + jiff::SignedDuration::from_secs(1);
    assert_eq!(scrub(VerifyOptions::default().since(later)).bytes_hashed, 0);
    assert_eq!(scrub(VerifyOptions::default().sample(100.0)).bytes_hashed, all);
    assert_eq!(scrub(VerifyOptions::default().sample(1e-12)).bytes_hashed, 0);
}

#[test]
fn what_cannot_be_read_is_a_finding() {
    let world = World::new();
    if rustix::process::geteuid().is_root() {
        return println!("root can read everything: not tried");
    }
    let layout = world.layout();
    for (path, without) in [
        (layout.objects(), 0o300),
        (layout.keys(), 0o300),
        (layout.drafts(), 0o300),
        (layout.pins(), 0o300),
        (world.kernel(), 0o000),
    ] {
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, Permissions::from_mode(without)).unwrap();
        let report = verify(&world.store);
        assert_finds(&report, FindingKind::Unreadable, &path);
        assert!(report.bytes_hashed > 0, "the rest is read: {path}");
        fs::set_permissions(&path, before).unwrap();
        assert!(verify(&world.store).is_clean(), "{path} can be read again");
    }
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
    let layout = world.layout();
    let dead = [layout.drafts().join("dead"), layout.trash().join("half")];
    for dir in &dead {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("vmlinux"), "x").unwrap();
    }
    let _alive = draft(&world.store, "web", &inputs("c"));
    let object = layout.object(&template_store::Digest::of(b"lone"));
    fs::create_dir_all(object.parent().unwrap()).unwrap();
    fs::write(&object, "lone").unwrap();
    let [draft, half] = dead;
    let mut expected =
        [(FindingKind::DeadDraft, draft), (FindingKind::HalfDeletion, half), (FindingKind::UnusedObject, object)];
    expected.sort_by(|a, b| a.1.cmp(&b.1));
    // A program that another test starts has the descriptors of this process for a moment.
    until("all are found", || {
        let report = verify(&world.store);
        assert!(report.is_clean(), "{report:#?}");
        let mut found: Vec<_> = report.findings.into_iter().map(|finding| (finding.kind, finding.path)).collect();
        found.sort_by(|a, b| a.1.cmp(&b.1));
        (found == expected).then_some(())
    });
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
    let (place, store) = fresh_quick();
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
