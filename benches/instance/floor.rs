//! The same instance in plain system calls, and with `cp` for what `cp` does.
//!
//! The same files, names and syncs, in the same order; who makes it holds its lock, and a note leads to it. Nothing is
//! checked, and nothing is swept.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags, SeekFrom, copy_file_range, ioctl_ficlone, renameat_with, seek};

/// How a disk becomes private.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Disk {
    Clone,
    Copy,
}

/// What is written for each instance.
const DOCUMENTS: [&str; 2] = ["fc.json", "instance.json"];
/// What is read only.
const LINKED: [&str; 2] = ["fc-base.json", "vmlinux"];
const ROOTFS: &str = "rootfs.ext4";

pub struct Floor {
    registry: Utf8PathBuf,
    revision: Utf8PathBuf,
    documents: [Vec<u8>; 2],
    disk: Disk,
}

impl Floor {
    /// The documents are those of an instance that is there.
    pub fn new(registry: Utf8PathBuf, revision: Utf8PathBuf, model: &Utf8Path, disk: Disk) -> Floor {
        fs::create_dir(&registry).unwrap();
        let documents = DOCUMENTS.map(|name| fs::read(model.join(name)).unwrap());
        Floor { registry, revision, documents, disk }
    }

    pub fn make(&self, dest: &Utf8Path) {
        self.make_by(dest, |from, to| {
            let (source, target) = (File::open(from).unwrap(), new_file(to, 0o600));
            match self.disk {
                Disk::Clone => ioctl_ficlone(&target, &source).unwrap(),
                Disk::Copy => copy_data(&source, &target),
            }
            target.sync_all().unwrap();
        });
    }

    pub fn make_with_cp(&self, dest: &Utf8Path) {
        let how = match self.disk {
            Disk::Clone => "--reflink=always",
            Disk::Copy => "--sparse=always",
        };
        self.make_by(dest, |from, to| {
            assert!(Command::new("cp").args([how, from.as_str(), to.as_str()]).status().unwrap().success());
            fs::set_permissions(to, Permissions::from_mode(0o600)).unwrap();
            File::open(to).unwrap().sync_all().unwrap();
        });
    }

    fn make_by(&self, dest: &Utf8Path, duplicate: impl Fn(&Utf8Path, &Utf8Path)) {
        let (parent, name) = (dest.parent().unwrap(), dest.file_name().unwrap());
        let staging = parent.join(format!(".{name}.new"));
        fs::create_dir(&staging).unwrap();
        let lock = File::open(&staging).unwrap();
        lock.lock().unwrap();
        duplicate(&self.revision.join(ROOTFS), &staging.join(ROOTFS));
        for name in LINKED {
            fs::hard_link(self.revision.join(name), staging.join(name)).unwrap();
        }
        for (name, bytes) in DOCUMENTS.iter().zip(&self.documents) {
            let mut file = new_file(&staging.join(name), 0o644);
            file.write_all(bytes).unwrap();
            file.sync_all().unwrap();
        }
        lock.sync_all().unwrap(); // the lock is the directory
        symlink(dest, self.registry.join(format!("{}-{name}", parent.file_name().unwrap()))).unwrap();
        sync_dir(&self.registry);
        renameat_with(CWD, staging.as_std_path(), CWD, dest.as_std_path(), RenameFlags::NOREPLACE).unwrap();
        sync_dir(parent);
    }
}

/// Whether files in a directory can share blocks.
pub fn can_clone(dir: &Utf8Path) -> bool {
    let [source, target] = ["source", "target"].map(|name| dir.join(format!("can-clone-{name}")));
    fs::write(&source, "some bytes").unwrap();
    let cloned = ioctl_ficlone(new_file(&target, 0o600), File::open(&source).unwrap()).is_ok();
    fs::remove_file(source).unwrap();
    fs::remove_file(target).unwrap();
    cloned
}

/// What is no hole.
fn copy_data(source: &File, target: &File) {
    let size = source.metadata().unwrap().len();
    target.set_len(size).unwrap();
    let mut at = 0;
    while let Ok(start) = seek(source, SeekFrom::Data(at)) {
        let end = seek(source, SeekFrom::Hole(start)).unwrap();
        let (mut from, mut to) = (start, start);
        while from < end {
            let left = (end - from) as usize;
            assert!(copy_file_range(source, Some(&mut from), target, Some(&mut to), left).unwrap() > 0);
        }
        at = end;
    }
}

fn new_file(path: &Utf8Path, mode: u32) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path).unwrap()
}

fn sync_dir(dir: &Utf8Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}
