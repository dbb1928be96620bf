//! Instances: what one VM starts from, in a directory of its own.
//!
//! Its disks are private and writable: clones where the file system can share blocks, else copies without holes. All
//! else is read-only, and the store's own inodes where that can be. It keeps nothing in the store: what it needs, it has.
//!
//! It is made beside its place under a name that says so, and gets its own by one rename. `.store/instances/` has a link
//! to each that is on the store's file system; `instance.json` in the instance is the truth.

mod make;
mod parts;
mod place;
mod records;
mod remove;
mod warm;

use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};

#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::{InstanceFile, InstanceRecord, Owner, Start};
use crate::fs::utf8;
use crate::options::setters;
use crate::progress::Progress;
use crate::removal::Removal;
use crate::revision::Revision;
use crate::store::Store;

pub(crate) use records::{Known, forget, held, known, links, look};

/// The file that says what an instance came from.
pub(crate) const INSTANCE_JSON: &str = "instance.json";

/// The configuration with which Firecracker boots an instance.
pub(crate) const FC_JSON: &str = "fc.json";

/// The body of the request with which Firecracker loads a snapshot.
pub(crate) use warm::LOAD_JSON;

/// Whether disks must share their blocks with the store's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reflink {
    /// Where they can; else they are copied.
    #[default]
    Prefer,
    /// They must: a copy is refused.
    Require,
}

/// How an instance is made.
///
/// ```
/// use template_store::{InstanceOptions, Reflink};
///
/// let options = InstanceOptions::default().reflink(Reflink::Require).data_disk_mib(1024u32);
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InstanceOptions {
    pub(crate) reflink: Reflink,
    pub(crate) owner: Option<Owner>,
    pub(crate) data_disk_mib: Option<u32>,
    pub(crate) start: Start,
}

impl InstanceOptions {
    setters! {
        /// Whether disks must share their blocks with the store's files.
        reflink: Reflink,
        /// Whom all files are given to: only root may. The store's inodes stay as they are, so that files which would be
        /// hard links are clones or copies then.
        owner: Option<Owner>,
        /// The size of the data disk in MiB, 0 for none. Without it: the `data_disk_mib` of the revision.
        data_disk_mib: Option<u32>,
        /// What the VM begins with.
        start: Start,
    }
}

/// A directory from which one VM starts. It is nobody's but the caller's: dropping this leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    path: Utf8PathBuf,
    record: InstanceRecord,
}

impl Instance {
    /// Its directory, absolute.
    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    /// The configuration with which Firecracker boots it: `firecracker --config-file`. Of an instance that begins with a
    /// snapshot: the body of its request `PUT /snapshot/load`.
    pub fn config(&self) -> Utf8PathBuf {
        self.path.join(match self.record.start {
            Start::Boot => FC_JSON,
            Start::Snapshot => LOAD_JSON,
        })
    }

    /// What it came from.
    pub fn record(&self) -> &InstanceRecord {
        &self.record
    }

    /// Its files, and how each came about.
    pub fn files(&self) -> &[InstanceFile] {
        &self.record.files
    }
}

impl Revision {
    /// Makes what one VM starts from: private, writable disks, the kernel and all else read-only, and `fc.json`.
    ///
    /// When this returns, it survives a power cut. A crash before leaves nothing at `dest`; what it leaves beside it
    /// (`.template-store-…`) is removed by the next instance there.
    ///
    /// # Errors
    /// [`Error::DestinationTaken`], [`Error::BadDestination`], [`Error::BadForInstance`], [`Error::NoSpace`],
    /// [`Error::Damaged`], or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let vms = dir;
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// let vm = revision.instance(vms.join("42"))?;
    /// std::fs::write(vm.path().join("rootfs.ext4"), "what the VM wrote").unwrap();
    /// assert_eq!(std::fs::read(revision.rootfs()).unwrap(), b"{}");
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn instance(&self, dest: impl AsRef<Path>) -> Result<Instance> {
        self.instance_with(dest, &InstanceOptions::default(), &mut ())
    }

    /// [`instance`](Revision::instance), with choices.
    ///
    /// # Errors
    /// As [`instance`](Revision::instance); [`Error::CannotClone`], [`Error::CannotGive`]; [`Error::NoSnapshot`],
    /// [`Error::SnapshotDamaged`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let vms = dir;
    /// use template_store::InstanceOptions;
    ///
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// let vm = revision.instance_with(vms.join("42"), &InstanceOptions::default().data_disk_mib(64u32), &mut ())?;
    /// assert_eq!(vm.path().join("data.img").metadata().unwrap().len(), 64 << 20);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn instance_with(
        &self,
        dest: impl AsRef<Path>,
        options: &InstanceOptions,
        progress: &mut dyn Progress,
    ) -> Result<Instance> {
        make::make(self, utf8(dest.as_ref())?, options, progress)
    }
}

impl Store {
    /// The instances of this store that are on its file system, in the order of their paths.
    ///
    /// # Errors
    /// An error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let vms = dir;
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// let vm = revision.instance(vms.join("42"))?;
    /// assert_eq!(store.instances()?, [vm]);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn instances(&self) -> Result<Vec<Instance>> {
        let known = known(&self.core)?.into_iter();
        let mut instances: Vec<Instance> = known.filter_map(Known::into_instance).collect();
        instances.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(instances)
    }

    /// Removes an instance, and what only it had of the store.
    ///
    /// A crash leaves it whole, or beside its place (`.template-store-…`), from where the next instance there removes it.
    ///
    /// # Errors
    /// [`Error::InstanceNotFound`], [`Error::NotAnInstance`]; [`Error::InstanceInUse`] unless forced.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let vms = dir;
    /// use template_store::Removal;
    ///
    /// let vm = store.publish_dir(&"web".parse()?, &files)?.instance(vms.join("42"))?;
    /// store.remove_instance(vm.path(), Removal::Unused)?;
    /// assert!(!vm.path().exists());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn remove_instance(&self, dest: impl AsRef<Path>, how: Removal) -> Result<()> {
        remove::remove(&self.core, utf8(dest.as_ref())?, how)
    }
}
