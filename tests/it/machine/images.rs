//! What is built here: four contents, each as its builder left it or with another machine, and their names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::LazyLock;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use template_store::{
    Build, BuildInputs, BuildOptions, ImportOptions, Resources, Revision, RevisionId, Store, TemplateId, TemplateSpec,
};

use crate::support::{Place, bytes, id};

/// The templates; those of the last one get another machine than the builders write into their images.
pub const TEMPLATES: [&str; 3] = ["web", "db", "large"];
pub const KEYS: usize = 4;
pub const CONTENTS: usize = 4;

/// What a VM of an image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    Small,
    Large,
}

/// What a revision holds. Its id follows from that, so it stands for the revision as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    pub content: usize,
    /// The machine in its configuration.
    pub machine: Machine,
}

/// The digest of each file, by its path.
pub type Files = BTreeMap<Utf8PathBuf, String>;

/// The machine of a template's VMs.
pub fn machine_of(template: usize) -> Machine {
    if TEMPLATES[template] == "large" { Machine::Large } else { Machine::Small }
}

pub fn template(template: usize) -> TemplateId {
    id(TEMPLATES[template])
}

pub fn resources(template: usize) -> Resources {
    let vcpus = if machine_of(template) == Machine::Large { 8 } else { 2 };
    Resources { vcpus, ..Resources::default() }
}

/// The definitions that a template may have.
pub const DEFINITIONS: usize = 3;

/// What a template is defined as by who builds it first, and says nothing else.
pub fn definition_by(key: usize) -> usize {
    if KEY_PARTS[key].1 == "builder" { 2 } else { 0 }
}

pub fn spec(template: usize, definition: usize) -> TemplateSpec {
    let (flake, role) = [(".", "worker"), ("./other", "worker"), (".", "builder")][definition];
    let (profile, role) = (id("minimal"), id(role));
    let mut spec = TemplateSpec::new(&self::template(template), flake, &profile, &role, "2026-01-01T00:00:00Z");
    spec.vcpus = resources(template).vcpus;
    spec
}

/// Two of two locks each, for two roles.
pub fn inputs(key: usize) -> BuildInputs {
    let (lock, role) = KEY_PARTS[key];
    BuildInputs::new(id(lock), id("minimal"), id(role))
}

const KEY_PARTS: [(&str, &str); KEYS] =
    [("lock-a", "worker"), ("lock-b", "worker"), ("lock-a", "builder"), ("lock-b", "builder")];

/// The keys that a `revision.json` says it is made from.
pub fn keys_of(record: &Value) -> Result<BTreeSet<usize>, String> {
    let also = record["also_made_from"].as_array().into_iter().flatten();
    let named = [record].into_iter().chain(also).filter(|made| made["flake_lock_hash"] != "");
    let key = |made: &Value| {
        let known = KEY_PARTS.iter().position(|(lock, role)| made["flake_lock_hash"] == *lock && made["role"] == *role);
        known.filter(|_| made["profile"] == "minimal").ok_or(format!("nobody builds from {made}"))
    };
    named.map(key).collect()
}

/// Writes what a builder makes. Some files are so large that they become objects; some are in two contents.
pub fn fill(dir: &Utf8Path, content: usize) {
    const KERNELS: [(&str, usize); CONTENTS] = [("a", 66_000), ("a", 66_000), ("b", 200), ("c", 100)];
    const DISKS: [(&str, usize); CONTENTS] = [("d", 900), ("e", 70_000), ("e", 70_000), ("f", 300)];
    let (kernel, disk) = (KERNELS[content], DISKS[content]);
    fs::write(dir.join("vmlinux"), bytes(kernel.0, kernel.1)).expect("it takes files");
    fs::write(dir.join("rootfs.ext4"), bytes(disk.0, disk.1)).expect("it takes files");
    let config = json!({"boot-source": {}, "machine-config": {"mem_size_mib": 512, "vcpu_count": 2}});
    let config = serde_json::to_string_pretty(&config).expect("it is JSON");
    fs::write(dir.join("fc-base.json"), config + "\n").expect("it takes files");
    if content == 0 {
        fs::create_dir_all(dir.join("modules")).expect("it takes directories");
        fs::write(dir.join("modules/net.ko"), bytes("g", 300)).expect("it takes files");
    }
}

impl Image {
    /// As a builder leaves it.
    pub fn built(content: usize) -> Image {
        Image { content, machine: Machine::Small }
    }

    /// What a template gets that has the image of another one linked.
    pub fn linked(self, from: usize, to: usize) -> Image {
        match machine_of(from) == machine_of(to) {
            true => self,
            false => Image { machine: machine_of(to), ..self },
        }
    }

    pub fn id(self) -> RevisionId {
        KNOWN[&self].0.clone()
    }

    pub fn files(self) -> &'static Files {
        &KNOWN[&self].1
    }

    pub fn of_id(id: &str) -> Option<Image> {
        KNOWN.iter().find(|(_, (known, _))| known.as_str() == id).map(|(image, _)| *image)
    }

    pub fn all() -> impl Iterator<Item = Image> {
        let both = |content| [Machine::Small, Machine::Large].map(|machine| Image { content, machine });
        (0..CONTENTS).flat_map(both)
    }
}

/// The id and the files of each image.
static KNOWN: LazyLock<BTreeMap<Image, (RevisionId, Files)>> = LazyLock::new(|| {
    let place = Place::new();
    let store = place.quick_store();
    let mut known = BTreeMap::new();
    for content in 0..CONTENTS {
        let dir = place.join(&content.to_string());
        fs::create_dir(&dir).expect("the place takes directories");
        fill(&dir, content);
        let options = ImportOptions::default().inputs(inputs(content));
        let built = store.publish_dir_with(&template(0), &dir, &options, &mut ()).expect("it is published").revision;
        let large = reuse(&store, 2, content);
        assert_eq!(reuse(&store, 1, content).id(), built.id(), "the same files have the same id");
        known.insert(Image::built(content), named(&built));
        known.insert(Image { machine: Machine::Large, ..Image::built(content) }, named(&large));
    }
    known
});

fn reuse(store: &Store, to: usize, key: usize) -> Revision {
    let options = BuildOptions::default().resources(resources(to));
    match store.build_with(&template(to), &inputs(key), &options, &mut ()).expect("it is reused") {
        Build::Reused(revision) => revision,
        Build::Draft(_) => panic!("what was published with a key is found by it"),
    }
}

fn named(revision: &Revision) -> (RevisionId, Files) {
    let contents = revision.contents().iter();
    let files = contents.map(|content| (content.path.as_path().to_owned(), content.blake3.to_hex().to_string()));
    (revision.id().clone(), files.collect())
}

/// The files of a paused VM, others for each label.
pub fn pause(dir: &Utf8Path, label: usize) {
    fs::create_dir_all(dir).expect("the place takes directories");
    let mut memory = vec![0; 1 << 20];
    memory[9_000..9_100].copy_from_slice(&bytes(&format!("{label}: memory"), 100));
    fs::write(dir.join("mem"), memory).expect("it takes files");
    fs::write(dir.join("vmstate"), state(label)).expect("it takes files");
    // No root file system is larger.
    fs::write(dir.join("disk"), bytes(&format!("{label}: disk"), 70_001)).expect("it takes files");
}

/// The state of a paused VM, by which its snapshot is known again.
pub fn state(label: usize) -> Vec<u8> {
    bytes(&format!("{label}: state"), 500)
}
