//! The medium: a graph of inodes of which some changes are durable and some are not.
//!
//! What is known to survive a power cut is only this:
//!
//! - a file's bytes, size, mode and time up to its last fsync; of what came after, anything;
//! - the changes of names up to the last fsync of their directory. Those after it persist in order
//!   within one directory and in any order between directories; a rename is one change of both.

use std::collections::BTreeMap;
use std::sync::Arc;

use camino::{Utf8Component, Utf8Path};

use super::content::FileState;

/// Which inode, as an index into the medium. The root of the recorded tree is inode 0.
pub type Ino = usize;

/// The names in a directory.
pub type Names = Arc<BTreeMap<Arc<str>, Ino>>;

/// A name set to an inode, or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub dir: Ino,
    pub name: Arc<str>,
    pub to: Option<Ino>,
}

/// Edits of names that persist together or not at all.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    pub edits: Vec<Edit>,
    /// The step of the log that made it.
    pub step: usize,
}

impl Change {
    pub fn touches(&self, dir: Ino) -> bool {
        self.edits.iter().any(|edit| edit.dir == dir)
    }
}

/// A thing that names refer to.
#[derive(Debug, Clone)]
pub enum Inode {
    File { durable: FileState, current: FileState },
    Dir { durable: Names, current: Names, mode: u32 },
    Symlink { target: Arc<str> },
}

/// One step of the log, as the medium sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Names(Vec<Edit>),
    /// All of a file as it is after a write, chmod, ...
    Data(Ino, FileState),
    /// Modes of directories are not part of what a cut may lose.
    DirMode(Ino, u32),
    Fsync(Ino),
    FsyncDir(Ino),
    /// The caller was told that something is done.
    Ack,
    /// The process that made the steps so far is gone; another one goes on.
    Kill,
}

/// All inodes, and the changes of names that are not durable.
#[derive(Debug, Clone, Default)]
pub struct Medium {
    pub inodes: Vec<Inode>,
    pub pending: Vec<Arc<Change>>,
}

impl Medium {
    /// A new inode, which no name refers to yet.
    pub fn add(&mut self, inode: Inode) -> Ino {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    pub fn apply(&mut self, number: usize, step: &Step) {
        match step {
            Step::Names(edits) => {
                self.edit(edits, |inode| match inode {
                    Inode::Dir { current, .. } => current,
                    _ => panic!("a change of names in something that is no directory"),
                });
                self.pending.push(Arc::new(Change { edits: edits.clone(), step: number }));
            }
            Step::Data(ino, state) => {
                if let Inode::File { current, .. } = &mut self.inodes[*ino] {
                    *current = state.clone();
                }
            }
            Step::DirMode(ino, bits) => {
                if let Inode::Dir { mode, .. } = &mut self.inodes[*ino] {
                    *mode = *bits;
                }
            }
            Step::Fsync(ino) => {
                if let Inode::File { durable, current } = &mut self.inodes[*ino] {
                    *durable = current.clone();
                }
            }
            Step::FsyncDir(dir) => self.fsync_dir(*dir),
            Step::Ack | Step::Kill => {}
        }
    }

    fn edit(&mut self, edits: &[Edit], names: impl Fn(&mut Inode) -> &mut Names) {
        for edit in edits {
            let names = Arc::make_mut(names(&mut self.inodes[edit.dir]));
            match edit.to {
                Some(ino) => names.insert(edit.name.clone(), ino),
                None => names.remove(&edit.name),
            };
        }
    }

    fn fsync_dir(&mut self, dir: Ino) {
        let forced = self.needed_by(|change| change.touches(dir));
        let mut forced = forced.into_iter();
        let (durable, pending) =
            std::mem::take(&mut self.pending).into_iter().partition(|_| forced.next() == Some(true));
        self.pending = pending;
        let durable: Vec<Arc<Change>> = durable;
        for change in durable {
            self.edit(&change.edits, |inode| match inode {
                Inode::Dir { durable, .. } => durable,
                _ => panic!("a change of names in something that is no directory"),
            });
        }
    }

    /// Which pending changes must be there when the wanted ones are.
    ///
    /// A change needs all earlier ones of each directory that it touches.
    pub fn needed_by(&self, wanted: impl Fn(&Change) -> bool) -> Vec<bool> {
        let mut dirs: Vec<Ino> = Vec::new();
        let mut needed = vec![false; self.pending.len()];
        for (i, change) in self.pending.iter().enumerate().rev() {
            if wanted(change) || change.edits.iter().any(|edit| dirs.contains(&edit.dir)) {
                needed[i] = true;
                dirs.extend(change.edits.iter().map(|edit| edit.dir));
            }
        }
        needed
    }

    /// The names of every directory when, of the pending changes, the `kept` ones persist.
    pub fn names_with(&self, kept: &[bool]) -> BTreeMap<Ino, Names> {
        let mut changed: BTreeMap<Ino, Names> = BTreeMap::new();
        for (change, _) in self.pending.iter().zip(kept).filter(|(_, kept)| **kept) {
            for edit in &change.edits {
                let Inode::Dir { durable, .. } = &self.inodes[edit.dir] else { continue };
                let names = changed.entry(edit.dir).or_insert_with(|| durable.clone());
                match edit.to {
                    Some(ino) => Arc::make_mut(names).insert(edit.name.clone(), ino),
                    None => Arc::make_mut(names).remove(&edit.name),
                };
            }
        }
        changed
    }

    /// The inode of a path below the root as it is now, symlinks followed.
    pub fn lookup(&self, path: &Utf8Path) -> Option<Ino> {
        self.walk(path)
    }

    /// The directory that holds a path as it is now, and the name in it.
    pub fn locate(&self, path: &Utf8Path) -> Option<(Ino, Arc<str>)> {
        let dir = self.walk(path.parent()?)?;
        Some((dir, path.file_name()?.into()))
    }

    /// What a name in a directory refers to now.
    pub fn entry(&self, dir: Ino, name: &str) -> Option<Ino> {
        match &self.inodes[dir] {
            Inode::Dir { current, .. } => current.get(name).copied(),
            _ => None,
        }
    }

    fn walk(&self, path: &Utf8Path) -> Option<Ino> {
        const MOST_LINKS: usize = 20;
        let mut trail = vec![0];
        let mut parts: Vec<String> = path.components().rev().map(|part| part.to_string()).collect();
        let mut links = 0;
        while let Some(part) = parts.pop() {
            match Utf8Path::new(&part).components().next() {
                Some(Utf8Component::ParentDir) => {
                    trail.pop();
                }
                Some(Utf8Component::Normal(name)) => {
                    let next = self.entry(*trail.last()?, name)?;
                    if let Inode::Symlink { target } = &self.inodes[next] {
                        links += 1;
                        if links > MOST_LINKS || target.starts_with('/') {
                            return None;
                        }
                        let target = Utf8Path::new(&**target);
                        parts.extend(target.components().rev().map(|part| part.to_string()));
                    } else {
                        trail.push(next);
                    }
                }
                _ => {}
            }
        }
        trail.last().copied()
    }
}
