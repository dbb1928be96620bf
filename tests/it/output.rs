//! What the program prints: one JSON document for each command, or text for people.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use template_store::{Digest, RevisionId};

use crate::support::{Place, Ran, assert_clean, assert_right, bytes, edit_json, id, listing, script};

/// A store with the revisions `a` and `b` of `web`; `b` is current.
fn two() -> (Place, [RevisionId; 2]) {
    let place = Place::new();
    let ids = ["a", "b"].map(|label| {
        let built = place.build("web", label, &["--json"], &script(label)).with_code(0).json();
        assert_eq!(built["result"], "built");
        id(built["revision"].as_str().unwrap())
    });
    (place, ids)
}

#[test]
fn every_command_prints_one_json_document() {
    let (place, [a, b]) = two();
    let json = |words: &[&str]| place.done(&[&["--json"], words].concat()).json();
    let revision_dir = place.root().join("templates/web/artifacts");

    assert_eq!(json(&["init"])["store"], place.root().as_str());
    let created = json(&["create", "db", "--role", "worker", "--vcpus", "3", "--mem", "256", "--data-disk", "9"]);
    assert_eq!((&created["template_id"], &created["vcpus"]), (&json!("db"), &json!(3)));
    assert_eq!(created["mem_mib"], 256);
    let config = "template_id = \"app\"\nflake_ref = \".\"\n[[variants]]\nrole = \"api\"\nvcpus = 1\nmem_mib = 64\n";
    fs::write(place.join("config.toml"), config).unwrap();
    for result in ["created", "unchanged"] {
        assert_eq!(json(&["apply", "config.toml"]), json!([{ "template": "app-api", "result": result }]));
    }

    let lock = place.lock("b");
    let inputs = ["--flake-lock", lock.as_str(), "--role", "worker"];
    let reused = json(&[&["build", "web"], &inputs[..], &["--", "false"]].concat());
    assert_eq!((&reused["result"], &reused["revision"]), (&json!("reused"), &json!(b)));
    let found = json(&[&["lookup"], &inputs[..]].concat());
    assert_eq!((&found["found"], &found["path"]), (&json!(true), &json!(revision_dir.join(b.as_str()))));
    let files = place.image("files", "c");
    for result in ["published", "unchanged"] {
        assert_eq!(json(&["publish", "web", files.as_str(), "--no-activate"])["result"], result);
    }

    let list = json(&["list"]);
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|template| template["template"].as_str().unwrap()).collect();
    assert_eq!(ids, ["app-api", "db", "web"]);
    assert_eq!((&list[2]["current"], list[2]["revisions"].as_array().unwrap().len()), (&json!(b), 3));
    assert_eq!(json(&["show", "web"])["current"], json!(b));
    let shown = json(&["show", &format!("web@{a}")]);
    let kernel = fs::read(revision_dir.join(a.as_str()).join("vmlinux")).unwrap();
    assert_eq!(shown["record"]["contents"][2]["blake3"], json!(Digest::of(&kernel)));
    assert_eq!(json(&["path", "web", "vmlinux"])["path"], revision_dir.join(b.as_str()).join("vmlinux").as_str());

    assert_eq!(json(&["rollback", "web"])["revision"], json!(a));
    assert_eq!(json(&["activate", "web", b.as_str()])["revision"], json!(b));
    let history = json(&["history", "web"]);
    let actions: Vec<_> = history.as_array().unwrap().iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["publish", "publish", "rollback", "activate"]);
    let target = format!("web@{a}");
    assert_eq!(json(&["rm", &target])["removed"], target);
    assert_eq!(json(&["rm", "db"])["removed"], "db");
}

#[test]
fn every_refusal_is_one_json_document_too() {
    let (place, [_, b]) = two();
    let current = format!("web@{b}");
    for (code, words) in [
        (3, &["show", "none"][..]),
        (3, &["path", "web", "none"]),
        (3, &["history", "none"]),
        (5, &["rm", &current]),
        (5, &["activate", "web", b.as_str(), "--expect", "none"]),
        (1, &["apply", "none.toml"]),
    ] {
        let ran = place.run(&[&["--json"], words].concat()).with_code(code);
        let document = ran.json();
        assert_eq!(document["exit_code"], code, "{words:?}");
        let text = document["error"].as_str().expect("it says what is wrong");
        assert!(ran.err.contains(text), "people see it on stderr as well: {ran:?}");
    }
    for words in [&["show", "../../etc"][..], &["no-such-command"], &["rm"]] {
        let document = place.run(&[&["--json"], words].concat()).with_code(2).json();
        assert_eq!(document["exit_code"], 2, "a call that is not understood: {words:?}: {document}");
    }
    let missed = place.run(&["--json", "lookup", "--flake-lock", place.lock("x").as_str(), "--role", "worker"]);
    assert_eq!(missed.with_code(3).json()["found"], false);
    let failed = place.build("web", "x", &["--json"], "exit 7").with_code(1).json();
    assert!(failed["error"].as_str().unwrap().contains("code 7"), "{failed}");
}

