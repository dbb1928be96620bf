//! What a verification finds in a snapshot, and what a repair does about it; the revision is good all the while.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use serde_json::Value;
use template_store::{FindingKind, Note, Repaired, Snapshot, VerifyOptions};

use super::{Paused, assert_sealed};
use crate::support::{Heard, assert_right, flip, id, inode, listing, names};

/// The findings of a snapshot that something was done to.
#[track_caller]
fn found(paused: &Paused) -> Vec<(FindingKind, String)> {
    let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
    let dir = paused.revision().path();
    let name = |path: &Utf8Path| path.strip_prefix(&dir).unwrap_or(path).to_string();
    report
        .findings
        .iter()
        .filter(|finding| finding.kind != FindingKind::DeadDraft)
        .map(|f| (f.kind, name(&f.path)))
        .collect()
}

fn repair(paused: &Paused) -> (Repaired, Heard) {
    let mut heard = Heard::default();
    let repaired = paused.store.repair(&VerifyOptions::default(), &mut heard).unwrap();
    (repaired, heard)
}

/// The snapshot is out of the way, loudly; the revision is what it was.
#[track_caller]
fn assert_lost(paused: &Paused, kinds: &[(FindingKind, &str)]) {
    let kinds: Vec<_> = kinds.iter().map(|(kind, path)| (*kind, (*path).to_owned())).collect();
    assert_eq!(found(paused), kinds);
    let revision = paused.revision();
    let (repaired, heard) = repair(paused);
    assert_eq!(repaired.remaining.len(), kinds.len(), "{:?}", repaired.remaining);
    assert!(heard.notes.iter().any(|note| matches!(note, Note::SnapshotLost { .. })), "{:?}", heard.notes);
    assert!(!revision.path().join("snapshot").exists());
    let place = paused.store.layout().damaged().join(format!("web@{}.files", revision.id()));
    assert!(names(&place).iter().any(|name| name.starts_with("snapshot-")), "{:?}", names(&place));
    let after = paused.revision();
    assert_eq!((after.id(), after.build().snapshot.as_ref()), (revision.id(), None));
    assert_right(&after);
    after.check().unwrap();
    assert_eq!(found(paused), []);
    assert_sealed(&paused.attach());
    assert_eq!(found(paused), []);
}

fn spoilt(spoil: impl Fn(&Snapshot)) -> Paused {
    let paused = Paused::new();
    let snapshot = paused.attach();
    assert_eq!(found(&paused), []);
    spoil(&snapshot);
    paused
}

#[test]
fn a_memory_that_rotted_is_found_and_moved_aside() {
    let paused = spoilt(|snapshot| flip(&snapshot.mem(), 3 << 20, true));
    assert_lost(&paused, &[(FindingKind::Corrupt, "snapshot/mem.bin")]);
}

#[test]
fn a_file_that_is_short_or_gone_is_found_and_the_snapshot_moved_aside() {
    let paused = spoilt(|snapshot| {
        fs::set_permissions(snapshot.vmstate(), Permissions::from_mode(0o644)).unwrap();
        fs::OpenOptions::new().write(true).open(snapshot.vmstate()).unwrap().set_len(10).unwrap();
    });
    assert_lost(&paused, &[(FindingKind::Truncated, "snapshot/vmstate.bin")]);
    let paused = spoilt(|snapshot| fs::remove_file(snapshot.mem()).unwrap());
    assert_lost(&paused, &[(FindingKind::Missing, "snapshot/mem.bin")]);
    let paused = spoilt(|snapshot| fs::remove_dir_all(snapshot.path().join("drives")).unwrap());
    assert_lost(&paused, &[(FindingKind::Missing, "snapshot/drives/rootfs")]);
}

#[test]
fn a_document_that_can_not_be_read_is_found_and_the_snapshot_moved_aside() {
    let paused = spoilt(|snapshot| fs::write(snapshot.path().join("snapshot.json"), "{").unwrap());
    assert!(paused.revision().snapshot().unwrap_err().to_string().contains("verify --repair"));
    assert_lost(&paused, &[(FindingKind::Invalid, "snapshot/snapshot.json")]);
    let paused = spoilt(|snapshot| fs::remove_file(snapshot.path().join("snapshot.json")).unwrap());
    assert_lost(&paused, &[(FindingKind::Missing, "snapshot/snapshot.json")]);
    let paused = spoilt(|snapshot| {
        fs::remove_dir_all(snapshot.path()).unwrap();
        fs::write(snapshot.path(), "no directory").unwrap();
    });
    assert_lost(&paused, &[(FindingKind::Swapped, "snapshot")]);
}

