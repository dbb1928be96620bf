//! `revision.json`: what mvm writes, and what this store adds to it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Content, Extra, FormatError, check_listing, default_schema_version, pretty, versioned};
use crate::id::{ArtifactPath, CacheKey, Digest, RevisionId, TemplateId};
use crate::options::Resources;

/// Where the artifacts that every template has lie in the revision's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactPaths {
    /// The kernel.
    pub vmlinux: String,
    /// The root file system.
    pub rootfs: String,
    /// The Firecracker configuration.
    pub fc_base_config: String,
    /// The initial RAM disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<String>,
    /// Their sizes, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<ArtifactSizes>,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Sizes of artifacts in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactSizes {
    /// Of the kernel.
    #[serde(default)]
    pub vmlinux_bytes: u64,
    /// Of the root file system.
    #[serde(default)]
    pub rootfs_bytes: u64,
    /// Of the initial RAM disk, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_bytes: Option<u64>,
    /// Of the Nix closure, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nix_closure_bytes: Option<u64>,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A Firecracker snapshot of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// When it was taken (RFC 3339).
    pub created_at: String,
    /// Size of the VM's state in bytes.
    pub vmstate_size_bytes: u64,
    /// Size of the memory file in bytes.
    pub mem_size_bytes: u64,
    /// The kernel's command line; a restore must have the same.
    pub boot_args: String,
    /// Virtual CPUs; a restore must have the same.
    pub vcpus: u8,
    /// Memory in MiB; a restore must have the same.
    pub mem_mib: u32,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What a template can be started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemplateKind {
    /// A root file system: every start is a cold boot.
    Image,
    /// A memory image as well: a warm start, where the VMM can.
    Snapshot(SnapshotInfo),
}

/// One build of a template, as mvm records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateRevision {
    /// The version of this document; 1 when absent.
    #[serde(default = "default_schema_version")]
    pub schema_version: u32,
    /// The revision's id: the name of its directory.
    pub revision_hash: String,
    /// The flake that it was built from.
    pub flake_ref: String,
    /// The hash of its `flake.lock`; empty when nobody said.
    pub flake_lock_hash: String,
    /// Where the artifacts are.
    pub artifact_paths: ArtifactPaths,
    /// When it was built (RFC 3339).
    pub built_at: String,
    /// The build profile.
    pub profile: String,
    /// The role of the workload.
    pub role: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Size of the data disk in MiB; 0 for none.
    pub data_disk_mib: u32,
    /// The snapshot that is attached, if any.
    #[serde(default)]
    pub snapshot: Option<SnapshotInfo>,
    /// Fields of a newer program.
    #[serde(flatten)]
    pub extra: Extra,
}

impl TemplateRevision {
    /// What the revision was made from: 64 lower-case hex digits of
    /// `sha256(flake_lock_hash ":" profile ":" role)`.
    pub fn cache_key(&self) -> String {
        CacheKey::of_text(&self.flake_lock_hash, &self.profile, &self.role).to_hex()
    }

    /// What a VM can be started from.
    pub fn kind(&self) -> TemplateKind {
        match &self.snapshot {
            Some(snapshot) => TemplateKind::Snapshot(snapshot.clone()),
            None => TemplateKind::Image,
        }
    }
}

/// Where a reused revision's files came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
}

/// What a revision was made from: the parts of its cache key, and its sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeFrom {
    /// The hash of the lock file.
    pub flake_lock_hash: String,
    /// The build profile.
    pub profile: String,
    /// The role of the workload.
    pub role: String,
    /// The hash of the sources beside the lock file, if they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_hash: Option<Digest>,
}

impl MadeFrom {
    pub(crate) fn key(&self) -> CacheKey {
        CacheKey::of_text(&self.flake_lock_hash, &self.profile, &self.role)
    }
}

/// A whole `revision.json`: mvm's record, and what this store adds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// What mvm knows.
    #[serde(flatten)]
    pub build: TemplateRevision,
    /// Every artifact, in the order of the paths. `None`: this store did not publish the revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Vec<Content>>,
    /// When this store published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<Timestamp>,
    /// When this store took it over from mvm, which had published it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_at: Option<Timestamp>,
    /// How long the build took, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_seconds: Option<f64>,
    /// The hash of the sources beside the lock file, if they were given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_hash: Option<Digest>,
    /// Other inputs from which the same bytes came out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_made_from: Vec<MadeFrom>,
    /// The revision whose files this one shares, if it was not built itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reused_from: Option<Origin>,
}

