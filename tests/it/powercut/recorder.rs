//! Watches a store at work and writes down what it does to the disk.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer, Op, Verdict};

use super::content::FileState;
use super::medium::{Edit, Ino, Inode, Medium, Names, Step};
use super::view::{View, differences, read_disk, read_file};

/// A step, and what it was in words.
#[derive(Debug, Clone)]
pub struct Entry {
    pub step: Step,
    pub text: String,
    /// The path that it was made by, below the recorded root.
    pub path: Utf8PathBuf,
}

/// What was on the disk, durably, and all that was done to it.
#[derive(Debug, Clone)]
pub struct Log {
    /// Has every inode of the log; those that come later have no name yet.
    pub start: Medium,
    pub entries: Vec<Entry>,
}

impl Log {
    /// The medium after all steps.
    pub fn end(&self) -> Medium {
        let mut medium = self.start.clone();
        for (number, entry) in self.entries.iter().enumerate() {
            medium.apply(number, &entry.step);
        }
        medium
    }

    /// How many steps there are up to the last acknowledgement.
    pub fn last_ack(&self) -> usize {
        self.entries.iter().rposition(|entry| entry.step == Step::Ack).map_or(0, |at| at + 1)
    }
}

/// An observer that builds a [`Log`] of all that happens below a directory.
///
/// Of each file that a step changed it reads what the file then is from the real disk, so the model
/// needs no idea of what a write or a clone does. One step runs at a time, so that the order in the
/// log is the order on the disk.
pub struct Recorder {
    root: Utf8PathBuf,
    log: Mutex<Recording>,
    gate: Gate,
}

pub(super) struct Recording {
    log: Log,
    pub(super) live: Medium,
    /// The first thing that the model could not follow; told at the end, on the test's own thread.
    fault: Option<String>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Recorder {
    /// Takes all that is below `root` now for durable.
    pub fn new(root: &Utf8Path) -> io::Result<Arc<Self>> {
        let root = root.canonicalize_utf8()?;
        let mut start = Medium::default();
        let mode = std::fs::metadata(&root)?.mode() & 0o7777;
        start.add(Inode::Dir { durable: Names::default(), current: Names::default(), mode });
        let log = Log { start: start.clone(), entries: Vec::new() };
        let mut recording = Recording { log, live: start, fault: None };
        recording.import(&root, Utf8Path::new("")).map_err(io::Error::other)?;
        recording.all_is_durable();
        let log = Mutex::new(recording);
        Ok(Arc::new(Self { root, log, gate: Gate::default() }))
    }

    /// Goes on from a log whose maker was killed: what it did is all there, and no more durable than it was.
    ///
    /// `root` must hold what the log leads to.
    pub fn resume(root: &Utf8Path, log: Log) -> io::Result<Arc<Self>> {
        let mut recording = Recording { live: log.end(), log, fault: None };
        recording.push(Step::Kill, "the process is killed".to_owned(), Utf8Path::new(""));
        let log = Mutex::new(recording);
        Ok(Arc::new(Self { root: root.canonicalize_utf8()?, log, gate: Gate::default() }))
    }

    /// Notes that the caller has been told that `label` is done.
    pub fn ack(&self, label: &str) {
        let text = format!("acknowledged: {label}");
        self.recording().push(Step::Ack, text, Utf8Path::new(""));
    }

    /// Notes that somebody else wrote what is below `path`.
    pub fn note_foreign(&self, path: &Utf8Path) {
        self.note(&Op::Foreign { path: path.to_owned() });
    }

    /// How many steps there were.
    pub fn len(&self) -> usize {
        self.recording().log.entries.len()
    }

    /// The log, once it is certain that no change to the disk escaped it.
    ///
    /// # Panics
    ///
    /// When the disk is not what the log says.
    pub fn finish(&self) -> Log {
        let recording = self.recording();
        if let Some(fault) = &recording.fault {
            panic!("the model could not follow the store: {fault}");
        }
        let disk = read_disk(&self.root).expect("the recorded tree can be read");
        let different = differences(&View::live(&recording.live).leaves(), &disk);
        assert!(different.is_empty(), "something changed the disk past the seam:\n  {}", different.join("\n  "));
        recording.log.clone()
    }

    fn recording(&self) -> MutexGuard<'_, Recording> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, op: &Op) {
        let mut recording = self.recording();
        if let Err(fault) = recording.follow(&self.root, op) {
            recording.fault.get_or_insert(format!("{op:?}: {fault}"));
        }
    }
}

impl Observer for Recorder {
    fn before(&self, _op: &Op) -> Verdict {
        self.gate.enter();
        Verdict::Proceed
    }

    fn after(&self, op: &Op, outcome: Result<(), &io::Error>) {
        if outcome.is_ok() {
            self.note(op);
        }
        self.gate.leave();
    }
}

/// Lets one thread through at a time, and that one again.
#[derive(Default)]
struct Gate {
    inside: Mutex<(Option<ThreadId>, usize)>,
    free: Condvar,
}

