//! The program: what it says, what it ends with, and what it leaves alone.

use std::fs;
use std::process::Command;

use camino::Utf8Path;
use serde_json::{Value, json};
use template_store::Durability;

use crate::interning::by_nobody;
use crate::support::{Place, Ran, assert_right, build, id, inputs, is_dead, listing, names, script};

/// A place with a store that has one good revision of `good`.
fn place_with_good() -> Place {
    let place = Place::new();
    place.build("good", "good", &[], &script("good")).with_code(0);
    place
}

/// A call is refused, changes nothing and says this.
#[track_caller]
fn refused(place: &Place, code: i32, words: &[&str], call: impl Fn() -> Ran) {
    let before = listing(&place.root());
    call().with_code(code).says(words);
    assert_eq!(listing(&place.root()), before, "nothing is left behind or changed");
    assert_right(&place.store().current(&id("good")).unwrap());
}

#[test]
fn a_template_id_that_is_not_valid_is_refused() {
    let place = place_with_good();
    let long = "a".repeat(64);
    for bad in ["../../etc", "a/b", "", long.as_str(), "_a", "A", "a.b", "a b"] {
        refused(&place, 2, &["template id", &format!("{bad:?}")], || place.build(bad, "bad", &[], &script("bad")));
        refused(&place, 2, &["template id"], || place.run(&["create", bad, "--role", "worker"]));
        refused(&place, 2, &["template id"], || place.run(&["show", bad]));
        refused(&place, 2, &["template id"], || place.run(&["rm", &format!("{bad}@r1")]));
    }
    place.build(&long[1..], "bad", &[], &script("bad")).with_code(0);
    refused(&place, 2, &["revision id"], || place.run(&["rm", "good@../../good"]));
    refused(&place, 2, &["revision id"], || place.run(&["activate", "good", "revisions"]));
}

#[test]
fn a_role_or_profile_that_is_not_valid_is_refused() {
    let place = place_with_good();
    for (option, bad, what) in [
        ("--role", "a:b", "role"),
        ("--role", "", "role"),
        ("--profile", "a:b", "profile"),
        ("--revision", "../x", "revision id"),
        ("--kernel", "/etc/passwd", "artifact path"),
        ("--rootfs", "../rootfs", "artifact path"),
        ("--mem", "0", "--mem"),
        ("--vcpus", "256", "--vcpus"),
    ] {
        // The last of two `--role` would win; so the call is written out.
        let lock = place.lock("bad");
        let mut words = vec!["build", "bad", "--flake-lock", lock.as_str(), option, bad];
        if option != "--role" {
            words.extend(["--role", "worker"]);
        }
        words.extend(["--", "true"]);
        refused(&place, 2, &[what], || place.run(&words));
    }
}

#[test]
fn a_mistake_in_a_call_does_not_make_a_store() {
    let place = Place::new();
    place.build("../x", "a", &[], "true").with_code(2);
    place.run(&["build", "web", "--flake-lock", "none", "--role", "worker", "--", "true"]);
    place.run(&["build", "web", "--", "true"]).with_code(2).says(&["--role"]);
    place.run(&["publish", "web", "none"]);
    place.run(&["apply", "none.toml"]).with_code(1).says(&["none.toml"]);
    for words in [&["list"][..], &["show", "web"], &["path", "web"], &["rm", "web"], &["history", "web"]] {
        place.run(words).with_code(3).says(&["no store", "init"]);
    }
    assert!(!place.root().exists(), "{:?}", names(place.path()));
}

#[test]
fn a_draft_that_is_refused_is_named_and_leaves_nothing() {
    let place = place_with_good();
    for (after, name) in [
        ("ln -s /etc/passwd \"$OUT/passwords\"", "passwords"),
        ("ln -sf /etc/passwd \"$OUT/vmlinux\"", "vmlinux"),
        ("rm \"$OUT/vmlinux\"", "no vmlinux"),
        ("rm \"$OUT\"/*", "is empty"),
        ("mkfifo \"$OUT/pipe\"", "pipe"),
        (": >\"$OUT/$(printf '\\377')\"", "UTF-8"),
    ] {
        refused(&place, 1, &[name], || place.build("bad", "bad", &[], &format!("{}; {after}", script("bad"))));
    }
}

