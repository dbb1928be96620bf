//! Whether a VM of a host can go on from a snapshot.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::Serialize;

use super::Snapshot;
use crate::error::Result;
use crate::format::Platform;
use crate::fs::process;
use crate::fs::seal::looks_sealed;
use crate::id::DriveId;
use crate::options::setters;
use crate::revision::Revision;

/// What a host has for a VM that goes on from a snapshot. What is `None` is not known, and not compared.
///
/// ```
/// use template_store::Host;
///
/// let host = Host::here().vcpus(2).mem_mib(512);
/// assert!(host.platform.architecture.is_some());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Host {
    /// Virtual CPUs.
    pub vcpus: Option<u8>,
    /// Memory in MiB.
    pub mem_mib: Option<u32>,
    /// The kernel's command line.
    pub boot_args: Option<String>,
    /// What the VM would run on.
    pub platform: Platform,
    /// Where the VM would have its drives.
    pub drive_paths: BTreeMap<DriveId, String>,
}

impl Host {
    setters! {
        /// Virtual CPUs.
        vcpus: Option<u8>,
        /// Memory in MiB.
        mem_mib: Option<u32>,
        /// The kernel's command line.
        boot_args: Option<String>,
        /// What the VM would run on.
        platform: Platform,
        /// Where the VM would have its drives.
        drive_paths: BTreeMap<DriveId, String>,
    }

    /// This machine: its architecture, kernel and CPU, as far as the system tells. Nothing is known of the VMM.
    pub fn here() -> Host {
        let (architecture, host_kernel) = process::architecture_and_kernel();
        let platform = Platform {
            architecture: Some(architecture),
            host_kernel: Some(host_kernel),
            cpu_model: cpu_model(&process::cpu_info()),
            ..Platform::default()
        };
        Host { platform, ..Host::default() }
    }

    /// This machine, for a VM with the resources and the command line of a revision.
    ///
    /// # Errors
    /// The revision's Firecracker configuration can't be read.
    pub fn for_revision(revision: &Revision) -> Result<Host> {
        let build = revision.build();
        Ok(Host::here().vcpus(build.vcpus).mem_mib(build.mem_mib).boot_args(revision.boot_args()?))
    }
}

/// What the first CPU of a `/proc/cpuinfo` is: the model's name, or on Arm its numbers.
fn cpu_model(info: &str) -> Option<String> {
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(found, _)| found.trim() == name).map(|(_, value)| value.trim().to_owned())
    };
    let arm = || Some(format!("implementer {} part {}", field("CPU implementer")?, field("CPU part")?));
    field("model name").or_else(arm)
}

/// A reason why a VM can't go on from a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
#[allow(missing_docs)] // `snapshot` and `host` are what each side has
pub enum Incompatibility {
    /// Another number of virtual CPUs.
    #[error("the snapshot has {snapshot} vcpus, the host would give {host}")]
    Vcpus { snapshot: u8, host: u8 },
    /// Another size of memory.
    #[error("the snapshot has {snapshot} MiB of memory, the host would give {host}")]
    MemMib { snapshot: u32, host: u32 },
    /// Another command line of the kernel.
    #[error("the snapshot was booted with {snapshot:?}, the host would boot with {host:?}")]
    BootArgs { snapshot: String, host: String },
    /// Another virtual machine monitor.
    #[error("the snapshot was taken by {snapshot}, the host has {host}")]
    Vmm { snapshot: String, host: String },
    /// Another version of it.
    #[error("the snapshot was taken by a VMM of version {snapshot}, the host has {host}")]
    VmmVersion { snapshot: String, host: String },
    /// Another format of the VM's state.
    #[error("the snapshot's state has format {snapshot}, the host reads {host}")]
    SnapshotVersion { snapshot: String, host: String },
    /// Another CPU.
    #[error("the snapshot was taken on a {snapshot}, the host has a {host}")]
    CpuModel { snapshot: String, host: String },
    /// Another CPU template.
    #[error("the snapshot has the CPU template {snapshot}, the host would use {host}")]
    CpuTemplate { snapshot: String, host: String },
    /// Another kernel of the host.
    #[error("the snapshot was taken on a host with kernel {snapshot}, this one has {host}")]
    HostKernel { snapshot: String, host: String },
    /// Another architecture.
    #[error("the snapshot is of {snapshot}, the host is {host}")]
    Architecture { snapshot: String, host: String },
    /// A drive has another place.
    #[error("the snapshot's VM had drive {drive} at {snapshot}, the host would have it at {host}")]
    DrivePath { drive: DriveId, snapshot: String, host: String },
    /// A drive to which VMs of the revision write is not in the snapshot.
    #[error("the snapshot lacks the writable drive {drive}")]
    DriveMissing { drive: DriveId },
    /// The host has a drive that the snapshot's VM did not have.
    #[error("the snapshot's VM had no drive {drive}")]
    DriveUnknown { drive: DriveId },
    /// Another snapshot took its place meanwhile, or none: nothing can be said of its files.
    #[error("the snapshot was replaced or removed meanwhile; look at the one that is at {path} now")]
    Replaced { path: Utf8PathBuf },
    /// A file of it is not there.
    #[error("{path} is missing")]
    FileMissing { path: Utf8PathBuf },
    /// A file of it was changed since it was attached.
    #[error("{path} was changed since the snapshot was attached")]
    FileChanged { path: Utf8PathBuf },
}