#[test]
fn what_a_builder_prints_does_not_mix_with_the_result() {
    let place = Place::new();
    let noisy = format!("echo noise; echo more >&2; {}", script("a"));
    let ran = place.build("web", "a", &["--json"], &noisy).with_code(0);
    assert_eq!(ran.json()["result"], "built");
    assert!(ran.err.contains("noise") && ran.err.contains("more"), "{ran:?}");
}

#[test]
fn quiet_says_results_and_errors_only() {
    let place = Place::new();
    let words = ["--quiet", "--flake-ref", "path:/here"];
    let built = place.build("web", "a", &words, &script("a")).with_code(0);
    assert!(built.out.starts_with("built web@") && built.err.is_empty(), "{built:?}");
    let there = ["--flake-ref", "path:/there"];
    let noted = place.build("web", "a", &there, "false").with_code(0).says(&["note: ", "path:/here"]);
    assert!(noted.out.starts_with("reused web@"));
    let quiet = place.build("web", "a", &["--quiet", there[0], there[1]], "false").with_code(0);
    assert_eq!(quiet.err, "");
    place.run(&["--quiet", "show", "none"]).with_code(3).says(&["error: ", "none"]);
}

#[test]
fn force_says_which_files_differ_and_where() {
    let place = Place::new();
    // Reads what it is to put into the middle of the image.
    let script = format!(
        r#"{}; printf "$(cat {}/mark)" | dd of="$OUT/rootfs.ext4" bs=1 seek=70000 conv=notrunc status=none"#,
        script("a"),
        place.path()
    );
    let build = |mark: &str, more: &[&str]| {
        fs::write(place.join("mark"), mark).unwrap();
        place.build("web", "a", &[&["--json", "--revision", "r1"], more].concat(), &script)
    };
    build("ONE", &[]).with_code(0);
    let forced = build("TWO", &["--force"]).with_code(0).json();
    assert_eq!(forced["result"], "built");
    let second = forced["revision"].as_str().unwrap();
    assert!(second.starts_with("r1+") && second.len() == 15, "{second}");
    let expected = json!({
        "revision": "r1",
        "differences": [{ "path": "rootfs.ext4", "kind": "changed", "ranges": [[69632, 4096]] }],
    });
    assert_eq!(forced["differs_from"], expected);
    let text = place.run(&["show", "web"]).with_code(0).out;
    assert!(text.contains("r1") && text.contains(second), "both stay: {text}");
    let same = build("TWO", &["--force"]).with_code(0).json();
    assert_eq!((&same["result"], &same["revision"]), (&json!("unchanged"), &json!(second)));
    assert_eq!(same["differs_from"], Value::Null);
}

#[test]
fn check_says_whether_a_build_is_reproducible_and_publishes_nothing() {
    let place = Place::new();
    let check = |script: &str, more: &[&str]| place.build("web", "a", &[&["--check"], more].concat(), script);
    check(&script("a"), &[]).with_code(3).says(&["build it first"]);
    place.build("web", "a", &[], &script("a")).with_code(0);
    let before = listing(&place.root());

    assert!(check(&script("a"), &[]).with_code(0).out.starts_with("reproducible: "));
    assert_eq!(check(&script("a"), &["--json"]).with_code(0).json()["result"], "reproducible");
    let other = check(&script("other"), &[]).with_code(1).out;
    assert!(other.starts_with("not reproducible: ") && other.contains("rootfs.ext4"), "{other}");
    let other = check(&script("other"), &["--json"]).with_code(1).json();
    assert_eq!((&other["result"], &other["differences"][0]["path"]), (&json!("differs"), &json!("rootfs.ext4")));
    check("exit 7", &[]).with_code(1).says(&["code 7"]);
    check(&format!("{}; rm \"$OUT/vmlinux\"", script("a")), &[]).with_code(1).says(&["no vmlinux"]);
    assert_eq!(listing(&place.root()), before, "nothing was published, and nothing is left");
}

/// The store itself writes the machine into the configuration of such a revision; that is no difference.
#[test]
fn check_of_a_revision_that_was_reused_for_another_machine_is_reproducible() {
    let place = Place::new();
    place.build("web", "a", &[], &script("a")).with_code(0);
    place.build("big", "a", &["--vcpus", "8"], "false").with_code(0);
    let checked = place.build("big", "a", &["--check"], &script("a"));
    assert!(checked.out.starts_with("reproducible: "), "{checked:?}");
}

