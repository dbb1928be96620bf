//! Snapshots: memory, state and writable drives of a paused VM of a revision, for warm starts.
//!
//! ```text
//! artifacts/<revision>/snapshot/
//!   snapshot.json     the truth about it; `snapshot` in revision.json is derived from it
//!   vmstate.bin
//!   mem.bin
//!   drives/<id>       a hard link, where the revision has a file of the same bytes
//! ```
//!
//! The directory is made beside, with all that it holds durable, and gets its name by one rename, or by one exchange of
//! names with the snapshot that was there. mvm 0.11 makes such a directory without `snapshot.json`: that one is left
//! as it is.

mod attach;
mod host;
mod source;

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::{Error, Result};
use crate::format::{
    Content, FcDrive, FormatError, MEM, Platform, SnapshotRecord, TemplateKind, VMSTATE, drive_path, vm_drives,
};
use crate::fs::handle::Handle;
use crate::fs::{reach, read, utf8};
use crate::id::DriveId;
use crate::layout::SNAPSHOT_JSON;
use crate::options::setters;
use crate::progress::Progress;
use crate::revision::Revision;

pub(crate) use attach::derive;
pub use host::{Host, Incompatibility};

/// The files of a paused VM that become a snapshot. They are copied, and stay what they are.
///
/// ```
/// use template_store::SnapshotFiles;
///
/// let files = SnapshotFiles::new("/run/vms/7/vmstate", "/run/vms/7/mem").drive("rootfs".parse()?, "/run/vms/7/rootfs.ext4");
/// # Ok::<(), template_store::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotFiles {
    pub(crate) vmstate: Utf8PathBuf,
    pub(crate) mem: Utf8PathBuf,
    pub(crate) drives: Vec<(DriveId, Utf8PathBuf)>,
    /// What the files hold, if they are sealed and durable already, and nobody else's: then they need not be copied.
    pub(crate) sealed: Vec<Content>,
}

impl SnapshotFiles {
    /// The VM's state and its memory.
    pub fn new(vmstate: impl Into<Utf8PathBuf>, mem: impl Into<Utf8PathBuf>) -> SnapshotFiles {
        SnapshotFiles { vmstate: vmstate.into(), mem: mem.into(), drives: Vec::new(), sealed: Vec::new() }
    }

    /// Adds a drive, as of the pause.
    #[must_use]
    pub fn drive(mut self, id: DriveId, path: impl Into<Utf8PathBuf>) -> SnapshotFiles {
        self.drives.push((id, path.into()));
        self
    }

    #[cfg(feature = "remote")]
    pub(crate) fn sealed(mut self, contents: &[Content]) -> SnapshotFiles {
        self.sealed = contents.to_vec();
        self
    }
}

/// What is known of a snapshot beside its files.
///
/// ```
/// use template_store::{Host, SnapshotOptions};
///
/// let options = SnapshotOptions::default().vcpus(2).platform(Host::here().platform);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotOptions {
    pub(crate) boot_args: Option<String>,
    pub(crate) vcpus: Option<u8>,
    pub(crate) mem_mib: Option<u32>,
    pub(crate) created_at: Option<String>,
    pub(crate) platform: Platform,
    pub(crate) drive_paths: Vec<(DriveId, String)>,
}

impl SnapshotOptions {
    setters! {
        /// The kernel's command line. Without it: that of the revision's Firecracker configuration.
        boot_args: Option<String>,
        /// Virtual CPUs. Without it: those of the revision.
        vcpus: Option<u8>,
        /// Memory in MiB. Without it: that of the revision.
        mem_mib: Option<u32>,
        /// When it was taken (RFC 3339). Without it: now.
        created_at: Option<String>,
        /// What it was taken on.
        platform: Platform,
    }

    /// Says where the VM had a drive.
    #[must_use]
    pub fn drive_path(mut self, id: DriveId, path: impl Into<String>) -> SnapshotOptions {
        self.drive_paths.push((id, path.into()));
        self
    }
}

/// A snapshot of a revision. While the handle lives, no collector removes the revision, and the snapshot with it.
///
/// Another snapshot may take its place: then its files have no name any more. Who has them open or mapped keeps them.
#[derive(Debug, Clone)]
pub struct Snapshot {
    revision: Revision,
    /// Its directory, open: the inode of another one does not become its.
    dir: Arc<Handle>,
    record: Arc<SnapshotRecord>,
}

