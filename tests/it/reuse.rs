//! What was built from the same inputs is not built again, by whichever template it was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{
    Action, Activate, Build, BuildInputs, BuildOptions, Known, Match, Note, PublishOptions, Removal, Resources,
    Revision, RevisionId, SealOptions, Store, StoreOptions, TemplateSpec,
};

use crate::support::{
    Heard, Place, assert_clean, assert_right, build, draft, draft_with, flip, fresh, id, image, inode, inputs, listing,
    reused, reused_with, template,
};

/// Remembers every change that a store makes to the disk.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Vec<Op>>);

impl Watch {
    pub fn seen(&self) -> Vec<Op> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Watch {
    fn before(&self, op: &Op) -> Verdict {
        self.0.lock().unwrap().push(op.clone());
        Verdict::Proceed
    }
}

fn files_of(revision: &Revision) -> Vec<(String, u64, u64)> {
    let of = |content: &template_store::Content| {
        let metadata = fs::metadata(revision.artifact(&content.path)).unwrap();
        (content.path.to_string(), metadata.ino(), metadata.blocks())
    };
    revision.contents().iter().map(of).collect()
}

/// Makes a template with resources of its own.
fn create(store: &Store, name: &str, vcpus: u8, mem_mib: u32) {
    let mut spec = TemplateSpec::new(&id(name), ".", &id("minimal"), &id("worker"), "2026-01-01T00:00:00Z");
    (spec.vcpus, spec.mem_mib) = (vcpus, mem_mib);
    store.create(&spec).unwrap();
}

fn record(revision: &Revision) -> Utf8PathBuf {
    revision.path().join("revision.json")
}

fn config(revision: &Revision) -> Value {
    serde_json::from_slice(&fs::read(revision.fc_base_config()).unwrap()).unwrap()
}

#[test]
fn another_template_gets_links_to_the_files() {
    let (place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");

    let watch = Arc::new(Watch::default());
    let watched = Store::open_with(place.root(), &StoreOptions::default().observer(watch.clone())).unwrap();
    let second = reused(&watched, "db", &inputs("a"));
    assert_eq!(files_of(&second), files_of(&first), "all files are the same inodes");
    assert_eq!(second.id(), first.id(), "the same contents have the same id");
    assert_right(&second);
    let origin = second.record().reused_from.as_ref().expect("it says where it is from");
    assert_eq!((&origin.template, &origin.revision), (first.template(), first.id()));
    assert_eq!(store.current(&id("db")).unwrap().id(), second.id());
    assert_eq!(store.history(&id("db")).unwrap()[0].action, Action::Reuse);
    assert_clean(store.layout());

    let is_large = |path: &Utf8Path| path.as_str().contains("rootfs") || path.as_str().contains("vmlinux");
    let touches_data = |op: &&Op| match op {
        Op::Clone { .. } => true,
        Op::Write { path, len } => *len > 8192 || is_large(path),
        Op::Fsync { path } => is_large(path),
        _ => false,
    };
    assert_eq!(watch.seen().iter().find(touches_data), None, "no data is written or synced");

    flip(&first.rootfs(), 70_000, true);
    let third = reused(&store, "cache", &inputs("a"));
    assert_eq!(inode(third.rootfs()), inode(first.rootfs()), "nor read: nobody saw that the bytes are others now");
}

#[test]
fn a_template_with_other_resources_gets_its_own_machine_configuration() {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    create(&store, "big", 8, 16384);
    let big = reused(&store, "big", &inputs("a"));
    assert_right(&big);
    assert_eq!((inode(big.kernel()), inode(big.rootfs())), (inode(first.kernel()), inode(first.rootfs())));
    assert_ne!(inode(big.fc_base_config()), inode(first.fc_base_config()));
    assert_eq!(config(&big)["machine-config"], json!({"vcpu_count": 8, "mem_size_mib": 16384}));
    assert_eq!(config(&big)["boot-source"], config(&first)["boot-source"], "all else is as it was");
    assert_eq!((big.build().vcpus, big.build().mem_mib), (8, 16384));
    assert_right(&first);
    assert_eq!(config(&first)["machine-config"]["vcpu_count"], 2, "the first template has what it had");

    let before = listing(store.layout().root());
    for known in [&big, &first] {
        let again = reused(&store, known.template().as_str(), &inputs("a"));
        assert_eq!((again.id(), again.path()), (known.id(), known.path()), "its own revision is found");
    }
    assert_eq!(listing(store.layout().root()), before, "and nothing is made any more");

    let options = BuildOptions::default().resources(Resources { vcpus: 4, mem_mib: 2048, data_disk_mib: 10 });
    let new = reused_with(&store, "new", &inputs("a"), &options, &mut ());
    assert_eq!(config(&new)["machine-config"], json!({"vcpu_count": 4, "mem_size_mib": 2048}), "those of the call");
    assert_eq!(store.template(&id("new")).unwrap().data_disk_mib, 10);
}

#[test]
fn a_template_whose_resources_changed_gets_another_revision_of_the_same_files() {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    let mut spec = store.template(&id("web")).unwrap();
    spec.mem_mib = 4096;
    store.apply(&spec).unwrap();
    let second = reused(&store, "web", &inputs("a"));
    assert_ne!(second.id(), first.id());
    assert_eq!(config(&second)["machine-config"]["mem_size_mib"], 4096);
    assert_eq!(inode(second.rootfs()), inode(first.rootfs()));
    assert_eq!(store.current(&id("web")).unwrap().id(), second.id());
    assert_right(&second);
}

/// The revision of `web` is spoilt; a build for `db` is a miss that says so, and goes on.
fn assert_missed(spoil: fn(&Store, &Revision), says: &str) {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    build(&store, "web", &inputs("b"), "two");
    spoil(&store, &first);
    drop(first);

    let mut heard = Heard::default();
    let draft = match store.build_with(&id("db"), &inputs("a"), &BuildOptions::default(), &mut heard).unwrap() {
        Build::Draft(draft) => draft,
        reused => panic!("what is damaged or gone is not reused: {reused:?}"),
    };
    let text: Vec<_> = heard.notes.iter().map(ToString::to_string).collect();
    match says {
        "" => assert!(text.is_empty(), "what is gone is not spoken of: {text:?}"),
        says => assert!(text.iter().any(|text| text.contains(says)), "{says:?} is not in {text:?}"),
    }
    image(draft.path(), "one");
    let built = draft.seal().unwrap().publish().unwrap();
    assert_right(&built);
    assert_eq!(store.current(&id("db")).unwrap().id(), built.id());
}

#[test]
fn a_source_that_is_damaged_or_gone_is_a_miss() {
    assert_missed(|_, revision| flip(&revision.kernel(), 70_000, false), "vmlinux is damaged");
    assert_missed(|_, revision| flip(&revision.fc_base_config(), 3, false), "fc-base.json is damaged");
    assert_missed(|_, revision| fs::remove_file(revision.rootfs()).unwrap(), "rootfs.ext4 is damaged");
    assert_missed(|_, revision| fs::remove_file(record(revision)).unwrap(), "revision.json is damaged");
    assert_missed(|_, revision| fs::write(record(revision), "{").unwrap(), "revision.json is damaged");
    assert_missed(|_, revision| fs::remove_dir_all(revision.path()).unwrap(), "");
    assert_missed(|store, _| store.remove_template(&template("web"), Removal::Forced).map(drop).unwrap(), "");
    assert_missed(
        |store, revision| store.remove(&template("web"), revision.id(), Removal::Forced).map(drop).unwrap(),
        "",
    );
}

fn with_source(place: &Place, flake: &str) -> BuildInputs {
    let lock = place.lock("same");
    fs::write(lock.with_file_name("flake.nix"), flake).unwrap();
    BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap()
}

#[test]
fn other_sources_with_the_same_lock_are_a_miss_that_says_why() {
    let (place, store) = fresh();
    let (old, new) = (with_source(&place, "old"), with_source(&place, "new"));
    assert_eq!(old.key(), new.key(), "the key is the same");
    let first = build(&store, "web", &old, "one");

    let mut heard = Heard::default();
    let built = store.build_with(&id("web"), &new, &BuildOptions::default(), &mut heard).unwrap();
    assert!(matches!(built, Build::Draft(_)), "an edited flake is another build");
    drop(built);
    let expected = Note::SourcesDiffer { template: id("web"), revision: first.id().clone() };
    assert_eq!(heard.notes, [expected], "it says why, once");

    let second = build(&store, "web", &new, "two");
    assert_eq!(reused(&store, "web", &old).id(), first.id(), "both are known now");
    assert_eq!(reused(&store, "web", &new).id(), second.id());
    let unknown = BuildInputs::new(old.flake_lock_hash().clone(), id("minimal"), id("worker"));
    reused(&store, "web", &unknown);
}

#[test]
fn a_build_that_comes_out_the_same_from_other_inputs_is_found_the_next_time() {
    let (place, store) = fresh();
    let first = build(&store, "web", &with_source(&place, "{ }"), "one");
    let edited = with_source(&place, "{ } # a comment");
    assert_eq!(build(&store, "web", &edited, "one").id(), first.id(), "the bytes are the same");
    assert_eq!(reused(&store, "web", &edited).id(), first.id(), "it was built from these sources");

    assert_eq!(build(&store, "web", &inputs("another lock"), "one").id(), first.id());
    assert_eq!(reused(&store, "web", &inputs("another lock")).id(), first.id(), "it was built from this lock file");
    let linked = reused(&store, "db", &inputs("another lock"));
    assert_eq!(linked.record().source_hash, None, "nobody said from which sources that lock file was built");
}

/// What is linked from a revision that several inputs gave is made from each of them, and from nothing between them.
#[test]
fn what_is_reused_is_made_from_the_inputs_that_the_source_was_made_from_and_no_others() {
    let (_place, store) = fresh();
    let of = |lock: &str, role: &str| BuildInputs::new(id(lock), id("minimal"), id(role));
    let (first, second) = (of("a", "worker"), of("b", "builder"));
    build(&store, "web", &first, "one");
    let built = build(&store, "web", &second, "one");
    assert_eq!(reused(&store, "db", &second).id(), built.id());

    let [made_of_first, made_of_second] =
        [&first, &second].map(|inputs| store.lookup(Some(&id("db")), inputs).unwrap());
    assert_eq!(made_of_first.unwrap().id(), built.id(), "the index leads to it from what else gave the same bytes");
    assert_eq!(made_of_second.unwrap().id(), built.id());
    assert!(store.verify(&Default::default(), &mut ()).unwrap().findings.is_empty());
    for other in [of("b", "worker"), of("a", "builder")] {
        assert!(store.lookup(None, &other).unwrap().is_none(), "nobody built {other:?}");
        draft(&store, "db", &other).abandon().unwrap();
    }
}

#[test]
fn another_flake_reference_is_noted_and_strictly_is_a_miss() {
    let (_place, store) = fresh();
    let (here, there) = (inputs("a").with_flake_ref("path:/here"), inputs("a").with_flake_ref("path:/there"));
    let first = build(&store, "web", &here, "one");
    let strict = BuildOptions::default().matching(Match::Strict);

    let mut heard = Heard::default();
    reused_with(&store, "web", &here, &strict, &mut heard);
    assert_eq!(heard.notes, [], "the same reference is nothing to speak of");

    let (revision, flake_ref) = (first.id(), "path:/here");
    let note = |used| Note::FlakeRefDiffers {
        template: id("web"),
        revision: revision.clone(),
        flake_ref: flake_ref.to_owned(),
        used,
    };
    let found = reused_with(&store, "web", &there, &BuildOptions::default(), &mut heard);
    assert_eq!((found.id(), &heard.notes[..]), (first.id(), &[note(true)][..]));

    let mut heard = Heard::default();
    let draft = store.build_with(&id("web"), &there, &strict, &mut heard).unwrap();
    assert!(matches!(draft, Build::Draft(_)));
    assert_eq!(heard.notes, [note(false)]);
    assert!(store.lookup_with(None, &there, Match::Strict, &mut ()).unwrap().is_none());
    assert!(store.lookup(None, &there).unwrap().is_some());
}

#[test]
fn a_build_finds_its_own_revision_without_the_index() {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    build(&store, "web", &inputs("b"), "two");
    fs::remove_dir_all(store.layout().keys()).unwrap();
    assert!(store.lookup(None, &inputs("a")).unwrap().is_none(), "a look-up asks the index alone");
    assert_eq!(reused(&store, "web", &inputs("a")).id(), first.id());
    assert!(store.lookup(None, &inputs("a")).unwrap().is_some(), "the index has it again");
    assert_clean(store.layout());
}

#[test]
fn an_entry_of_the_index_that_is_damaged_costs_nothing_but_time() {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    build(&store, "db", &inputs("b"), "two");
    let entry = store.layout().key(&inputs("a").key());
    for text in ["", "{", "[]", r#"{"key":"00","revisions":[]}"#] {
        fs::write(&entry, text).unwrap();
        assert_eq!(store.lookup(None, &inputs("a")).unwrap().expect("it is found").id(), first.id(), "{text}");
        assert_eq!(reused(&store, "web", &inputs("a")).id(), first.id(), "{text}");
    }
    let stale = format!(r#"{{"key":"{}","revisions":[{{"template":"web","revision":"none"}}]}}"#, inputs("a").key());
    fs::write(&entry, stale).unwrap();
    assert_eq!(reused(&store, "web", &inputs("a")).id(), first.id(), "what it names may be gone");
}

/// `nix hash path` of a file: the SHA-256 of its archive, as SRI.
pub fn nar_hash(bytes: &[u8]) -> String {
    let mut nar = Vec::new();
    for part in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents", bytes, b")"] {
        nar.extend((part.len() as u64).to_le_bytes());
        nar.extend(part);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(nar)))
}