#[test]
fn a_build_says_what_it_did_and_where() {
    let (place, [_, b]) = two();
    let path = place.done(&["path", "web"]).out;
    assert_eq!(path.trim(), place.root().join("templates/web/artifacts").join(b.as_str()).as_str());
    let reused = place.build("web", "b", &[], "false").with_code(0).out;
    assert_eq!(reused, format!("reused web@{b}: it was built from the same inputs\n{path}"));
    let shared = place.build("db", "c", &[], &script("b")).with_code(0).out;
    assert!(shared.contains("256.0 KiB were in the store already"), "{shared}");
    assert_clean(place.store().layout());
}

#[test]
fn a_new_template_gets_the_resources_that_the_call_names_and_an_old_one_keeps_its_own() {
    let place = Place::new();
    place.build("web", "a", &[], &script("a")).with_code(0);
    let spec = place.store().template(&id("web")).unwrap();
    assert_eq!((spec.vcpus, spec.mem_mib, spec.data_disk_mib), (2, 512, 0), "the defaults");
    let machine = ["--vcpus", "4", "--mem", "1024", "--data-disk", "5"];
    place.build("big", "a", &machine, "false").with_code(0);
    let spec = place.store().template(&id("big")).unwrap();
    assert_eq!((spec.vcpus, spec.mem_mib, spec.data_disk_mib), (4, 1024, 5));
    place.build("web", "a", &machine, "false").with_code(0).says(&["web", "apply"]);
    assert_eq!(place.store().template(&id("web")).unwrap().vcpus, 2, "it keeps its own, and says so");
}

#[test]
fn a_template_is_created_once_and_applied_as_often_as_it_changes() {
    let place = Place::new();
    let create = |mem: &str| place.run(&["create", "web", "--role", "worker", "--mem", mem]);
    create("256").with_code(0);
    create("256").with_code(0);
    create("512").with_code(5).says(&["web", "mem_mib is 256, not 512", "apply"]);
    let config = |mem: u32| {
        let text =
            format!("flake_ref = \".\"\n[[variants]]\nname = \"web\"\nrole = \"worker\"\nvcpus = 2\nmem_mib = {mem}\n");
        fs::write(place.join("web.toml"), text).unwrap();
        place.done(&["apply", "web.toml"]).out
    };
    assert_eq!((config(512), config(512)), ("changed web\n".into(), "unchanged web\n".into()));
    assert_eq!(place.store().template(&id("web")).unwrap().mem_mib, 512);
    fs::write(place.join("bad.toml"), "flake_ref = \".\"\n[[variants]]\nrole = \"worker\"\nvcpus = \"two\"\n").unwrap();
    let refused = place.run(&["apply", "bad.toml"]).says(&["bad.toml", "line 4", "vcpus"]);
    assert_ne!(refused.code, Some(0));
}

#[test]
fn publish_takes_files_that_were_built_elsewhere() {
    let place = Place::new();
    let files = place.image("files", "a");
    let lock = place.lock("a");
    let words =
        ["publish", "web", files.as_str(), "--revision", "r1", "--flake-lock", lock.as_str(), "--role", "worker"];
    place.done(&words);
    let found = place.done(&["lookup", "--flake-lock", lock.as_str(), "--role", "worker"]).out;
    assert!(found.trim().ends_with("templates/web/artifacts/r1"), "a look-up finds it: {found}");
    fs::write(files.join("rootfs.ext4"), bytes("other", 100_000)).unwrap();
    place.run(&words).with_code(5).says(&["r1", "rootfs.ext4 differs"]);
    place.run(&["publish", "web", files.as_str(), "--expect", "none"]).with_code(5).says(&["r1"]);
    place.done(&["publish", "web", files.as_str(), "--expect", "r1", "--move"]);
    assert!(!files.exists(), "it was moved");
    assert_right(&place.store().current(&id("web")).unwrap());
}

#[test]
fn completions_are_there_for_each_shell() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(place.done(&["completions", shell]).out.contains("template-store"), "{shell}");
    }
    assert!(!place.root().exists(), "no store is needed");
}

/// What somebody wrote who wants to be taken for the program, or to speak to the terminal.
const FORGED: &str = "x\u{1b}[2J\u{9b}1m\u{7f}\r\nforged: all is well";

/// What it says has this word and is harmless.
#[track_caller]
fn is_harmless(ran: &Ran, word: &str) -> String {
    let all = format!("{}{}", ran.out, ran.err);
    let speaks = |c: char| c.is_control() && c != '\n';
    assert!(!all.contains(speaks) && all.contains(word), "{all:?}");
    assert!(!all.lines().any(|line| line.trim_start().starts_with("forged")), "{all:?}");
    all
}

/// What it says has the forged text as well, made harmless.
#[track_caller]
fn says_it_harmlessly(ran: &Ran, word: &str) {
    let all = is_harmless(ran, word);
    assert!(all.contains("\\u{1b}[2J"), "{all:?}");
}

