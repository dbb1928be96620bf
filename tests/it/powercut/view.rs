//! A tree as someone would find it: the live one, or one that a power cut left.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use camino::{Utf8Path, Utf8PathBuf};

use super::content::{Blob, FileState};
use super::medium::{Ino, Inode, Medium, Names};
use super::mix;

/// One reading of a medium.
#[derive(Debug)]
pub struct View<'a> {
    medium: &'a Medium,
    /// `None` for the live tree; else the directories whose names differ from the durable ones.
    names: Option<BTreeMap<Ino, Names>>,
    /// What the cut made of unsynced files.
    files: &'a [(Ino, FileState)],
}

/// What has a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Leaf {
    Dir {
        mode: u32,
    },
    Symlink(Arc<str>),
    /// `first` is the first path, in order, of the same inode: equal ones are hard links.
    File {
        first: Utf8PathBuf,
        state: FileState,
    },
}

impl<'a> View<'a> {
    /// The tree as running programs see it.
    pub fn live(medium: &'a Medium) -> Self {
        Self { medium, names: None, files: &[] }
    }

    /// The tree after a cut that the `kept` pending changes survived, with `files` as given.
    pub fn after_cut(medium: &'a Medium, kept: &[bool], files: &'a [(Ino, FileState)]) -> Self {
        Self { medium, names: Some(medium.names_with(kept)), files }
    }

    fn names(&self, dir: Ino) -> &Names {
        static NONE: std::sync::LazyLock<Names> = std::sync::LazyLock::new(Names::default);
        match (&self.medium.inodes[dir], &self.names) {
            (Inode::Dir { current, .. }, None) => current,
            (Inode::Dir { durable, .. }, Some(names)) => names.get(&dir).unwrap_or(durable),
            _ => &NONE,
        }
    }

    fn file<'s>(&'s self, ino: Ino, durable: &'s FileState, current: &'s FileState) -> &'s FileState {
        let chosen = self.files.iter().find(|(file, _)| *file == ino);
        match chosen {
            Some((_, state)) => state,
            None if self.names.is_some() => durable,
            None => current,
        }
    }

    /// The files that have a name, each once.
    pub fn files(&self) -> Vec<Ino> {
        let mut seen = vec![false; self.medium.inodes.len()];
        let mut files = Vec::new();
        let mut dirs = vec![0];
        while let Some(dir) = dirs.pop() {
            for &ino in self.names(dir).values() {
                match &self.medium.inodes[ino] {
                    Inode::Dir { .. } => dirs.push(ino),
                    Inode::File { .. } if !std::mem::replace(&mut seen[ino], true) => files.push(ino),
                    _ => {}
                }
            }
        }
        files.sort_unstable();
        files
    }

    /// Equal for trees that nobody could tell apart.
    pub fn hash(&self) -> u64 {
        self.hash_dir(0, &mut Vec::new())
    }

    fn hash_dir(&self, dir: Ino, seen: &mut Vec<Ino>) -> u64 {
        let mut hash = 1;
        for (name, &ino) in self.names(dir).iter() {
            hash = mix(hash, text_hash(name));
            let what = match &self.medium.inodes[ino] {
                Inode::Dir { mode, .. } => mix(u64::from(*mode), self.hash_dir(ino, seen)),
                Inode::Symlink { target } => text_hash(target),
                Inode::File { durable, current } => {
                    let which = seen.iter().position(|file| *file == ino).unwrap_or_else(|| {
                        seen.push(ino);
                        seen.len() - 1
                    });
                    mix(which as u64, self.file(ino, durable, current).hash())
                }
            };
            hash = mix(hash, what);
        }
        hash
    }

    /// Every path of the tree.
    pub fn leaves(&self) -> BTreeMap<Utf8PathBuf, Leaf> {
        let mut leaves = BTreeMap::new();
        self.walk(0, Utf8Path::new(""), &mut |path, ino| {
            let leaf = match &self.medium.inodes[ino] {
                Inode::Dir { mode, .. } => Leaf::Dir { mode: *mode },
                Inode::Symlink { target } => Leaf::Symlink(target.clone()),
                Inode::File { durable, current } => {
                    let state = self.file(ino, durable, current).clone();
                    Leaf::File { first: ino.to_string().into(), state }
                }
            };
            leaves.insert(path.to_owned(), leaf);
        });
        name_inodes_by_path(&mut leaves);
        leaves
    }

    /// Every path, with its inode.
    pub fn paths(&self) -> Vec<(Utf8PathBuf, Ino)> {
        let mut paths = Vec::new();
        self.walk(0, Utf8Path::new(""), &mut |path, ino| paths.push((path.to_owned(), ino)));
        paths
    }

    fn walk(&self, dir: Ino, at: &Utf8Path, visit: &mut impl FnMut(&Utf8Path, Ino)) {
        for (name, &ino) in self.names(dir).iter() {
            let path = at.join(&**name);
            visit(&path, ino);
            self.walk(ino, &path, visit);
        }
    }

    /// Makes the tree below `root`, an existing, empty directory.
    pub fn materialize(&self, root: &Path) -> io::Result<()> {
        self.make_names(0, root, &mut HashMap::new())
    }

    fn make_names(&self, dir: Ino, at: &Path, made: &mut HashMap<Ino, PathBuf>) -> io::Result<()> {
        for (name, &ino) in self.names(dir).iter() {
            let path = at.join(&**name);
            match &self.medium.inodes[ino] {
                Inode::Dir { mode, .. } => {
                    fs::create_dir(&path)?;
                    self.make_names(ino, &path, made)?;
                    // Last: a read-only directory takes no names.
                    fs::set_permissions(&path, Permissions::from_mode(*mode))?;
                }
                Inode::Symlink { target } => symlink(&**target, &path)?,
                Inode::File { durable, current } => match made.get(&ino) {
                    Some(first) => fs::hard_link(first, &path)?,
                    None => {
                        make_file(&path, self.file(ino, durable, current))?;
                        made.insert(ino, path);
                    }
                },
            }
        }
        Ok(())
    }
}

