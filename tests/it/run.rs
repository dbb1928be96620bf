//! `run`: a command that holds a revision as long as it lives, whatever becomes of the program that started it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::Stdio;

use rustix::process::Signal;
use template_store::{ErrorKind, Removal};

use crate::support::{Place, Ran, Running, assert_error, build, fresh, id, inputs, is_dead, program, until};

/// A store with two revisions of `web`; the first is not current, and its name is given.
fn place_with_old() -> (Place, String) {
    let (place, store) = fresh();
    let old = build(&store, "web", &inputs("a"), "a").id().clone();
    build(&store, "web", &inputs("b"), "b");
    (place, format!("web@{old}"))
}

#[test]
fn the_command_gets_the_paths_of_the_revision() {
    let (place, store) = fresh();
    let files = place.image("files", "a");
    std::fs::write(files.join("initrd"), "initrd").unwrap();
    let revision = store.publish_dir(&id("web"), &files).unwrap();
    let names = ["ID", "REVISION", "DIR", "VMLINUX", "ROOTFS", "FC_BASE", "INITRD"];
    let script = names.map(|name| format!(r#"echo "$TEMPLATE_{name}""#)).join("; ");
    let ran = place.done(&["run", "web", "--", "sh", "-c", &script]);
    let expected = [
        "web".to_owned(),
        revision.id().to_string(),
        revision.path().to_string(),
        revision.kernel().to_string(),
        revision.rootfs().to_string(),
        revision.fc_base_config().to_string(),
        revision.initrd().unwrap().to_string(),
    ];
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), expected);
    assert_eq!(ran.err, "", "the program says nothing of its own");
}

#[test]
fn the_exit_code_is_that_of_the_command() {
    let (place, old) = place_with_old();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)] {
        place.run(&["run", &old, "--", "sh", "-c", script]).with_code(code);
    }
    place.run(&["run", &old, "--", "no-such-command"]).says(&["no-such-command"]);
    assert_ne!(place.run(&["run", &old, "--", "no-such-command"]).code, Some(0));
    place.run(&["run", "web@none", "--", "true"]).with_code(3).says(&["none"]);
    place.run(&["run", "none", "--", "true"]).with_code(3).says(&["no template none"]);
}

#[test]
fn what_is_typed_and_printed_is_that_of_the_command() {
    let (place, old) = place_with_old();
    let mut command = place.program(&["run", &old, "--", "sh", "-c", "cat; echo to-stderr >&2"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"typed").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"typed"[..], &b"to-stderr\n"[..]));
}

/// A command that says its pid, and lives until its stdin ends.
fn start(place: &Place, target: &str) -> (Running, u32, BufReader<std::process::ChildStdout>) {
    let mut command = place.program(&["run", target, "--", "sh", "-c", "echo $$; read line"]);
    let mut running = Running::start(command.stdin(Stdio::piped()));
    let mut out = BufReader::new(running.take_stdout());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    (running, line.trim().parse().expect("the command says its pid"), out)
}

#[test]
fn the_revision_is_held_while_the_command_lives_although_the_program_is_killed() {
    let (place, old) = place_with_old();
    let (mut running, command, mut out) = start(&place, &old);
    let stdin = running.take_stdin();
    place.run(&["rm", &old]).with_code(5).says(&["in use"]);
    running.signal(Signal::KILL);
    assert_eq!(running.end().code, None, "it was killed");
    assert!(!is_dead(command), "the command lives on");
    place.run(&["rm", &old]).with_code(5).says(&["in use"]);
    let revision = id(old.split_once('@').unwrap().1);
    assert_error(place.store().remove(&id("web"), &revision, Removal::Unused), ErrorKind::Refused, &["in use"]);

    drop(stdin);
    out.read_to_end(&mut Vec::new()).unwrap();
    until("the command ends", || is_dead(command).then_some(()));
    place.done_when_free(&["rm", &old]);
}

#[test]
fn the_revision_is_held_by_what_the_command_leaves_behind() {
    let (place, old) = place_with_old();
    let fifo = place.join("fifo");
    let script = format!("mkfifo {fifo}; (read line <{fifo}) >/dev/null 2>&1 & echo $!");
    let ran = place.done(&["run", &old, "--", "sh", "-c", &script]);
    let left: u32 = ran.out.trim().parse().unwrap();
    place.run(&["rm", &old]).with_code(5).says(&["in use"]);
    std::fs::write(&fifo, "go\n").unwrap();
    until("it ends", || is_dead(left).then_some(()));
    place.done_when_free(&["rm", &old]);
}

/// Whether this process, and what it starts, ignores a signal.
fn ignores(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    u64::from_str_radix(mask, 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

#[test]
fn signals_are_passed_on() {
    let (place, old) = place_with_old();
    for (signal, name, code) in [(Signal::TERM, "TERM", 41), (Signal::HUP, "HUP", 42), (Signal::INT, "INT", 43)] {
        // A shell has what it starts in the background ignore SIGINT, and so does the program then.
        if ignores(signal) {
            eprintln!("SIG{name} was not tried: whoever started this test ignores it");
            continue;
        }
        // `wait` ends when the signal arrives; what it waits for is ended by the trap.
        let script = format!("sleep 100 & trap \"kill $!; exit {code}\" {name}; echo ready; wait");
        let mut running = Running::start(&mut place.program(&["run", &old, "--", "sh", "-c", &script]));
        BufReader::new(running.take_stdout()).read_line(&mut String::new()).unwrap();
        running.signal(signal);
        running.end().with_code(code);
    }
}

#[test]
fn a_signal_that_is_ignored_is_ignored_by_the_command() {
    let (place, old) = place_with_old();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", r#"trap "" HUP; exec "$@""#, "sh", program(), "--store"]);
    command.args([place.root().as_str(), "run", &old, "--", "grep", "SigIgn", "/proc/self/status"]);
    let ran = Ran::of(command.output().unwrap()).with_code(0);
    let mask = ran.out.split_whitespace().last().and_then(|hex| u64::from_str_radix(hex, 16).ok()).expect("a mask");
    assert_eq!(mask & 1, 1, "SIGHUP is still ignored, as nohup wants it: {}", ran.out);
}