impl Snapshot {
    /// The snapshot of a revision, if it has one that this store knows.
    fn open(revision: &Revision) -> Result<Option<Snapshot>> {
        let path = revision.core().layout.snapshot(revision.template(), revision.id());
        loop {
            match read::metadata_if_there(&path)? {
                None => return Ok(None),
                Some(found) if !found.is_dir() => return Err(Error::Misplaced { path }),
                Some(_) => {}
            }
            let Some(dir) = Handle::of(&path)? else { return Ok(None) };
            let document = path.join(SNAPSHOT_JSON);
            let bytes = read::bytes_if_there(&document)?;
            // Another one may have taken its place between the two.
            if !dir.still_named()? {
                continue;
            }
            let Some(bytes) = bytes else { return Ok(None) };
            let record = SnapshotRecord::from_json(&bytes).map_err(|source| match source {
                FormatError::Invalid { .. } => Error::SnapshotDamaged { path: document, problem: source.to_string() },
                newer => Error::Format { path: document, source: newer },
            })?;
            return Ok(Some(Snapshot { revision: revision.clone(), dir: Arc::new(dir), record: Arc::new(record) }));
        }
    }

    /// The revision that it belongs to.
    pub fn revision(&self) -> &Revision {
        &self.revision
    }

    /// Its directory.
    pub fn path(&self) -> &Utf8Path {
        self.dir.path()
    }

    /// All that `snapshot.json` says.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }

    /// Its files; their paths are below its directory.
    pub fn contents(&self) -> &[Content] {
        &self.record.contents
    }

    /// The path of the VM's state.
    pub fn vmstate(&self) -> Utf8PathBuf {
        self.path().join(VMSTATE)
    }

    /// The path of the guest's memory. Many VMs may map it, privately: nobody writes to it.
    pub fn mem(&self) -> Utf8PathBuf {
        self.path().join(MEM)
    }

    /// The drives as of the pause. A VM gets a copy of its own of each that it writes to.
    pub fn drives(&self) -> impl Iterator<Item = (&DriveId, Utf8PathBuf)> {
        self.record.drives.iter().map(|drive| (&drive.id, self.path().join(drive.path().as_path())))
    }

    /// The path of a drive; `None` if the snapshot has no drive of this id.
    pub fn drive(&self, id: &DriveId) -> Option<Utf8PathBuf> {
        let has = self.record.drives.iter().any(|drive| drive.id == *id);
        has.then(|| self.path().join(drive_path(id).as_path()))
    }

    /// Whether it is still the snapshot of its revision. What was made of its files before is of this one if so.
    ///
    /// # Errors
    /// An error of the disk.
    pub fn is_there(&self) -> Result<bool> {
        Ok(self.dir.still_named()?)
    }

    /// Why a VM of this host can't go on from the snapshot; empty if nothing that is known speaks against it.
    ///
    /// What either side does not know is not compared. The files are looked at, not read.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// # std::fs::write(dir.join("vmstate"), "state").unwrap();
    /// # std::fs::File::create(dir.join("mem")).unwrap().set_len(512 << 20).unwrap();
    /// use template_store::{Host, Incompatibility, SnapshotFiles, SnapshotOptions};
    ///
    /// let files = SnapshotFiles::new(dir.join("vmstate"), dir.join("mem")).drive("rootfs".parse()?, revision.rootfs());
    /// let snapshot = revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ())?;
    /// assert!(snapshot.compatible_with(&Host::here()).is_empty());
    ///
    /// let reasons = snapshot.compatible_with(&Host::here().vcpus(4));
    /// assert_eq!(reasons, [Incompatibility::Vcpus { snapshot: 2, host: 4 }]);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn compatible_with(&self, host: &Host) -> Vec<Incompatibility> {
        host::compare(self, host)
    }
}

