//! Somebody's directory that a link leads to, put in the place of one that the store works in.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use template_store::observe::{Observer, Op, Verdict};

use crate::support::bytes;

/// What each file of the victim begins with.
pub const SECRET: &[u8] = b"a secret of the victim";

/// Exchanges what two names mean, in one step; whether there were two.
pub fn exchange(a: &Utf8Path, b: &Utf8Path) -> bool {
    renameat_with(CWD, a.as_std_path(), CWD, b.as_std_path(), RenameFlags::EXCHANGE).is_ok()
}

/// A directory that nobody may touch, with all that it is and holds.
pub struct Victim {
    pub dir: Utf8PathBuf,
    before: Vec<String>,
}

impl Victim {
    /// Fills a directory with the names that another one has, and secrets as their bytes; modes that nothing of the
    /// store's has.
    pub fn like(dir: &Utf8Path, other: &Utf8Path) -> Victim {
        copy_names(other, dir);
        Victim::of(dir)
    }

    /// All that a directory holds now.
    pub fn of(dir: &Utf8Path) -> Victim {
        Victim { dir: dir.to_owned(), before: state(dir) }
    }

    #[track_caller]
    pub fn assert_untouched(&self, when: &str) {
        assert_eq!(state(&self.dir), self.before, "{when}");
    }
}

impl Drop for Victim {
    /// So that who can't delete from a directory without the right to write can delete it in the end.
    fn drop(&mut self) {
        for entry in walkdir::WalkDir::new(&self.dir).into_iter().flatten().filter(|entry| entry.file_type().is_dir()) {
            let _ = fs::set_permissions(entry.path(), Permissions::from_mode(0o755));
        }
    }
}

fn copy_names(from: &Utf8Path, to: &Utf8Path) {
    let metadata = fs::symlink_metadata(from).unwrap();
    if metadata.is_dir() {
        fs::create_dir(to).unwrap();
        for entry in from.read_dir_utf8().unwrap() {
            let entry = entry.unwrap();
            copy_names(entry.path(), &to.join(entry.file_name()));
        }
        // Without write permission: who deletes below it has to open it up first.
        fs::set_permissions(to, Permissions::from_mode(0o550)).unwrap();
    } else {
        let mut secret = bytes(to.as_str(), metadata.len() as usize);
        let len = SECRET.len().min(secret.len());
        secret[..len].copy_from_slice(&SECRET[..len]);
        fs::write(to, secret).unwrap();
        fs::set_permissions(to, Permissions::from_mode(0o640)).unwrap();
    }
}

/// Everything that can be seen of a tree without following a link.
fn state(dir: &Utf8Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    let line = |entry: walkdir::DirEntry| {
        let m = entry.metadata().unwrap();
        let digest = m.is_file().then(|| blake3::hash(&fs::read(entry.path()).unwrap()).to_hex().to_string());
        let who = (m.mode(), m.uid(), m.gid(), m.ino(), m.nlink(), m.mtime(), m.ctime(), m.ctime_nsec());
        format!("{} {who:?} {digest:?}", entry.path().display())
    };
    walk.map(line).collect()
}

/// No file below the directory begins with the victim's secret; links are not followed.
#[track_caller]
pub fn assert_no_secret(dir: &Utf8Path, when: &str) {
    if let Some(path) = secret_below(dir).unwrap() {
        panic!("{} is the victim's, {when}", path.display());
    }
}

/// A file below the directory that begins with the victim's secret.
pub fn secret_below(dir: &Utf8Path) -> io::Result<Option<PathBuf>> {
    for entry in walkdir::WalkDir::new(dir) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let mut start = vec![0; SECRET.len()];
            let read = File::open(entry.path())?.read(&mut start)?;
            if start[..read] == *SECRET {
                return Ok(Some(entry.into_path()));
            }
        }
    }
    Ok(None)
}

/// What somebody does at one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Swaps two names before it, and leaves them.
    Stays,
    /// Swaps them before it, and back after it: what looks before and after sees nothing.
    Back,
}

/// Swaps two names at the n-th step of a store.
#[derive(Debug)]
pub struct Swapper {
    at: usize,
    how: Swap,
    steps: AtomicUsize,
    names: Mutex<Option<(Utf8PathBuf, Utf8PathBuf)>>,
    swapped: Mutex<Option<Op>>,
    /// The names could be swapped back.
    restored: AtomicBool,
}

impl Swapper {
    pub fn new(at: usize, how: Swap) -> Swapper {
        let (steps, restored) = (AtomicUsize::new(0), AtomicBool::new(false));
        Swapper { at, how, steps, names: Mutex::default(), swapped: Mutex::default(), restored }
    }

    /// From now on steps count, and these two names are the ones that are swapped.
    pub fn arm(&self, target: &Utf8Path, bait: &Utf8Path) {
        self.steps.store(0, Ordering::SeqCst);
        *self.names.lock().unwrap() = Some((target.to_owned(), bait.to_owned()));
    }

    /// The names are as they were, if they can be; whether there was such a step.
    pub fn disarm(&self) -> bool {
        self.names.lock().unwrap().take();
        self.steps.load(Ordering::SeqCst) > self.at
    }

    /// Whether all is as if nobody had been there.
    pub fn has_restored(&self) -> bool {
        self.restored.load(Ordering::SeqCst)
    }

    /// The step before which names were swapped.
    pub fn step(&self) -> String {
        format!("{:?} at step {}: {:?}", self.how, self.at, self.swapped.lock().unwrap())
    }
}

impl Observer for Swapper {
    fn before(&self, op: &Op) -> Verdict {
        if let Some((target, bait)) = &*self.names.lock().unwrap()
            && self.steps.fetch_add(1, Ordering::SeqCst) == self.at
            && exchange(target, bait)
        {
            *self.swapped.lock().unwrap() = Some(op.clone());
        }
        Verdict::Proceed
    }

    fn after(&self, op: &Op, _: Result<(), &std::io::Error>) {
        if self.how == Swap::Back
            && self.swapped.lock().unwrap().as_ref() == Some(op)
            && let Some((target, bait)) = self.names.lock().unwrap().take()
        {
            self.restored.store(exchange(&target, &bait), Ordering::SeqCst);
        }
    }
}

/// A link to the victim, to be put in the place of something else.
pub fn bait(at: &Utf8Path, victim: &Utf8Path) -> Utf8PathBuf {
    symlink(victim, at).unwrap();
    at.to_owned()
}
