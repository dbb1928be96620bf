//! What can happen to a store, one thing at a time, and what is outside it and must stay as it is.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{FindingKind, Layout, Report, Revision, RevisionId, Severity, Store, VerifyOptions};

use crate::support::{Place, assert_right, bytes, draft, flip, fresh, id, image, inputs, listing, object_of, reused};

/// A store with two revisions of `web`, the second of which is current, and a directory beside it.
pub struct World {
    pub place: Place,
    pub store: Store,
    pub old: RevisionId,
    pub new: RevisionId,
    canary: Vec<String>,
}

/// An image with a file in a directory of its own.
pub fn build(store: &Store, name: &str, label: &str) -> RevisionId {
    let draft = draft(store, name, &inputs(label));
    image(draft.path(), label);
    fs::create_dir(draft.path().join("lib")).unwrap();
    fs::write(draft.path().join("lib/module"), bytes(&format!("{label}: module"), 80_000)).unwrap();
    draft.seal().unwrap().publish().unwrap().id().clone()
}

impl World {
    pub fn new() -> World {
        let (place, store) = fresh();
        World::of(place, store)
    }

    /// In memory, with copies: for what is done again and again.
    pub fn quick() -> World {
        let place = Place::in_memory();
        let store = place.quick_store();
        let world = World::of(place, store);
        world.add_copies();
        world
    }

    fn of(place: Place, store: Store) -> World {
        let (old, new) = (build(&store, "web", "a"), build(&store, "web", "b"));
        fs::create_dir_all(place.join("canary/inner")).unwrap();
        for name in ["vmlinux", "inner/file", "module"] {
            fs::write(place.join("canary").join(name), name).unwrap();
        }
        let canary = listing(&place.join("canary"));
        World { place, store, old, new, canary }
    }

    /// With an intact copy of every file that is an inode of its own, as after EMLINK.
    pub fn with_copies() -> World {
        let world = World::new();
        world.add_copies();
        world
    }

    pub fn add_copies(&self) {
        for label in ["a", "b"] {
            let copy = reused(&self.store, "db", &inputs(label));
            copy.contents().iter().for_each(|content| own_inode(&copy.artifact(&content.path)));
        }
    }

    pub fn layout(&self) -> &Layout {
        self.store.layout()
    }

    /// The directory of the current revision.
    pub fn dir(&self) -> Utf8PathBuf {
        self.layout().revision(&id("web"), &self.new)
    }

    /// A file of the current revision.
    pub fn file(&self, name: &str) -> Utf8PathBuf {
        self.dir().join(name)
    }

    pub fn kernel(&self) -> Utf8PathBuf {
        self.file("vmlinux")
    }

    /// The object of the kernel.
    pub fn object(&self) -> Utf8PathBuf {
        object_of(self.layout(), &self.kernel())
    }

    /// The link to the current revision.
    pub fn current(&self) -> Utf8PathBuf {
        self.layout().current(&id("web"))
    }

    pub fn canary(&self) -> Utf8PathBuf {
        self.place.join("canary")
    }

    #[track_caller]
    pub fn assert_outside_untouched(&self) {
        assert_eq!(listing(&self.canary()), self.canary, "what is outside the store");
    }

    pub fn revisions(&self) -> Vec<Revision> {
        let of = |name| self.store.revisions(&name).unwrap().into_iter().map(move |id| (name.clone(), id));
        let all = self.store.templates().unwrap().into_iter().flat_map(of);
        all.map(|(name, id)| self.store.revision(&name, &id).unwrap()).collect()
    }

    /// Everything is as it was published, and the last one is current.
    #[track_caller]
    pub fn assert_whole(&self) {
        self.revisions().iter().for_each(assert_right);
        assert_eq!(self.store.current(&id("web")).unwrap().id(), &self.new);
        assert!(self.current().join("vmlinux").exists(), "current resolves on disk");
    }
}

/// Replaces a file by a copy of it.
fn own_inode(path: &Utf8Path) {
    let copy = path.with_file_name("copy");
    fs::copy(path, &copy).unwrap();
    File::open(&copy).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
    fs::rename(copy, path).unwrap();
    assert_eq!(fs::metadata(path).unwrap().nlink(), 1);
}

pub fn verify(store: &Store) -> Report {
    store.verify(&VerifyOptions::default(), &mut ()).unwrap()
}

/// Something of this kind was found at this path, and is more than a note.
#[track_caller]
pub fn assert_finds(report: &Report, kind: FindingKind, path: &Utf8Path) {
    let found = |finding: &&template_store::Finding| finding.kind == kind && finding.path == path;
    let found = report.findings.iter().find(found).unwrap_or_else(|| panic!("{kind} at {path}: {report:#?}"));
    assert!(found.severity > Severity::Note, "{found:?}");
}

fn removed(path: Utf8PathBuf) -> Utf8PathBuf {
    let is_dir = fs::symlink_metadata(&path).unwrap().is_dir();
    if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
    path
}

/// Puts a link in the place of a path.
fn linked(path: Utf8PathBuf, to: impl AsRef<std::path::Path>) -> Utf8PathBuf {
    symlink(to, removed(path.clone())).unwrap();
    path
}

/// Puts an empty directory in the place of a path.
fn directory(path: Utf8PathBuf) -> Utf8PathBuf {
    fs::create_dir(removed(path.clone())).unwrap();
    path
}

fn flipped(path: Utf8PathBuf, at: u64, quietly: bool) -> Utf8PathBuf {
    flip(&path, at, quietly);
    path
}

