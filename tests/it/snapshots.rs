//! Snapshots: attached whole or not at all, with every disk that the VM writes to; read, compared and replaced.

mod compatible;
mod damage;
mod drives;
mod program;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use template_store::gc::{Bound, Policy};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{
    BuildOptions, Digest, ErrorKind, Removal, Resources, Result, Revision, Snapshot, SnapshotFiles, SnapshotOptions,
    SnapshotRecord, Store, StoreOptions, TemplateKind, TemplateRevision, Usage,
};

use crate::adopt::{adopt, mvm_revision, mvm_template};
use crate::support::{
    Place, assert_clean, assert_error, assert_right, bytes, draft_with, edit_json, id, image, inode, inputs, listing,
    meanwhile, names, on_disk, read_json, until, when_free,
};

/// MiB of memory of every VM here.
pub const MEM_MIB: u32 = 8;

/// The Firecracker configuration of their image.
const CONFIG: &str = r#"{"boot-source":{"boot_args":"quiet"},"machine-config":{"vcpu_count":2,"mem_size_mib":8}}"#;

/// A store with a revision of `web` whose VMs have 8 MiB, and the files of one that is paused.
pub struct Paused {
    pub place: Place,
    pub store: Store,
}

impl Paused {
    pub fn new() -> Paused {
        Paused::of(CONFIG)
    }

    /// With this Firecracker configuration.
    pub fn of(config: &str) -> Paused {
        Paused::at(Place::new(), config)
    }

    fn at(place: Place, config: &str) -> Paused {
        let store = place.store();
        let machine = Resources { vcpus: 2, mem_mib: MEM_MIB, data_disk_mib: 0 };
        let options = BuildOptions::default().resources(machine);
        let draft = draft_with(&store, "web", &inputs("lock"), &options);
        image(draft.path(), "web");
        fs::write(draft.path().join("fc-base.json"), config).unwrap();
        draft.seal().unwrap().publish().unwrap();
        let paused = Paused { place, store };
        paused.pause("first");
        paused
    }

    /// Writes the files of a VM, others for each label: memory that is mostly zeros, and a disk that it has written to.
    pub fn pause(&self, label: &str) {
        let vm = self.vm();
        fs::create_dir_all(&vm).unwrap();
        fs::write(vm.join("vmstate"), bytes(&format!("{label}: state"), 5000)).unwrap();
        let mut memory = vec![0; (MEM_MIB as usize) << 20];
        for at in [0, 3 << 20, (7 << 20) + 50] {
            memory[at..at + 100].copy_from_slice(&bytes(&format!("{label}: memory at {at}"), 100));
        }
        fs::write(vm.join("mem"), memory).unwrap();
        let mut rootfs = fs::read(self.revision().rootfs()).unwrap();
        rootfs[..4096].copy_from_slice(&bytes(&format!("{label}: disk"), 4096));
        fs::write(vm.join("rootfs.ext4"), rootfs).unwrap();
    }

    pub fn vm(&self) -> Utf8PathBuf {
        self.place.join("vm")
    }

    pub fn revision(&self) -> Revision {
        self.store.current(&id("web")).unwrap()
    }

    pub fn memory_and_state(&self) -> SnapshotFiles {
        SnapshotFiles::new(self.vm().join("vmstate"), self.vm().join("mem"))
    }

    pub fn files(&self) -> SnapshotFiles {
        self.memory_and_state().drive(id("rootfs"), self.vm().join("rootfs.ext4"))
    }

    pub fn attach(&self) -> Snapshot {
        self.attach_files(&self.files()).unwrap()
    }

    pub fn attach_files(&self, files: &SnapshotFiles) -> Result<Snapshot> {
        self.revision().attach_snapshot(files, &SnapshotOptions::default(), &mut ())
    }

    /// Attaches a snapshot of a VM that has not written to its disk.
    pub fn attach_with_the_disk_of_the_template(&self) -> Snapshot {
        fs::copy(self.revision().rootfs(), self.vm().join("rootfs.ext4")).unwrap();
        self.attach()
    }

    #[track_caller]
    pub fn refused(&self, files: &SnapshotFiles, options: &SnapshotOptions, words: &[&str]) {
        let result = self.revision().attach_snapshot(files, options, &mut ());
        assert_error(result, ErrorKind::Refused, words);
        assert_clean(self.store.layout());
    }

