//! What builders make, and by which names it is asked for.

use std::fs;
use std::sync::LazyLock;

use camino::Utf8Path;
use template_store::{BuildInputs, SealOptions, TemplateId, TemplateSpec};

use super::snapshots;
use super::world::World;

/// Whether every revision holds just what its builder wrote.
pub fn holds_what_was_built(world: &World) -> bool {
    world.templates.iter().all(|(template, of)| {
        of.revisions.iter().all(|(build, found)| {
            // A larger machine has a configuration of its own, which no builder wrote.
            let theirs = |name: &str| name == "fc-base.json" && template == "large";
            let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
            let holds = |name: &str, bytes: &[u8]| found.get(Utf8Path::new(name)) == Some(&digest(bytes));
            let built = files(build);
            snapshots::built_of(found) == built.len()
                && built.iter().all(|(name, bytes)| theirs(name) || holds(name, bytes))
        })
    })
}

pub fn fill(dir: &Utf8Path, build: &str) {
    for (name, bytes) in files(build) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("it is in the draft")).expect("the draft takes directories");
        fs::write(&path, bytes).expect("the draft takes files");
    }
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// Enough to have every kind: objects that are new, objects that are shared, small files, a directory.
pub fn files(build: &str) -> &'static Files {
    static BUILDS: LazyLock<[Files; 3]> = LazyLock::new(|| {
        let config = br#"{"boot-source":{},"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#;
        let image =
            |kernel, rootfs| vec![("vmlinux", kernel), ("rootfs.ext4", rootfs), ("fc-base.json", config.to_vec())];
        let mut one = image(bytes(1, 70_000), bytes(2, 900));
        one.push(("modules/net.ko", bytes(3, 300)));
        [one, image(bytes(1, 70_000), bytes(4, 66_000)), image(bytes(5, 200), bytes(6, 100))]
    });
    let which = BUILD_NAMES.iter().position(|name| *name == build).expect("a known build");
    &BUILDS[which]
}

pub const BUILD_NAMES: [&str; 3] = ["one", "two", "three"];

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut words = 0;
    while bytes.len() < len {
        bytes.extend_from_slice(&super::mix(seed, words).to_le_bytes());
        words += 1;
    }
    bytes.truncate(len);
    bytes
}

pub fn id(template: &str) -> TemplateId {
    template.parse().expect("a valid id")
}

pub fn revision(build: &str) -> template_store::RevisionId {
    build.parse().expect("a valid id")
}

pub fn sealing(build: &str) -> SealOptions {
    SealOptions::default().revision(Some(revision(build)))
}

pub fn inputs(build: &str) -> BuildInputs {
    let part = "the parts are valid";
    BuildInputs::new(
        format!("lock-{build}").parse().expect(part),
        "minimal".parse().expect(part),
        "worker".parse().expect(part),
    )
}

pub fn spec(template: &str) -> TemplateSpec {
    let part = "the parts are valid";
    let (profile, role) = ("minimal".parse().expect(part), "worker".parse().expect(part));
    let mut spec = TemplateSpec::new(&id(template), ".", &profile, &role, "2026-01-01T00:00:00Z");
    // Another machine needs another Firecracker configuration.
    spec.vcpus = if template == "large" { 8 } else { 2 };
    spec
}
