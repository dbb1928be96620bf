//! Snapshots go with their revision, if they are asked for.

use std::fs;

use template_store::{
    Error, PullOptions, PushOptions, RemoteError, Revision, SnapshotFiles, SnapshotOptions, WithSnapshot,
};

use super::{assert_sound, host, pull, push, with_each};
use crate::support::{Place, assert_clean, assert_right, bytes, id};

/// Attaches what a VM of one MiB, whose root file system is written to, leaves.
fn attach(place: &Place, revision: &Revision, label: &str) {
    let paused = place.join(&format!("paused-{label}"));
    fs::create_dir(&paused).unwrap();
    fs::write(paused.join("vmstate"), bytes(&format!("{label}: state"), 5000)).unwrap();
    let mut memory = bytes(&format!("{label}: memory"), 200_000);
    memory.resize(1 << 20, 0);
    fs::write(paused.join("mem"), memory).unwrap();
    fs::write(paused.join("disk"), bytes(&format!("{label}: disk"), 300_000)).unwrap();
    let files = SnapshotFiles::new(paused.join("vmstate"), paused.join("mem")).drive(id("rootfs"), paused.join("disk"));
    let options = SnapshotOptions::default()
        .mem_mib(1)
        .vcpus(1)
        .boot_args(format!("label={label}"))
        .created_at("2026-01-01T00:00:00Z".to_owned())
        .drive_path(id("rootfs"), "/run/vms/7/disk");
    revision.attach_snapshot(&files, &options, &mut ()).unwrap();
}

fn publish(place: &Place, store: &template_store::Store) -> Revision {
    let image = place.image("image", "one");
    let config = r#"{"boot-source":{"kernel_image_path":"vmlinux"},"drives":[{"drive_id":"rootfs","path_on_host":"rootfs.ext4","is_root_device":true,"is_read_only":false}]}"#;
    fs::write(image.join("fc-base.json"), config).unwrap();
    store.publish_dir(&id("web"), &image).unwrap()
}

#[test]
fn a_snapshot_goes_with_its_revision() {
    with_each(&Place::new(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let revision = publish(place, &a);
        let with = PushOptions::default().snapshot(WithSnapshot::Yes);
        let without = a.push(&remote, &id("web"), None, &with, &mut ());
        assert!(matches!(without, Err(Error::NoSnapshot { .. })), "{without:?}");
        attach(place, &revision, "first");
        push(&a, &remote, &revision).unwrap();
        assert!(!remote.templates().unwrap()[0].revisions[0].has_snapshot, "it was not asked for");
        assert!(pull(&b, &remote, None).unwrap().revision.snapshot().unwrap().is_none());

        let pushed = a.push(&remote, &id("web"), None, &with, &mut ()).unwrap();
        assert_eq!((pushed.files_sent, pushed.changed), (3, true));
        assert!(pushed.bytes_sent < 600_000, "zeros are not sent: {}", pushed.bytes_sent);
        assert!(remote.templates().unwrap()[0].revisions[0].has_snapshot);
        let options = PullOptions::default().snapshot(WithSnapshot::Yes);
        let pulled = b.pull(&remote, &id("web"), None, &options, &mut ()).unwrap();
        assert_eq!(pulled.files_fetched, 3);
        assert_right(&pulled.revision);
        let (ours, theirs) = (pulled.revision.snapshot().unwrap().unwrap(), revision.snapshot().unwrap().unwrap());
        assert_eq!(ours.record(), theirs.record());
        for content in &ours.record().contents {
            let path = ours.path().join(content.path.as_path());
            assert_eq!(blake3::hash(&fs::read(path).unwrap()).as_bytes(), content.blake3.as_bytes());
        }
        assert_clean(b.layout());
        assert_eq!(b.verify(&Default::default(), &mut ()).unwrap().findings, []);
        let again = b.pull(&remote, &id("web"), None, &options, &mut ()).unwrap();
        assert_eq!(again.files_fetched, 0);

        // A newer one takes its place, and who pushes without one takes none away.
        attach(place, &revision, "second");
        a.push(&remote, &id("web"), None, &with, &mut ()).unwrap();
        assert!(!push(&a, &remote, &revision).unwrap().changed);
        b.pull(&remote, &id("web"), None, &options, &mut ()).unwrap();
        let ours = b.current(&id("web")).unwrap().snapshot().unwrap().unwrap();
        assert_eq!(ours.record().info.boot_args, "label=second");
        assert_sound(&remote);
    });
}

#[test]
fn a_remote_without_its_files_is_found_out() {
    let place = Place::new();
    let (a, b) = (host(&place, "a"), host(&place, "b"));
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let remote = template_store::Remote::open(&template_store::RemoteSettings::at(hub.as_str())).unwrap();
    let revision = publish(&place, &a);
    attach(&place, &revision, "first");
    a.push(&remote, &id("web"), None, &PushOptions::default().snapshot(WithSnapshot::Yes), &mut ()).unwrap();
    let memory = revision.snapshot().unwrap().unwrap().record().contents[1].blake3.to_hex();
    fs::remove_file(hub.join(format!("blobs/{}/{}.zst", &memory[..2], &memory[2..]))).unwrap();
    assert_eq!(remote.verify(false, &mut ()).unwrap().findings.len(), 1);
    let options = PullOptions::default().snapshot(WithSnapshot::Yes);
    let pulled = b.pull(&remote, &id("web"), None, &options, &mut ());
    assert!(matches!(pulled, Err(Error::Remote(RemoteError::Damaged { .. }))), "{pulled:?}");
    // The revision is there, and boots; only the snapshot is not.
    assert!(b.current(&id("web")).unwrap().snapshot().unwrap().is_none());
    assert_clean(b.layout());
}