impl Gate {
    fn enter(&self) {
        let me = thread::current().id();
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |state: &mut (Option<ThreadId>, usize)| state.0.is_some_and(|who| who != me);
        let mut inside = self.free.wait_while(inside, taken).unwrap_or_else(PoisonError::into_inner);
        *inside = (Some(me), inside.1 + 1);
    }

    fn leave(&self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.1 -= 1;
        if inside.1 == 0 {
            inside.0 = None;
            self.free.notify_one();
        }
    }
}

pub(super) type Followed<T = ()> = Result<T, String>;

impl Recording {
    pub(super) fn push(&mut self, step: Step, text: String, path: &Utf8Path) {
        self.live.apply(self.log.entries.len(), &step);
        self.log.entries.push(Entry { step, text, path: path.to_owned() });
    }

    fn all_is_durable(&mut self) {
        for inode in &mut self.live.inodes {
            match inode {
                Inode::File { durable, current } => *durable = current.clone(),
                Inode::Dir { durable, current, .. } => *durable = current.clone(),
                Inode::Symlink { .. } => {}
            }
        }
        self.live.pending.clear();
        self.log = Log { start: self.live.clone(), entries: Vec::new() };
    }

    /// A new inode. In the log it is there from the start, without a name.
    pub(super) fn add(&mut self, inode: Inode) -> Ino {
        self.log.start.add(inode.clone());
        self.live.add(inode)
    }

    pub(super) fn add_dir(&mut self, mode: u32) -> Ino {
        self.add(Inode::Dir { durable: Names::default(), current: Names::default(), mode })
    }

    fn follow(&mut self, root: &Utf8Path, op: &Op) -> Followed {
        let inside = |path: &Utf8Path| -> Followed<Utf8PathBuf> {
            let below = path.strip_prefix(root).map(Utf8Path::to_owned);
            below.map_err(|_| format!("{path} is not below {root}"))
        };
        if let Some(locks) = lock_dir_of(op) {
            return self.import(root, &inside(locks)?);
        }
        match op {
            // A sync adds nothing where nothing is recorded, such as above the root.
            Op::FsyncDir { path } if !path.starts_with(root) => Ok(()),
            Op::Create { path } | Op::Clone { to: path, .. } => self.file_written(root, &inside(path)?, op, true),
            Op::Write { path, .. }
            | Op::Append { path, .. }
            | Op::Truncate { path, .. }
            | Op::Allocate { path, .. }
            | Op::PunchHole { path, .. }
            | Op::Chmod { path, .. }
            | Op::SetMtime { path, .. }
            | Op::RemoveXattr { path, .. } => self.file_written(root, &inside(path)?, op, false),
            Op::Fsync { path } => self.fsync(root, &inside(path)?),
            Op::FsyncDir { path } => self.fsync_dir(&inside(path)?),
            Op::SyncFileSystem { .. } => self.sync_all(root),
            Op::Mkdir { path } => self.mkdir(root, &inside(path)?),
            Op::Symlink { target, path } => {
                let ino = self.add(Inode::Symlink { target: target.as_str().into() });
                self.name(&inside(path)?, Some(ino), "symlink")
            }
            Op::Link { from, to } => {
                let ino = self.entry(&inside(from)?)?;
                self.name(&inside(to)?, Some(ino), "link")
            }
            Op::Rmdir { path } => self.name(&inside(path)?, None, "rmdir"),
            Op::Unlink { path } => self.name(&inside(path)?, None, "unlink"),
            Op::Rename { from, to } | Op::RenameNoReplace { from, to } => self.rename(&inside(from)?, &inside(to)?),
            Op::RenameExchange { from, to } => self.exchange(&inside(from)?, &inside(to)?),
            Op::Foreign { path } => self.import(root, &inside(path)?),
            other => Err(format!("the model does not know {other:?}")),
        }
    }

    pub(super) fn place(&self, path: &Utf8Path) -> Followed<(Ino, Arc<str>)> {
        self.live.locate(path).ok_or_else(|| format!("the model has no directory for {path}"))
    }

    /// The inode of a name, which may be a symlink.
    fn entry(&self, path: &Utf8Path) -> Followed<Ino> {
        let (dir, name) = self.place(path)?;
        self.live.entry(dir, &name).ok_or_else(|| format!("the model has no {path}"))
    }

    pub(super) fn name(&mut self, path: &Utf8Path, to: Option<Ino>, what: &str) -> Followed {
        let (dir, name) = self.place(path)?;
        let edits = vec![Edit { dir, name, to }];
        self.push(Step::Names(edits), format!("{what} {path}"), path);
        Ok(())
    }

    fn rename(&mut self, from: &Utf8Path, to: &Utf8Path) -> Followed {
        let (ino, target) = (self.entry(from)?, self.place(to)?);
        // Between two names of one inode, rename(2) does nothing.
        if self.live.entry(target.0, &target.1) == Some(ino) {
            return Ok(());
        }
        let (dir, name) = self.place(from)?;
        let taken = Edit { dir, name, to: None };
        let given = Edit { dir: target.0, name: target.1, to: Some(ino) };
        self.push(Step::Names(vec![taken, given]), format!("rename {from} -> {to}"), to);
        Ok(())
    }