    /// Publishes another image, which is current then.
    fn publish_next(&self) -> Utf8PathBuf {
        let files = self.place.image("files", "next");
        self.store.publish_dir(&id("web"), &files).unwrap();
        files
    }

    /// A store of the same place, whose steps somebody watches.
    fn watched_by(&self, observer: Arc<dyn Observer>) -> Store {
        Store::open_with(self.place.root(), &StoreOptions::default().observer(observer)).unwrap()
    }

    /// The snapshot holds what the VM had when it was paused.
    #[track_caller]
    pub fn assert_holds(&self, snapshot: &Snapshot) {
        let pairs = [
            (snapshot.vmstate(), self.vm().join("vmstate")),
            (snapshot.mem(), self.vm().join("mem")),
            (snapshot.drive(&id("rootfs")).unwrap(), self.vm().join("rootfs.ext4")),
        ];
        for (ours, theirs) in pairs {
            assert!(fs::read(&ours).unwrap() == fs::read(&theirs).unwrap(), "{ours} is {theirs}");
        }
    }
}

/// Each file has the size and digest that `snapshot.json` says, and is sealed; nothing else is there.
#[track_caller]
pub fn assert_sealed(snapshot: &Snapshot) {
    let document = fs::read(snapshot.path().join("snapshot.json")).unwrap();
    assert_eq!(&SnapshotRecord::from_json(&document).unwrap(), snapshot.record());
    for content in snapshot.contents() {
        let path = snapshot.path().join(content.path.as_path());
        let (bytes, metadata) = (fs::read(&path).unwrap(), fs::symlink_metadata(&path).unwrap());
        assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (content.size, content.blake3), "{path}");
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (0o444, 1, 0), "{path}");
    }
    let listed: Vec<&str> = snapshot.contents().iter().map(|content| content.path.as_str()).collect();
    assert!(listed.is_sorted());
    let walk = walkdir::WalkDir::new(snapshot.path()).into_iter().map(|entry| entry.unwrap());
    let found = walk.filter(|entry| entry.file_type().is_file()).count();
    assert_eq!(found, listed.len() + 1, "nothing else is in {}", snapshot.path());
}

#[test]
fn a_snapshot_holds_what_the_vm_had_and_takes_the_pages_that_are_not_zero() {
    let paused = Paused::new();
    let rootfs = inode(paused.revision().rootfs());
    let snapshot = paused.attach();
    paused.assert_holds(&snapshot);
    assert_sealed(&snapshot);
    assert_eq!(names(snapshot.path()), ["drives", "mem.bin", "snapshot.json", "vmstate.bin"]);
    assert!(on_disk(snapshot.mem()) <= 64 << 10, "{} bytes for three pages of memory", on_disk(snapshot.mem()));
    assert!(on_disk(paused.vm().join("mem")) >= 8 << 20, "the VM's own file stays as it is");

    let info = &snapshot.record().info;
    assert_eq!((info.vcpus, info.mem_mib, info.boot_args.as_str()), (2, MEM_MIB, "quiet"));
    assert_eq!((info.vmstate_size_bytes, info.mem_size_bytes), (5000, 8 << 20));
    assert_eq!(paused.revision().kind().unwrap(), TemplateKind::Snapshot(info.clone()));
    assert_right(&paused.revision());
    assert_eq!(inode(paused.revision().rootfs()), rootfs);
    assert_clean(paused.store.layout());
}

#[test]
fn revision_json_gets_the_field_that_mvm_reads_and_keeps_all_else() {
    let paused = Paused::new();
    let dir = paused.revision().path();
    let path = dir.join("revision.json");
    edit_json(&path, |record| record["of_a_newer_program"] = 7.into());
    let (before, snapshot, mut after) = (read_json(&path), paused.attach(), read_json(&path));
    let record: TemplateRevision = serde_json::from_value(after.clone()).unwrap();
    let field = record.snapshot.expect("it names the snapshot");
    assert_eq!((field.vcpus, field.mem_mib, field.boot_args.as_str()), (2, MEM_MIB, "quiet"));
    assert_eq!(field.mem_size_bytes, fs::metadata(dir.join("snapshot/mem.bin")).unwrap().len());
    assert_eq!(field.vmstate_size_bytes, fs::metadata(dir.join("snapshot/vmstate.bin")).unwrap().len());
    assert_eq!(field.created_at, snapshot.record().info.created_at);
    after["snapshot"] = Value::Null;
    assert_eq!(after, before);
}

