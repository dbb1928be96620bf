//! `snapshot attach`, `show`, `check`; what `show` says of a revision.

use super::Paused;
use crate::support::Ran;

fn attach_words<'a>(paths: &'a [String; 3], more: &[&'a str]) -> Vec<&'a str> {
    let [vmstate, mem, drive] = paths;
    let mut words = vec!["snapshot", "attach", "web", "--vmstate", vmstate, "--mem", mem, "--drive", drive];
    words.extend(more);
    words
}

fn paths(paused: &Paused) -> [String; 3] {
    let vm = paused.vm();
    [vm.join("vmstate").into(), vm.join("mem").into(), format!("rootfs={}", vm.join("rootfs.ext4"))]
}

fn run(paused: &Paused, words: &[&str]) -> Ran {
    paused.place.run(words)
}

#[test]
fn a_snapshot_is_attached_shown_and_checked() {
    let paused = Paused::new();
    let paths = paths(&paused);
    let ran = run(&paused, &attach_words(&paths, &["--vmm", "firecracker", "--drive-path", "rootfs=/vms/1/rootfs"]));
    assert!(ran.with_code(0).out.starts_with("attached a snapshot to web@"));
    let ran = run(&paused, &["snapshot", "show", "web"]).with_code(0);
    for words in
        ["vmm       firecracker", "2 vcpus, 8 MiB", "drives/rootfs", "drive     rootfs at /vms/1/rootfs", "mem.bin"]
    {
        assert!(ran.out.contains(words), "{words:?} is not in {}", ran.out);
    }
    let json = run(&paused, &["snapshot", "show", "web", "--json"]).with_code(0).json();
    assert_eq!(json["record"]["vmm"], "firecracker");
    assert_eq!(json["drives"][0]["id"], "rootfs");
    assert!(json["mem"].as_str().unwrap().ends_with("/snapshot/mem.bin"));

    let revision = format!("web@{}", paused.revision().id());
    assert!(run(&paused, &["show", &revision]).with_code(0).out.contains("\nsnapshot  "));
    assert_eq!(run(&paused, &["show", &revision, "--json"]).with_code(0).json()["snapshot"]["mem_mib"], 8);

    assert!(run(&paused, &["snapshot", "check", "web"]).with_code(0).out.contains("can go on"));
    let json = run(&paused, &["snapshot", "check", "web", "--json"]).with_code(0).json();
    assert_eq!(json, serde_json::json!({ "compatible": true, "reasons": [] }));
    let words = ["snapshot", "check", "web", "--vcpus", "4", "--vmm", "other", "--drive-path", "rootfs=/elsewhere"];
    let ran = run(&paused, &words).with_code(5);
    for words in ["2 vcpus", "firecracker", "/elsewhere"] {
        assert!(ran.out.contains(words), "{words:?} is not in {}", ran.out);
    }
    let json = run(&paused, &[&words[..], &["--json"]].concat()).with_code(5).json();
    assert_eq!(json["compatible"], false);
    assert_eq!((&json["reasons"][0]["reason"], &json["reasons"][0]["host"]), (&"vcpus".into(), &4.into()));
    assert!(json["reasons"][0]["text"].as_str().unwrap().contains("vcpus"));
}

#[test]
fn the_exit_code_says_what_went_wrong() {
    let paused = Paused::new();
    for words in [["snapshot", "show", "web"], ["snapshot", "check", "web"]] {
        run(&paused, &words).with_code(3).says(&["no snapshot", "snapshot attach"]);
    }
    run(&paused, &["snapshot", "show", "none"]).with_code(3);
    let paths = paths(&paused);
    let words = attach_words(&paths, &[]);
    run(&paused, &words[..7]).with_code(5).says(&["writable drive rootfs", "--drive rootfs=FILE"]);
    let json = run(&paused, &[&words[..7], &["--json"]].concat()).with_code(5).json();
    assert_eq!(json["exit_code"], 5);
    run(&paused, &attach_words(&paths, &["--drive", "nothing"])).with_code(2).says(&["ID="]);
    run(&paused, &attach_words(&paths, &["--drive", "a/b=x"])).with_code(2).says(&["drive id"]);
    run(&paused, &attach_words(&paths, &["--created-at", "soon"])).with_code(2);
    run(&paused, &attach_words(&paths, &["--mem-mib", "9"])).with_code(5).says(&["9 MiB"]);
}

#[test]
fn what_it_was_taken_on_can_be_noted() {
    let paused = Paused::new();
    let paths = paths(&paused);
    run(&paused, &attach_words(&paths, &["--taken-here", "--arch", "riscv64", "--boot-args", "-x y"])).with_code(0);
    let record = &run(&paused, &["snapshot", "show", "web", "--json"]).with_code(0).json()["record"];
    assert_eq!((&record["architecture"], &record["boot_args"]), (&"riscv64".into(), &"-x y".into()));
    assert!(record["host_kernel"].is_string());
    let ran = run(&paused, &["snapshot", "check", "web", "--boot-args", "-x y"]).with_code(5);
    assert!(ran.out.contains("riscv64"), "{}", ran.out);
}