#[test]
fn a_command_that_fails_is_reported_with_its_code() {
    let place = place_with_good();
    let fail = |script: &str| place.build("bad", "bad", &[], script);
    refused(&place, 1, &["exited with code 7", "nothing was published"], || fail("exit 7"));
    refused(&place, 1, &["signal 9"], || fail("kill -9 $$"));
    let lock = place.lock("bad");
    let words = ["build", "bad", "--flake-lock", lock.as_str(), "--role", "worker", "--", "no-such-command"];
    refused(&place, 1, &["no-such-command"], || place.run(&words));
    refused(&place, 1, &["the compiler is on fire"], || fail("echo the compiler is on fire; exit 1"));
}

#[test]
fn a_store_that_cannot_be_written_can_be_read() {
    let place = place_with_good();
    let lock = place.lock("good");
    let inputs = ["--flake-lock", lock.as_str(), "--role", "worker"];
    let run = |words: &[&str]| by_nobody(&place, words).map(|mut command| Ran::of(command.output().unwrap()));
    let Some(ran) = run(&["list"]) else { return };
    assert!(ran.with_code(0).out.contains("good"));
    for words in [&["show", "good"][..], &["path", "good"], &["history", "good"], &["run", "good", "--", "true"]] {
        run(words).unwrap().with_code(0);
    }
    run(&[&["lookup"], &inputs[..]].concat()).unwrap().with_code(0);
    run(&[&["build", "good"], &inputs[..], &["--", "false"]].concat()).unwrap().with_code(0);

    let current = place.store().current_id(&id("good")).unwrap().unwrap();
    for words in [
        &["rm", "good"][..],
        &["rm", "--force", &format!("good@{current}")],
        &["create", "bad", "--role", "worker"],
        &[&["build", "bad"], &inputs[..], &["--", "true"]].concat(),
        &[&["build", "good", "--force"], &inputs[..], &["--", "true"]].concat(),
    ] {
        let before = listing(&place.root());
        let ran = run(words).unwrap();
        assert!(matches!(ran.code, Some(1 | 5)), "{words:?}: {ran:?}");
        assert!(ran.err.contains("denied") || ran.code == Some(5), "{words:?}: {ran:?}");
        assert_eq!(listing(&place.root()), before, "{words:?}");
    }
}

#[test]
fn a_store_of_a_newer_format_is_refused_and_both_numbers_are_named() {
    let place = place_with_good();
    let path = place.root().join(".store/format.json");
    let mut format: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(format["format_version"], 1);
    format["format_version"] = 99.into();
    fs::write(&path, format.to_string()).unwrap();
    let before = listing(&place.root());
    for words in [&["list"][..], &["show", "good"], &["init"], &["rm", "good"], &["create", "x", "--role", "r"]] {
        place.run(words).with_code(1).says(&["version 99", "up to 1", "newer template-store"]);
    }
    place.build("good", "good", &[], "true").with_code(1).says(&["99"]);
    assert_eq!(listing(&place.root()), before, "nothing is touched");

    (format["format_version"], format["features"]) = (1.into(), json!(["chunks"]));
    fs::write(&path, format.to_string()).unwrap();
    place.run(&["list"]).with_code(1).says(&["chunks"]);
}

#[test]
fn a_truncated_record_is_damage_and_named() {
    let place = place_with_good();
    place.build("other", "other", &[], &script("other")).with_code(0);
    let revision = place.store().current(&id("good")).unwrap();
    let (target, record) = (format!("good@{}", revision.id()), revision.path().join("revision.json"));
    let bytes = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    fs::write(&record, &bytes[..100]).unwrap();
    drop(revision);
    let before = listing(&place.root());
    for words in [&["show", "good"][..], &["show", &target], &["path", "good"], &["run", "good", "--", "true"]] {
        place.run(words).with_code(4).says(&["revision.json"]);
    }
    let lock = place.lock("good");
    let lookup = place.run(&["lookup", "--flake-lock", lock.as_str(), "--role", "worker"]);
    lookup.with_code(3).says(&["revision.json is damaged"]);
    let list = place.run(&["list"]);
    assert!(list.out.contains("other") && list.err.contains("revision.json"), "the others are listed: {list:?}");
    assert_eq!(listing(&place.root()), before, "looking changes nothing");

    place.build("good", "good", &[], &script("good")).with_code(0).says(&["was damaged"]);
    assert_right(&place.store().current(&id("good")).unwrap());
    place.done(&["show", "good"]);
}

