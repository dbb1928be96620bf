//! Whatever is in a document of a store: each operation ends, with a value or an error, and nothing outside the store
//! is touched.

use std::fs;
use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::{
    Activate, BuildOptions, Import, ImportOptions, Match, PinOptions, PublishOptions, Removal, Resources, Revision,
    SnapshotFiles, SnapshotOptions, Store, TemplateSpec, VerifyOptions,
};

use super::mutate::{Dice, heavy, mutated, nonsense};
use super::trap::Victim;
use crate::proof;
use crate::support::{Place, Ran, bytes, draft_with, id, image, inputs, program, template};

/// How many changes of each document are tried, and how many documents that are none. The parsers by themselves are
/// tried with many more.
fn how_many() -> usize {
    proof::scaled(6, 100)
}

/// A store with something of everything, and a victim outside.
struct World {
    /// First, so that its directories can be removed with the place.
    victim: Victim,
    place: Place,
    store: Store,
}

impl World {
    fn new() -> World {
        let place = Place::in_memory();
        let store = place.quick_store();
        let options = BuildOptions::default().resources(Resources { vcpus: 2, mem_mib: 1, data_disk_mib: 0 });
        for (label, lock) in [("one", "a"), ("two", "b")] {
            let draft = draft_with(&store, "web", &inputs(lock), &options);
            image(draft.path(), label);
            draft.seal().unwrap().publish().unwrap();
        }
        let current = store.current(&id("web")).unwrap();
        let vm = place.join("vm");
        fs::create_dir(&vm).unwrap();
        for (name, size) in [("vmstate", 5000), ("mem", 1 << 20), ("rootfs", 256 << 10)] {
            fs::write(vm.join(name), bytes(name, size)).unwrap();
        }
        let files = SnapshotFiles::new(vm.join("vmstate"), vm.join("mem")).drive(id("rootfs"), vm.join("rootfs"));
        current.attach_snapshot(&files, &SnapshotOptions::default(), &mut ()).unwrap();
        fs::create_dir(place.join("vms")).unwrap();
        current.instance(place.join("vms/1")).unwrap();
        store.pin(&id("kept"), current.template(), current.id(), &PinOptions::default()).unwrap();
        fs::write(store.layout().config(), "[gc]\nkeep_last = 1\n[gc.template.web]\nkeep_last = 1\n").unwrap();
        let victim = Victim::like(&place.join("victim"), &place.image("pattern", "victim"));
        World { place, store, victim }
    }

    fn current(&self) -> Revision {
        self.store.current(&id("web")).unwrap()
    }

    /// A document of this name, and what is in it.
    fn document(&self, name: &str) -> (Utf8PathBuf, Vec<u8>) {
        let (layout, current) = (self.store.layout(), self.current());
        let path = match name {
            "template.json" => layout.template_json(&id("web")),
            "revision.json" => layout.revision_json(&id("web"), current.id()),
            "format.json" => layout.format_json(),
            "activations.jsonl" => layout.activations(&id("web")),
            "key" => layout.key(&inputs("b").key()),
            "pin" => layout.pin(&id("kept")),
            "snapshot.json" => layout.snapshot(&id("web"), current.id()).join("snapshot.json"),
            "fc-base.json" => current.fc_base_config(),
            "instance.json" => self.place.join("vms/1/instance.json"),
            "config.toml" => layout.config(),
            "damage mark" => layout.damage_mark(&id("web"), current.id()),
            "lease note" => layout.leases_of(&id("web"), current.id()).join("1-1.json"),
            "attempt" => layout.build_lock(&inputs("c").key()),
            _ => panic!("{name} is no document"),
        };
        let made_up = match name {
            "damage mark" => r#"{"found_at":"2026-01-01T00:00:00Z","problems":[{"path":"x","problem":"y"}]}"#,
            "lease note" => {
                r#"{"pid":1,"command":"x","purpose":"y","start_time":1,"boot_id":"b","pid_namespace":"p","since":"2026-01-01T00:00:00Z"}"#
            }
            "attempt" => {
                r#"{"template":"web","pid":1,"command":"x","started_at":"2026-01-01T00:00:00Z","draft":"../../../victim","outcome":null}"#
            }
            _ => return (path.clone(), fs::read(&path).unwrap()),
        };
        (path, made_up.into())
    }

    fn put(&self, path: &Utf8Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A sealed file has other names, and is not to be written to.
        let _ = fs::remove_file(path);
        fs::write(path, bytes).unwrap();
    }
}

