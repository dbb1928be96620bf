//! Names, keys and documents: any bytes give a value or an error, never a panic, and what was a value stays it.

use std::fmt::{Debug, Display};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::str::FromStr;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};
use template_store::{
    ArtifactPath, BuildInputs, CacheKey, Digest, ErrorKind, FlakeLockHash, Import, ImportOptions, Profile, RevisionId,
    RevisionRecord, Role, TemplateConfig, TemplateId, TemplateSpec,
};

use crate::support::{
    Place, assert_error, build, bytes, draft, flake_lock, fresh_quick, id, image, inputs, remembered,
};

/// A name that parses prints as it was written; the JSON of both kinds is the text, and checks it too.
fn assert_round_trip<T>(text: &str) -> bool
where
    T: FromStr<Err: Display> + Display + Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    let json = serde_json::to_string(text).unwrap();
    match text.parse::<T>() {
        Ok(value) => {
            assert_eq!(value.to_string(), text);
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<T>(&json).unwrap(), value);
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("use "), "the error says what a valid one looks like: {error}");
            assert!(serde_json::from_str::<T>(&json).is_err(), "JSON is no way around the check");
            false
        }
    }
}

/// Texts that are near the border between valid and not.
fn near() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[a-z0-9]{1,70}",
        "[A-Za-z0-9._+-]{0,3}",
        Just("/".to_owned()),
        Just("..".to_owned()),
        Just("revisions".to_owned()),
        Just(":".to_owned()),
        Just("\0".to_owned()),
        any::<String>(),
    ];
    prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat())
}

fn valid_json_bits() -> impl Strategy<Value = Vec<u8>> {
    let base =
        br#"{"schema_version":1,"template_id":"a","revision_hash":"a","flake_ref":".","profile":"p","role":"r"}"#;
    (prop::collection::vec((0..base.len(), any::<u8>()), 0..6), 0..base.len()).prop_map(|(changes, cut)| {
        let mut bytes = base.to_vec();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.split_off(cut)
    })
}

proptest! {
    #![proptest_config(remembered("proptest-regressions/identity.txt"))]

    #[test]
    fn any_text_is_a_name_or_an_error(text in near()) {
        assert_round_trip::<TemplateId>(&text);
        assert_round_trip::<RevisionId>(&text);
        assert_round_trip::<Profile>(&text);
        assert_round_trip::<Role>(&text);
        assert_round_trip::<FlakeLockHash>(&text);
        assert_round_trip::<ArtifactPath>(&text);
        assert_round_trip::<CacheKey>(&text);
        assert_round_trip::<Digest>(&text);
    }

    #[test]
    fn every_valid_name_is_taken(
        template in "[a-z0-9][a-z0-9_-]{0,62}", revision in "[A-Za-z0-9_+][A-Za-z0-9._+-]{0,127}",
        hex in "[0-9a-f]{64}", label in "[^:\\p{C}]{1,30}", path in "[a-z]{1,9}(/[a-z0-9._-]{0,9}[a-z]){0,5}",
    ) {
        prop_assert!(assert_round_trip::<TemplateId>(&template));
        prop_assert!(assert_round_trip::<RevisionId>(&revision) || revision == "revisions");
        prop_assert!(assert_round_trip::<Digest>(&hex) && assert_round_trip::<CacheKey>(&hex));
        prop_assert!(assert_round_trip::<Profile>(&label) && assert_round_trip::<Role>(&label));
        prop_assert!(assert_round_trip::<ArtifactPath>(&path) || path.split('/').next() == Some("snapshot"));
    }

    /// Whatever a name is used for, it stays in its directory.
    #[test]
    fn no_valid_name_leaves_its_directory(text in near()) {
        for part in text.parse::<TemplateId>().iter().map(TemplateId::as_str)
            .chain(text.parse::<RevisionId>().iter().map(RevisionId::as_str))
        {
            prop_assert!(!part.contains(['/', '\0']) && part != "." && part != "..", "{}", part);
        }
        for path in text.parse::<ArtifactPath>().iter() {
            prop_assert!(path.as_path().is_relative() && path.as_path().components().all(|part| part.as_str() != ".."));
        }
    }

    #[test]
    fn any_bytes_are_a_document_or_an_error(bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), valid_json_bits()]) {
        let _ = TemplateSpec::from_json(&bytes);
        let _ = RevisionRecord::from_json(&bytes);
        let _ = TemplateConfig::from_toml(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_text_is_a_configuration_or_an_error(
        lines in prop::collection::vec(prop_oneof![
            Just("flake_ref = \".\"".to_owned()), Just("[[variants]]".to_owned()), Just("variants = 7".to_owned()),
            Just("role = \"a\"".to_owned()), Just("vcpus = 2".to_owned()), Just("mem_mib = 1".to_owned()), any::<String>(),
        ], 0..9),
    ) {
        let _ = TemplateConfig::specs_from_toml(&lines.join("\n"), "2026-01-01T00:00:00Z");
    }

    #[test]
    fn any_bytes_are_a_lock_file_or_an_error(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200), valid_json_bits(),
        any::<String>().prop_map(|name| flake_lock(&name).into_bytes()),
    ]) {
        let place = Place::new();
        let lock = place.join("flake.lock");
        fs::write(&lock, &bytes).unwrap();
        match BuildInputs::from_flake_lock(&lock, "minimal", "worker") {
            Ok(inputs) => prop_assert_eq!(inputs.flake_lock_hash().as_str(), hex_sha256(&bytes)),
            Err(error) => prop_assert!(error.to_string().contains(lock.as_str()), "{}", error),
        }
    }
}

