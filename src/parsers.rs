//! Every parser of the crate, for those who try them with bytes that nobody wrote in good faith: the fuzz targets
//! (`fuzz/README.md`), and the tests below. It is built for these two alone, and is no part of the API.
//!
//! Each function takes any bytes, and panics when a promise of a parser is broken: what was read reads the same when it
//! is written, and a name leads nowhere but to what it names.

use camino::{Utf8Component, Utf8Path};

use crate::format::*;
use crate::gc::{GcPlan, Policy};
use crate::id::*;
use crate::inputs::check_flake_lock;
use crate::layout::{Layout, revision_of_path, revision_of_target};
use crate::options::Resources;

#[cfg(feature = "remote")]
pub use crate::remote::parsers::{frames, remote};

/// Names of templates, revisions, artifacts, pins, drives; digests; the text of `current`.
pub fn names(text: &str) {
    fn plain(name: impl AsRef<str>, text: &str) {
        assert_eq!(name.as_ref(), text);
        assert!(!text.is_empty() && !text.contains(['/', '\0']) && !matches!(text, "." | ".."), "{text:?}");
        assert!(text.len() <= 250, "{text:?} has room for what is added to it");
    }
    if let Ok(name) = text.parse::<TemplateId>() {
        plain(name, text);
    }
    if let Ok(name) = text.parse::<RevisionId>() {
        plain(name, text);
    }
    if let Ok(name) = text.parse::<PinName>() {
        plain(name, text);
    }
    if let Ok(name) = text.parse::<DriveId>() {
        plain(name, text);
    }
    if let Ok(path) = text.parse::<ArtifactPath>() {
        let parts: Vec<Utf8Component> = path.as_path().components().collect();
        assert!(parts.iter().all(|part| matches!(part, Utf8Component::Normal(_))), "{text:?}");
        let layout = Layout::new("/store");
        let (template, revision) = ("web".parse().expect("a name"), "r".parse().expect("a name"));
        let at = layout.artifact(&template, &revision, &path);
        assert!(at.starts_with(layout.revision(&template, &revision)), "{at}");
        assert!(!path.is_in_snapshot() && path.as_path() != "revision.json", "{at}");
    }
    for keyed in [text.parse::<Profile>().map(String::from), text.parse::<Role>().map(String::from)] {
        assert!(keyed.is_err() || !text.contains(':'), "{text:?} would make two keys one");
    }
    let _ = text.parse::<FlakeLockHash>();
    let hex = [text.parse::<Digest>().map(|digest| digest.to_hex()), text.parse::<CacheKey>().map(|key| key.to_hex())];
    assert!(hex.iter().all(|hex| hex.as_ref().is_ok_and(|hex| hex == text) || hex.is_err()), "{text:?}");
    let named = [revision_of_target(text), revision_of_path(text, |_| true)];
    let ends_so = |revision: RevisionId| text.trim_end_matches('/').ends_with(revision.as_str());
    assert!(named.into_iter().flatten().all(ends_so), "{text:?}");
    let layout = Layout::new("/data/store");
    let _ = layout.instance_at(Utf8Path::new(text));
}

/// All documents that are JSON.
pub fn json(bytes: &[u8]) {
    macro_rules! reads_what_it_writes {
        ($($parser:ty),*) => {$(
            if let Ok(read) = <$parser>::from_json(bytes) {
                let written = read.to_json();
                assert_eq!(<$parser>::from_json(&written).as_ref(), Ok(&read), "{}", stringify!($parser));
            }
        )*};
    }
    reads_what_it_writes!(
        TemplateSpec,
        RevisionRecord,
        SnapshotRecord,
        InstanceRecord,
        StoreFormat,
        KeyEntry,
        DamageMark,
        Attempt,
        LeaseNote
    );
    let name: PinName = "pin".parse().expect("a name");
    if let Ok(pin) = Pin::from_json(&name, bytes) {
        assert_eq!(Pin::from_json(&name, &pin.to_json()), Ok(pin));
    }
    record(bytes);
    configuration(bytes);
    let _ = check_flake_lock(bytes);
}

