//! The program's system calls, as strace sees them.
//!
//! The bounds hold on any file system: no step of the store waits more often, or opens more, on one than on another.

use std::fs;
use std::process::{Command, Output};

use camino::Utf8PathBuf;

use super::steps::{fill, say, temporary};
use super::{CREATE_SYNCS, LARGE, PUBLISH_SYNCS, REUSE_SYNCS};

/// A store, a flake.lock, and the files that a builder copies to its draft.
struct Program {
    _dir: tempfile::TempDir,
    root: Utf8PathBuf,
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
        let (dir, root) = temporary();
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
        let files = root.join("files");
        fs::create_dir(&files).unwrap();
        fill(&files, 1, LARGE);
        fs::write(root.join("flake.lock"), r#"{"version":7,"root":"root","nodes":{"root":{}}}"#).unwrap();
        let program = Program { _dir: dir, root };
        program.run(&["init"]);
        Some(program)
    }

    fn run(&self, words: &[&str]) -> Calls {
        let log = self.root.join("calls");
        let store = self.root.join("store");
        let output = Command::new("strace")
            // `?`: a call that not every machine has.
            .args(["-f", "-qq", "-s", "4096", "-e"])
            .arg("trace=%file,?fsync,?fdatasync,?sync,?syncfs,?msync,?sync_file_range,?sync_file_range2")
            .args(["-o", log.as_str(), env!("CARGO_BIN_EXE_template-store"), "--store", store.as_str()])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Calls::parse(&fs::read_to_string(&log).unwrap(), store.as_str())
    }

    /// `build NAME`, whose builder copies the files.
    fn build(&self, name: &str) -> Calls {
        let lock = self.root.join("flake.lock");
        let script = format!("cp {}/* \"$OUT\"", self.root.join("files"));
        self.run(&["build", name, "--flake-lock", lock.as_str(), "--role", "worker", "--", "sh", "-c", &script])
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
fn the_program_reuses_what_is_current_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.build("web");
    let reused = program.build("web");
    assert_eq!(reused.syncs, 0);
    reused.check_changes_nothing();
    // One of the calls asks for the mark of damage, which a revision must not have.
    // Two open `.store/`, to see that what should be directories are.
    reused.check(11, 12);
}

#[test]
fn the_program_looks_up_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.build("web");
    let lock = program.root.join("flake.lock");
    let found = program.run(&["lookup", "--flake-lock", lock.as_str(), "--role", "worker"]);
    assert_eq!(found.syncs, 0);
    found.check_changes_nothing();
    found.check(4, 8);
}

#[test]
fn the_program_collects_nothing_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.build("web");
    program.build("web");
    let collected = program.run(&["gc"]);
    assert_eq!(collected.syncs, 0);
    let records = collected.opened.iter().filter(|(path, _)| path.ends_with("/revision.json")).count();
    assert_eq!(records, 0, "the record is found from its directory, which is open");
    assert!(!collected.has_opened("/vmlinux") && !collected.has_opened("/rootfs.ext4"), "{:#?}", collected.opened);
    collected.check(24, 16);
}

#[test]
fn the_program_activates_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.build("web");
    let revision = fs::read_link(program.root.join("store/templates/web/current")).unwrap();
    let revision = revision.file_name().unwrap().to_str().unwrap().to_owned();
    let activated = program.run(&["activate", "web", &revision]);
    assert!(activated.syncs <= 3, "{} waits", activated.syncs);
    activated.check(7, 14);
}

#[test]
fn the_program_publishes_three_files_with_few_calls() {
    let Some(program) = Program::new() else { return };
    program.create("web");
    let files = program.root.join("files");
    let published = program.run(&["publish", "web", files.as_str()]);
    assert_eq!(published.syncs, PUBLISH_SYNCS);
    published.check(53, 27);
}