fn make_file(path: &Path, state: &FileState) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(state.blob.head())?;
    if state.blob.len() > state.blob.head().len() as u64 {
        file.set_len(state.blob.len())?;
    }
    file.set_permissions(Permissions::from_mode(state.mode))?;
    let (seconds, nanos) = state.mtime;
    let since = Duration::new(u64::try_from(seconds).unwrap_or(0), nanos);
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + since))
}

/// Every path below a real directory.
pub fn read_disk(root: &Utf8Path) -> io::Result<BTreeMap<Utf8PathBuf, Leaf>> {
    let mut leaves = BTreeMap::new();
    read_disk_dir(root, Utf8Path::new(""), &mut leaves)?;
    name_inodes_by_path(&mut leaves);
    Ok(leaves)
}

fn read_disk_dir(root: &Utf8Path, at: &Utf8Path, leaves: &mut BTreeMap<Utf8PathBuf, Leaf>) -> io::Result<()> {
    for entry in root.join(at).read_dir_utf8()? {
        let path = at.join(entry?.file_name());
        let real = root.join(&path);
        let meta = fs::symlink_metadata(&real)?;
        if meta.is_dir() {
            leaves.insert(path.clone(), Leaf::Dir { mode: meta.mode() & 0o7777 });
            read_disk_dir(root, &path, leaves)?;
        } else if meta.is_symlink() {
            leaves.insert(path, Leaf::Symlink(real.read_link_utf8()?.as_str().into()));
        } else {
            let first = meta.ino().to_string().into();
            leaves.insert(path, Leaf::File { first, state: read_file(&real)? });
        }
    }
    Ok(())
}

/// A real file as it is now.
pub fn read_file(path: &Utf8Path) -> io::Result<FileState> {
    let blob = Blob::new(fs::read(path)?);
    let meta = fs::metadata(path)?;
    let mtime = (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0));
    Ok(FileState { blob, mode: meta.mode() & 0o7777, mtime })
}

/// Numbers of inodes mean nothing elsewhere: the first path stands for the inode instead.
fn name_inodes_by_path(leaves: &mut BTreeMap<Utf8PathBuf, Leaf>) {
    let mut firsts: HashMap<Utf8PathBuf, Utf8PathBuf> = HashMap::new();
    for (path, leaf) in leaves {
        if let Leaf::File { first, .. } = leaf {
            *first = firsts.entry(first.clone()).or_insert_with(|| path.clone()).clone();
        }
    }
}

/// The differences of two trees, in words; none when they are equal.
pub fn differences(model: &BTreeMap<Utf8PathBuf, Leaf>, disk: &BTreeMap<Utf8PathBuf, Leaf>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, leaf) in model {
        match disk.get(path) {
            None => found.push(format!("{path}: in the model, not on the disk")),
            Some(real) if real != leaf => {
                found.push(format!("{path}: the model has {leaf:?}, the disk {real:?}"));
            }
            Some(_) => {}
        }
    }
    let only_real = disk.keys().filter(|path| !model.contains_key(*path));
    found.extend(only_real.map(|path| format!("{path}: on the disk, not in the model")));
    found
}

fn text_hash(text: &str) -> u64 {
    text.bytes().fold(text.len() as u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}