#[test]
fn a_drive_that_equals_an_artifact_is_mended_by_it() {
    let paused = Paused::new();
    let rootfs = paused.revision().rootfs();
    fs::copy(&rootfs, paused.vm().join("rootfs.ext4")).unwrap();
    let drive = paused.attach().drive(&id("rootfs")).unwrap();
    fs::remove_file(&drive).unwrap();
    assert_eq!(found(&paused), [(FindingKind::Missing, "snapshot/drives/rootfs".to_owned())]);
    let (repaired, _) = repair(&paused);
    assert_eq!(repaired.remaining, []);
    assert_eq!(inode(&drive), inode(&rootfs));
    assert_eq!(found(&paused), []);
}

#[test]
fn an_artifact_is_mended_by_a_drive_that_equals_it() {
    let paused = Paused::new();
    let rootfs = paused.revision().rootfs();
    fs::copy(&rootfs, paused.vm().join("rootfs.ext4")).unwrap();
    let snapshot = paused.attach();
    fs::remove_file(&rootfs).unwrap();
    fs::remove_file(crate::support::object_of(paused.store.layout(), &snapshot.drive(&id("rootfs")).unwrap())).unwrap();
    let (repaired, _) = repair(&paused);
    assert_eq!(repaired.remaining, []);
    assert_right(&paused.revision());
}

#[test]
fn modes_and_times_are_set_right() {
    let paused = spoilt(|snapshot| {
        fs::set_permissions(snapshot.mem(), Permissions::from_mode(0o644)).unwrap();
        fs::File::open(snapshot.vmstate()).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    });
    let kinds = [(FindingKind::WrongMode, "snapshot/mem.bin"), (FindingKind::WrongTime, "snapshot/vmstate.bin")];
    assert_eq!(found(&paused), kinds.map(|(kind, path)| (kind, path.to_owned())));
    let (repaired, _) = repair(&paused);
    assert_eq!(repaired.remaining, []);
    assert_sealed(&paused.revision().snapshot().unwrap().unwrap());
    assert_eq!(found(&paused), []);
}

#[test]
fn what_is_no_file_of_the_snapshot_is_moved_aside() {
    let paused = spoilt(|snapshot| fs::write(snapshot.path().join("drives/stray"), "stray").unwrap());
    assert_eq!(found(&paused), [(FindingKind::Foreign, "snapshot/drives/stray".to_owned())]);
    let (repaired, _) = repair(&paused);
    assert_eq!(repaired.remaining, []);
    assert_sealed(&paused.revision().snapshot().unwrap().unwrap());
}

/// Changes the field of `revision.json`.
fn set_field(paused: &Paused, change: impl Fn(&mut Value)) {
    let path = paused.revision().path().join("revision.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record["snapshot"]);
    fs::write(&path, record.to_string()).unwrap();
}

#[test]
fn a_field_that_differs_is_written_again() {
    let changes: [fn(&mut Value); 2] = [|field| field["vcpus"] = 7.into(), |field| *field = Value::Null];
    for change in changes {
        let paused = Paused::new();
        let snapshot = paused.attach();
        set_field(&paused, change);
        let before = listing(snapshot.path());
        assert_eq!(found(&paused), [(FindingKind::WrongField, "revision.json".to_owned())]);
        let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
        assert!(report.is_clean(), "a killed attach leaves no damage: {:?}", report.findings);
        let (repaired, _) = repair(&paused);
        assert_eq!(repaired.remaining, []);
        assert_eq!(paused.revision().build().snapshot.as_ref(), Some(&snapshot.record().info));
        assert_eq!((listing(snapshot.path()), found(&paused)), (before, vec![]));
    }
}

#[test]
fn a_field_without_a_snapshot_is_taken_away() {
    let paused = spoilt(|snapshot| fs::remove_dir_all(snapshot.path()).unwrap());
    assert_eq!(found(&paused), [(FindingKind::WrongField, "revision.json".to_owned())]);
    assert_eq!(paused.revision().kind().unwrap(), template_store::TemplateKind::Image);
    assert_eq!(repair(&paused).0.remaining, []);
    assert_eq!((paused.revision().build().snapshot.as_ref(), found(&paused)), (None, vec![]));
}

#[test]
fn a_verification_beside_attachments_finds_nothing() {
    let paused = Paused::new();
    paused.attach();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..12 {
                paused.pause(&round.to_string());
                paused.attach();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
            assert!(report.is_clean(), "{:?}", report.findings);
        }
    });
}