    fn exchange(&mut self, from: &Utf8Path, to: &Utf8Path) -> Followed {
        let (one, other) = (self.entry(from)?, self.entry(to)?);
        let (dir, name) = self.place(from)?;
        let first = Edit { dir, name, to: Some(other) };
        let (dir, name) = self.place(to)?;
        let second = Edit { dir, name, to: Some(one) };
        self.push(Step::Names(vec![first, second]), format!("exchange {from} <-> {to}"), to);
        Ok(())
    }

    fn mkdir(&mut self, root: &Utf8Path, path: &Utf8Path) -> Followed {
        let ino = self.add_dir(mode_of(&root.join(path))?);
        self.name(path, Some(ino), "mkdir")
    }

    fn fsync_dir(&mut self, path: &Utf8Path) -> Followed {
        let dir = self.live.lookup(path).ok_or("the model has no such directory")?;
        self.push(Step::FsyncDir(dir), format!("fsync_dir {path}"), path);
        Ok(())
    }

    /// Syncs every file and directory of the tree, in some order.
    fn sync_all(&mut self, root: &Utf8Path) -> Followed {
        let mut left = vec![Utf8PathBuf::new()];
        while let Some(path) = left.pop() {
            let real = root.join(&path);
            let meta = real.symlink_metadata().map_err(|error| format!("{real}: {error}"))?;
            if meta.is_dir() {
                for entry in real.read_dir_utf8().map_err(|error| error.to_string())? {
                    left.push(path.join(entry.map_err(|error| error.to_string())?.file_name()));
                }
                self.fsync_dir(&path)?;
            } else if meta.is_file() && !path.as_str().contains("/locks/") {
                self.fsync(root, &path)?;
            }
        }
        Ok(())
    }

    fn fsync(&mut self, root: &Utf8Path, path: &Utf8Path) -> Followed {
        let ino = self.live.lookup(path).ok_or("the model has no such file")?;
        let real = read_file(&root.join(path)).map_err(|error| error.to_string())?;
        match &self.live.inodes[ino] {
            Inode::File { current, .. } if *current == real => {}
            known => return Err(format!("written past the seam: {real:?}, but known as {known:?}")),
        }
        self.push(Step::Fsync(ino), format!("fsync {path}"), path);
        Ok(())
    }

    fn file_written(&mut self, root: &Utf8Path, path: &Utf8Path, op: &Op, may_create: bool) -> Followed {
        let real = root.join(path);
        let text = format!("{} {path}", verb(op));
        match self.live.lookup(path) {
            Some(ino) if matches!(self.live.inodes[ino], Inode::Dir { .. }) => {
                let mode = mode_of(&real)?;
                self.push(Step::DirMode(ino, mode), text, path);
            }
            Some(ino) => {
                let state = read_file(&real).map_err(|error| error.to_string())?;
                self.push(Step::Data(ino, state), text, path);
            }
            None if may_create => {
                let state = read_file(&real).map_err(|error| error.to_string())?;
                self.new_file(path, state, verb(op))?;
            }
            None => return Err("the model has no such file".to_owned()),
        }
        Ok(())
    }

    pub(super) fn new_file(&mut self, path: &Utf8Path, state: FileState, what: &str) -> Followed<Ino> {
        let empty = state.emptied();
        let ino = self.add(Inode::File { durable: empty.clone(), current: empty });
        self.name(path, Some(ino), what)?;
        if state.blob.len() > 0 {
            self.push(Step::Data(ino, state), format!("{what} {path}: its bytes"), path);
        }
        Ok(ino)
    }
}

/// Lock files are opened where they are missing, which is no step. What the model has of them is what is
/// there whenever one is written or removed; that nothing of it lasts is fine.
fn lock_dir_of(op: &Op) -> Option<&Utf8Path> {
    match op {
        Op::Truncate { path, .. } | Op::Write { path, .. } | Op::Unlink { path } => {
            path.parent().filter(|dir| dir.ends_with(".store/locks"))
        }
        _ => None,
    }
}

fn mode_of(path: &Utf8Path) -> Followed<u32> {
    let meta = path.symlink_metadata().map_err(|error| format!("{path}: {error}"))?;
    Ok(meta.mode() & 0o7777)
}

fn verb(op: &Op) -> &'static str {
    match op {
        Op::Create { .. } => "create",
        Op::Clone { .. } => "clone into",
        Op::Write { .. } => "write",
        Op::Append { .. } => "append to",
        Op::Truncate { .. } => "truncate",
        Op::Allocate { .. } => "allocate",
        Op::PunchHole { .. } => "punch a hole in",
        Op::Chmod { .. } => "chmod",
        Op::SetMtime { .. } => "set the time of",
        Op::RemoveXattr { .. } => "remove an attribute of",
        _ => "change",
    }
}