#[test]
fn a_snapshot_without_a_disk_that_the_vm_writes_to_is_refused() {
    let paused = Paused::new();
    let options = SnapshotOptions::default();
    paused.refused(&paused.memory_and_state(), &options, &["web@", "writable drive rootfs", "--drive rootfs=FILE"]);
    assert!(paused.revision().snapshot().unwrap().is_none());

    let config = r#"{"drives":[
        {"drive_id":"root","path_on_host":"rootfs.ext4","is_root_device":true,"is_read_only":true},
        {"drive_id":"scratch","path_on_host":"/srv/scratch.img","is_root_device":false,"is_read_only":false}]}"#;
    let paused = Paused::of(config);
    paused.refused(&paused.memory_and_state(), &options, &["writable drive scratch"]);
    fs::write(paused.vm().join("scratch"), "disk").unwrap();
    let files = paused.memory_and_state().drive(id("scratch"), paused.vm().join("scratch"));
    let snapshot = paused.attach_files(&files).unwrap();
    assert_eq!(names(snapshot.path().join("drives")), ["scratch"], "the root drive is read-only");
}

#[test]
fn a_data_disk_is_a_drive_as_well() {
    let paused = Paused::new();
    let mut spec = paused.store.template(&id("web")).unwrap();
    spec.data_disk_mib = 1;
    paused.store.apply(&spec).unwrap();
    paused.publish_next();
    paused.pause("second");
    paused.refused(&paused.files(), &SnapshotOptions::default(), &["writable drive data"]);
}

#[test]
fn sizes_that_contradict_each_other_are_refused() {
    let paused = Paused::new();
    let options = SnapshotOptions::default();
    let words = ["mem", "8388608 bytes", "9 MiB", "9437184"];
    paused.refused(&paused.files(), &options.clone().mem_mib(9), &words);
    File::options().write(true).open(paused.vm().join("mem")).unwrap().set_len(100).unwrap();
    paused.refused(&paused.files(), &options, &["mem", "100 bytes", "8 MiB"]);
    fs::write(paused.vm().join("vmstate"), "").unwrap();
    paused.refused(&paused.files(), &options, &["vmstate", "is empty"]);
}

#[test]
fn what_can_not_be_a_file_of_a_snapshot_is_refused() {
    let paused = Paused::new();
    let options = SnapshotOptions::default();
    let twice = paused.files().drive(id("rootfs"), paused.vm().join("mem"));
    paused.refused(&twice, &options, &["drive rootfs", "another file"]);
    paused.refused(&paused.files(), &options.clone().drive_path(id("usr"), "/x"), &["drive usr", "not given"]);
    for (path, words) in [(paused.vm().join("none"), "none"), (paused.vm(), "not a regular file")] {
        let files = paused.memory_and_state().drive(id("rootfs"), path);
        assert_error(paused.attach_files(&files), ErrorKind::Failed, &[words]);
    }
    assert_clean(paused.store.layout());
    assert!(paused.revision().snapshot().unwrap().is_none());
}

/// Writes to a file when the first byte of another one is copied.
#[derive(Debug)]
struct Writing(Utf8PathBuf, AtomicBool);

impl Observer for Writing {
    fn before(&self, op: &Op) -> Verdict {
        if matches!(op, Op::Create { path } if path.as_str().ends_with("mem.bin"))
            && !self.1.swap(true, Ordering::Relaxed)
        {
            File::options().write(true).open(&self.0).unwrap().write_all_at(b"the VM goes on", 0).unwrap();
        }
        Verdict::Proceed
    }
}

