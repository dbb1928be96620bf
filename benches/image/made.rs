//! The image, and the store that it goes into.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};

use crate::plain::settle;
use crate::program::{self, Took};
use crate::random::Random;

const MIB: usize = 1024 * 1024;

pub const FILES: [&str; 3] = ["vmlinux", "rootfs.ext4", "fc-base.json"];

/// Whether a builder leaves holes where there are zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sparse {
    Always,
    Never,
}

/// A directory as a builder leaves it, beside a store that has it, and one that is empty.
pub struct Made {
    pub dir: Utf8PathBuf,
    pub rootfs_mib: usize,
    pub kernel_mib: usize,
    pub rounds: usize,
    /// Whether files can share blocks here.
    pub clones: bool,
    number: AtomicUsize,
}

impl Made {
    pub fn new(dir: &Utf8Path, rootfs_mib: usize, rounds: usize) -> Made {
        let (a, b) = (tempfile::tempfile_in(dir).unwrap(), tempfile::tempfile_in(dir).unwrap());
        let clones = rustix::fs::ioctl_ficlone(a, b).is_ok();
        let kernel_mib = rootfs_mib.div_ceil(16);
        let made = Made { dir: dir.to_owned(), rootfs_mib, kernel_mib, rounds, clones, number: AtomicUsize::new(0) };
        write_image(&made.image(), rootfs_mib, kernel_mib);
        program::run(&made.store(), &["init"]);
        fs::write(made.lock(), r#"{"version":7,"root":"root","nodes":{"root":{}}}"#).unwrap();
        made.run_with_inputs(&["publish", "web", made.image().as_str()], &[]);
        made.settle();
        made
    }

    /// The directory that a builder left.
    pub fn image(&self) -> Utf8PathBuf {
        self.dir.join("image")
    }

    /// A store that has the image.
    pub fn store(&self) -> Utf8PathBuf {
        self.dir.join("store")
    }

    /// An empty file for a tool.
    pub fn target(&self) -> Utf8PathBuf {
        self.dir.join("target")
    }

    /// Lets the disk finish what was written before.
    pub fn settle(&self) {
        settle(&self.dir);
    }

    pub fn run(&self, args: &[&str]) -> Took {
        program::run(&self.store(), args)
    }

    fn lock(&self) -> Utf8PathBuf {
        self.dir.join("flake.lock")
    }

    fn run_with_inputs(&self, before: &[&str], after: &[&str]) -> Took {
        let lock = self.lock();
        let inputs = ["--flake-lock", lock.as_str(), "--profile", "minimal", "--role", "worker"];
        self.run(&[before, &inputs, after].concat())
    }

    fn next(&self) -> String {
        format!("t{}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Publishes into a store that has nothing, which goes afterwards.
    fn publish_into_empty(&self, args: &[&str]) -> Took {
        let empty = self.dir.join("empty");
        program::run(&empty, &["init"]);
        self.settle();
        let took = program::run(&empty, &[&["publish", "web"], args].concat());
        remove(&empty);
        took
    }

    pub fn publish(&self) -> Took {
        self.publish_into_empty(&[self.image().as_str()])
    }

    pub fn publish_sparse(&self) -> Took {
        self.publish_into_empty(&[self.sparse().as_str()])
    }

    /// Writes what is to be moved in anew, as a builder does: nothing is synced.
    pub fn write_moved(&self, sparse: Sparse) {
        let moved = self.dir.join("moved");
        remove(&moved);
        let sparse = if sparse == Sparse::Always { "--sparse=always" } else { "--sparse=never" };
        let copied = Command::new("cp").args([sparse, "--reflink=never", "-r"]).args([self.image(), moved]).status();
        assert!(copied.is_ok_and(|status| status.success()), "the image can't be copied");
    }

    pub fn publish_moved(&self, sparse: Sparse) -> Took {
        let empty = self.dir.join("empty");
        program::run(&empty, &["init"]);
        self.settle();
        self.write_moved(sparse);
        let took = program::run(&empty, &["publish", "--move", "web", self.dir.join("moved").as_str()]);
        remove(&empty);
        took
    }

    /// From other inputs, in another template.
    pub fn publish_again(&self) -> Took {
        self.run(&["publish", &self.next(), self.image().as_str()])
    }

    /// From the same inputs, in another template: the builder would fail.
    pub fn reuse(&self) -> Took {
        let name = self.next();
        self.run(&["create", &name, "--role", "worker"]);
        self.run_with_inputs(&["build", &name], &["--", "false"])
    }

    pub fn lookup(&self) -> Took {
        self.run_with_inputs(&["lookup"], &[])
    }

    pub fn verify(&self) -> Took {
        self.run(&["verify"])
    }

    /// An image eight times as large that is nothing but holes between its first and last pages.
    pub fn sparse(&self) -> Utf8PathBuf {
        let dir = self.dir.join("sparse");
        if !dir.exists() {
            fs::create_dir(&dir).unwrap();
            for name in FILES {
                fs::write(dir.join(name), r#"{"machine-config":{}}"#).unwrap();
            }
            let rootfs = File::options().write(true).open(dir.join("rootfs.ext4")).unwrap();
            rootfs.write_all_at(b"the end", (8 * self.rootfs_mib * MIB) as u64 - 7).unwrap();
        }
        dir
    }
}

/// Removes a tree, whatever modes it has.
pub fn remove(dir: &Utf8Path) {
    assert!(Command::new("chmod").args(["-Rf", "u+w", dir.as_str()]).status().is_ok());
    let _ = fs::remove_dir_all(dir);
}

/// Bytes that look random, the same in each run; a quarter of the root file system is holes of 256 KiB.
fn write_image(dir: &Utf8Path, rootfs_mib: usize, kernel_mib: usize) {
    fs::create_dir(dir).unwrap();
    let mut random = Random::new();
    let mut fill = |bytes: &mut [u8]| {
        for word in bytes.chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
    };
    let mut buffer = vec![0; MIB];
    let kernel = File::create(dir.join("vmlinux")).unwrap();
    for number in 0..kernel_mib {
        fill(&mut buffer);
        kernel.write_all_at(&buffer, (number * MIB) as u64).unwrap();
    }
    let rootfs = File::create(dir.join("rootfs.ext4")).unwrap();
    rootfs.set_len((rootfs_mib * MIB) as u64).unwrap();
    for number in 0..rootfs_mib {
        fill(&mut buffer);
        rootfs.write_all_at(&buffer[..MIB * 3 / 4], (number * MIB) as u64).unwrap();
    }
    fs::write(dir.join("fc-base.json"), r#"{"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#).unwrap();
}