/// Both sides, where both know theirs and they differ.
fn differ<T: PartialEq + Clone>(snapshot: Option<&T>, host: Option<&T>) -> Option<(T, T)> {
    let (snapshot, host) = (snapshot?, host?);
    (snapshot != host).then(|| (snapshot.clone(), host.clone()))
}

pub(super) fn compare(snapshot: &Snapshot, host: &Host) -> Vec<Incompatibility> {
    let record = snapshot.record();
    let mut found = Vec::new();
    machine(snapshot, host, &mut found);
    platform(&record.platform, &host.platform, &mut found);
    for drive in &record.drives {
        let differ = differ(drive.path_on_host.as_ref(), host.drive_paths.get(&drive.id));
        found.extend(differ.map(|(snapshot, host)| Incompatibility::DrivePath {
            drive: drive.id.clone(),
            snapshot,
            host,
        }));
    }
    drives(snapshot, host, &mut found);
    let files = files(snapshot);
    // What was replaced is deleted: of its files, nothing is damaged.
    match files.is_empty() || snapshot.is_there().unwrap_or(true) {
        true => found.extend(files),
        false => found.push(Incompatibility::Replaced { path: snapshot.path().to_owned() }),
    }
    found
}

/// The files that are not as they were attached.
fn files(snapshot: &Snapshot) -> Vec<Incompatibility> {
    let mut found = Vec::new();
    for content in &snapshot.record().contents {
        let path = snapshot.path().join(content.path.as_path());
        match snapshot.dir.metadata_below(content.path.as_path()) {
            Ok(Some(found)) if looks_sealed(&found, content.size) => {}
            Ok(Some(_)) => found.push(Incompatibility::FileChanged { path }),
            Ok(None) | Err(_) => found.push(Incompatibility::FileMissing { path }),
        }
    }
    found
}

fn machine(snapshot: &Snapshot, host: &Host, found: &mut Vec<Incompatibility>) {
    let info = &snapshot.record().info;
    let vcpus = differ(Some(&info.vcpus), host.vcpus.as_ref());
    found.extend(vcpus.map(|(snapshot, host)| Incompatibility::Vcpus { snapshot, host }));
    let memory = differ(Some(&info.mem_mib), host.mem_mib.as_ref());
    found.extend(memory.map(|(snapshot, host)| Incompatibility::MemMib { snapshot, host }));
    let boot_args = differ(Some(&info.boot_args), host.boot_args.as_ref());
    found.extend(boot_args.map(|(snapshot, host)| Incompatibility::BootArgs { snapshot, host }));
}

fn platform(snapshot: &Platform, host: &Platform, found: &mut Vec<Incompatibility>) {
    macro_rules! compare {
        ($($field:ident => $reason:ident,)*) => {
            $(found.extend(
                differ(snapshot.$field.as_ref(), host.$field.as_ref())
                    .map(|(snapshot, host)| Incompatibility::$reason { snapshot, host }),
            );)*
        };
    }
    compare! {
        vmm => Vmm,
        vmm_version => VmmVersion,
        snapshot_version => SnapshotVersion,
        cpu_model => CpuModel,
        cpu_template => CpuTemplate,
        host_kernel => HostKernel,
        architecture => Architecture,
    }
}

/// The drives that the revision's VMs write to, and that the snapshot does not have; and those that no VM of it has.
fn drives(snapshot: &Snapshot, host: &Host, found: &mut Vec<Incompatibility>) {
    match snapshot.revision().drives() {
        Ok(drives) => {
            let knows = |id: &DriveId| snapshot.drive(id).is_some() || drives.iter().any(|drive| drive.id == *id);
            let unknown = host.drive_paths.keys().filter(|id| !knows(id));
            found.extend(unknown.map(|id| Incompatibility::DriveUnknown { drive: id.clone() }));
            let missing =
                drives.into_iter().filter(|drive| drive.needs_snapshot() && snapshot.drive(&drive.id).is_none());
            found.extend(missing.map(|drive| Incompatibility::DriveMissing { drive: drive.id }));
        }
        // Without the configuration, nobody can say.
        Err(_) => found.push(Incompatibility::FileChanged { path: snapshot.revision().fc_base_config() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_named_by_its_model_or_by_its_numbers() {
        let intel =
            "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R)\n\nprocessor\t: 1\nmodel name\t: other\n";
        assert_eq!(cpu_model(intel).as_deref(), Some("Intel(R) Xeon(R)"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_model(arm).as_deref(), Some("implementer 0x41 part 0xd0c"));
        assert_eq!(cpu_model(""), None);
    }
}