/// What is read of a record, and what is added to one.
fn record(bytes: &[u8]) {
    let whole = RevisionRecord::from_json(bytes);
    let _ = RevisionSummary::<Vec<ObjectOf>>::from_json(bytes).map(|summary| (summary.objects(), summary.keys()));
    let summary = RevisionSummary::<Sizes>::from_json(bytes);
    if let Ok(record) = &whole {
        let summary = summary.expect("a summary needs less than the whole");
        let sizes = record.contents.iter().flatten().map(|content| content.size);
        assert_eq!(summary.bytes(), sizes.fold(0, u64::saturating_add));
        let keys = summary.keys();
        assert!(record.made_from().all(|made| keys.contains(&made.key())));
        let made = MadeFrom { flake_lock_hash: "h".into(), profile: "p".into(), role: "r".into(), source_hash: None };
        let added = RevisionRecord::add_made_from(bytes, &made).and_then(|bytes| RevisionRecord::from_json(&bytes));
        assert!(added.is_ok_and(|record| record.also_made_from.last() == Some(&made)));
        let without = RevisionRecord::with_snapshot(bytes, None).and_then(|bytes| RevisionRecord::from_json(&bytes));
        assert!(without.is_ok_and(|record| record.build.snapshot.is_none()));
    }
    if let Ok((written, record)) = RevisionRecord::adopted(bytes, &[], jiff::Timestamp::UNIX_EPOCH) {
        assert_eq!(RevisionRecord::from_json(&written).as_ref(), Ok(&record));
    }
}

/// A Firecracker configuration: no path of an instance leads out of it, but for those that are absolute.
fn configuration(bytes: &[u8]) {
    let _ = boot_args(bytes);
    let _ = vm_drives(bytes, 1, |path| path == "usr.img");
    if let Ok(with) = with_machine(bytes, 1, 128) {
        assert_eq!(with_machine(&with, 1, 128).as_ref(), Ok(&with));
    }
    let artifacts = ["vmlinux", "rootfs.ext4", "usr.img"].map(|name| name.parse().expect("a name")).into();
    let parts = InstanceParts {
        dir: Utf8Path::new("/vms/1"),
        vmlinux: "vmlinux",
        rootfs: "rootfs.ext4",
        initrd: None,
        artifacts: &artifacts,
        resources: Resources { vcpus: 1, mem_mib: 128, data_disk_mib: 64 },
    };
    if let Ok(config) = for_instance(bytes, &parts) {
        assert!(config.writable.is_subset(&artifacts));
        assert!(config.data_disk.iter().all(|disk| !artifacts.contains(disk)), "{:?}", config.data_disk);
        let outside = |path: &Utf8Path| path.is_absolute();
        assert!(config.of_host.iter().all(|(_, path)| outside(path)), "{:?}", config.of_host);
    }
}

/// A log; what a rollback goes back to is what a plain search finds.
pub fn activations(bytes: &[u8]) {
    let all = ActivationLog::parse(bytes, Some(""));
    let first = all.entries.first().map(|entry| entry.revision.to_string());
    for current in [None, Some(""), first.as_deref()] {
        let log = ActivationLog::parse(bytes, current);
        assert!(log.len <= bytes.len() as u64);
        let half = bytes.len() / 2;
        let before = bytes[..half].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let end = LogEnd::in_last_lines(before as u64, &bytes[before..], current);
        assert!(end.is_none_or(|end| end == log.clone().into()));
        let mut plain: Vec<&RevisionId> = Vec::new();
        for entry in log.entries.iter().take(1000) {
            let below = || plain.iter().rposition(|&revision| *revision == entry.revision);
            match (entry.action == Action::Rollback).then(below).flatten() {
                Some(at) => plain.truncate(at + 1),
                None if plain.last() == Some(&&entry.revision) => {}
                None => plain.push(&entry.revision),
            }
        }
        assert!(log.entries.len() > 1000 || log.stack() == plain);
        let again: Vec<u8> = log.entries.iter().flat_map(Activation::to_line).collect();
        assert_eq!(ActivationLog::parse(&again, current).entries, log.entries);
    }
    assert!(ActivationLog::unreadable_lines(bytes) <= bytes.len());
}

