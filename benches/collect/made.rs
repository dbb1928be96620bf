//! Stores of many small revisions, made quickly: the library publishes one, and the others are written as it was.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rustix::fs::{Timespec, Timestamps};
use serde_json::{Value, json};
use template_store::{
    Build, BuildInputs, CacheKey, Durability, Layout, Role, SealOptions, Store, StoreOptions, TemplateId, TemplateSpec,
};

pub const TEMPLATES: usize = 100;

const FILES: [&str; 3] = ["fc-base.json", "rootfs.ext4", "vmlinux"];

/// A store in which each template has the same number of revisions.
///
/// Of every two neighbours in a template, one was published in the first half of all time, and one in the second:
/// a collection that keeps the newer half removes every second directory.
pub struct Made {
    pub root: Utf8PathBuf,
    layout: Layout,
    revisions: Vec<Small>,
    model: Model,
}

/// A revision of a few bytes.
struct Small {
    number: usize,
    template: TemplateId,
    id: String,
    key: CacheKey,
    published_at: Timestamp,
}

/// The documents of a revision that the library published.
struct Model {
    record: Value,
    entry: Value,
}

impl Made {
    /// Makes a store of so many revisions, a multiple of 200.
    pub fn new(root: &Utf8Path, count: usize) -> Made {
        assert!(count > 0 && count.is_multiple_of(2 * TEMPLATES), "{count} is no multiple of {}", 2 * TEMPLATES);
        let model = Model::publish(&root.with_extension("model"));
        let store = Store::init(root, &StoreOptions::default()).unwrap();
        let revisions = (0..count).map(|number| Small::new(number, count)).collect();
        let made = Made { root: root.to_owned(), layout: store.layout().clone(), revisions, model };
        for template in 0..TEMPLATES {
            create(&store, &name(template));
        }
        made.fill();
        for template in 0..TEMPLATES {
            made.activate(template);
        }
        made
    }

    pub fn count(&self) -> usize {
        self.revisions.len()
    }

    /// How many revisions each template has.
    pub fn each(&self) -> u32 {
        (self.count() / TEMPLATES) as u32
    }

    /// The key files of all revisions that are older than the other half.
    pub fn old_keys(&self) -> Vec<Utf8PathBuf> {
        self.revisions.iter().filter(|one| one.is_old()).map(|one| self.layout.key(&one.key)).collect()
    }

    /// Writes all revisions that are not there.
    pub fn fill(&self) {
        for revision in &self.revisions {
            self.write(revision);
        }
    }

    fn write(&self, one: &Small) {
        let dir = self.layout.artifacts(&one.template).join(&one.id);
        if fs::create_dir(&dir).is_err() {
            return;
        }
        let mut record = self.model.record.clone();
        for (file, content) in FILES.iter().zip(record["contents"].as_array_mut().unwrap()) {
            let bytes = one.bytes(file);
            seal(&dir.join(file), &bytes);
            *content = json!({ "path": file, "size": bytes.len(), "blake3": blake3::hash(&bytes).to_hex().as_str() });
        }
        record["revision_hash"] = json!(one.id);
        record["flake_lock_hash"] = json!(lock(one.number));
        record["published_at"] = json!(one.published_at);
        write(&dir.join("revision.json"), &record);

        let mut entry = self.model.entry.clone();
        entry["key"] = json!(one.key);
        entry["revisions"][0]["template"] = json!(one.template);
        entry["revisions"][0]["revision"] = json!(one.id);
        let path = self.layout.key(&one.key);
        let _ = fs::create_dir(path.parent().unwrap());
        write(&path, &entry);
    }

    /// The log of all publications, and what the last one left.
    fn activate(&self, template: usize) {
        let mut published: Vec<&Small> = self.revisions.iter().skip(template).step_by(TEMPLATES).collect();
        published.sort_by_key(|one| one.published_at);
        let id = name(template);
        let mut log = File::create(self.layout.activations(&id)).unwrap();
        let line = |one: &Small| json!({ "revision": one.id, "at": one.published_at, "action": "publish" });
        let lines: String = published.iter().map(|one| format!("{}\n", line(one))).collect();
        log.write_all(lines.as_bytes()).unwrap();
        let _ = symlink("artifacts", self.layout.alias(&id));
        symlink(format!("revisions/{}", published.last().unwrap().id), self.layout.current(&id)).unwrap();
    }
}

impl Small {
    fn new(number: usize, count: usize) -> Small {
        let place = number / TEMPLATES;
        // Those in even places first.
        let rank = place / 2 + if place.is_multiple_of(2) { 0 } else { count / TEMPLATES / 2 };
        let published_at = Timestamp::from_second(1_767_225_600 + (rank * TEMPLATES + number % TEMPLATES) as i64);
        let old = if place.is_multiple_of(2) { OLD } else { 'e' };
        let id = format!("{}{old}", &blake3::hash(&number.to_le_bytes()).to_hex()[..31]);
        let key = inputs(number).key();
        Small { number, template: name(number % TEMPLATES), id, key, published_at: published_at.unwrap() }
    }

    fn is_old(&self) -> bool {
        self.id.ends_with(OLD)
    }

    /// From a few bytes to a few KiB.
    fn bytes(&self, file: &str) -> Vec<u8> {
        let text = format!("{file} {} ", self.number);
        let size = match file {
            "vmlinux" => self.number * 7 % 4000,
            "rootfs.ext4" => self.number * 11 % 6000,
            _ => 0,
        };
        text.bytes().cycle().take(text.len() + size).collect()
    }
}

/// The end of the names of revisions in the older half.
pub const OLD: char = '0';

impl Model {
    fn publish(root: &Utf8Path) -> Model {
        let store = Store::init(root, &StoreOptions::default().durability(Durability::None)).unwrap();
        let template = name(0);
        create(&store, &template);
        let Build::Draft(draft) = store.build(&template, &inputs(0)).unwrap() else { panic!("it is new") };
        for file in FILES {
            fs::write(draft.path().join(file), file).unwrap();
        }
        let sealed = draft.seal_with(&SealOptions::default(), &mut ()).unwrap();
        let revision = sealed.publish().unwrap();
        let read = |path: &Utf8Path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let record = read(&revision.path().join("revision.json"));
        let entry = read(&store.layout().key(&inputs(0).key()));
        Model { record, entry }
    }
}

fn name(template: usize) -> TemplateId {
    format!("t{template:02}").parse().unwrap()
}

fn create(store: &Store, id: &TemplateId) {
    let (profile, role): (_, Role) = ("minimal".parse().unwrap(), "worker".parse().unwrap());
    store.create(&TemplateSpec::new(id, ".", &profile, &role, "2026-01-01T00:00:00Z")).unwrap();
}

fn lock(number: usize) -> String {
    format!("lock-{number}")
}

fn inputs(number: usize) -> BuildInputs {
    BuildInputs::new(lock(number).parse().unwrap(), "minimal".parse().unwrap(), "worker".parse().unwrap())
}

fn write(path: &Utf8Path, document: &Value) {
    fs::write(path, format!("{document:#}\n")).unwrap();
}

/// Writes a file as one that nobody changes any more: read-only, with the time of a sealed one.
fn seal(path: &Utf8Path, bytes: &[u8]) {
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).unwrap();
    file.write_all(bytes).unwrap();
    rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time }).unwrap();
}