#[test]
fn what_others_wrote_speaks_neither_to_the_terminal_nor_for_the_program() {
    let (place, [a, _]) = two();
    let store = place.store();
    let pin = json!({ "template": "web", "revision": a, "created_at": "2026-01-01T00:00:00Z", "reason": FORGED });
    fs::write(store.layout().pins().join("theirs.json"), pin.to_string()).unwrap();
    says_it_harmlessly(&place.done(&["pins"]), "theirs");

    let target = format!("web@{a}");
    let script = format!("echo ready; read line; : '{FORGED}'");
    let mut holder = place.program(&["run", &target, "--", "sh", "-c", &script]);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    says_it_harmlessly(&place.done(&["why", &target]), "in use by process");
    says_it_harmlessly(&place.run(&["gc", "--keep-last", "0"]), "in use by process");
    drop(holder.stdin.take());
    holder.wait().unwrap();

    let template = store.layout().template_json(&id("web"));
    edit_json(&template, |spec| spec["flake_ref"] = FORGED.into());
    says_it_harmlessly(&place.run(&["show", "web"]), "flake");
    fs::write(store.layout().revision(&id("web"), &a).join(FORGED), "").unwrap();
    says_it_harmlessly(&place.run(&["verify"]).with_code(4), "foreign");
    fs::write(&template, json!({ FORGED: 1 }).to_string()).unwrap();
    fs::write(store.layout().config(), format!("[gc]\n\"{}\" = 1", FORGED.escape_default())).unwrap();
    is_harmless(&place.run(&["gc"]), "config.toml");
}

/// The names of all fields at the top of a document, or of those in its list.
fn fields(document: &Value) -> Vec<String> {
    match document {
        Value::Array(list) => list.iter().flat_map(fields).collect(),
        Value::Object(fields) => fields.keys().cloned().collect(),
        _ => panic!("{document}"),
    }
}

#[test]
fn each_field_that_is_printed_is_in_the_list_of_fields() {
    let doc = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/json.md")).unwrap();
    let (place, [a, b]) = two();
    let (files, lock) = (place.image("files", "c"), place.lock("b"));
    let (instance, remote) = (place.join("vm"), place.join("remote"));
    fs::create_dir(&remote).unwrap();
    let inputs = ["--flake-lock", lock.as_str(), "--role", "worker"];
    let plan = place.join("plan.json");
    let target = format!("web@{a}");
    let calls: &[(&str, &[&str])] = &[
        ("init", &["init"]),
        ("create", &["create", "db", "--role", "worker"]),
        ("build", &[&["build", "web"], &inputs[..], &["--", "false"]].concat()),
        ("publish", &["publish", "app", files.as_str(), "--revision", "1"]),
        ("lookup", &[&["lookup"], &inputs[..]].concat()),
        ("list", &["list"]),
        ("show ID", &["show", "web"]),
        ("show ID@REVISION", &["show", &target]),
        ("path", &["path", "web", "rootfs"]),
        ("history", &["history", "web"]),
        ("rollback", &["rollback", "web"]),
        ("activate", &["activate", "web", b.as_str()]),
        ("pin", &["pin", "kept", &target, "--until", "9d", "--reason", "why"]),
        ("pins", &["pins"]),
        ("unpin", &["unpin", "kept"]),
        ("instance", &["instance", "web", instance.as_str()]),
        ("instance list", &["instance", "list"]),
        ("instance rm", &["instance", "rm", instance.as_str()]),
        ("remote add", &["remote", "add", "hub", remote.as_str()]),
        ("remote list", &["remote", "list"]),
        ("remote check", &["remote", "check"]),
        ("push", &["push", "web"]),
        ("pull", &["pull", "web"]),
        ("remote ls", &["remote", "ls"]),
        ("remote verify", &["remote", "verify"]),
        ("remote rm", &["remote", "rm", "hub"]),
        ("why", &["why", "web"]),
        ("du", &["du"]),
        ("verify", &["verify"]),
        ("gc", &["gc", "--dry-run", "--keep-last", "1"]),
        ("rm", &["rm", &target]),
        ("gc", &["gc", "--plan", plan.as_str()]),
    ];
    for (name, words) in calls {
        let document = place.done(&[&["--json"], *words].concat()).json();
        if *name == "gc" {
            fs::write(&plan, document.to_string()).unwrap();
        }
        assert!(doc.contains(&format!("`{name}`")), "{name} is not there");
        for field in fields(&document) {
            let ways = [format!("`{field}`"), format!("\"{field}\""), format!(".{field}`")];
            assert!(ways.iter().any(|way| doc.contains(way)), "{field} of {name} is not there");
        }
    }
    let refused = place.run(&["--json", "show", "none"]).with_code(3).json();
    assert_eq!(fields(&refused), ["error", "exit_code"]);
}
