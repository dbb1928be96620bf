//! `instance.json`: what an instance came from, and how each of its files came about.

use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{CURRENT_SCHEMA_VERSION, Extra, FormatError, default_schema_version, pretty, versioned};
use crate::id::{ArtifactPath, Digest, RevisionId, TemplateId};

/// How a file of an instance came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "strategy")]
#[non_exhaustive]
pub enum Strategy {
    /// It shares its blocks with the store's file until one of the two is written to (`FICLONE`).
    Reflink,
    /// It is a copy.
    Copy {
        /// The bytes that were written; holes and zeros are not.
        bytes: u64,
    },
    /// It is the store's own inode, which is read-only.
    HardLink,
    /// It was made for this instance: a configuration, an empty disk.
    Written,
}

/// One file of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceFile {
    /// Its path below the instance's directory.
    pub path: ArtifactPath,
    /// How it came about.
    #[serde(flatten)]
    pub strategy: Strategy,
    /// Whether the VM may write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub writable: bool,
    /// What a read-only file of a published revision holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Digest>,
}

impl InstanceFile {
    /// A file that was made for the instance.
    pub(crate) fn made(path: ArtifactPath, writable: bool) -> InstanceFile {
        InstanceFile { path, strategy: Strategy::Written, writable, blake3: None }
    }

    /// A document that the store made; its name is one of the store's own.
    pub(crate) fn document(name: &str) -> InstanceFile {
        InstanceFile::made(name.parse().expect("the store's own names are valid"), false)
    }
}

/// Whom the files of an instance belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The user's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
}

/// What a VM of an instance begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// A boot from the root file system as it was published.
    #[default]
    Boot,
    /// The memory and the disks of the revision's snapshot.
    Snapshot,
}

/// What an instance came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceRecord {
    /// The version of this document; 1 when absent.
    #[serde(default = "default_schema_version")]
    pub schema_version: u32,
    /// The template.
    pub template: TemplateId,
    /// The revision. The instance does not keep it.
    pub revision: RevisionId,
    /// The store's directory, where it was then.
    pub store: Utf8PathBuf,
    /// When the store was made: what tells it from others, wherever it is.
    pub store_made_at: Timestamp,
    /// When it was made.
    pub created_at: Timestamp,
    /// What its VM begins with.
    #[serde(default)]
    pub start: Start,
    /// Whom it was given to, if to somebody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Its files.
    pub files: Vec<InstanceFile>,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl InstanceRecord {
    pub(crate) fn new(
        template: &TemplateId,
        revision: &RevisionId,
        (store, store_made_at): (Utf8PathBuf, Timestamp),
        now: Timestamp,
    ) -> Self {
        InstanceRecord {
            schema_version: CURRENT_SCHEMA_VERSION,
            template: template.clone(),
            revision: revision.clone(),
            store,
            store_made_at,
            created_at: now,
            start: Start::Boot,
            owner: None,
            files: Vec::new(),
            extra: Extra::new(),
        }
    }

    pub(crate) fn from_json(bytes: &[u8]) -> Result<InstanceRecord, FormatError> {
        versioned("instance.json", bytes)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let now = "2026-11-25T00:00:00Z".parse().unwrap();
        let (web, one) = ("web".parse().unwrap(), "r1".parse().unwrap());
        let mut record = InstanceRecord::new(&web, &one, ("/store".into(), now), now);
        record.owner = Some(Owner { uid: 1, gid: 2 });
        record.files.push(InstanceFile::document("fc.json"));
        let copy = Strategy::Copy { bytes: 4096 };
        record.files.push(InstanceFile {
            path: "rootfs.ext4".parse().unwrap(),
            strategy: copy,
            writable: true,
            blake3: None,
        });
        record.extra.insert("new".into(), 1.into());
        assert_eq!(InstanceRecord::from_json(&record.to_json()).unwrap(), record);
        let json: serde_json::Value = serde_json::from_slice(&record.to_json()).unwrap();
        assert_eq!(json["files"][1]["strategy"], "copy");
        assert_eq!(json["files"][1]["bytes"], 4096);
    }
}
