//! Registries of mvm.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use template_store::observe::Op;
use template_store::{
    ErrorKind, ImportOptions, Note, PullOptions, Pulled, Remote, RemoteSettings, Result, SealOptions, Store,
};

use super::host;
use super::http::serve;
use crate::disk::unable_at;
use crate::support::{Heard, Place, assert_clean, assert_error, assert_right, bytes, id};

/// A registry in a directory, as mvm leaves it after a push of `web@r1`.
struct Registry {
    dir: Utf8PathBuf,
}

impl Registry {
    fn new(place: &Place, initrd: bool) -> Registry {
        let a = host(place, "a");
        let image = place.image("image", "mvm");
        if initrd {
            fs::write(image.join("initrd"), bytes("initrd", 1000)).unwrap();
        }
        let options =
            ImportOptions::default().seal(SealOptions::default().revision(id::<template_store::RevisionId>("r1")));
        let revision = a.publish_dir_with(&id("web"), &image, &options, &mut ()).unwrap().revision;
        let registry = Registry { dir: place.join("registry") };
        fs::create_dir_all(registry.files()).unwrap();
        for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] {
            fs::copy(revision.path().join(name), registry.files().join(name)).unwrap();
        }
        // mvm knows nothing of what this store adds.
        let mut record: Value =
            serde_json::from_slice(&fs::read(revision.path().join("revision.json")).unwrap()).unwrap();
        for field in ["contents", "published_at", "build_seconds"] {
            record.as_object_mut().unwrap().remove(field);
        }
        fs::write(registry.files().join("revision.json"), record.to_string()).unwrap();
        fs::copy(a.layout().template_json(&id("web")), registry.files().join("template.json")).unwrap();
        fs::write(registry.dir.join("templates/web/current"), "r1\n").unwrap();
        registry.sum();
        fs::remove_dir_all(image).unwrap();
        fs::remove_dir_all(a.layout().root()).unwrap();
        registry
    }

    fn files(&self) -> Utf8PathBuf {
        self.dir.join("templates/web/revisions/r1")
    }

    /// Writes `checksums.json` of all files that are there.
    fn sum(&self) {
        let _ = fs::remove_file(self.files().join("checksums.json"));
        let names: Vec<String> = crate::support::names(self.files());
        let sum = |name: &String| {
            let digest = Sha256::digest(fs::read(self.files().join(name)).unwrap());
            (name.clone(), json!(digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
        };
        let files: serde_json::Map<String, Value> = names.iter().map(sum).collect();
        self.write_sums(&json!({ "schema_version": 1, "template_id": "web", "revision_hash": "r1", "files": files }));
    }

    fn sums(&self) -> Value {
        serde_json::from_slice(&fs::read(self.files().join("checksums.json")).unwrap()).unwrap()
    }

    fn write_sums(&self, sums: &Value) {
        fs::write(self.files().join("checksums.json"), sums.to_string()).unwrap();
    }

    /// Another root file system, whether or not its sum says so.
    fn replace_rootfs(&self, bytes: &[u8]) {
        let rootfs = self.files().join("rootfs.ext4");
        fs::remove_file(&rootfs).unwrap();
        fs::write(rootfs, bytes).unwrap();
    }

    fn pull(&self, store: &Store, heard: &mut Heard) -> Result<Pulled> {
        let remote = Remote::open(&RemoteSettings::at(self.dir.as_str())).unwrap();
        store.pull_mvm(&remote, &id("web"), None, &PullOptions::default(), heard)
    }

    #[track_caller]
    fn refused(&self, place: &Place, kind: ErrorKind, words: &[&str]) {
        let b = host(place, "b");
        assert_error(self.pull(&b, &mut Heard::default()), kind, words);
        assert!(b.templates().unwrap().is_empty());
        assert_clean(b.layout());
        assert!(!place.join("evil").exists() && !Utf8Path::new("/tmp/evil").exists());
    }
}

#[test]
fn what_mvm_pushed_is_pulled() {
    let place = Place::new();
    let registry = Registry::new(&place, false);
    let (b, mut heard) = (host(&place, "b"), Heard::default());
    let pulled = registry.pull(&b, &mut heard).unwrap();
    assert_eq!((pulled.revision.id(), pulled.files_fetched), (&id("r1"), 3));
    assert_right(&pulled.revision);
    assert_eq!(heard.notes, []);
    for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] {
        let theirs = fs::read(registry.files().join(name)).unwrap();
        assert!(fs::read(pulled.revision.path().join(name)).unwrap() == theirs, "{name}");
    }
    assert_eq!(b.current_id(&id("web")).unwrap(), Some(id("r1")));
    assert_clean(b.layout());

    let other = place.join("other");
    let words = ["pull", "web@r1", "--mvm-registry", "--remote", registry.dir.as_str(), "--json"];
    let ran = crate::support::Ran::of(place.program_of(&other, &words).output().unwrap()).with_code(0);
    assert_eq!(ran.json()["revision"], "r1");
}

