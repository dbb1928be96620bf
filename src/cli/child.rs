//! Commands that this program runs and watches.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// The hidden first word that makes this program the starter of a builder's command.
pub(crate) const HELPER: &str = "__exec-for";

/// How a command ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub status: ExitStatus,
    /// The signal that asked us to stop meanwhile, if one did.
    pub asked_to_stop: Option<i32>,
}

impl Ended {
    /// The code that a shell would give.
    pub fn code(self) -> u8 {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => code as u8,
            (None, Some(signal)) => 128 + signal as u8,
            (None, None) => 1,
        }
    }

    pub fn describe(self) -> String {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exited with code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended in an unknown way".into(),
        }
    }
}

/// A command that the kernel ends when this process dies, so that nobody writes into a draft that another took over.
pub(crate) fn bound_to_us(words: &[OsString]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(HELPER).arg(std::process::id().to_string()).args(words);
    Ok(command)
}

/// The helper: asks to die with its parent, then becomes the command. `words`: the parent's pid and the command.
pub(crate) fn exec(words: &[OsString]) -> ExitCode {
    let [parent, program, arguments @ ..] = words else {
        eprintln!("error: {HELPER} is for template-store's own use");
        return ExitCode::from(2);
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        eprintln!("error: cannot bind {} to its builder: {error}", program.display());
        return ExitCode::from(126);
    }
    // The parent may have died before it was asked about.
    let alive = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
    if alive.as_deref().map(OsStr::new) != Some(parent) {
        return ExitCode::from(126);
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("error: cannot run {}: {error}", program.display());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// Starts a command and waits for it; signals that this process gets meanwhile are passed on to it.
///
/// `started` is called when the command runs. Afterwards signals do what they always do.
pub(crate) fn supervise(command: &mut Command, started: impl FnOnce()) -> io::Result<Ended> {
    let watch = Watch::start()?;
    let mut child = command.spawn()?;
    watch.started(child.id());
    started();
    let status = child.wait();
    watch.child.store(0, Ordering::SeqCst);
    let asked = watch.asked.load(Ordering::SeqCst);
    Ok(Ended { status: status?, asked_to_stop: (asked != 0).then_some(asked) })
}

/// What the thread that gets this process's signals shares with the one that waits.
#[derive(Debug)]
struct Watch {
    /// The command's pid; [`STARTING`], or 0 after it ended.
    child: AtomicU32,
    /// The last signal that was passed on; 0 if none was.
    asked: AtomicI32,
}

/// No pid: `i32::try_from` refuses it.
const STARTING: u32 = u32::MAX;

impl Watch {
    fn start() -> io::Result<Arc<Watch>> {
        let ignored = ignored_signals();
        let watched = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        let mut signals = Signals::new(watched.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0))?;
        let watch = Arc::new(Watch { child: AtomicU32::new(STARTING), asked: AtomicI32::new(0) });
        let shared = watch.clone();
        thread::spawn(move || signals.forever().for_each(|signal| shared.got(signal)));
        Ok(watch)
    }

    /// The command runs; it gets what arrived before anybody knew its pid.
    fn started(&self, child: u32) {
        self.child.store(child, Ordering::SeqCst);
        let asked = self.asked.load(Ordering::SeqCst);
        if asked != 0 {
            pass_on(asked, child);
        }
    }

    fn got(&self, signal: i32) {
        if self.child.load(Ordering::SeqCst) == 0 {
            let _ = signal_hook::low_level::emulate_default_handler(signal);
            return;
        }
        // Noted first: whoever starts the command looks here after it has noted the pid.
        if !matches!(signal, SIGUSR1 | SIGUSR2) {
            self.asked.store(signal, Ordering::SeqCst);
        }
        pass_on(signal, self.child.load(Ordering::SeqCst));
    }
}

/// The signals that this process ignores, as `nohup` wants it, a bit each; the command is to ignore them too.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn pass_on(signal: i32, child: u32) {
    // What is typed at a terminal goes to the whole group: the command has it already.
    if matches!(signal, SIGINT | SIGQUIT) && io::stdin().is_terminal() {
        return;
    }
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    if let (Some(child), Some(signal)) = (child, Signal::from_named_raw(signal)) {
        let _ = rustix::process::kill_process(child, signal);
    }
}
