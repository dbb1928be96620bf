//! Commands that this program runs and watches.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// `started` is called with its process id when the command runs. Afterwards signals do what they always do.
pub(crate) fn supervise(command: &mut Command, started: impl FnOnce(u32)) -> io::Result<Ended> {
    let watch = Watch::start()?;
    let mut child = watch.spawn(command)?;
    started(child.id());
    let status = child.wait();
    *watch.child() = None;
    let asked = watch.asked.load(Ordering::SeqCst);
    Ok(Ended { status: status?, asked_to_stop: (asked != 0).then_some(asked) })
}

/// What the thread that gets this process's signals shares with the one that waits.
#[derive(Debug, Default)]
struct Watch {
    /// The command, while it runs.
    child: Mutex<Option<Pid>>,
    /// The last signal that asked it to stop; 0 if none did.
    asked: AtomicI32,
}

impl Watch {
    fn start() -> io::Result<Arc<Watch>> {
        let ignored = ignored_signals();
        let watched = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
        let mut signals = Signals::new(watched.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0))?;
        let watch = Arc::new(Watch::default());
        let shared = watch.clone();
        thread::spawn(move || signals.forever().for_each(|signal| shared.got(signal)));
        Ok(watch)
    }

    fn child(&self) -> MutexGuard<'_, Option<Pid>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the command. A signal that arrives meanwhile waits until it is known to whom it goes.
    fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut slot = self.child();
        let child = command.spawn()?;
        *slot = Some(Pid::from_child(&child));
        Ok(child)
    }

    fn got(&self, signal: i32) {
        let child = self.child();
        match *child {
            Some(child) => {
                if !matches!(signal, SIGUSR1 | SIGUSR2) {
                    self.asked.store(signal, Ordering::SeqCst);
                }
                pass_on(signal, child);
            }
            None => drop(signal_hook::low_level::emulate_default_handler(signal)),
        }
    }
}

/// The signals that this process ignores, as `nohup` wants it, a bit each; the command is to ignore them too.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn pass_on(signal: i32, child: Pid) {
    // What is typed at a terminal goes to the whole group: the command has it already.
    if matches!(signal, SIGINT | SIGQUIT) && io::stdin().is_terminal() {
        return;
    }
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = rustix::process::kill_process(child, signal);
    }
}
