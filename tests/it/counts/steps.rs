//! A store that records each step, and what there is to count in them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer, Op};
use template_store::{
    Build, BuildOptions, Durability, Known, Outcome, PublishOptions, Resources, Revision, Store, StoreOptions,
    TemplateSpec,
};

use super::LARGE;
use crate::support::{Place, draft_with, id, inputs};

#[derive(Debug, Default)]
struct Recorder {
    steps: Mutex<Vec<(Op, bool)>>,
}

impl Observer for Recorder {
    fn after(&self, op: &Op, outcome: Result<(), &io::Error>) {
        self.steps.lock().unwrap().push((op.clone(), outcome.is_ok()));
    }
}

/// What an operation did to the disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// What it waited for, in order.
    pub syncs: Vec<String>,
    /// How many steps of each kind changed something.
    pub changes: Vec<(&'static str, usize)>,
    /// How many found that there was nothing to change.
    pub in_vain: Vec<(&'static str, usize)>,
}

impl Counts {
    fn of(root: &Utf8Path, steps: Vec<(Op, bool)>) -> Counts {
        let (mut syncs, mut changes, mut in_vain) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        for (op, done) in &steps {
            match op {
                Op::Fsync { path } | Op::FsyncDir { path } => syncs.push(place(root, path)),
                Op::Foreign { .. } => {}
                _ => *if *done { &mut changes } else { &mut in_vain }.entry(kind(op)).or_default() += 1,
            }
        }
        Counts { syncs, changes: changes.into_iter().collect(), in_vain: in_vain.into_iter().collect() }
    }

    pub fn nothing() -> Counts {
        Counts { syncs: Vec::new(), changes: Vec::new(), in_vain: Vec::new() }
    }
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Create { .. } => "create",
        Op::Write { .. } => "write",
        Op::Append { .. } => "append",
        Op::Truncate { .. } => "truncate",
        Op::Mkdir { .. } => "mkdir",
        Op::Rmdir { .. } => "rmdir",
        Op::Link { .. } => "link",
        Op::Unlink { .. } => "unlink",
        Op::Symlink { .. } => "symlink",
        Op::Rename { .. } => "rename",
        Op::RenameNoReplace { .. } => "rename to a free name",
        Op::RenameExchange { .. } => "exchange",
        Op::Chmod { .. } => "chmod",
        Op::SetMtime { .. } => "set mtime",
        Op::PunchHole { .. } => "punch a hole",
        Op::Clone { .. } => "clone",
        _ => "other",
    }
}

/// A path below the store, or beside it; the names of a draft and of a half-made instance differ each time.
fn place(root: &Utf8Path, path: &Utf8Path) -> String {
    let Ok(below) = path.strip_prefix(root) else {
        let beside = path.strip_prefix(root.parent().unwrap()).unwrap();
        let parts = beside.components().map(|part| match part.as_str() {
            half if half.starts_with(".template-store-") => "half",
            part => part,
        });
        return format!("../{}", parts.collect::<Vec<_>>().join("/"));
    };
    let below = below.as_str();
    match below.strip_prefix(".store/drafts/") {
        None => below.to_owned(),
        Some(draft) => draft.split_once('/').map_or("draft".into(), |(_, inner)| format!("draft/{inner}")),
    }
}

/// A store whose steps are recorded.
pub(super) struct World {
    place: Place,
    recorder: Arc<Recorder>,
    pub store: Store,
}

impl World {
    pub fn new(durability: Durability) -> World {
        let place = Place::new();
        let recorder = Arc::new(Recorder::default());
        let options = StoreOptions::default().durability(durability).observer(recorder.clone());
        let store = Store::init(place.root(), &options).unwrap();
        World { place, recorder, store }
    }

    /// A durable store with a template that has nothing yet.
    pub fn with_template(name: &str) -> World {
        let world = World::new(Durability::Full);
        world.create(name, Resources::default().mem_mib);
        world
    }

    /// A directory beside the store.
    pub fn beside(&self, name: &str) -> Utf8PathBuf {
        let dir = self.place.join(name);
        fs::create_dir(&dir).unwrap();
        dir
    }

    pub fn create(&self, name: &str, mem_mib: u32) {
        let mut spec = TemplateSpec::new(&id(name), ".", &id("minimal"), &id("worker"), "2026-01-01T00:00:00Z");
        spec.mem_mib = mem_mib;
        self.store.create(&spec).unwrap();
    }

    pub fn count<T>(&self, work: impl FnOnce(&Store) -> T) -> (T, Counts) {
        self.recorder.steps.lock().unwrap().clear();
        let done = work(&self.store);
        let steps = std::mem::take(&mut *self.recorder.steps.lock().unwrap());
        (done, Counts::of(&self.place.root(), steps))
    }
}

/// What a builder leaves.
pub(super) fn fill(dir: &Utf8Path, bytes: u8, size: usize) {
    fs::write(dir.join("vmlinux"), vec![bytes; size]).unwrap();
    fs::write(dir.join("rootfs.ext4"), vec![!bytes; size]).unwrap();
    fs::write(dir.join("fc-base.json"), r#"{"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#).unwrap();
}

pub(super) fn publish(store: &Store, name: &str, lock: &str, known: Known, bytes: u8) -> (Revision, Outcome) {
    let draft = draft_with(store, name, &inputs(lock), &BuildOptions::default().known(known));
    fill(draft.path(), bytes, LARGE);
    let published = draft.seal().unwrap().publish_with(&PublishOptions::default(), &mut ()).unwrap();
    (published.revision, published.outcome)
}

pub(super) fn reuse(store: &Store, name: &str, lock: &str) -> Revision {
    match store.build(&id(name), &inputs(lock)).unwrap() {
        Build::Reused(revision) => revision,
        Build::Draft(_) => panic!("it was built already"),
    }
}

/// Says why something was not counted, also when the test passes.
pub(super) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "note: {text}");
}