/// Writes a revision as mvm 0.11 does.
pub fn write_as_mvm(dir: &Utf8Path, lock_hash: &str) {
    fs::create_dir_all(dir).unwrap();
    image(dir, "mvm");
    let record = json!({
        "schema_version": 1, "revision_hash": dir.file_name(), "flake_ref": ".", "flake_lock_hash": lock_hash,
        "artifact_paths": { "vmlinux": "vmlinux", "rootfs": "rootfs.ext4", "fc_base_config": "fc-base.json" },
        "built_at": "2026-01-01T00:00:00Z", "profile": "minimal", "role": "worker",
        "vcpus": 2, "mem_mib": 512, "data_disk_mib": 0, "snapshot": null,
    });
    fs::write(dir.join("revision.json"), record.to_string()).unwrap();
}

#[test]
fn a_revision_with_the_lock_hash_in_the_spelling_of_mvm_is_a_hit() {
    let (place, store) = fresh();
    create(&store, "web", 2, 512);
    let lock = place.lock("a");
    write_as_mvm(&store.layout().revision(&id("web"), &id("3c7f1e")), &nar_hash(&fs::read(&lock).unwrap()));
    let from_lock = BuildInputs::from_flake_lock(&lock, "minimal", "worker").unwrap();

    let found = reused(&store, "web", &from_lock);
    assert_eq!(found.id().as_str(), "3c7f1e");
    assert_eq!(store.current(&id("web")).unwrap().id().as_str(), "3c7f1e");
    assert_eq!(store.lookup(None, &from_lock).unwrap().unwrap().id(), found.id(), "and the index knows it");
    draft(&store, "web", &inputs("b")).abandon().unwrap();
}