/// Template files and the policy of collections.
pub fn toml(text: &str) {
    if let Ok(specs) = TemplateConfig::specs_from_toml(text, "2026-01-01T00:00:00Z") {
        assert!(!specs.is_empty() && specs.iter().all(|spec| spec.template_id.parse::<TemplateId>().is_ok()));
    }
    let _ = Policy::from_toml(text);
}

/// Saved plans.
pub fn plan(bytes: &[u8]) {
    if let Ok(plan) = GcPlan::from_json(bytes) {
        let saved = serde_json::json!({ "dry_run": true, "plan": plan });
        assert_eq!(GcPlan::from_json(saved.to_string().as_bytes()).as_ref(), Ok(&plan));
    }
}

/// The catalog of a store, as it is, and with a last line that fits it.
pub fn catalog(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    let whole = [bytes, format!("{{\"blake3\":\"{digest}\"}}\n").as_bytes()].concat();
    for bytes in [bytes, &whole] {
        let Ok(read) = catalog_from_bytes(bytes) else { continue };
        let mut writer = CatalogWriter::new();
        read.iter().for_each(|(template, lines)| writer.add(template, lines));
        assert_eq!(catalog_from_bytes(&writer.finish()).as_ref(), Ok(&read));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use proptest::strategy::Strategy;

    use super::*;

    const DIGEST: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    /// Documents that are in order, one of each kind.
    fn documents() -> Vec<String> {
        let list = format!(
            r#"[{{"path":"rootfs.ext4","size":70000,"blake3":"{DIGEST}"}},{{"path":"lib/a","size":1,"blake3":"{DIGEST}"}}]"#
        );
        let snapshot =
            r#""created_at":"t","vmstate_size_bytes":1,"mem_size_bytes":1,"boot_args":"","vcpus":1,"mem_mib":1"#;
        let files = format!(
            r#"[{{"path":"mem.bin","size":1,"blake3":"{DIGEST}"}},{{"path":"vmstate.bin","size":1,"blake3":"{DIGEST}"}}]"#
        );
        let at = "2026-01-01T00:00:00Z";
        [
            r#"{"template_id":"web","flake_ref":".","profile":"minimal","role":"worker","vcpus":1,"mem_mib":1,"data_disk_mib":0,"created_at":"","updated_at":"","later":[1,{"a":null}]}"#.into(),
            format!(r#"{{"schema_version":1,"revision_hash":"r","flake_ref":".","flake_lock_hash":"l","artifact_paths":{{"vmlinux":"vmlinux","rootfs":"rootfs.ext4","fc_base_config":"fc-base.json","sizes":{{"vmlinux_bytes":1}}}},"built_at":"","profile":"minimal","role":"worker","vcpus":1,"mem_mib":128,"data_disk_mib":0,"snapshot":{{{snapshot}}},"contents":{list},"published_at":"{at}","build_seconds":1.5,"also_made_from":[{{"flake_lock_hash":"x","profile":"p","role":"r"}}],"reused_from":{{"template":"web","revision":"r"}}}}"#),
            format!(r#"{{"schema_version":1,"vmm":"firecracker",{snapshot},"contents":{files},"drives":[]}}"#),
            format!(r#"{{"format_version":1,"features":[],"durability":"full","created_at":"{at}"}}"#),
            format!(r#"{{"key":"{DIGEST}","revisions":[{{"template":"web","revision":"r"}}]}}"#),
            format!(r#"{{"found_at":"{at}","problems":[{{"path":"x","problem":"y"}}]}}"#),
            format!(r#"{{"template":"web","pid":1,"command":"x","started_at":"{at}","draft":"d","outcome":{{"published":"r"}}}}"#),
            format!(r#"{{"pid":1,"command":"x","purpose":"y","start_time":1,"boot_id":"b","pid_namespace":"p","since":"{at}"}}"#),
            format!(r#"{{"template":"web","revision":"r","created_at":"{at}","until":"{at}","reason":"x"}}"#),
            r#"{"boot-source":{"boot_args":"quiet"},"drives":[{"drive_id":"usr","path_on_host":"./usr.img","is_root_device":false}],"pmem":[{"id":"a","path_on_host":"x"}],"vsock":{"uds_path":"v"}}"#.into(),
            r#"{"version":7,"root":"root","nodes":{"root":{}}}"#.into(),
            format!("{{\"revision\":\"a\",\"at\":\"{at}\",\"action\":\"publish\"}}\n{{\"revision\":\"b\",\"at\":\"{at}\",\"action\":\"publish\"}}\n{{\"revision\":\"a\",\"at\":\"{at}\",\"action\":\"rollback\"}}\n"),
            "template_id = 'web'\nflake_ref = '.'\n[[variants]]\nrole = 'a'\nvcpus = 1\nmem_mib = 1\n".into(),
            "[gc]\nkeep_last = 5\nmax_size = \"200GiB\"\nkeep_within = '14d'\n[gc.template.web]\nkeep_last = 10\n".into(),
            format!(r#"{{"dry_run":true,"plan":{{"now":"{at}","policy":{{"keep_last":3,"adopted":"keep"}},"revisions":[{{"template":"web","revision":"r","verdict":"kept","reasons":[{{"reason":"current"}}],"published_at":null,"inode":7,"frees_alone":null,"frees_together":null,"held_by_instances":0}}],"leftovers":[{{"kind":"draft","path":".store/drafts/x","frees":1}}],"frees":0,"bound":"exact","unmet":[]}}}}"#),
            format!("{{\"catalog\":1}}\n{{\"template\":\"web\",\"revisions\":1}}\n{{\"revision\":\"r\",\"inode\":7,\"changed\":[1,2],\"published_at\":\"{at}\",\"adopted_at\":null,\"build_seconds\":1.5,\"keys\":[\"{DIGEST}\"],\"built_at\":\"\",\"bytes\":1}}\n"),
        ]
        .into()
    }

    /// The same as bytes, and what a remote sends.
    fn inputs() -> Vec<Vec<u8>> {
        let own = documents().into_iter().map(String::into_bytes);
        #[cfg(feature = "remote")]
        let own = own.chain(crate::remote::parsers::examples());
        own.collect()
    }

    /// What somebody does to a document.
    #[derive(Debug, Clone)]
    enum Change {
        Flip(Index, u8),
        Cut(Index),
        Again(Index, Index, Index),
        Put(Index, Vec<u8>),
        Instead(Index, Index, Vec<u8>),
    }

    impl Change {
        fn apply(&self, bytes: &mut Vec<u8>) {
            if bytes.is_empty() {
                return;
            }
            let len = bytes.len();
            match self {
                Change::Flip(at, bit) => bytes[at.index(len)] ^= 1 << (bit % 8),
                Change::Cut(at) => bytes.truncate(at.index(len)),
                Change::Again(from, to, at) => {
                    let (from, to) = (from.index(len), to.index(len));
                    let part = bytes[from.min(to)..from.max(to)].to_vec();
                    bytes.splice(at.index(len)..at.index(len), part);
                }
                Change::Put(at, part) => drop(bytes.splice(at.index(len)..at.index(len), part.iter().copied())),
                Change::Instead(from, len_of, part) => {
                    let from = from.index(len);
                    let to = (from + len_of.index(24)).min(len);
                    bytes.splice(from..to, part.iter().copied());
                }
            }
        }
    }

    fn part() -> impl Strategy<Value = Vec<u8>> {
        let known = [
            "..",
            "../",
            "/",
            "\\u0000",
            "\\ud800",
            "1e400",
            "-1",
            "18446744073709551616",
            "18446744073709551615",
            "null",
            "[[[[",
            "{\"a\":",
            "\"\"",
            "\u{feff}",
            "\u{1b}[2J",
            ".store",
            "9999-12-31T23:59:59.999999999Z",
            "\n",
            "''",
            "=",
        ];
        let known = select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec());
        prop_oneof![known, vec(any::<u8>(), 0..8)]
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Change::Flip(at, bit)),
            any::<Index>().prop_map(Change::Cut),
            (any::<Index>(), any::<Index>(), any::<Index>()).prop_map(|(from, to, at)| Change::Again(from, to, at)),
            (any::<Index>(), part()).prop_map(|(at, part)| Change::Put(at, part)),
            (any::<Index>(), any::<Index>(), part()).prop_map(|(from, len, part)| Change::Instead(from, len, part)),
        ]
    }

    /// All parsers: a document of one kind may come where another is expected.
    fn all(bytes: &[u8]) {
        json(bytes);
        activations(bytes);
        plan(bytes);
        catalog(bytes);
        #[cfg(feature = "remote")]
        {
            remote(bytes);
            frames(bytes);
        }
        let text = String::from_utf8_lossy(bytes);
        names(&text);
        toml(&text);
    }

    fn config() -> ProptestConfig {
        let failures = proptest::test_runner::FileFailurePersistence::Direct("proptest-regressions/parsers.txt");
        ProptestConfig { cases: 1000, failure_persistence: Some(Box::new(failures)), ..ProptestConfig::default() }
    }

    proptest! {
        #![proptest_config(config())]

        #[test]
        fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..600)) {
            all(&bytes);
        }

        #[test]
        fn any_text_is_a_name_or_none(text in prop_oneof![".{0,300}", "[a-z0-9./_:+-]{0,20}", "(\\.|/|a|-){0,6}"]) {
            names(&text);
        }

        #[test]
        fn whatever_is_done_to_a_document_it_is_read_or_refused(
            document in select(inputs()),
            changes in vec(change(), 0..5),
        ) {
            let mut bytes = document;
            changes.iter().for_each(|change| change.apply(&mut bytes));
            all(&bytes);
        }
    }

    #[test]
    fn what_is_changed_was_in_order() {
        let documents = documents();
        let json: Vec<&[u8]> = documents.iter().map(String::as_bytes).collect();
        assert!(TemplateSpec::from_json(json[0]).is_ok() && RevisionRecord::from_json(json[1]).is_ok());
        assert!(SnapshotRecord::from_json(json[2]).is_ok() && StoreFormat::from_json(json[3]).is_ok());
        assert!(KeyEntry::from_json(json[4]).is_ok() && DamageMark::from_json(json[5]).is_ok());
        assert!(Attempt::from_json(json[6]).is_ok() && LeaseNote::from_json(json[7]).is_ok());
        assert!(Pin::from_json(&"pin".parse().unwrap(), json[8]).is_ok());
        assert_eq!(vm_drives(json[9], 0, |_| true).unwrap().len(), 3);
        assert_eq!(check_flake_lock(json[10]), Ok(()));
        assert_eq!(ActivationLog::parse(json[11], Some("a")).entries.len(), 3);
        assert!(
            TemplateConfig::specs_from_toml(&documents[12], "").is_ok() && Policy::from_toml(&documents[13]).is_ok()
        );
        GcPlan::from_json(json[14]).unwrap();
        let catalog = [json[15], format!("{{\"blake3\":\"{}\"}}\n", Digest::of(json[15])).as_bytes()].concat();
        assert_eq!(catalog_from_bytes(&catalog).unwrap()[0].1.len(), 1);
        inputs().iter().for_each(|document| all(document));
    }
}