impl Revision {
    /// Attaches a snapshot of a paused VM; one that the revision has is replaced.
    ///
    /// All files are copied (cloned where the file system can), pages of zeros become holes, and the copies are sealed and
    /// durable before they are visible. A reader sees no snapshot, the old one or the new one. When this returns, the
    /// new one survives a power cut. A crash before leaves the old one or the new one, at most a dead draft, and perhaps a
    /// `snapshot` field in `revision.json` that is of the other; `verify --repair` sets that right.
    ///
    /// # Errors
    /// [`Error::SnapshotLacksDrive`] for a writable drive that is not given: memory and disks must be of one moment.
    /// [`Error::BadSnapshot`] for sizes that contradict each other, and for a file that changes meanwhile.
    /// [`Error::NoSpace`], [`Error::Damaged`] for the revision itself, or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # store.publish_dir(&web, &files)?;
    /// # std::fs::write(dir.join("vmstate"), "state").unwrap();
    /// # std::fs::write(dir.join("rootfs"), "written to since the boot").unwrap();
    /// # std::fs::File::create(dir.join("mem")).unwrap().set_len(512 << 20).unwrap();
    /// use template_store::{Error, SnapshotFiles, SnapshotOptions};
    ///
    /// let revision = store.current(&web)?;
    /// let files = SnapshotFiles::new(dir.join("vmstate"), dir.join("mem"));
    /// let refused = revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ());
    /// assert!(matches!(refused, Err(Error::SnapshotLacksDrive { drive, .. }) if drive.as_str() == "rootfs"));
    ///
    /// let files = files.drive("rootfs".parse()?, dir.join("rootfs"));
    /// let snapshot = revision.attach_snapshot(&files, &SnapshotOptions::default(), &mut ())?;
    /// assert_eq!(std::fs::metadata(snapshot.mem()).unwrap().len(), 512 << 20);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn attach_snapshot(
        &self,
        files: &SnapshotFiles,
        options: &SnapshotOptions,
        progress: &mut dyn Progress,
    ) -> Result<Snapshot> {
        attach::attach(self, files, options, progress)
    }

    /// Its snapshot; `None` if there is none, or one of mvm's, of which nothing more is known than
    /// [`kind`](Revision::kind) says.
    ///
    /// # Errors
    /// [`Error::SnapshotDamaged`] if `snapshot.json` can't be understood.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// assert!(revision.snapshot()?.is_none());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn snapshot(&self) -> Result<Option<Snapshot>> {
        Snapshot::open(self)
    }

    /// What a VM can be started from: `snapshot.json` says so, and for a snapshot of mvm's the field of `revision.json`.
    ///
    /// # Errors
    /// As [`snapshot`](Revision::snapshot).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// use template_store::TemplateKind;
    ///
    /// let revision = store.publish_dir(&"web".parse()?, &files)?;
    /// assert_eq!(revision.kind()?, TemplateKind::Image);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn kind(&self) -> Result<TemplateKind> {
        if let Some(snapshot) = self.snapshot()? {
            return Ok(TemplateKind::Snapshot(snapshot.record.info.clone()));
        }
        match &self.build().snapshot {
            Some(info) if read::exists(&self.core().layout.snapshot(self.template(), self.id()))? => {
                Ok(TemplateKind::Snapshot(info.clone()))
            }
            _ => Ok(TemplateKind::Image),
        }
    }

    /// The drives that a VM of it has, by its Firecracker configuration and its data disk.
    pub(crate) fn drives(&self) -> Result<Vec<FcDrive>> {
        let path = self.fc_base_config();
        let is_artifact = |path: &Utf8Path| match &self.record().contents {
            Some(contents) => contents.iter().any(|content| content.path.as_path() == path),
            None => read::exists(&self.path().join(path)).unwrap_or(false),
        };
        vm_drives(&read::bytes(&path)?, self.build().data_disk_mib, is_artifact)
            .map_err(|source| Error::Format { path, source })
    }

    /// The command line with which its VMs boot.
    pub(crate) fn boot_args(&self) -> Result<String> {
        let path = self.fc_base_config();
        crate::format::boot_args(&read::bytes(&path)?).map_err(|source| Error::Format { path, source })
    }
}

/// A path that a caller named, with every link followed.
fn named(path: &Utf8Path) -> Result<Utf8PathBuf> {
    Ok(reach::trusted(utf8(path.as_std_path())?)?)
}