#[test]
fn a_reused_revision_is_made_current_only_if_asked() {
    let (_place, store) = fresh();
    let first = build(&store, "web", &inputs("a"), "one");
    let second = build(&store, "web", &inputs("b"), "two");
    let quietly = BuildOptions::default().publish(PublishOptions::default().activate(Activate::No));
    assert_eq!(reused_with(&store, "web", &inputs("a"), &quietly, &mut ()).id(), first.id());
    assert_eq!(store.current(&id("web")).unwrap().id(), second.id(), "it was not asked for");
    reused(&store, "web", &inputs("a"));
    assert_eq!(store.current(&id("web")).unwrap().id(), first.id());
    let log: Vec<_> = store.history(&id("web")).unwrap().into_iter().map(|line| line.action).collect();
    assert_eq!(log, [Action::Publish, Action::Publish, Action::Reuse]);
}

#[test]
fn an_id_that_the_other_template_has_for_other_contents_gets_a_second_part() {
    let (_place, store) = fresh();
    let publish = |template: &str, inputs: &BuildInputs, label: &str| {
        let draft = draft_with(&store, template, inputs, &BuildOptions::default().known(Known::BuildAgain));
        image(draft.path(), label);
        let options = SealOptions::default().revision(id::<RevisionId>("r1"));
        draft.seal_with(&options, &mut ()).unwrap().publish().unwrap()
    };
    publish("web", &inputs("a"), "one");
    let theirs = publish("db", &inputs("b"), "two");
    let ours = reused(&store, "db", &inputs("a"));
    let (base, more) = ours.id().as_str().split_once('+').expect("it says that it is another r1");
    assert!(base == "r1" && more.len() == 12 && more.chars().all(|c| c.is_ascii_hexdigit()), "{:?}", ours.id());
    assert_right(&ours);
    assert_right(&theirs);
    assert_eq!(reused(&store, "db", &inputs("a")).id(), ours.id(), "and it is found again");
}
