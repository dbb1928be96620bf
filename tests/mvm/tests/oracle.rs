//! mvm-core 0.11.0 is the oracle: its types read what ours write, ours read what its types write, and both
//! compute one cache key.

use std::fmt::Debug;
use std::str::FromStr;

use mvm_core::{pool, template as mvm};
use proptest::option;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use template_store::{
    ArtifactPaths, ArtifactSizes, Build, BuildInputs, CacheKey, Extra, FlakeLockHash, Layout, Profile, RevisionRecord,
    Role, SnapshotInfo, Store, TemplateConfig, TemplateKind, TemplateRevision, TemplateSpec, TemplateVariant,
};

/// A value from text that is valid.
fn id<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn json_of<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Both types write the same JSON for the same values, and each reads what the other wrote.
fn assert_alike<Ours, Theirs>(ours: &Ours, theirs: &Theirs)
where
    Ours: Serialize + DeserializeOwned,
    Theirs: Serialize + DeserializeOwned,
{
    let (our_text, their_text) = (serde_json::to_string(ours).unwrap(), serde_json::to_string(theirs).unwrap());
    assert_eq!(json_of(ours), json_of(theirs), "both write the same");
    let read: Ours = serde_json::from_str(&their_text).expect("we read what mvm writes");
    assert_eq!(json_of(&read), json_of(theirs), "what mvm writes means the same to us");
    let read: Theirs = serde_json::from_str(&our_text).expect("mvm reads what we write");
    assert_eq!(json_of(&read), json_of(ours), "what we write means the same to mvm");
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,20}", any::<String>()]
}

fn profile() -> impl Strategy<Value = String> {
    "[^:\\p{C}]{1,30}"
}

prop_compose! {
    fn snapshot()(
        (created_at, boot_args) in (text(), text()),
        (vmstate_size_bytes, mem_size_bytes) in any::<(u64, u64)>(),
        (vcpus, mem_mib) in any::<(u8, u32)>(),
    ) -> (SnapshotInfo, mvm::SnapshotInfo) {
        let theirs = mvm::SnapshotInfo {
            created_at: created_at.clone(), boot_args: boot_args.clone(), vmstate_size_bytes, mem_size_bytes, vcpus, mem_mib,
        };
        let extra = Extra::new();
        (SnapshotInfo { created_at, boot_args, vmstate_size_bytes, mem_size_bytes, vcpus, mem_mib, extra }, theirs)
    }
}

prop_compose! {
    fn sizes()(
        (vmlinux_bytes, rootfs_bytes) in any::<(u64, u64)>(),
        (initrd_bytes, nix_closure_bytes) in any::<(Option<u64>, Option<u64>)>(),
    ) -> (ArtifactSizes, pool::ArtifactSizes) {
        let theirs = pool::ArtifactSizes { vmlinux_bytes, rootfs_bytes, initrd_bytes, nix_closure_bytes };
        (ArtifactSizes { vmlinux_bytes, rootfs_bytes, initrd_bytes, nix_closure_bytes, extra: Extra::new() }, theirs)
    }
}

prop_compose! {
    fn paths()(
        vmlinux in text(), rootfs in text(), fc_base_config in text(),
        initrd in option::of(text()), sizes in option::of(sizes()),
    ) -> (ArtifactPaths, pool::ArtifactPaths) {
        let (our_sizes, their_sizes) = sizes.unzip();
        let theirs = pool::ArtifactPaths {
            vmlinux: vmlinux.clone(), rootfs: rootfs.clone(), fc_base_config: fc_base_config.clone(),
            initrd: initrd.clone(), sizes: their_sizes,
        };
        (ArtifactPaths { vmlinux, rootfs, fc_base_config, initrd, sizes: our_sizes, extra: Extra::new() }, theirs)
    }
}

