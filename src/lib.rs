//! A content-addressed store of microVM images.
//!
//! A build tool turns a flake into a kernel, a root file system and a Firecracker configuration. The store keeps
//! each build as an immutable *revision* of a *template*, never keeps the same bytes twice, says which
//! revision is `current`, and knows at once whether something has been built already.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # let root = camino::Utf8Path::from_path(dir.path()).unwrap();
//! # let lock = root.join("flake.lock");
//! # std::fs::write(&lock, r#"{"version":7,"root":"root","nodes":{"root":{}}}"#).unwrap();
//! # fn run_nix_build(out: &camino::Utf8Path) -> Result<(), template_store::Error> {
//! #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
//! #     Ok(())
//! # }
//! use template_store::{Build, BuildInputs, Store};
//!
//! let store = Store::open_or_init(root.join("store"))?;
//! let inputs = BuildInputs::from_flake_lock(&lock, "minimal", "worker")?;
//!
//! let revision = match store.build(&"web".parse()?, &inputs)? {
//!     Build::Reused(revision) => revision,             // nothing to build
//!     Build::Draft(draft) => {                         // this process has the key; others wait for it
//!         run_nix_build(draft.path())?;                // the builder writes straight into the store
//!         draft.seal()?.publish()?                     // hash, dedupe, fsync; rename; swap `current`
//!     }
//! };
//! let vm = revision.instance(root.join("vm-42"))?;     // private, writable disks; kernel and configuration ready
//! assert!(vm.config().exists());                       // `firecracker --config-file`
//! # Ok::<(), template_store::Error>(())
//! ```
//!
//! # On disk
//!
//! ```text
//! <root>/
//!   templates/<id>/
//!     template.json               what the template is
//!     artifacts/<revision>/       one build: read-only files, and revision.json
//!       snapshot/                 memory and disks of a paused VM, if they were attached
//!     revisions -> artifacts      so that `current` resolves
//!     current -> revisions/<revision>
//!     activations.jsonl           who became current, and when
//!   .store/
//!     format.json                 version of all this
//!     objects/ab/<62 hex>         the one inode that holds the bytes of a digest
//!     keys/ab/<62 hex>.json       cache key -> revisions
//!     pins/ leases/ instances/    what is kept, who uses what, and which instances there are
//!     drafts/ trash/ locks/       work in progress
//! ```
//!
//! The revision directories are the truth: `objects/` and `keys/` follow from them.
//!
//! # Promises
//!
//! - What was published survives a power cut, with its `current`; a cut before leaves the old `current`.
//!   Nothing half is ever visible.
//! - `current` always resolves, once it is set.
//! - Of all who ask for one key, in threads or processes, one builds.
//! - The same bytes are one inode, in however many revisions and templates they are.
//! - What a handle holds is not removed while the handle lives.
//! - What a VM writes stays in its instance: no two have a writable file in common, and none has one with the store.
//! - A collection removes nothing that is current, pinned, held or kept by the policy, and nothing that its plan does
//!   not name; its bytes are those that `df` shows.
//!
//! Linux only.

#[cfg(not(target_os = "linux"))]
compile_error!("template-store works on Linux only: it is built on flock, F_SETLEASE and renameat2");

mod activation;
mod adopt;
mod build;
mod catalog;
mod change;
mod claim;
mod compare;
mod core;
mod damage;
mod draft;
mod error;
mod format;
mod fs;
pub mod gc;
mod heal;
mod id;
mod import;
mod inputs;
mod instance;
mod inventory;
mod keys;
mod layout;
mod leases;
mod objects;
mod open;
mod options;
#[cfg(any(test, fuzzing))]
pub mod parsers;
mod pins;
mod progress;
mod publish;
#[cfg(feature = "remote")]
mod remote;
mod removal;
mod repair;
mod reserve;
mod reuse;
mod revision;
mod samples;
mod seal;
mod sealed;
mod snapshot;
mod store;
mod template;
mod trash;
mod usage;
mod verify;
mod work;

pub use adopt::{Adopted, Left};
pub use build::Build;
pub use catalog::Overview;
pub use change::Applied;
pub use compare::Difference;
pub use draft::Draft;
pub use error::{Error, ErrorKind, PathError, Result};
pub use format::{
    Action, Activation, ArtifactPaths, ArtifactSizes, Attempt, CURRENT_SCHEMA_VERSION, Content, Durability, Extra,
    FormatError, Holder, InstanceFile, InstanceRecord, MadeFrom, OBJECT_MIN_SIZE, Origin, Owner, Pin, Platform,
    Problem, RevisionRecord, SEALED_MODE, SEALED_MTIME, STORE_FORMAT_VERSION, SnapshotDrive, SnapshotInfo,
    SnapshotRecord, Start, Strategy, TemplateConfig, TemplateKind, TemplateRevision, TemplateSpec, TemplateVariant,
};
#[cfg(feature = "remote")]
pub use id::RemoteName;
pub use id::{
    ArtifactPath, CacheKey, Digest, DriveId, FlakeLockHash, InvalidName, PinName, Profile, RevisionId, Role, TemplateId,
};
pub use import::ImportOptions;
pub use inputs::BuildInputs;
pub use instance::{Instance, InstanceOptions, Reflink};
pub use layout::Layout;
pub use leases::LeaseNoted;
pub use options::{
    Activate, ArtifactNames, BuildOptions, Expect, Import, Known, Match, PublishOptions, Resources, SealOptions,
    StoreOptions, Wait,
};
pub use pins::PinOptions;
pub use progress::{Note, Progress, Stage};
pub use publish::Outcome;
#[cfg(feature = "remote")]
pub use remote::{
    FromRemote, Move, PullOptions, Pulled, PushOptions, Pushed, REMOTE_FORMAT_VERSION, Remote, RemoteCheck,
    RemoteError, RemoteFinding, RemoteReport, RemoteRevision, RemoteSettings, RemoteTemplate, SendFiles, Shared,
    WithSnapshot,
};
pub use removal::{Removal, RemovalReport};
pub use revision::Revision;
pub use sealed::{Published, Sealed};
pub use snapshot::{Host, Incompatibility, Snapshot, SnapshotFiles, SnapshotOptions};
pub use store::Store;
pub use usage::{Bytes, RevisionUsage, TemplateUsage, Usage};
pub use verify::{Depth, Finding, FindingKind, Mended, Repaired, Report, Severity, VerifyOptions};

/// Watching what a store does to the disk: for tests of crashes and failing disks.
pub mod observe {
    pub use crate::fs::{Observer, Op, Verdict};
}