/// Does everything that there is to do in a store; what comes of it does not matter, as long as it comes.
fn everything(place: &Place) {
    let Ok(store) = Store::open(place.root()) else { return };
    let web = template("web");
    let _ = store.templates();
    let _ = store.template(&web);
    let _ = store.history(&web);
    let _ = store.lookup(None, &inputs("b"));
    let _ = store.lookup_with(Some(&web), &inputs("b"), Match::Strict, &mut ());
    for revision in store.revisions(&web).unwrap_or_default() {
        let policy = store.policy().unwrap_or_default();
        let _ = store.why(&web, &revision, &policy);
        if let Ok(revision) = store.revision(&web, &revision) {
            let _ = (revision.check(), revision.snapshot());
            let _ = revision.instance(place.join("vms/2"));
        }
    }
    let _ = (store.pins(), store.instances(), store.usage());
    let _ = store.verify(&VerifyOptions::default(), &mut ());
    let _ = store.apply(&TemplateSpec::new(&web, ".", &id("minimal"), &id("worker"), "2026-01-01T00:00:00Z"));
    let _ = store.rollback(&web);
    let _ = store.plan_gc(&Policy::default()).and_then(|plan| store.apply_gc(&plan, &mut ()));
    let _ = store.repair(&VerifyOptions::default(), &mut ());
    let _ = store.remove_instance(place.join("vms/1"), Removal::Forced);
    let options = ImportOptions::default().how(Import::Copy).publish(PublishOptions::default().activate(Activate::Yes));
    let _ = store.publish_dir_with(&web, place.image("again", "three"), &options, &mut ());
    if let Ok(template_store::Build::Draft(draft)) = store.build(&web, &inputs("c")) {
        image(draft.path(), "four");
        let _ = draft.seal().and_then(|sealed| sealed.publish());
    }
    let _ = store.remove_template(&web, Removal::Forced);
    let _ = store.gc(&Policy::default(), &mut ());
}

fn assert_harmless(name: &str) {
    let world = World::new();
    let (_, valid) = world.document(name);
    let mut dice = Dice::new(name);
    let changes: Vec<_> = (0..how_many()).map(|_| mutated(&valid, &mut dice)).collect();
    let mut all = nonsense();
    let nonsense: Vec<_> = (0..how_many().min(all.len())).map(|_| all.swap_remove(dice.roll(all.len()))).collect();
    let mut tried = 0;
    for (how, bytes) in nonsense.into_iter().chain(changes) {
        let world = World::new();
        let (path, _) = world.document(name);
        world.put(&path, &bytes);
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        let done = std::panic::catch_unwind(|| everything(&world.place));
        assert!(done.is_ok(), "{name}, {how}: {text}");
        world.victim.assert_untouched(&format!("{name}, {how}: {text}"));
        tried += 1;
    }
    println!("{name}: {tried} documents");
}

macro_rules! harmless {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            assert_harmless($name);
        })*
    };
}

harmless! {
    a_definition_may_say_anything: "template.json",
    a_record_may_say_anything: "revision.json",
    a_format_may_say_anything: "format.json",
    a_log_may_say_anything: "activations.jsonl",
    a_key_may_say_anything: "key",
    a_pin_may_say_anything: "pin",
    a_snapshot_may_say_anything: "snapshot.json",
    a_configuration_of_a_vm_may_say_anything: "fc-base.json",
    an_instance_may_say_anything: "instance.json",
    a_policy_may_say_anything: "config.toml",
    a_mark_may_say_anything: "damage mark",
    a_note_may_say_anything: "lease note",
    an_attempt_may_say_anything: "attempt",
}

/// Runs the program with so many MiB of memory. It takes 60 of them before it does anything.
fn run_with_memory(place: &Place, mib: usize, words: &[&str]) -> Ran {
    let limited = format!("ulimit -v {} && exec \"$0\" \"$@\"", mib << 10);
    let mut command = Command::new("sh");
    // A thread takes address space that it never uses, and there are as many as there are processors.
    command.args(["-c", &limited, program(), "--store", place.root().as_str()]);
    command.args(words).stdin(Stdio::null()).env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "2");
    Ran::of(command.output().unwrap())
}

fn run_in_little_memory(place: &Place, words: &[&str]) -> Ran {
    run_with_memory(place, 512, words)
}

#[track_caller]
fn assert_ends(ran: &Ran, what: &str) {
    let err: String = ran.err.chars().take(2000).collect();
    assert!(matches!(ran.code, Some(0..=5)), "{what}: {:?} {err}", ran.code);
    assert!(!ran.err.contains("panicked") && !ran.err.contains("memory allocation"), "{what}: {err}");
    assert!(ran.err.len() < 100_000, "{what}: {} bytes of an error: {err}", ran.err.len());
}

#[test]
fn a_heavy_document_takes_little_memory() {
    let commands: [&[&str]; 3] = [&["list"], &["verify", "--repair"], &["gc", "--keep-last", "1"]];
    let all = ["revision.json", "template.json", "snapshot.json", "instance.json", "pin", "key", "format.json"];
    let mut case = 0;
    for name in all {
        let world = World::new();
        let (path, valid) = world.document(name);
        for (how, bytes) in heavy(&valid) {
            for words in commands {
                // A sample has each document, each weight and each command.
                if proof::chosen(case, 11) {
                    // A repair has set the one before it aside, or has written it again.
                    world.put(&path, &bytes());
                    assert_ends(&run_in_little_memory(&world.place, words), &format!("{name}, {how}: {words:?}"));
                }
                case += 1;
            }
        }
        world.victim.assert_untouched(name);
    }
}