fn hex_sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn names_at_their_limits_are_taken_and_one_more_byte_is_not() {
    let many = |count| "a".repeat(count);
    for (longest, takes) in [
        (63, (|text| text.parse::<TemplateId>().is_ok()) as fn(&str) -> bool),
        (128, |text| text.parse::<RevisionId>().is_ok()),
        (128, |text| text.parse::<Profile>().is_ok()),
        (128, |text| text.parse::<Role>().is_ok()),
        (256, |text| text.parse::<FlakeLockHash>().is_ok()),
        (255, |text| text.parse::<ArtifactPath>().is_ok()),
        (1024, |text| format!("{}{}", "d/".repeat(400), &text[..text.len() - 800]).parse::<ArtifactPath>().is_ok()),
    ] {
        assert!(takes(&many(longest)), "{longest} bytes are taken");
        assert!(!takes(&many(longest + 1)), "{} bytes are too many", longest + 1);
    }
}

#[test]
fn a_mistake_in_a_toml_file_is_shown_with_its_line() {
    let good =
        "template_id = \"web\"\nflake_ref = \".\"\n\n[[variants]]\nrole = \"worker\"\nvcpus = 2\nmem_mib = 512\n";
    let read = |text: &str| TemplateConfig::specs_from_toml(text, "2026-01-01T00:00:00Z");
    assert!(read(good).is_ok(), "without a mistake, it is taken");
    for (right, wrong, line) in [
        ("vcpus = 2", "vcpus = \"two\"", "line 6"),
        ("vcpus = 2", "vcpus = 256", "line 6"),
        ("mem_mib = 512", "mem_mib = -1", "line 7"),
        ("flake_ref = \".\"", "flake_ref = ", "line 2"),
        ("[[variants]]", "[[variants]", "line 4"),
        ("vcpus = 2\n", "", "line 4"),
        // The line on which the variant begins.
        ("\"worker\"", "\"a:b\"", "line 4: "),
    ] {
        let error = read(&good.replace(right, wrong)).unwrap_err().to_string();
        assert!(error.contains(line), "{wrong:?}: {line} is not in {error}");
        assert!(wrong != "\"a:b\"" || error.contains("a:b"), "the name is not in {error}");
    }
}

#[test]
fn a_silent_variant_takes_the_profile_of_its_file() {
    let text = "template_id = \"web\"\nflake_ref = \".\"\nprofile = \"full\"\n\
                [[variants]]\nrole = \"a\"\nvcpus = 1\nmem_mib = 1\n\
                [[variants]]\nrole = \"b\"\nprofile = \"minimal\"\nname = \"own\"\nvcpus = 1\nmem_mib = 1\n";
    let specs = TemplateConfig::specs_from_toml(text, "now").unwrap();
    let named: Vec<_> = specs.iter().map(|spec| (spec.template_id.as_str(), spec.profile.as_str())).collect();
    assert_eq!(named, [("web-a", "full"), ("own", "minimal")]);
}

#[test]
fn a_real_lock_file_is_hashed_as_it_is() {
    let place = Place::new();
    let lock = place.lock("real");
    let inputs = BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap();
    let hash = hex_sha256(&fs::read(&lock).unwrap());
    assert_eq!(inputs.flake_lock_hash().as_str(), hash);
    assert_eq!(inputs.key().to_hex(), hex_sha256(format!("{hash}:minimal:worker").as_bytes()));
    assert_eq!((inputs.source_hash(), inputs.flake_ref()), (None, None));
}

