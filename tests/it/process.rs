//! Runs of the program, to their end or going on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use serde_json::Value;

use crate::support::until;

/// What a run of the program gave.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).expect("the program writes UTF-8");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    pub fn with_code(self, code: i32) -> Ran {
        assert_eq!(self.code, Some(code), "the exit code; out: {} err: {}", self.out, self.err);
        self
    }

    /// Each of these words is in what it said on stderr.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Ran {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is not in what it said: {}", self.err);
        }
        self
    }

    /// The one JSON document that it printed.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {:?} {}", self.out, self.err))
    }
}

/// A run of the program that goes on.
pub struct Running {
    child: Option<Child>,
    /// What it says on stderr: a file, so that nobody has to read it for the program to go on.
    err: File,
}

impl Running {
    /// Starts it; its stdout is a pipe.
    pub fn start(command: &mut Command) -> Running {
        let err = tempfile::tempfile().unwrap();
        let child = command.stdout(Stdio::piped()).stderr(err.try_clone().unwrap()).spawn();
        Running { child: Some(child.expect("the program can be started")), err }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it has said on stderr so far.
    pub fn said(&self) -> String {
        let mut bytes = vec![0; self.err.metadata().unwrap().len() as usize];
        self.err.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until it says on stderr that it waits for another build.
    pub fn until_it_waits(&mut self) {
        until("it says that it waits", || {
            let ended = self.child.as_mut().expect("it runs").try_wait().unwrap();
            assert_eq!(ended, None, "it waits; what it said: {}", self.said());
            self.said().contains("; waiting").then_some(())
        });
    }

    /// What it prints, to be read by the test; `end` gives no output then.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.as_mut().expect("it runs").stdout.take().expect("it is taken once")
    }

    /// What the test types.
    pub fn take_stdin(&mut self) -> ChildStdin {
        self.child.as_mut().expect("it runs").stdin.take().expect("it is taken once")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.child.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end; a death by signal has no code.
    pub fn end(mut self) -> Ran {
        let output = self.child.take().expect("it runs").wait_with_output().unwrap();
        Ran { err: self.said(), ..Ran::of(output) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
