//! What a caller can choose; each struct starts with what most callers want.

use std::time::Duration;

use crate::format::{Durability, TemplateSpec};
use crate::fs::Observer;
use crate::id::{ArtifactPath, RevisionId};
use std::sync::Arc;

/// Declares setters that take the struct and give it back.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, value: impl Into<$type>) -> Self { self.$name = value.into(); self })*
    };
}

pub(crate) use setters;

/// Whether publishing moves `current`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activate {
    /// The revision becomes current.
    #[default]
    Yes,
    /// `current` stays.
    No,
}

/// What `current` must be for an activation to happen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    #[default]
    Any,
    /// Not set yet.
    Absent,
    /// This revision.
    Current(RevisionId),
}

/// What a build does when the key is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Known {
    /// Reuse what is there.
    #[default]
    Reuse,
    /// Build again; several callers at once share one new build.
    BuildAgain,
}

/// Which revisions with the right key may be reused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Match {
    /// Those from the same sources, where both sides know theirs.
    #[default]
    Sources,
    /// Of those, only the ones that were built from the same flake reference.
    Strict,
}

/// How long to wait for somebody else's build of the same key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wait {
    /// Until it ends.
    #[default]
    Forever,
    /// At most this long.
    AtMost(Duration),
}

/// What a VM of a template gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Size of the data disk in MiB; 0 for none.
    pub data_disk_mib: u32,
}

impl Default for Resources {
    /// 2 virtual CPUs, 512 MiB, no data disk.
    fn default() -> Self {
        Resources { vcpus: 2, mem_mib: 512, data_disk_mib: 0 }
    }
}

impl Resources {
    /// What a template's definition says.
    pub(crate) fn of(spec: &TemplateSpec) -> Resources {
        Resources { vcpus: spec.vcpus, mem_mib: spec.mem_mib, data_disk_mib: spec.data_disk_mib }
    }
}

/// Under which names a builder leaves what every revision has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ArtifactNames {
    /// The kernel.
    pub vmlinux: ArtifactPath,
    /// The root file system.
    pub rootfs: ArtifactPath,
    /// The Firecracker configuration.
    pub fc_base_config: ArtifactPath,
    /// The initial RAM disk; it may be missing.
    pub initrd: ArtifactPath,
}

impl Default for ArtifactNames {
    /// `vmlinux`, `rootfs.ext4`, `fc-base.json`, `initrd`.
    fn default() -> Self {
        let name = |text: &str| text.parse().expect("the default names are valid");
        ArtifactNames {
            vmlinux: name("vmlinux"),
            rootfs: name("rootfs.ext4"),
            fc_base_config: name("fc-base.json"),
            initrd: name("initrd"),
        }
    }
}

impl ArtifactNames {
    setters! {
        /// The kernel.
        vmlinux: ArtifactPath,
        /// The root file system.
        rootfs: ArtifactPath,
        /// The Firecracker configuration.
        fc_base_config: ArtifactPath,
        /// The initial RAM disk.
        initrd: ArtifactPath,
    }
}

/// How a store is opened.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    pub(crate) durability: Option<Durability>,
    pub(crate) network_fs: bool,
    pub(crate) catalog_from: Option<usize>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl StoreOptions {
    setters! {
        /// Whether the store waits for the disk; fixed when it is made. Without it: [`Durability::Full`] for a new
        /// store, and what an old one has.
        durability: Option<Durability>,
    }

    /// Takes a network file system, where the locks of other hosts may not count.
    #[must_use]
    pub fn allow_network_fs(mut self) -> Self {
        self.network_fs = true;
        self
    }

    /// The number of revisions from which a collection that finds nothing to remove writes a catalog of them all
    /// (`docs/format.md`); 20,000 without it. Less pays where a small file takes long to read, as on a disk far away.
    #[must_use]
    pub fn catalog_from(mut self, revisions: usize) -> Self {
        self.catalog_from = Some(revisions);
        self
    }

    /// Shows each change to the disk to `observer`, before it happens: for tests.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }
}

/// How a draft becomes a sealed one.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SealOptions {
    pub(crate) names: ArtifactNames,
    pub(crate) revision: Option<RevisionId>,
}

impl SealOptions {
    setters! {
        /// The names of the artifacts that every revision has.
        names: ArtifactNames,
        /// The revision's id; without one it follows from the contents.
        revision: Option<RevisionId>,
    }
}

/// How a revision becomes visible.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PublishOptions {
    pub(crate) activate: Activate,
    pub(crate) expect: Expect,
}

impl PublishOptions {
    setters! {
        /// Whether it becomes current.
        activate: Activate,
        /// What must be current for that.
        expect: Expect,
    }
}

/// How a build is asked for.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct BuildOptions {
    pub(crate) known: Known,
    pub(crate) matching: Match,
    pub(crate) wait: Wait,
    pub(crate) resources: Option<Resources>,
    pub(crate) publish: PublishOptions,
    pub(crate) command: String,
}

impl BuildOptions {
    setters! {
        /// What to do when the key is known.
        known: Known,
        /// Which revisions may be reused.
        matching: Match,
        /// How long to wait for somebody else's build.
        wait: Wait,
        /// What a VM gets, if the template is new.
        resources: Option<Resources>,
        /// Whether a reused revision becomes current.
        publish: PublishOptions,
        /// What this builder runs, for the eyes of those who wait for it.
        command: String,
    }
}

/// How files that were built elsewhere come into the store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Import {
    /// By clone where the file system can, else by copy.
    #[default]
    Copy,
    /// The directory itself is renamed; it must be on the store's file system, and is gone afterwards.
    Move,
}
