//! What someone else wrote, found by looking at the disk.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::medium::{Ino, Inode, Step};
use super::recorder::{Followed, Recording};
use super::view::{View, read_file};

/// Which real inode, by device and number, is which of the model.
type Known = HashMap<(u64, u64), Ino>;

impl Recording {
    /// Notes all that is on the disk below `path` and not in the model.
    pub(super) fn import(&mut self, root: &Utf8Path, path: &Utf8Path) -> Followed {
        let mut known = self.real_inodes(root);
        match self.live.lookup(path) {
            Some(dir) => self.import_dir(root, path, dir, &mut known),
            // A directory that was made elsewhere, to be moved in.
            None => {
                let (dir, _) = self.place(path)?;
                self.import_name(root, path, dir, &mut known)
            }
        }
    }

    /// Which real inode is which of the model.
    fn real_inodes(&self, root: &Utf8Path) -> Known {
        let view = View::live(&self.live);
        let stat = |(path, ino): (Utf8PathBuf, Ino)| {
            let meta = root.join(path).symlink_metadata().ok()?;
            Some(((meta.dev(), meta.ino()), ino))
        };
        view.paths().into_iter().filter_map(stat).collect()
    }

    fn import_dir(&mut self, root: &Utf8Path, at: &Utf8Path, dir: Ino, known: &mut Known) -> Followed {
        let bad = |error: io::Error| format!("{at}: {error}");
        let mut names = Vec::new();
        for entry in root.join(at).read_dir_utf8().map_err(bad)? {
            names.push(entry.map_err(bad)?.file_name().to_owned());
        }
        names.sort_unstable();
        let Inode::Dir { current, .. } = &self.live.inodes[dir] else {
            return Err(format!("{at} is no directory"));
        };
        let gone = current.keys().filter(|name| !names.iter().any(|real| **real == ***name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.name(&at.join(&*name), None, "builder: remove")?;
        }
        for name in names {
            self.import_name(root, &at.join(&name), dir, known)?;
        }
        Ok(())
    }

    fn import_name(&mut self, root: &Utf8Path, path: &Utf8Path, dir: Ino, known: &mut Known) -> Followed {
        let real = root.join(path);
        let bad = |error: io::Error| format!("{path}: {error}");
        let meta = real.symlink_metadata().map_err(bad)?;
        let identity = (meta.dev(), meta.ino());
        let named = self.live.entry(dir, path.file_name().unwrap_or_default());
        let ino = match known.get(&identity) {
            Some(ino) => {
                if named != Some(*ino) {
                    self.name(path, Some(*ino), "builder: link")?;
                }
                *ino
            }
            None if meta.is_dir() => {
                let ino = self.add_dir(meta.mode() & 0o7777);
                self.name(path, Some(ino), "builder: mkdir")?;
                ino
            }
            None if meta.is_symlink() => {
                let target = real.read_link_utf8().map_err(bad)?;
                let ino = self.add(Inode::Symlink { target: target.as_str().into() });
                self.name(path, Some(ino), "builder: symlink")?;
                ino
            }
            None => self.new_file(path, read_file(&real).map_err(bad)?, "builder: write")?,
        };
        known.insert(identity, ino);
        match &self.live.inodes[ino] {
            Inode::Dir { .. } => self.import_dir(root, path, ino, known)?,
            Inode::Symlink { .. } => {}
            Inode::File { current, .. } => {
                let state = read_file(&real).map_err(bad)?;
                if *current != state {
                    self.push(Step::Data(ino, state), format!("builder: write {path}"), path);
                }
            }
        }
        Ok(())
    }
}