#[test]
fn what_is_missing_is_named() {
    let place = Place::new();
    let registry = Registry::new(&place, false);
    fs::remove_file(registry.files().join("template.json")).unwrap();
    registry.sum();
    let (b, mut heard) = (host(&place, "with-note"), Heard::default());
    let pulled = registry.pull(&b, &mut heard).unwrap();
    assert_eq!(heard.notes, [Note::DefinitionMissing { template: id("web") }]);
    assert!(heard.notes[0].to_string().contains("template.json"));
    assert_eq!(b.template(&id("web")).unwrap().vcpus, pulled.revision.build().vcpus);

    for name in ["vmlinux", "revision.json", "fc-base.json"] {
        let place = Place::new();
        let registry = Registry::new(&place, false);
        fs::remove_file(registry.files().join(name)).unwrap();
        registry.sum();
        registry.refused(&place, ErrorKind::Damaged, &["lacks", name]);
    }
    let place = Place::new();
    Registry::new(&place, true).refused(&place, ErrorKind::Damaged, &["lacks", "initrd"]);
}

#[test]
fn what_a_registry_says_is_checked() {
    let place = Place::new();
    let registry = Registry::new(&place, false);
    let good = registry.sums();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut sums = good.clone();
        change(&mut sums);
        registry.write_sums(&sums);
    };
    for name in ["../../../../evil", "/tmp/evil", "a/b", ".", "", "snapshot"] {
        changed(&|sums| sums["files"][name] = "00".into());
        registry.refused(&place, ErrorKind::Damaged, &["checksums.json"]);
    }
    changed(&|sums| sums["template_id"] = "other".into());
    registry.refused(&place, ErrorKind::Damaged, &["other@r1"]);
    changed(&|sums| sums["revision_hash"] = "r2".into());
    registry.refused(&place, ErrorKind::Damaged, &["web@r2"]);
    changed(&|sums| sums["schema_version"] = 2.into());
    registry.refused(&place, ErrorKind::Failed, &["version 2"]);
    for name in ["rootfs.ext4", "template.json", "revision.json", "fc-base.json"] {
        changed(&|sums| sums["files"][name] = "00".into());
        registry.refused(&place, ErrorKind::Damaged, &[name, "SHA-256"]);
    }
    changed(&|sums| sums["files"]["gone"] = "00".into());
    registry.refused(&place, ErrorKind::NotFound, &["gone"]);
    registry.write_sums(&good);
    for current in ["", "../../x", "r1/../r2"] {
        fs::write(registry.dir.join("templates/web/current"), current).unwrap();
        registry.refused(&place, ErrorKind::Damaged, &["current"]);
    }
    fs::write(registry.dir.join("templates/web/current"), "r9\n").unwrap();
    registry.refused(&place, ErrorKind::NotFound, &["r9"]);
}

/// What came is not written: the pull says so, and waits for nobody.
#[test]
fn a_disk_that_takes_nothing_ends_the_pull() {
    let place = Place::new();
    let registry = Registry::new(&place, false);
    registry.replace_rootfs(&bytes("large", 40 << 20));
    registry.sum();
    let step = |op: &Op| matches!(op, Op::Write { .. });
    let b = host(&place, "b");
    let failing = unable_at(b.layout().root(), Errno::NOSPC, step);
    let refused = registry.pull(&failing, &mut Heard::default());
    assert_error(refused, ErrorKind::Failed, &["No space left on device"]);
    assert!(b.templates().unwrap().is_empty());
    assert_right(&registry.pull(&b, &mut Heard::default()).unwrap().revision);
}

#[test]
fn a_registry_behind_a_web_server_is_pulled() {
    for sends_parts in [true, false] {
        let place = Place::new();
        let registry = Registry::new(&place, false);
        registry.replace_rootfs(&bytes("large", 20 << 20));
        registry.sum();
        let remote = serve(registry.dir.clone(), sends_parts);
        let b = host(&place, "b");
        let pulled = b.pull_mvm(&remote, &id("web"), None, &PullOptions::default(), &mut ()).unwrap();
        assert_right(&pulled.revision);
        assert!(fs::read(pulled.revision.rootfs()).unwrap() == bytes("large", 20 << 20));
        // Cut short, or longer than it was said to be.
        registry.replace_rootfs(&bytes("other", 9 << 20));
        let c = host(&place, "c");
        let refused = c.pull_mvm(&remote, &id("web"), None, &PullOptions::default(), &mut ());
        assert_error(refused, ErrorKind::Damaged, &["rootfs.ext4"]);
        assert!(c.templates().unwrap().is_empty());
    }
}