/// What the log of them is called in a message.
const ROLLBACKS: &str = "rollbacks to nothing";

#[test]
fn a_heavy_log_takes_little_memory() {
    let world = World::new();
    let (path, valid) = world.document("activations.jsonl");
    let line = valid.split_inclusive(|&byte| byte == b'\n').next().unwrap();
    let rollbacks = String::from_utf8(line.to_vec()).unwrap().replace("publish", "rollback");
    let text = String::from_utf8(line.to_vec()).unwrap();
    let revision = world.store.history(&id("web")).unwrap()[0].revision.to_string();
    let many = |most: usize, line: &dyn Fn(usize) -> String| (0..most).map(line).collect::<String>().into_bytes();
    // A quarter of the bytes, and of the memory that is there for them.
    let (quarter, mib) = if proof::quick() { (4, 160) } else { (1, 512) };
    let size = |whole: usize| whole / quarter;
    let logs = [
        ("the same line again", line.repeat(size(40 << 20) / line.len())),
        // Rollbacks to what is far down, each of which would be looked for among all that is above.
        (
            ROLLBACKS,
            [
                many(100_000, &|number| text.replace(&revision, &format!("r{number}"))),
                many(100_000, &|number| rollbacks.replace(&revision, &format!("x{number}"))),
            ]
            .concat(),
        ),
        ("no end of a line", vec![b'x'; size(20 << 20)]),
        ("nothing but ends of lines", vec![b'\n'; size(4 << 20)]),
    ];
    for (how, bytes) in logs {
        world.put(&path, &bytes);
        for words in [&["history", "web"][..], &["gc"], &["verify", "--quick"]] {
            // These are as many as ever: to look for each among the others would take hours.
            if how != ROLLBACKS || words[0] == "gc" || !proof::quick() {
                assert_ends(&run_with_memory(&world.place, mib, words), &format!("{how}: {words:?}"));
            }
        }
    }
}

#[test]
fn a_heavy_file_that_is_given_takes_little_memory() {
    let place = Place::in_memory();
    place.done(&["init"]);
    let file = place.join("file");
    let lock = r#"{"version":7,"root":"root","nodes":{"root":{}}}"#;
    let plan = place.run(&["--json", "gc", "--dry-run"]).out;
    let head = "template_id = 'web'\nflake_ref = '.'\n";
    let variant = |number: usize| format!("[[variants]]\nrole = 'r{number}'\nvcpus = 1\nmem_mib = 1\n");
    let deep = format!("{head}x = {}{}\n", "[".repeat(1 << 18), "]".repeat(1 << 18));
    let tables = format!("{head}[{}]\n", vec!["a"; 1 << 18].join("."));
    let lists = format!("{head}x = [{}]\n", "[0],".repeat(200_000));
    let lock_words: [&str; 5] = ["lookup", "--flake-lock", file.as_str(), "--role", "worker"];
    let mut inputs: Vec<(&str, Vec<&str>, Vec<u8>)> = Vec::new();
    for (how, bytes) in heavy(lock.as_bytes()) {
        inputs.push((how, lock_words.to_vec(), bytes()));
    }
    for (how, bytes) in heavy(plan.as_bytes()) {
        inputs.push((how, vec!["gc", "--plan", file.as_str()], bytes()));
    }
    let reason = [b"[".to_vec(), b"[0],".repeat(4 << 20), b"0]".to_vec()].concat();
    let reasons = [
        br#"{"dry_run":true,"plan":{"revisions":[{"template":"web","revision":"r","reasons":[{"more":"#.to_vec(),
        reason,
        b"}]}]}}".to_vec(),
    ];
    inputs.push(("a reason with four million lists", vec!["gc", "--plan", file.as_str()], reasons.concat()));
    let variants: String = head.to_owned() + &(0..20_000).map(variant).collect::<String>();
    for (how, text) in [
        ("lists, one in the other", deep),
        ("tables, one in the other", tables),
        ("many lists", lists),
        ("a billion", format!("{head}count = 1000000000\nvariants = []\n")),
        ("many variants", variants.clone()),
        ("far too many variants", variants.repeat(60)),
        ("a long line", format!("{head}x = '{}\n", "y".repeat(900_000))),
    ] {
        inputs.push((how, vec!["apply", file.as_str()], text.into_bytes()));
    }
    for (how, words, bytes) in inputs {
        fs::write(&file, bytes).unwrap();
        // 20,000 variants are no mistake; to make as many templates is only slow.
        if how == "many variants" {
            continue;
        }
        assert_ends(&run_in_little_memory(&place, &words), &format!("{how}: {words:?}"));
    }
    for device in ["/dev/zero", "/dev/full"] {
        for words in
            [&["apply", device][..], &["gc", "--plan", device], &["lookup", "--flake-lock", device, "--role", "r"]]
        {
            let ran = run_in_little_memory(&place, words);
            assert!(ran.code != Some(0), "{words:?}: {ran:?}");
            assert_ends(&ran, &format!("{words:?}"));
        }
    }
}
