//! `snapshot.json`: what a snapshot of a revision holds, and what a restore of it depends on.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Content, Extra, FormatError, SnapshotInfo, check_listing, default_schema_version, pretty, versioned};
use crate::id::{ArtifactPath, DriveId};

const WHAT: &str = "snapshot.json";

/// The VM's state, in a snapshot's directory.
pub(crate) const VMSTATE: &str = "vmstate.bin";

/// The guest's memory, in a snapshot's directory.
pub(crate) const MEM: &str = "mem.bin";

/// A drive of a snapshot, as of the pause. Its file is `drives/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDrive {
    /// Its id in the VM.
    pub id: DriveId,
    /// Where the VM had it: a restore finds it there, if the VMM is not told otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl SnapshotDrive {
    /// Its file below the snapshot's directory.
    pub(crate) fn path(&self) -> ArtifactPath {
        drive_path(&self.id)
    }
}

/// The file of a drive below a snapshot's directory.
pub(crate) fn drive_path(id: &DriveId) -> ArtifactPath {
    format!("drives/{id}").parse().expect("a drive id is a part of a path")
}

/// What a VM runs on, as far as a restore depends on it. What is absent is not known, and not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// The virtual machine monitor, such as `firecracker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_version: Option<String>,
    /// The version of the format of the VM's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_version: Option<String>,
    /// The CPU of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_model: Option<String>,
    /// The CPU template that hid the differences of CPUs from the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<String>,
    /// The kernel of the host, as `uname -r` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_kernel: Option<String>,
    /// The architecture, as `uname -m` says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
}

/// A whole `snapshot.json`: the truth about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// The version of this document; 1 when absent.
    #[serde(default = "default_schema_version")]
    pub schema_version: u32,
    /// What a restore depends on, as far as it is known. (It is read before `info`, which keeps all that is left.)
    #[serde(flatten)]
    pub platform: Platform,
    /// What mvm knows of a snapshot.
    #[serde(flatten)]
    pub info: SnapshotInfo,
    /// Its files, in the order of their paths, which are below the snapshot's directory.
    pub contents: Vec<Content>,
    /// Its drives.
    #[serde(default)]
    pub drives: Vec<SnapshotDrive>,
}

impl SnapshotRecord {
    /// Reads `snapshot.json`.
    ///
    /// # Errors
    /// Not valid, or of a newer version.
    ///
    /// ```
    /// use template_store::SnapshotRecord;
    ///
    /// assert!(SnapshotRecord::from_json(b"").is_err());
    /// let newer = SnapshotRecord::from_json(br#"{"schema_version": 2}"#).unwrap_err();
    /// assert!(newer.to_string().contains("version 2"));
    /// ```
    pub fn from_json(bytes: &[u8]) -> Result<SnapshotRecord, FormatError> {
        let record: SnapshotRecord = versioned(WHAT, bytes)?;
        check_listing(&record.contents).map_err(|error| FormatError::invalid(WHAT, error))?;
        let listed: HashSet<&str> = record.contents.iter().map(|content| content.path.as_str()).collect();
        let lists = |path: &str| listed.contains(path);
        for path in [VMSTATE, MEM] {
            if !lists(path) {
                return Err(FormatError::invalid(WHAT, format!("it does not list {path}")));
            }
        }
        if let Some(drive) = record.drives.iter().find(|drive| !lists(drive.path().as_str())) {
            return Err(FormatError::invalid(WHAT, format!("it does not list the file of drive {}", drive.id)));
        }
        Ok(record)
    }

    /// The bytes of `snapshot.json`.
    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// The `snapshot` field of `revision.json` that follows from this.
    pub(crate) fn derived(&self) -> SnapshotInfo {
        SnapshotInfo { extra: Extra::new(), ..self.info.clone() }
    }

    /// Whether the field of a `revision.json` says the same; what others have added to it does not count.
    pub(crate) fn agrees_with(&self, field: Option<&SnapshotInfo>) -> bool {
        field.is_some_and(|field| SnapshotInfo { extra: Extra::new(), ..field.clone() } == self.derived())
    }

    /// The files as the revision has them: their paths below its directory.
    pub(crate) fn contents_in_revision(&self) -> impl Iterator<Item = Content> {
        self.contents.iter().map(|content| Content { path: content.path.in_snapshot(), ..content.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Digest;

    fn record() -> SnapshotRecord {
        let content = |path: &str| Content { path: path.parse().unwrap(), size: 1, blake3: Digest::of(b"x") };
        SnapshotRecord {
            schema_version: 1,
            info: SnapshotInfo {
                created_at: "2026-01-01T00:00:00Z".into(),
                vmstate_size_bytes: 1,
                mem_size_bytes: 1,
                boot_args: "quiet".into(),
                vcpus: 2,
                mem_mib: 1,
                extra: Extra::new(),
            },
            contents: ["drives/rootfs", MEM, VMSTATE].map(content).into(),
            drives: vec![SnapshotDrive { id: "rootfs".parse().unwrap(), path_on_host: None, extra: Extra::new() }],
            platform: Platform { vmm: Some("firecracker".into()), ..Platform::default() },
        }
    }

    #[test]
    fn a_record_reads_as_it_was_written_with_the_fields_of_a_newer_program() {
        let mut value = serde_json::to_value(record()).unwrap();
        value["later"] = 7.into();
        value["drives"][0]["later"] = 8.into();
        let read = SnapshotRecord::from_json(value.to_string().as_bytes()).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&read.to_json()).unwrap(), value);
        assert_eq!((&read.derived(), read.platform), (&record().info, record().platform));
        assert!(record().agrees_with(Some(&read.info)), "what is unknown says nothing else");
    }

    #[test]
    fn a_record_lists_all_that_a_restore_needs() {
        for missing in ["drives/rootfs", MEM, VMSTATE] {
            let mut record = record();
            record.contents.retain(|content| content.path.as_str() != missing);
            let error = SnapshotRecord::from_json(&record.to_json()).unwrap_err();
            assert!(error.to_string().contains(missing.rsplit('/').next().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_file_of_a_snapshot_has_a_path_below_the_revision() {
        let paths: Vec<String> = record().contents_in_revision().map(|content| content.path.to_string()).collect();
        assert_eq!(paths, ["snapshot/drives/rootfs", "snapshot/mem.bin", "snapshot/vmstate.bin"]);
    }
}