#[test]
fn what_is_no_lock_file_is_refused_with_the_reason() {
    let place = Place::new();
    let lock = place.join("flake.lock");
    for (text, reason) in [
        ("", "JSON"),
        ("nodes: yes", "JSON"),
        (r#"{"nodes":{"#, "JSON"),
        (r#"{"nodes":{}}"#, "`version`"),
        (r#"{"version":"seven","nodes":{}}"#, "`version`"),
        (r#"{"version":7}"#, "`nodes`"),
        (r#"{"version":7,"nodes":[]}"#, "`nodes`"),
        ("[7]", "`version`"),
    ] {
        fs::write(&lock, text).unwrap();
        let read = BuildInputs::from_flake_lock(&lock, "minimal", "worker");
        assert_error(read, ErrorKind::Failed, &[lock.as_str(), "flake.lock", reason]);
    }
    fs::write(&lock, flake_lock("good")).unwrap();
    assert_error(BuildInputs::from_flake_lock(&lock, "mini:mal", "worker"), ErrorKind::Invalid, &["profile", "':'"]);
    assert_error(BuildInputs::from_flake_lock(&lock, "minimal", ""), ErrorKind::Invalid, &["role", "empty"]);
    let missing = BuildInputs::from_flake_lock(place.join("none/flake.lock"), "minimal", "worker");
    assert_error(missing, ErrorKind::Failed, &["none/flake.lock"]);
}

#[test]
fn the_source_hash_is_that_of_the_flake_beside_the_lock_file_or_of_the_tree() {
    let place = Place::new();
    let lock = place.lock("sources");
    let dir = lock.parent().unwrap();
    let source = || BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap().source_hash();
    fs::write(dir.join("flake.nix"), "{ }").unwrap();
    assert_eq!(source(), Some(Digest::of(b"{ }")));
    let inputs = BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap();
    let revision = build(&place.quick_store(), "web", &inputs, "one");
    let read = RevisionRecord::from_json(&fs::read(revision.path().join("revision.json")).unwrap()).unwrap();
    assert_eq!(read.source_hash, source(), "it is recorded");

    let tree = || BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap().with_source_tree(dir).unwrap();
    let mut seen = vec![source(), tree().source_hash()];
    let mut changes_it = |what: &str, change: &dyn Fn()| {
        change();
        let now = tree().source_hash();
        assert!(!seen.contains(&now), "{what} makes other sources");
        seen.push(now);
    };
    let file = dir.join("module.nix");
    changes_it("a new file", &|| fs::write(&file, "1").unwrap());
    changes_it("another text", &|| fs::write(&file, "2").unwrap());
    changes_it("an executable bit", &|| fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap());
    changes_it("another name", &|| fs::rename(&file, dir.join("other.nix")).unwrap());
    changes_it("a link", &|| std::os::unix::fs::symlink("other.nix", dir.join("link")).unwrap());
    changes_it("an empty directory", &|| fs::create_dir(dir.join("empty")).unwrap());
    let before = tree().source_hash();
    fs::create_dir(dir.join(".git")).unwrap();
    fs::write(dir.join(".git/HEAD"), "ref").unwrap();
    assert_eq!(tree().source_hash(), before, "what git notes is no source");
}

#[test]
fn the_id_of_a_revision_follows_from_its_contents_alone() {
    let (place, store) = fresh_quick();
    let names = ["vmlinux", "rootfs.ext4", "fc-base.json", "lib/a", "lib/b", "lib.c", "Z"];
    let build_in = |template: &str, order: &mut dyn Iterator<Item = &&str>| {
        let draft = draft(&store, template, &inputs(template));
        fs::create_dir(draft.path().join("lib")).unwrap();
        order.for_each(|name| fs::write(draft.path().join(name), bytes(name, 1000)).unwrap());
        draft.seal().unwrap().publish().unwrap().id().clone()
    };
    let forwards = build_in("a", &mut names.iter());
    let backwards = build_in("b", &mut names.iter().rev());
    assert_eq!(forwards, backwards, "the order in which files are made does not count");

    let dir = place.join("copy");
    fs::create_dir_all(dir.join("lib")).unwrap();
    names.iter().for_each(|name| fs::write(dir.join(name), bytes(name, 1000)).unwrap());
    let moved = ImportOptions::default().how(Import::Move);
    let published = store.publish_dir_with(&id("c"), &dir, &moved, &mut ()).unwrap();
    assert_eq!(*published.revision.id(), forwards, "nor does the way into the store");

    let other = draft(&store, "d", &inputs("d"));
    image(other.path(), "other");
    assert_ne!(*other.seal().unwrap().publish().unwrap().id(), forwards, "other contents have another id");
}
