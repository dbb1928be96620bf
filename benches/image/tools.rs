//! What others do, run as users run it.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8Path;

use crate::made::{FILES, Made, Sparse, remove};
use crate::plain::time;

fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(status.is_ok_and(|status| status.success()), "{program} {args:?} failed");
}

pub fn has_b3sum() -> bool {
    Command::new("b3sum").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Starts a program that does nothing.
pub fn nothing(_: &Made) -> Duration {
    time(|| run("true", &[])).1
}

pub fn b3sum(made: &Made) -> Duration {
    b3sum_of(&made.image())
}

pub fn b3sum_of(dir: &Utf8Path) -> Duration {
    let files = FILES.map(|name| dir.join(name));
    time(|| run("b3sum", &files.each_ref().map(|file| file.as_str()))).1
}

/// Two at once: the time until both are done.
fn both(made: &Made, one: fn(&Made) -> Duration, other: fn(&Made) -> Duration) -> Duration {
    thread::scope(|scope| {
        let start = Instant::now();
        let other = scope.spawn(|| other(made));
        one(made);
        other.join().unwrap();
        start.elapsed()
    })
}

/// Hashes the files while they are copied past the page cache and synced: what a copy that lasts takes at least.
pub fn read_hash_write(made: &Made) -> Duration {
    remove(&made.target());
    fs::create_dir(made.target()).unwrap();
    both(made, b3sum, |made| {
        time(|| {
            for name in FILES {
                let (from, to) = (made.image().join(name), made.target().join(name));
                let (from, to) = (format!("if={from}"), format!("of={to}"));
                // The last block of a file may be no whole page, which can't be written past the cache.
                let flags = if name == "fc-base.json" { "oflag=sync" } else { "oflag=direct" };
                run("dd", &[&from, &to, "bs=4M", flags, "conv=fsync,sparse"]);
            }
        })
        .1
    })
}

/// Copies the directory as mvm does.
pub fn copy(made: &Made) -> Duration {
    remove(&made.target());
    made.settle();
    time(|| run("cp", &["-a", made.image().as_str(), made.target().as_str()])).1
}

/// Hashes the files while what was just written is synced: what files that stay where they are take at least.
pub fn hash_and_sync(made: &Made, sparse: Sparse) -> Duration {
    made.write_moved(sparse);
    both(made, b3sum, sync_files)
}

/// Syncs the files that are to be moved in.
fn sync_files(made: &Made) -> Duration {
    let files = FILES.map(|name| made.dir.join("moved").join(name));
    time(|| run("sync", &files.each_ref().map(|file| file.as_str()))).1
}

pub fn sync_system(made: &Made) -> Duration {
    time(|| run("sync", &["-f", made.dir.as_str()])).1
}