#[test]
fn a_vm_that_goes_on_while_its_files_are_copied_has_no_snapshot() {
    let paused = Paused::new();
    let writing = Arc::new(Writing(paused.vm().join("rootfs.ext4"), AtomicBool::new(false)));
    let store = paused.watched_by(writing);
    let revision = store.current(&id("web")).unwrap();
    let result = revision.attach_snapshot(&paused.files(), &SnapshotOptions::default(), &mut ());
    assert_error(result, ErrorKind::Refused, &["rootfs.ext4", "written to", "pause the VM"]);
    assert!(revision.snapshot().unwrap().is_none());
    assert_clean(store.layout());
}

#[test]
fn a_disk_that_nobody_wrote_to_is_a_link_to_the_artifact() {
    let paused = Paused::new();
    let snapshot = paused.attach_with_the_disk_of_the_template();
    assert_eq!(inode(snapshot.drive(&id("rootfs")).unwrap()), inode(paused.revision().rootfs()));
    assert_sealed(&snapshot);
}

#[test]
fn a_newer_snapshot_replaces_the_old_one_which_stays_for_who_has_it_open() {
    let paused = Paused::new();
    let old = paused.attach();
    let (open, expected) = (File::open(old.mem()).unwrap(), fs::read(old.mem()).unwrap());
    assert!(old.is_there().unwrap());
    paused.pause("second");
    let new = paused.attach();
    paused.assert_holds(&new);
    assert_sealed(&new);
    assert!(!old.is_there().unwrap() && new.is_there().unwrap());
    let mut read = vec![0; expected.len()];
    open.read_exact_at(&mut read, 0).unwrap();
    assert!(read == expected, "who has the old memory open keeps it");
    assert_clean(paused.store.layout());
    assert_eq!(paused.revision().build().snapshot.as_ref(), Some(&new.record().info));
}