impl RevisionRecord {
    /// Reads `revision.json`.
    ///
    /// # Errors
    /// Not valid, or of a newer version.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::RevisionRecord;
    ///
    /// let revision = store.publish_dir(&web, &files)?;
    /// let bytes = std::fs::read(revision.path().join("revision.json")).unwrap();
    /// assert_eq!(&RevisionRecord::from_json(&bytes).unwrap(), revision.record());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn from_json(bytes: &[u8]) -> Result<RevisionRecord, FormatError> {
        let record: RevisionRecord = versioned("revision.json", bytes)?;
        if let Some(contents) = &record.contents {
            check_listing(contents)?;
        }
        record.artifacts()?;
        Ok(record)
    }

    /// The bytes of `revision.json`.
    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }

    /// The artifacts that a VM starts from, by what they are for.
    pub(crate) fn artifacts(&self) -> Result<Vec<(&'static str, ArtifactPath)>, FormatError> {
        let paths = &self.build.artifact_paths;
        let named = [
            ("vmlinux", Some(&paths.vmlinux)),
            ("rootfs", Some(&paths.rootfs)),
            ("fc_base_config", Some(&paths.fc_base_config)),
            ("initrd", paths.initrd.as_ref()),
        ];
        let parse = |text: &String| text.parse().map_err(|error| FormatError::invalid("revision.json", error));
        named
            .into_iter()
            .filter_map(|(role, path)| Some((role, path?)))
            .map(|(role, path)| Ok((role, parse(path)?)))
            .collect()
    }

    /// All inputs that it is known to be made from.
    pub(crate) fn made_from(&self) -> impl Iterator<Item = MadeFrom> {
        let build = &self.build;
        let first = (!build.flake_lock_hash.is_empty()).then(|| MadeFrom {
            flake_lock_hash: build.flake_lock_hash.clone(),
            profile: build.profile.clone(),
            role: build.role.clone(),
            source_hash: self.source_hash,
        });
        first.into_iter().chain(self.also_made_from.iter().cloned())
    }

    /// These bytes of `revision.json` with other inputs added; whatever else they hold stays.
    pub(crate) fn add_made_from(bytes: &[u8], inputs: &MadeFrom) -> Result<Vec<u8>, FormatError> {
        let mut document: serde_json::Value = super::plain("revision.json", bytes)?;
        let list = document.as_object_mut().and_then(|document| {
            document.entry("also_made_from").or_insert_with(|| serde_json::Value::Array(Vec::new())).as_array_mut()
        });
        let list = list.ok_or_else(|| FormatError::invalid("revision.json", "also_made_from is not a list"))?;
        list.push(serde_json::to_value(inputs).expect("our own types are JSON"));
        Ok(pretty(&document))
    }

    /// These bytes of `revision.json` with what it says of the snapshot; whatever else they hold stays.
    pub(crate) fn with_snapshot(bytes: &[u8], snapshot: Option<&SnapshotInfo>) -> Result<Vec<u8>, FormatError> {
        let mut document: serde_json::Value = super::plain("revision.json", bytes)?;
        let fields = document.as_object_mut();
        let fields = fields.ok_or_else(|| FormatError::invalid("revision.json", "it is not an object"))?;
        fields.insert("snapshot".into(), serde_json::to_value(snapshot).expect("our own types are JSON"));
        Ok(pretty(&document))
    }

    /// These bytes of a `revision.json` of mvm with its files listed; whatever else they hold stays, byte for byte.
    pub(crate) fn adopted(
        bytes: &[u8],
        contents: &[Content],
        at: Timestamp,
    ) -> Result<(Vec<u8>, RevisionRecord), FormatError> {
        #[derive(Serialize)]
        struct Added<'a> {
            contents: &'a [Content],
            adopted_at: Timestamp,
        }
        let invalid = || FormatError::invalid("revision.json", "it is not an object to which fields can be added");
        let start = bytes.trim_ascii_end().strip_suffix(b"}").ok_or_else(invalid)?.trim_ascii_end();
        let added = pretty(&Added { contents, adopted_at: at });
        let adopted = [start, b",", added.strip_prefix(b"{").expect("a struct is an object")].concat();
        // A document that names one of the fields already can't be read with a second one.
        let record = RevisionRecord::from_json(&adopted)?;
        Ok((adopted, record))
    }

    /// What a VM of it gets.
    pub(crate) fn resources(&self) -> Resources {
        let TemplateRevision { vcpus, mem_mib, data_disk_mib, .. } = self.build;
        Resources { vcpus, mem_mib, data_disk_mib }
    }
}
