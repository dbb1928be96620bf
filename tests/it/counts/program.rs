//! The program's system calls, as strace sees them.
//!
//! The bounds hold on any file system: no step of the store waits more often, or opens more, on one than on another.

use std::fs;
use std::process::{Command, Output};

use super::steps::{fill, say};
use super::{CREATE_SYNCS, LARGE, PUBLISH_SYNCS, REUSE_SYNCS};
use crate::support::{Place, id, program};

/// A store, a flake.lock, and the files that a builder copies to its draft.
struct Program {
    place: Place,
}

/// The calls that one run of the program made.
struct Calls {
    /// `fsync` and `fdatasync`, and whatever else waits for a disk.
    syncs: usize,
    /// What was opened below the store, with the flags, tried in vain or not.
    opened: Vec<(String, String)>,
    /// All other calls that name a path below the store.
    named: Vec<String>,
}

const SYNCS: [&str; 6] = ["fsync", "fdatasync", "sync", "syncfs", "msync", "sync_file_range"];

impl Program {
    /// `None`, with the reason on stderr, where nothing can be traced.
    fn new() -> Option<Program> {
        let trace = Command::new("strace").args(["-f", "-qq", "-o", "/dev/null", "true"]).output();
        match trace {
            Ok(Output { status, .. }) if status.success() => {}
            Ok(Output { stderr, .. }) => {
                let reason = String::from_utf8_lossy(&stderr);
                say(&format!("system calls were not counted: strace can't trace here: {}", reason.trim()));
                return None;
            }
            Err(error) => {
                say(&format!("system calls were not counted: strace can't be started ({error}); is it installed?"));
                return None;
            }
        }
        let place = Place::new();
        let files = place.join("files");
        fs::create_dir(&files).unwrap();
        fill(&files, 1, LARGE);
        let program = Program { place };
        program.run(&["init"]);
        Some(program)
    }

    fn run(&self, words: &[&str]) -> Calls {
        let (log, store) = (self.place.join("calls"), self.place.root());
        let output = Command::new("strace")
            // `?`: a call that not every machine has.
            .args(["-f", "-qq", "-s", "4096", "-e"])
            .arg("trace=%file,?fsync,?fdatasync,?sync,?syncfs,?msync,?sync_file_range,?sync_file_range2")
            .args(["-o", log.as_str(), program(), "--store", store.as_str()])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Calls::parse(&fs::read_to_string(&log).unwrap(), store.as_str())
    }

    /// `build NAME`, whose builder copies the files.
    fn build(&self, name: &str) -> Calls {
        let script = format!("cp {}/* \"$OUT\"", self.place.join("files"));
        let words = self.place.build_words(name, "a", &[], &script);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn create(&self, name: &str) -> Calls {
        self.run(&["create", name, "--role", "worker"])
    }
}

impl Calls {
    /// Lines are `PID NAME(ARGUMENTS) = RESULT`; a call that others interrupt begins in one and ends in another.
    fn parse(log: &str, store: &str) -> Calls {
        let mut calls = Calls { syncs: 0, opened: Vec::new(), named: Vec::new() };
        for line in log.lines() {
            let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
            let Some((name, arguments)) = call.split_once('(') else { continue };
            if SYNCS.contains(&name) {
                calls.syncs += 1;
            }
            if name == "execve" {
                continue; // its arguments name the store
            }
            let mut paths = arguments.split('"').skip(1).step_by(2).filter_map(|path| path.strip_prefix(store));
            let Some(path) = paths.next() else { continue };
            match name {
                "open" | "openat" | "openat2" | "creat" => {
                    let flags = arguments.rsplit('"').next().unwrap_or_default();
                    calls.opened.push((path.to_owned(), flags.to_owned()));
                }
                _ => calls.named.push(format!("{name} {path}")),
            }
        }
        calls
    }

    fn has_opened(&self, name: &str) -> bool {
        self.opened.iter().any(|(path, _)| path.ends_with(name))
    }

    /// Fails with the list when it is longer than it may be.
    fn check(&self, most_opened: usize, most_named: usize) {
        assert!(self.opened.len() <= most_opened, "{} opens: {:#?}", self.opened.len(), self.opened);
        assert!(self.named.len() <= most_named, "{} calls: {:#?}", self.named.len(), self.named);
    }

    fn check_changes_nothing(&self) {
        let writes = |flags: &str| ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| flags.contains(flag));
        assert!(!self.opened.iter().any(|(_, flags)| writes(flags)), "{:#?}", self.opened);
        let reads = |call: &String| ["stat", "readlink", "access", "getcwd"].iter().any(|name| call.contains(name));
        assert!(self.named.iter().all(reads), "{:#?}", self.named);
    }
}

#[test]
fn the_program_waits_as_often_as_the_library() {
    let Some(program) = Program::new() else { return };
    assert_eq!(program.create("web").syncs, CREATE_SYNCS);
    let published = program.build("web");
    assert_eq!(published.syncs, PUBLISH_SYNCS, "three new files in a template that exists");

    program.create("api");
    let reused = program.build("api");
    assert_eq!(reused.syncs, REUSE_SYNCS);
    assert!(!reused.has_opened("/vmlinux") && !reused.has_opened("/rootfs.ext4"), "{:#?}", reused.opened);
}

#[test]
fn the_program_needs_few_calls_for_what_is_there_already() {
    let Some(program) = Program::new() else { return };
    program.build("web");
    let reused = program.build("web");
    // One of the calls asks for the mark of damage, which a revision must not have.
    // Two open `.store/`, to see that what should be directories are.
    reused.check(11, 12);

    let lock = program.place.lock("a");
    let found = program.run(&["lookup", "--flake-lock", lock.as_str(), "--role", "worker"]);
    found.check(4, 8);
    for calls in [reused, found] {
        assert_eq!(calls.syncs, 0);
        calls.check_changes_nothing();
    }

    let collected = program.run(&["gc"]);
    assert_eq!(collected.syncs, 0);
    assert!(!collected.has_opened("/revision.json"), "the record is found from its directory, which is open");
    assert!(!collected.has_opened("/vmlinux") && !collected.has_opened("/rootfs.ext4"), "{:#?}", collected.opened);
    collected.check(24, 16);

    let revision = program.place.store().current(&id("web")).unwrap().id().to_string();
    let activated = program.run(&["activate", "web", &revision]);
    assert!(activated.syncs <= 3, "{} waits", activated.syncs);
    activated.check(7, 14);
}

#[test]
fn the_program_publishes_three_files_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.create("web");
    let published = program.run(&["publish", "web", program.place.join("files").as_str()]);
    assert_eq!(published.syncs, PUBLISH_SYNCS);
    published.check(53, 27);
}