#[test]
fn a_reader_finds_the_old_snapshot_or_the_new_one() {
    let paused = Paused::new();
    let states = ["first", "second"].map(|label| {
        paused.pause(label);
        Digest::of(&fs::read(paused.vm().join("vmstate")).unwrap())
    });
    paused.attach();
    let (revision, mut seen) = (paused.revision(), [0, 0]);
    let replace = || {
        for round in 0..10 {
            paused.pause(["first", "second"][round % 2]);
            paused.attach();
        }
    };
    meanwhile(replace, || {
        let snapshot = revision.snapshot().unwrap().expect("there is always one");
        let listed = snapshot.contents().iter().find(|content| content.path.as_str() == "vmstate.bin").unwrap();
        let which = states.iter().position(|state| *state == listed.blake3).expect("the old or the new");
        seen[which] += 1;
        let read = fs::read(snapshot.vmstate());
        // What was read is of this snapshot if it is still there.
        if snapshot.is_there().unwrap() {
            assert_eq!(Digest::of(&read.unwrap()), listed.blake3);
        }
    });
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn the_snapshot_goes_with_its_revision() {
    let paused = Paused::new();
    let snapshot = paused.attach();
    let (dir, revision) = (snapshot.path().to_owned(), snapshot.revision().id().clone());
    drop(snapshot);
    paused.publish_next();
    when_free(|| paused.store.remove(&id("web"), &revision, Removal::Unused)).unwrap();
    assert!(!dir.exists());
    assert_clean(paused.store.layout());
}

#[test]
fn what_a_snapshot_takes_is_accounted() {
    let paused = Paused::new();
    let before = paused.store.usage().unwrap();
    let snapshot = paused.attach();
    let after = paused.store.usage().unwrap();
    let found = walkdir::WalkDir::new(snapshot.path()).into_iter().map(|entry| entry.unwrap().metadata().unwrap());
    let own: u64 = found.map(|metadata| metadata.blocks() * 512).sum();
    let numbers = |usage: &Usage| {
        let bytes = &usage.templates[0].revisions[0].bytes;
        [("on_disk", usage.on_disk), ("exclusive", bytes.exclusive), ("freed_if_removed", bytes.freed_if_removed)]
    };
    for ((name, before), (_, after)) in numbers(&before).into_iter().zip(numbers(&after)) {
        let grown = after - before;
        // `revision.json` may take a block more.
        assert!((own..=own + 4096).contains(&grown), "{name} grew by {grown}, and the snapshot has {own}");
    }
}

#[test]
fn a_collection_gives_back_what_the_disk_shows() {
    let paused = Paused::new();
    paused.attach_with_the_disk_of_the_template();
    let files = paused.publish_next();
    let before = paused.store.usage().unwrap();
    let (plan, report) = until("nobody uses it", || {
        let (plan, report) = paused.store.gc(&Policy::default().keep_last(1_u32), &mut ()).unwrap();
        (!report.removed.is_empty()).then_some((plan, report))
    });
    assert_eq!((report.removed.len(), report.freed), (1, plan.frees));
    let after = paused.store.usage().unwrap();
    if report.bound == Bound::Exact {
        assert_eq!(before.on_disk - after.on_disk, report.freed, "the disk says the same");
    }
    assert!(report.freed >= on_disk(files.join("rootfs.ext4")), "the link in the snapshot went as well");
    assert_clean(paused.store.layout());
}

#[test]
fn a_snapshot_of_mvm_is_told_by_the_field_and_left_as_it_is() {
    let place = Place::new();
    let root = place.root();
    mvm_template(&root, "web");
    let dir = mvm_revision(&root, "web", "r1", "one");
    fs::create_dir(dir.join("snapshot")).unwrap();
    for name in ["vmstate.bin", "mem.bin"] {
        fs::write(dir.join("snapshot").join(name), name).unwrap();
    }
    let path = dir.join("revision.json");
    let field = json!({
        "created_at": "2026-01-01T00:00:00Z", "vmstate_size_bytes": 11, "mem_size_bytes": 7, "boot_args": "b",
        "vcpus": 2, "mem_mib": 512,
    });
    edit_json(&path, |record| record["snapshot"] = field);
    let before = listing(&dir.join("snapshot"));
    // One that mvm speaks of and does not have.
    let without = mvm_revision(&root, "web", "r2", "two").join("revision.json");
    fs::write(&without, fs::read_to_string(&path).unwrap().replace("r1", "r2")).unwrap();

    let store = adopt(&root).store;
    let revision = store.revision(&id("web"), &id("r1")).unwrap();
    assert!(revision.snapshot().unwrap().is_none());
    assert!(matches!(revision.kind().unwrap(), TemplateKind::Snapshot(info) if info.boot_args == "b"));
    let repaired = store.repair(&Default::default(), &mut ()).unwrap();
    assert_eq!((repaired.mended, repaired.remaining), (vec![], vec![]));
    assert_eq!(listing(&dir.join("snapshot")), before);
    assert!(store.revision(&id("web"), &id("r1")).unwrap().build().snapshot.is_some());
}

/// Fails one step.
#[derive(Debug)]
struct Failing(usize, AtomicUsize);

impl Observer for Failing {
    fn before(&self, _: &Op) -> Verdict {
        match self.1.fetch_add(1, Ordering::Relaxed) == self.0 {
            true => Verdict::Fail(std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            false => Verdict::Proceed,
        }
    }
}

#[test]
fn whichever_step_fails_there_is_the_old_snapshot_or_the_new_one() {
    let mut failures = 0;
    for nth in 0.. {
        let paused = Paused::at(Place::in_memory(), CONFIG);
        paused.attach();
        let old = fs::read(paused.vm().join("vmstate")).unwrap();
        paused.pause("second");
        let new = fs::read(paused.vm().join("vmstate")).unwrap();
        let failing = Arc::new(Failing(nth, Default::default()));
        let revision = paused.watched_by(failing.clone()).current(&id("web")).unwrap();
        let result = revision.attach_snapshot(&paused.files(), &SnapshotOptions::default(), &mut ()).map(drop);
        drop(revision);
        let snapshot = paused.revision().snapshot().unwrap().unwrap();
        assert_sealed(&snapshot);
        let found = fs::read(snapshot.vmstate()).unwrap();
        assert!(found == old || found == new, "after step {nth}");
        assert!(result.is_err() || found == new, "it reported success after step {nth}");
        if failing.1.load(Ordering::Relaxed) <= nth {
            result.unwrap();
            break;
        }
        failures += usize::from(result.is_err());
        paused.assert_holds(&paused.attach());
        assert_eq!(paused.revision().build().snapshot.as_ref().map(|info| info.mem_mib), Some(MEM_MIB));
    }
    assert!(failures > 10, "{failures} steps can fail");
}
