//! Everything that the store writes as JSON or TOML: bytes in, values out, and back. Nothing here touches a disk.
//!
//! Unknown fields are kept and written back, so that an older program does not lose what a newer one
//! added. A newer *version*, in contrast, is refused before anything is read further.

mod activations;
mod attempt;
mod catalog;
mod contents;
mod damage;
mod fc;
mod instance;
mod lease;
mod limits;
mod pin;
mod revision;
mod snapshot;
mod store;
mod summary;
mod template;
mod vm_config;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use activations::{Action, Activation};
pub(crate) use activations::{ActivationLog, LogEnd};
pub use attempt::Attempt;
pub(crate) use attempt::Outcome;
pub(crate) use catalog::{CatalogLine, CatalogWriter, from_bytes as catalog_from_bytes};
pub use contents::Content;
pub(crate) use contents::{check_listing, derived_id, short_contents};
pub(crate) use damage::DamageMark;
pub use damage::Problem;
pub(crate) use fc::{FcDrive, boot_args, vm_drives, with_machine};
pub use instance::{InstanceFile, InstanceRecord, Owner, Start, Strategy};
pub use lease::Holder;
pub(crate) use lease::LeaseNote;
#[cfg(feature = "remote")]
pub(crate) use limits::check_depth;
use limits::shorten;
pub(crate) use limits::{MOST_PARTS, check_parts, check_toml};
pub use pin::Pin;
pub use revision::{
    ArtifactPaths, ArtifactSizes, MadeFrom, Origin, RevisionRecord, SnapshotInfo, TemplateKind, TemplateRevision,
};
pub(crate) use snapshot::{MEM, VMSTATE, drive_path};
pub use snapshot::{Platform, SnapshotDrive, SnapshotRecord};
pub use store::Durability;
pub(crate) use store::{KeyEntry, KeyHint, StoreFormat};
pub(crate) use summary::{ObjectOf, RevisionSummary, Sizes};
pub use template::{TemplateConfig, TemplateSpec, TemplateVariant};
pub(crate) use vm_config::{DATA_DISK, InstanceParts, for_instance};

/// The version of `template.json` and `revision.json` that this program writes, and the newest that it reads.
pub const CURRENT_SCHEMA_VERSION: u32 = 1;

/// The version of the store's layout that this program writes, and the newest that it reads.
pub const STORE_FORMAT_VERSION: u32 = 1;

/// The modification time of every published artifact, in seconds since 1970.
///
/// A write changes it, so a file that does not have it any more was touched after it was sealed.
pub const SEALED_MTIME: i64 = 1;

/// The permission bits of every published artifact.
pub const SEALED_MODE: u32 = 0o444;

/// Files of at least this many bytes are kept once for the whole store.
pub const OBJECT_MIN_SIZE: u64 = 64 * 1024;

/// Unknown fields of a JSON object.
pub type Extra = serde_json::Map<String, serde_json::Value>;

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Not JSON, or JSON of another shape.
    #[error("not a valid {what}: {reason}")]
    Invalid {
        /// What the bytes were to be, such as `revision.json`.
        what: &'static str,
        /// What is wrong, with line and column where there are any.
        reason: String,
    },
    /// Written by a newer program.
    #[error(
        "{what} has version {found}, and this program knows versions up to {supported}; use a newer template-store"
    )]
    Newer {
        /// What has the version.
        what: &'static str,
        /// The version that it has.
        found: u64,
        /// The newest version that this program knows.
        supported: u32,
    },
    /// A store or a remote uses features that this program does not know.
    #[error("it uses {features}, which this program does not know; use a newer template-store")]
    UnknownFeatures {
        /// Their names.
        features: String,
    },
}

impl FormatError {
    pub(crate) fn invalid(what: &'static str, reason: impl ToString) -> Self {
        FormatError::Invalid { what, reason: shorten(reason.to_string()) }
    }

    /// What is wrong with TOML, by the number of the line and its key, without the value: that may be secret.
    pub(crate) fn toml(what: &'static str, text: &str, message: &str, place: Option<std::ops::Range<usize>>) -> Self {
        let Some(before) = place.and_then(|place| text.get(..place.start)) else {
            return FormatError::invalid(what, message);
        };
        let (number, start) = (before.split('\n').count(), before.rfind('\n').map_or(0, |at| at + 1));
        let key = text[start..].lines().next().and_then(|line| line.split_once('=')).map_or("", |(key, _)| key.trim());
        let is_name = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        let key = if is_name { format!(" ({key})") } else { String::new() };
        FormatError::invalid(what, format!("line {number}{key}: {message}"))
    }

    pub(crate) fn unknown_features(features: &[String]) -> Self {
        FormatError::UnknownFeatures { features: shorten(features.join(", ")) }
    }
}

fn default_schema_version() -> u32 {
    CURRENT_SCHEMA_VERSION
}

/// Reads a JSON document, its version first: the shape of a newer one means nothing to us.
fn versioned<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, FormatError> {
    #[derive(Deserialize)]
    struct Version {
        schema_version: Option<u64>,
    }
    let version: Version = plain(what, bytes)?;
    match version.schema_version {
        Some(found) if found > CURRENT_SCHEMA_VERSION.into() => {
            Err(FormatError::Newer { what, found, supported: CURRENT_SCHEMA_VERSION })
        }
        _ => plain(what, bytes),
    }
}

fn plain<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, FormatError> {
    check_parts(what, bytes, MOST_PARTS)?;
    serde_json::from_slice(bytes).map_err(|error| {
        let reason = if bytes.is_empty() { "it is empty".to_owned() } else { error.to_string() };
        FormatError::invalid(what, reason)
    })
}

/// JSON as people read it, with a final newline.
pub(crate) fn pretty<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our own types are JSON");
    bytes.push(b'\n');
    bytes
}