#[test]
fn a_template_whose_definition_is_damaged_is_reported() {
    let place = place_with_good();
    fs::write(place.root().join("templates/good/template.json"), "{").unwrap();
    place.run(&["show", "good"]).with_code(4).says(&["template.json"]);
    place.build("good", "good", &[], "true").with_code(4).says(&["template.json"]);
    place.build("other", "other", &[], &script("other")).with_code(0);
    assert!(place.run(&["list"]).out.contains("other"));
}

#[test]
fn a_lock_file_that_is_none_is_refused() {
    let place = place_with_good();
    let lock = place.join("flake.lock");
    for (text, reason) in [("nodes: yes", "JSON"), (r#"{"version":7}"#, "nodes"), (r#"{"nodes":{}}"#, "version")] {
        fs::write(&lock, text).unwrap();
        let words = ["build", "bad", "--flake-lock", lock.as_str(), "--role", "worker", "--", "true"];
        refused(&place, 1, &["flake.lock", reason], || place.run(&words));
    }
}

#[test]
fn a_directory_that_is_no_store_is_not_taken_for_one() {
    let place = Place::new();
    fs::create_dir(place.root()).unwrap();
    fs::write(place.root().join("letters"), "private").unwrap();
    let before = listing(&place.root());
    for words in [&["init"][..], &["list"], &["create", "x", "--role", "r"]] {
        place.run(words).with_code(1).says(&["not a template store"]);
    }
    place.build("web", "a", &[], &script("a")).with_code(1).says(&["not a template store"]);
    assert_eq!(listing(&place.root()), before);
}

/// Unpacks the directory that mvm 0.11 made.
pub fn mvm_directory(place: &Place) {
    let fixture = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mvm-0.11-data.tar");
    fs::create_dir(place.root()).unwrap();
    let unpacked = Command::new("tar").args(["-xf", fixture.as_str(), "-C", place.root().as_str()]).status();
    assert!(unpacked.expect("tar is there").success());
}

#[test]
fn a_directory_of_mvm_can_be_looked_at() {
    let place = Place::new();
    mvm_directory(&place);
    let before = listing(&place.root());
    let list = place.done(&["--json", "list"]).json();
    assert_eq!((list[0]["template"].as_str(), list[0]["current"].as_str()), (Some("base"), Some("3c7f1e")), "{list}");
    assert_eq!(list.as_array().unwrap().len(), 1, "a stray file is no template");
    assert_eq!(list[0]["revisions"].as_array().unwrap().len(), 1, "a stray directory is no revision");
    assert!(place.done(&["list"]).out.contains("base"));
    assert!(place.done(&["show", "base"]).out.contains("3c7f1e"));
    let revision = place.done(&["--json", "show", "base@3c7f1e"]).json();
    assert_eq!(revision["record"]["snapshot"]["boot_args"], "b", "{revision}");
    let initrd = place.done(&["path", "base", "initrd"]).out;
    assert_eq!(fs::read(initrd.trim()).unwrap().len(), 6, "the path leads to the file");
    place.done(&["run", "base", "--", "sh", "-c", "test -f \"$TEMPLATE_ROOTFS\""]);
    place.done(&["history", "base"]);
    assert_eq!(listing(&place.root()), before, "looking changes nothing");
}

#[test]
fn a_directory_of_mvm_is_not_changed_before_it_is_adopted() {
    let place = Place::new();
    mvm_directory(&place);
    let before = listing(&place.root());
    let files = place.image("files", "a");
    for words in [
        &["init"][..],
        &["create", "web", "--role", "worker"],
        &["publish", "base", files.as_str()],
        &["activate", "base", "3c7f1e"],
        &["rollback", "base"],
        &["rm", "base"],
        &["rm", "--force", "base@3c7f1e"],
    ] {
        place.run(words).with_code(5).says(&["mvm", "adopt"]);
    }
    place.build("base", "a", &[], "touch ran").with_code(5).says(&["mvm", "adopt"]);
    place.build("new", "a", &[], "touch ran").with_code(5).says(&["mvm", "adopt"]);
    assert!(!place.join("ran").exists(), "nothing is built for what can't be published");
    assert_eq!(listing(&place.root()), before);
}

#[test]
fn the_durability_of_a_store_is_kept_in_it() {
    let place = Place::new();
    place.done(&["init", "--durability", "none"]);
    let format: Value = serde_json::from_slice(&fs::read(place.root().join(".store/format.json")).unwrap()).unwrap();
    assert_eq!(format["durability"], json!(Durability::None));
    assert_eq!(place.done(&["--json", "init"]).json()["store"], place.root().as_str(), "again is no error");
    let again: Value = serde_json::from_slice(&fs::read(place.root().join(".store/format.json")).unwrap()).unwrap();
    assert_eq!(again, format);
}

#[test]
fn the_store_is_the_first_that_is_named() {
    let place = Place::new();
    let dirs = ["option", "template-store-dir", "mvm-data-dir", "xdg", "home"].map(|name| place.join(name));
    let expected = [
        dirs[0].clone(),
        dirs[1].clone(),
        dirs[2].clone(),
        dirs[3].join("template-store"),
        dirs[4].join(".local/share/template-store"),
    ];
    for first in 0..dirs.len() {
        let mut command = Command::new(crate::support::program());
        for (name, at) in [("TEMPLATE_STORE_DIR", 1), ("MVM_DATA_DIR", 2), ("XDG_DATA_HOME", 3), ("HOME", 4)] {
            match at >= first {
                true => command.env(name, &dirs[at]),
                false => command.env_remove(name),
            };
        }
        if first == 0 {
            command.args(["--store", dirs[0].as_str()]);
        }
        Ran::of(command.arg("init").output().unwrap()).with_code(0);
        assert!(expected[first].join(".store/format.json").is_file(), "{}", expected[first]);
        assert!(dirs[first + 1..].iter().all(|dir| !dir.exists()), "no other was made");
    }
}

#[test]
fn a_store_may_lie_behind_a_link_and_be_named_from_where_one_is() {
    let place = Place::new();
    fs::create_dir(place.join("real")).unwrap();
    std::os::unix::fs::symlink("real", place.root()).unwrap();
    place.build("web", "a", &[], &script("a")).with_code(0);
    let path = place.done(&["path", "web"]).out;
    assert!(path.starts_with('/'), "paths are absolute: {path}");
    let mut relative = Command::new(crate::support::program());
    let ran = Ran::of(relative.args(["--store", "store", "path", "web"]).current_dir(place.path()).output().unwrap());
    assert_eq!(ran.with_code(0).out, path);
}

#[test]
fn what_a_build_leaves_running_does_not_keep_the_program() {
    let place = Place::new();
    let left = format!("{}; (exec sleep 1000) >/dev/null 2>&1 </dev/null & echo $! >{}/pid", script("a"), place.path());
    let ran = place.build("web", "a", &[], &left).with_code(0);
    assert!(ran.out.starts_with("built web@"), "{ran:?}");
    let pid: u32 = fs::read_to_string(place.join("pid")).unwrap().trim().parse().unwrap();
    assert!(!is_dead(pid), "it is not the store's to end");
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_revision_that_lost_a_file_is_damage_and_not_run() {
    let place = Place::new();
    let revision = build(&place.store(), "web", &inputs("a"), "one");
    fs::remove_file(revision.kernel()).unwrap();
    for call in [&["show", "web"][..], &["show", &format!("web@{}", revision.id())], &["run", "web", "--", "true"]] {
        place.run(call).with_code(4).says(&["vmlinux", "missing"]);
    }
    place.run(&["path", "web", "vmlinux"]).with_code(4).says(&["vmlinux", "missing"]);
}

#[test]
fn directories_for_work_in_progress_are_made_again() {
    let place = Place::new();
    let store = place.store();
    let revision = build(&store, "web", &inputs("a"), "one");
    build(&store, "web", &inputs("b"), "two");
    let (id, old) = (revision.template().clone(), revision.id().clone());
    drop(revision);
    fs::remove_dir(store.layout().drafts()).unwrap();
    fs::remove_dir(store.layout().trash()).unwrap();
    place.done_when_free(&["rm", &format!("{id}@{old}")]);
    build(&store, "db", &inputs("c"), "three");
}