fn with_mode(path: Utf8PathBuf, mode: u32) -> Utf8PathBuf {
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

fn written(path: Utf8PathBuf, text: &str) -> Utf8PathBuf {
    fs::write(&path, text).unwrap();
    path
}

/// The kernels of both revisions, which are of one size.
fn both_kernels(world: &World) -> [Utf8PathBuf; 2] {
    [world.kernel(), world.layout().revision(&id("web"), &world.old).join("vmlinux")]
}

fn exchange(paths: &[Utf8PathBuf; 2]) {
    let aside = paths[0].with_file_name("aside");
    for (from, to) in [(&paths[0], &aside), (&paths[1], &paths[0]), (&aside, &paths[1])] {
        fs::rename(from, to).unwrap();
    }
}

fn with_len(path: Utf8PathBuf, len: u64) -> Utf8PathBuf {
    File::options().write(true).open(with_mode(path.clone(), 0o644)).unwrap().set_len(len).unwrap();
    path
}

/// Its name, what it is found as, and what does it and says where.
pub type Damage = (&'static str, FindingKind, fn(&World) -> Utf8PathBuf);

/// What happens to artifacts: only a copy can mend it.
pub const TO_FILES: [Damage; 10] = [
    ("a flipped bit", FindingKind::Corrupt, |world| flipped(world.kernel(), 70_000, false)),
    ("a flipped bit, with the old time", FindingKind::Corrupt, |world| flipped(world.kernel(), 70_000, true)),
    ("a flipped bit in an object", FindingKind::ObjectDiffers, |world| flipped(world.object(), 5, true)),
    ("a small file with a flipped bit", FindingKind::Corrupt, |world| flipped(world.file("fc-base.json"), 5, true)),
    ("a file cut short", FindingKind::Truncated, |world| with_len(world.file("rootfs.ext4"), 1000)),
    ("a file that grew", FindingKind::Corrupt, |world| with_len(world.file("rootfs.ext4"), 1 << 20)),
    ("a file that is gone", FindingKind::Missing, |world| {
        removed(object_of(world.layout(), &world.file("rootfs.ext4")));
        removed(world.kernel())
    }),
    ("a file swapped for a link", FindingKind::Swapped, |world| linked(world.kernel(), world.canary().join("vmlinux"))),
    ("a file swapped for a directory", FindingKind::Swapped, |world| directory(world.kernel())),
    ("a directory swapped for a link to /", FindingKind::Swapped, |world| {
        linked(world.file("lib"), "/").join("module")
    }),
];

/// What happens to the rest: all of it follows from something else.
pub const TO_THE_REST: [Damage; 27] = [
    ("a directory swapped for a link to files", FindingKind::Swapped, |world| {
        linked(world.file("lib"), world.canary()).join("module")
    }),
    ("revision.json emptied", FindingKind::Invalid, |world| written(world.file("revision.json"), "")),
    ("revision.json removed", FindingKind::Missing, |world| removed(world.file("revision.json"))),
    ("revision.json swapped for a link", FindingKind::Swapped, |world| {
        linked(world.file("revision.json"), world.canary().join("vmlinux"))
    }),
    ("objects/ removed", FindingKind::Missing, |world| removed(world.layout().objects())),
    ("objects/ emptied", FindingKind::Unshared, |world| directory(world.layout().objects())),
    ("objects/ swapped for a link", FindingKind::Swapped, |world| linked(world.layout().objects(), world.canary())),
    ("an object removed", FindingKind::Unshared, |world| {
        removed(world.object());
        world.kernel()
    }),
    ("two objects that changed places", FindingKind::ObjectDiffers, |world| {
        let objects = both_kernels(world).map(|kernel| object_of(world.layout(), &kernel));
        exchange(&objects);
        objects[0].clone()
    }),
    ("two files that changed places", FindingKind::Corrupt, |world| {
        exchange(&both_kernels(world));
        world.kernel()
    }),
    ("a strange name in objects/", FindingKind::Foreign, |world| {
        written(world.layout().objects().join("notes.txt"), "mine")
    }),
    ("keys/ removed", FindingKind::Missing, |world| removed(world.layout().keys())),
    ("keys/ emptied", FindingKind::MissingKey, |world| directory(world.layout().keys())),
    ("keys/ swapped for a link to /", FindingKind::Swapped, |world| linked(world.layout().keys(), "/")),
    ("an entry of keys/ emptied", FindingKind::Invalid, |world| written(world.layout().key(&inputs("b").key()), "")),
    ("drafts/ swapped for a link", FindingKind::Swapped, |world| linked(world.layout().drafts(), world.canary())),
    ("current removed", FindingKind::MissingCurrent, |world| removed(world.current())),
    ("current dangling", FindingKind::DanglingCurrent, |world| linked(world.current(), "revisions/gone")),
    ("current leading elsewhere", FindingKind::StrangeCurrent, |world| linked(world.current(), world.canary())),
    ("current an empty file", FindingKind::StrangeCurrent, |world| written(removed(world.current()), "")),
    ("the alias removed", FindingKind::WrongAlias, |world| removed(world.layout().alias(&id("web")))),
    ("a file that can be written", FindingKind::WrongMode, |world| with_mode(world.kernel(), 0o644)),
    ("a file that its owner may not read", FindingKind::WrongMode, |world| with_mode(world.kernel(), 0o000)),
    ("a file that was touched", FindingKind::WrongTime, |world| {
        File::open(world.kernel()).unwrap().set_modified(SystemTime::now()).unwrap();
        world.kernel()
    }),
    ("a file that nobody published", FindingKind::Foreign, |world| written(world.file("lib/notes.txt"), "mine")),
    ("template.json emptied", FindingKind::Invalid, |world| written(world.layout().template_json(&id("web")), "")),
    ("a line of the log that can't be read", FindingKind::Invalid, |world| {
        let log = world.layout().activations(&id("web"));
        let mut text = fs::read(&log).unwrap();
        text[3] ^= 0x80;
        fs::write(&log, text).unwrap();
        log
    }),
];