prop_compose! {
    fn revision()(
        schema_version in any::<u32>(),
        [revision_hash, flake_ref, flake_lock_hash, built_at] in [text(), text(), text(), text()],
        (profile, role) in (text(), text()),
        (our_paths, their_paths) in paths(),
        (vcpus, mem_mib, data_disk_mib) in any::<(u8, u32, u32)>(),
        snapshot in option::of(snapshot()),
    ) -> (TemplateRevision, mvm::TemplateRevision) {
        let (our_snapshot, their_snapshot) = snapshot.unzip();
        let theirs = mvm::TemplateRevision {
            schema_version, vcpus, mem_mib, data_disk_mib, artifact_paths: their_paths, snapshot: their_snapshot,
            revision_hash: revision_hash.clone(), flake_ref: flake_ref.clone(),
            flake_lock_hash: flake_lock_hash.clone(), built_at: built_at.clone(),
            profile: profile.clone(), role: role.clone(),
        };
        let ours = TemplateRevision {
            schema_version, vcpus, mem_mib, data_disk_mib, artifact_paths: our_paths, snapshot: our_snapshot,
            revision_hash, flake_ref, flake_lock_hash, built_at, profile, role, extra: Extra::new(),
        };
        (ours, theirs)
    }
}

prop_compose! {
    fn spec()(
        schema_version in any::<u32>(),
        [template_id, flake_ref, profile, role] in [text(), text(), text(), text()],
        (created_at, updated_at) in (text(), text()),
        (vcpus, mem_mib, data_disk_mib) in any::<(u8, u32, u32)>(),
    ) -> (TemplateSpec, mvm::TemplateSpec) {
        let theirs = mvm::TemplateSpec {
            schema_version, vcpus, mem_mib, data_disk_mib,
            template_id: template_id.clone(), flake_ref: flake_ref.clone(), profile: profile.clone(),
            role: role.clone(), created_at: created_at.clone(), updated_at: updated_at.clone(),
        };
        let ours = TemplateSpec {
            schema_version, vcpus, mem_mib, data_disk_mib,
            template_id, flake_ref, profile, role, created_at, updated_at, extra: Extra::new(),
        };
        (ours, theirs)
    }
}

prop_compose! {
    fn variant()(
        (name, role, profile) in (text(), text(), text()),
        (vcpus, mem_mib, data_disk_mib) in any::<(u8, u32, u32)>(),
    ) -> (TemplateVariant, mvm::TemplateVariant) {
        let theirs = mvm::TemplateVariant {
            name: name.clone(), role: role.clone(), profile: profile.clone(), vcpus, mem_mib, data_disk_mib,
        };
        (TemplateVariant { name, role, profile, vcpus, mem_mib, data_disk_mib }, theirs)
    }
}

prop_compose! {
    fn config()(
        (template_id, flake_ref, profile) in (text(), text(), text()),
        variants in prop::collection::vec(variant(), 0..4),
    ) -> (TemplateConfig, mvm::TemplateConfig) {
        let (ours, theirs): (Vec<_>, Vec<_>) = variants.into_iter().unzip();
        let theirs = mvm::TemplateConfig {
            template_id: template_id.clone(), flake_ref: flake_ref.clone(), profile: profile.clone(), variants: theirs,
        };
        (TemplateConfig { template_id, flake_ref, profile, variants: ours }, theirs)
    }
}

