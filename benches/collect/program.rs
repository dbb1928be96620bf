//! The program as a user runs it.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8Path;

/// What a run took.
pub struct Took {
    pub time: Duration,
    /// The most memory that the program had at once, in bytes; of work that this process did, nothing is known.
    pub memory: Option<u64>,
}

/// Runs the program on a store; its output goes nowhere.
pub fn run(root: &Utf8Path, args: &[&str]) -> Took {
    let mut command = Command::new(env!("CARGO_BIN_EXE_template-store"));
    command.arg("--store").arg(root).args(args).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let (id, memory, ended) = (child.id(), AtomicU64::new(0), AtomicBool::new(false));
    let (status, time) = thread::scope(|scope| {
        scope.spawn(|| watch(id, &memory, &ended));
        let status = child.wait().unwrap();
        let time = start.elapsed();
        ended.store(true, Ordering::Relaxed);
        (status, time)
    });
    assert!(status.success(), "{args:?} failed");
    Took { time, memory: Some(memory.into_inner()) }
}

/// Asks again and again: what the kernel tells of a child that has ended also counts its parent, as it was before.
fn watch(id: u32, memory: &AtomicU64, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        if let Some(kib) = peak.and_then(|peak| peak.parse::<u64>().ok()) {
            memory.fetch_max(kib * 1024, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_millis(3));
    }
}
