//! Who is alive, and who holds what: from `/proc`, as far as it tells (proc(5)).

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::read::FileId;

/// What tells one process from all others of this boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub boot_id: String,
    pub pid_namespace: String,
}

/// Where process ids of this process count.
pub(crate) fn identity() -> Identity {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    Identity { boot_id, pid_namespace: namespace.to_string_lossy().into_owned() }
}

/// When a process began, in clock ticks since the boot; `None` when there is no such process.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses, and may hold some.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // A zombie holds nothing any more. The state is field 3, the start time field 22.
    if fields.first() == Some(&"Z") { None } else { fields.get(19)?.parse().ok() }
}

/// What a process runs, as people would write it; empty when that is not to be seen.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    words.map(String::from_utf8_lossy).collect::<Vec<_>>().join(" ")
}

/// The inodes on which somebody holds a `flock`, by their numbers; `None` where the system does not say.
///
/// Locks of processes in other namespaces may be missing: this is for a report, never for a decision.
///
/// It takes its time: for each read, the kernel waits until nobody on the machine is at a lock, some 10 ms. So the reads
/// are as few as can be.
pub(crate) fn locked_inodes() -> Option<Vec<u64>> {
    let (mut file, mut locks) = (File::open("/proc/locks").ok()?, Vec::new());
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => break,
            read => locks.extend_from_slice(&buffer[..read]),
        }
    }
    let locks = String::from_utf8(locks).ok()?;
    let inode = |line: &str| {
        let mut fields = line.split_whitespace().skip_while(|field| *field != "FLOCK").skip(4);
        fields.next()?.rsplit(':').next()?.parse().ok()
    };
    Some(locks.lines().filter_map(inode).collect())
}

/// The processes that hold a lock on one of these directories, each with the place of the directory in the list.
///
/// Those of other users are seen by root only.
pub(crate) fn lock_holders(dirs: &[FileId]) -> Vec<(usize, u32)> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::metadata(descriptor.path()) else { continue };
            if !metadata.is_dir() {
                continue;
            }
            let here = dirs.iter().position(|dir| *dir == FileId::of(&metadata));
            if let Some(at) = here
                && holds_lock(&process.path(), &descriptor.file_name().to_string_lossy())
                && !found.contains(&(at, pid))
            {
                found.push((at, pid));
            }
        }
    }
    found
}

fn holds_lock(process: &Path, descriptor: &str) -> bool {
    let info = fs::read_to_string(process.join("fdinfo").join(descriptor)).unwrap_or_default();
    info.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK"))
}

/// The machine's architecture and its kernel's release (uname(2)).
pub(crate) fn architecture_and_kernel() -> (String, String) {
    let names = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    (text(names.machine()), text(names.release()))
}

/// What the system says of its CPUs; empty where it says nothing.
pub(crate) fn cpu_info() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}