/// A valid configuration as a user writes it, with or without each optional line.
fn config_toml() -> impl Strategy<Value = String> {
    let line = |name: &'static str, value: BoxedStrategy<String>| {
        option::of(value).prop_map(move |value| value.map_or(String::new(), |value| format!("{name} = {value}\n")))
    };
    let word = || "[a-z]{1,8}".prop_map(|word: String| format!("{word:?}")).boxed();
    let optional = (
        any::<bool>(),
        line("profile", word()),
        line("data_disk_mib", any::<u16>().prop_map(|n| n.to_string()).boxed()),
    );
    let variant = (optional, "[a-z]{1,8}", 1..=u8::MAX, 1..=u32::MAX);
    prop::collection::vec(variant, 1..4).prop_map(|variants| {
        let mut text = "template_id = \"base\"\nflake_ref = \".\"\n".to_owned();
        for (n, ((named, profile, disk), role, vcpus, mem)) in variants.into_iter().enumerate() {
            let name = if named { format!("name = \"own-{n}\"\n") } else { String::new() };
            text += &format!(
                "[[variants]]\n{name}{profile}{disk}role = \"{role}-{n}\"\nvcpus = {vcpus}\nmem_mib = {mem}\n"
            );
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_snapshot_is_the_same_json_for_both((ours, theirs) in snapshot()) {
        assert_alike(&ours, &theirs);
        assert_alike(&TemplateKind::Snapshot(ours), &mvm::TemplateKind::Snapshot(theirs));
        assert_alike(&TemplateKind::Image, &mvm::TemplateKind::Image);
    }

    #[test]
    fn artifact_paths_and_sizes_are_the_same_json_for_both((ours, theirs) in paths()) {
        assert_alike(&ours, &theirs);
        if let (Some(ours), Some(theirs)) = (&ours.sizes, &theirs.sizes) {
            assert_alike(ours, theirs);
        }
    }

    #[test]
    fn a_revision_is_the_same_json_for_both_and_has_the_same_key((ours, theirs) in revision()) {
        assert_alike(&ours, &theirs);
        prop_assert_eq!(ours.cache_key(), theirs.cache_key());
        let kind = match theirs.snapshot {
            Some(snapshot) => mvm::TemplateKind::Snapshot(snapshot),
            None => mvm::TemplateKind::Image,
        };
        assert_alike(&ours.kind(), &kind);
    }

    #[test]
    fn the_key_of_valid_parts_is_the_key_of_the_revision(
        (mut ours, mut theirs) in revision(), hash in profile(), profile in profile(), role in profile(),
    ) {
        (ours.flake_lock_hash, ours.profile, ours.role) = (hash.clone(), profile.clone(), role.clone());
        (theirs.flake_lock_hash, theirs.profile, theirs.role) = (hash.clone(), profile.clone(), role.clone());
        let parts: (FlakeLockHash, Profile, Role) = (id(&hash), id(&profile), id(&role));
        let key = CacheKey::new(&parts.0, &parts.1, &parts.2).to_hex();
        prop_assert_eq!(&key, &theirs.cache_key());
        prop_assert_eq!(&key, &ours.cache_key());
    }

    #[test]
    fn a_template_is_the_same_json_for_both((ours, theirs) in spec()) {
        assert_alike(&ours, &theirs);
    }

    #[test]
    fn a_configuration_is_the_same_json_and_toml_for_both((ours, theirs) in config()) {
        assert_alike(&ours, &theirs);
        let (our_toml, their_toml) = (toml::to_string(&ours).unwrap(), toml::to_string(&theirs).unwrap());
        prop_assert_eq!(json_of(&toml::from_str::<mvm::TemplateConfig>(&our_toml).unwrap()), json_of(&theirs));
        prop_assert_eq!(json_of(&toml::from_str::<TemplateConfig>(&their_toml).unwrap()), json_of(&ours));
    }

    #[test]
    fn what_a_configuration_leaves_out_is_what_mvm_takes(text in config_toml()) {
        let theirs: mvm::TemplateConfig = toml::from_str(&text).unwrap();
        let ours = TemplateConfig::from_toml(&text).unwrap();
        prop_assert_eq!(json_of(&ours), json_of(&theirs));
        for (variant, spec) in theirs.variants.iter().zip(ours.specs("now").unwrap()) {
            let id = if variant.name.is_empty() { format!("base-{}", variant.role) } else { variant.name.clone() };
            prop_assert_eq!(spec.template_id, id);
        }
    }

    #[test]
    fn unknown_fields_survive_at_every_level(
        (revision, _) in revision(), (spec, _) in spec(),
        at in prop::sample::subsequence(vec!["", "/artifact_paths", "/artifact_paths/sizes", "/snapshot"], 1..=4),
        value in prop_oneof![Just(json!(null)), Just(json!({"a": [1, {"b": "c"}]})), text().prop_map(Value::from)],
    ) {
        let mut written = json_of(&revision);
        for level in at {
            if let Some(object) = written.pointer_mut(level).and_then(Value::as_object_mut) {
                object.insert("of_a_newer_program".into(), value.clone());
            }
        }
        let read: TemplateRevision = serde_json::from_value(written.clone()).unwrap();
        prop_assert_eq!(json_of(&read), written.clone(), "a revision");
        let read: RevisionRecord = serde_json::from_value(written.clone()).unwrap();
        prop_assert_eq!(json_of(&read), written, "a record without our fields");

        let mut written = json_of(&spec);
        written["of_a_newer_program"] = value;
        let read: TemplateSpec = serde_json::from_value(written.clone()).unwrap();
        prop_assert_eq!(json_of(&read), written, "a template");
    }
}

#[test]
fn a_document_without_a_schema_version_has_version_1() {
    let spec = json!({
        "template_id": "web", "flake_ref": ".", "profile": "minimal", "role": "worker", "vcpus": 1,
        "mem_mib": 128, "data_disk_mib": 0, "created_at": "", "updated_at": "",
    });
    let ours = TemplateSpec::from_json(spec.to_string().as_bytes()).unwrap();
    let theirs: mvm::TemplateSpec = serde_json::from_value(spec).unwrap();
    assert_eq!((ours.schema_version, json_of(&ours)), (1, json_of(&theirs)));

    let revision = json!({
        "revision_hash": "r1", "flake_ref": ".", "flake_lock_hash": "l", "built_at": "", "profile": "minimal",
        "artifact_paths": { "vmlinux": "vmlinux", "rootfs": "rootfs.ext4", "fc_base_config": "fc-base.json" },
        "role": "worker", "vcpus": 1, "mem_mib": 128, "data_disk_mib": 0,
    });
    let ours = RevisionRecord::from_json(revision.to_string().as_bytes()).unwrap();
    let theirs: mvm::TemplateRevision = serde_json::from_value(revision).unwrap();
    assert_eq!((ours.build.schema_version, json_of(&ours)), (1, json_of(&theirs)));
}

#[test]
fn mvm_reads_what_the_store_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_or_init(dir.path().join("store").to_str().unwrap()).unwrap();
    let inputs = BuildInputs::new(id("lock"), id("minimal"), id("worker"));
    let Build::Draft(draft) = store.build(&id("web"), &inputs).unwrap() else { panic!("an empty store has no build") };
    std::fs::write(draft.path().join("vmlinux"), [1; 128 << 10]).unwrap();
    std::fs::write(draft.path().join("rootfs.ext4"), [2; 256 << 10]).unwrap();
    std::fs::write(draft.path().join("fc-base.json"), "{}").unwrap();
    let revision = draft.seal().unwrap().publish().unwrap();

    let bytes = std::fs::read(store.layout().revision_json(&id("web"), revision.id())).unwrap();
    let theirs: mvm::TemplateRevision = serde_json::from_slice(&bytes).expect("mvm reads the whole revision.json");
    assert_eq!(theirs.cache_key(), revision.cache_key().unwrap().to_hex());
    assert_eq!(theirs.revision_hash, revision.id().as_str());
    assert_eq!(json_of(&theirs), json_of(revision.build()), "mvm's part of the record is mvm's record");
    let sizes = theirs.artifact_paths.sizes.unwrap();
    assert_eq!((sizes.vmlinux_bytes, sizes.rootfs_bytes), (128 << 10, 256 << 10));

    let bytes = std::fs::read(store.layout().template_json(&id("web"))).unwrap();
    let theirs: mvm::TemplateSpec = serde_json::from_slice(&bytes).expect("mvm reads template.json");
    assert_eq!(json_of(&theirs), json_of(&store.template(&id("web")).unwrap()));
}

#[test]
fn everything_lies_where_mvm_looks_for_it() {
    let layout = Layout::new(mvm_core::config::mvm_data_dir());
    let (web, r1) = (id("web"), id("r1"));
    assert_eq!(layout.templates(), mvm::templates_base_dir());
    assert_eq!(layout.template(&web), mvm::template_dir("web"));
    assert_eq!(layout.template_json(&web), mvm::template_spec_path("web"));
    assert_eq!(layout.artifacts(&web), mvm::template_artifacts_dir("web"));
    assert_eq!(layout.revision(&web, &r1), mvm::template_revision_dir("web", "r1"));
    assert_eq!(layout.current(&web), mvm::template_current_symlink("web"));
    assert_eq!(layout.snapshot(&web, &r1), mvm::template_snapshot_dir("web", "r1"));
}
