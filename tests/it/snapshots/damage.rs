//! What a verification finds in a snapshot, and what a repair does about it; the revision is good all the while.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use camino::Utf8Path;
use serde_json::Value;
use template_store::{FindingKind, Note, Snapshot, TemplateKind, VerifyOptions};

use super::{Paused, assert_sealed};
use crate::support::{Heard, assert_right, edit_json, flip, id, inode, listing, meanwhile, names, object_of};

/// The findings of a snapshot that something was done to.
#[track_caller]
fn found(paused: &Paused) -> Vec<(FindingKind, String)> {
    let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
    let dir = paused.revision().path();
    let name = |path: &Utf8Path| path.strip_prefix(&dir).unwrap_or(path).to_string();
    let findings = report.findings.iter().filter(|finding| finding.kind != FindingKind::DeadDraft);
    findings.map(|finding| (finding.kind, name(&finding.path))).collect()
}

#[track_caller]
fn assert_found(paused: &Paused, expected: &[(FindingKind, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(kind, path)| (*kind, (*path).to_owned())).collect();
    assert_eq!(found(paused), expected);
}

/// A repair mends all of it.
#[track_caller]
fn assert_mended(paused: &Paused) {
    let repaired = paused.store.repair(&VerifyOptions::default(), &mut ()).unwrap();
    assert_eq!((repaired.remaining, found(paused)), (vec![], vec![]));
}

/// What was done to the snapshot is found; a repair puts it out of the way, loudly; the revision is what it was.
#[track_caller]
fn assert_lost(kind: FindingKind, path: &str, spoil: impl Fn(&Snapshot)) {
    let paused = &spoilt(spoil);
    assert_found(paused, &[(kind, path)]);
    let (revision, mut heard) = (paused.revision(), Heard::default());
    let repaired = paused.store.repair(&VerifyOptions::default(), &mut heard).unwrap();
    assert_eq!(repaired.remaining.len(), 1, "{:?}", repaired.remaining);
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
    assert_lost(FindingKind::Corrupt, "snapshot/mem.bin", |snapshot| flip(&snapshot.mem(), 3 << 20, true));
}

#[test]
fn a_file_that_is_short_or_gone_is_found_and_the_snapshot_moved_aside() {
    assert_lost(FindingKind::Truncated, "snapshot/vmstate.bin", |snapshot| {
        fs::set_permissions(snapshot.vmstate(), Permissions::from_mode(0o644)).unwrap();
        fs::OpenOptions::new().write(true).open(snapshot.vmstate()).unwrap().set_len(10).unwrap();
    });
    assert_lost(FindingKind::Missing, "snapshot/mem.bin", |snapshot| fs::remove_file(snapshot.mem()).unwrap());
    assert_lost(FindingKind::Missing, "snapshot/drives/rootfs", |snapshot| {
        fs::remove_dir_all(snapshot.path().join("drives")).unwrap();
    });
}

#[test]
fn a_document_that_can_not_be_read_is_found_and_the_snapshot_moved_aside() {
    let document = |snapshot: &Snapshot| snapshot.path().join("snapshot.json");
    assert_lost(FindingKind::Invalid, "snapshot/snapshot.json", |snapshot| {
        fs::write(document(snapshot), "{").unwrap();
        assert!(snapshot.revision().snapshot().unwrap_err().to_string().contains("verify --repair"));
    });
    assert_lost(FindingKind::Missing, "snapshot/snapshot.json", |snapshot| {
        fs::remove_file(document(snapshot)).unwrap();
    });
    assert_lost(FindingKind::Swapped, "snapshot", |snapshot| {
        fs::remove_dir_all(snapshot.path()).unwrap();
        fs::write(snapshot.path(), "no directory").unwrap();
    });
}

#[test]
fn a_drive_that_equals_an_artifact_is_mended_by_it() {
    let paused = Paused::new();
    let drive = paused.attach_with_the_disk_of_the_template().drive(&id("rootfs")).unwrap();
    fs::remove_file(&drive).unwrap();
    assert_found(&paused, &[(FindingKind::Missing, "snapshot/drives/rootfs")]);
    assert_mended(&paused);
    assert_eq!(inode(&drive), inode(paused.revision().rootfs()));
}

#[test]
fn an_artifact_is_mended_by_a_drive_that_equals_it() {
    let paused = Paused::new();
    let drive = paused.attach_with_the_disk_of_the_template().drive(&id("rootfs")).unwrap();
    fs::remove_file(paused.revision().rootfs()).unwrap();
    fs::remove_file(object_of(paused.store.layout(), &drive)).unwrap();
    assert_mended(&paused);
    assert_right(&paused.revision());
}

#[test]
fn modes_and_times_are_set_right() {
    let paused = spoilt(|snapshot| {
        fs::set_permissions(snapshot.mem(), Permissions::from_mode(0o644)).unwrap();
        fs::File::open(snapshot.vmstate()).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    });
    let kinds = [(FindingKind::WrongMode, "snapshot/mem.bin"), (FindingKind::WrongTime, "snapshot/vmstate.bin")];
    assert_found(&paused, &kinds);
    assert_mended(&paused);
    assert_sealed(&paused.revision().snapshot().unwrap().unwrap());
}

#[test]
fn what_is_no_file_of_the_snapshot_is_moved_aside() {
    let paused = spoilt(|snapshot| fs::write(snapshot.path().join("drives/stray"), "stray").unwrap());
    assert_found(&paused, &[(FindingKind::Foreign, "snapshot/drives/stray")]);
    assert_mended(&paused);
    assert_sealed(&paused.revision().snapshot().unwrap().unwrap());
}

#[test]
fn a_field_that_differs_is_written_again() {
    let changes: [fn(&mut Value); 2] = [|field| field["vcpus"] = 7.into(), |field| *field = Value::Null];
    for change in changes {
        let paused = Paused::new();
        let snapshot = paused.attach();
        edit_json(paused.revision().path().join("revision.json"), |record| change(&mut record["snapshot"]));
        let before = listing(snapshot.path());
        assert_found(&paused, &[(FindingKind::WrongField, "revision.json")]);
        let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
        assert!(report.is_clean(), "a killed attach leaves no damage: {:?}", report.findings);
        assert_mended(&paused);
        assert_eq!(paused.revision().build().snapshot.as_ref(), Some(&snapshot.record().info));
        assert_eq!(listing(snapshot.path()), before);
    }
}

#[test]
fn a_field_without_a_snapshot_is_taken_away() {
    let paused = spoilt(|snapshot| fs::remove_dir_all(snapshot.path()).unwrap());
    assert_found(&paused, &[(FindingKind::WrongField, "revision.json")]);
    assert_eq!(paused.revision().kind().unwrap(), TemplateKind::Image);
    assert_mended(&paused);
    assert_eq!(paused.revision().build().snapshot, None);
}

#[test]
fn a_verification_beside_attachments_finds_nothing() {
    let paused = Paused::new();
    paused.attach();
    let attach = || {
        for round in 0..12 {
            paused.pause(&round.to_string());
            paused.attach();
        }
    };
    meanwhile(attach, || {
        let report = paused.store.verify(&VerifyOptions::default(), &mut ()).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    });
}
