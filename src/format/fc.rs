//! What the store reads in a Firecracker configuration, and the one thing that it changes in it.

use std::collections::HashSet;

use camino::{Utf8Component, Utf8Path};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{FormatError, pretty};
use crate::id::DriveId;

const WHAT: &str = "Firecracker configuration";

/// A drive of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FcDrive {
    pub id: DriveId,
    /// The file behind it, as the configuration names it.
    pub path_on_host: Option<String>,
    pub is_root: bool,
    pub is_read_only: bool,
    /// Another process has its file (`socket`, vhost-user).
    pub is_served: bool,
    /// It is one of `pmem`.
    pub is_memory: bool,
    /// It is the data disk, which is made with the instance.
    pub is_data: bool,
}

impl FcDrive {
    /// Whether its file must be in a snapshot: memory that was written to a disk, or will be, matches that disk only. One
    /// that another process serves has no file.
    pub fn needs_snapshot(&self) -> bool {
        !self.is_read_only && !self.is_served
    }

    /// A writable drive that no configuration names.
    fn unnamed(id: &str, is_root: bool) -> FcDrive {
        let id = id.parse().expect("it is a valid drive id");
        let (is_read_only, is_served, is_memory, is_data) = (false, false, false, false);
        FcDrive { id, path_on_host: None, is_root, is_read_only, is_served, is_memory, is_data }
    }
}

/// The drives that a configuration names.
///
/// Field names: Firecracker's API, `PUT /drives/{drive_id}` and `PUT /pmem/{id}`, in the lists `drives` and `pmem` of a
/// configuration file.
pub(crate) fn drives(bytes: &[u8]) -> Result<Vec<FcDrive>, FormatError> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        drives: Vec<Drive>,
        #[serde(default)]
        pmem: Vec<Drive>,
    }
    #[derive(Deserialize)]
    struct Drive {
        #[serde(alias = "id")]
        drive_id: DriveId,
        path_on_host: Option<String>,
        #[serde(default, alias = "root_device")]
        is_root_device: bool,
        #[serde(alias = "read_only")]
        is_read_only: Option<bool>,
        socket: Option<String>,
    }
    let config: Config = super::plain(WHAT, bytes)?;
    let (mut drives, mut known) = (Vec::new(), HashSet::new());
    let of_memory = config.pmem.into_iter().map(|drive| (drive, true));
    for (drive, is_memory) in config.drives.into_iter().map(|drive| (drive, false)).chain(of_memory) {
        let Drive { drive_id: id, path_on_host, is_root_device: is_root, is_read_only, socket } = drive;
        if !known.insert(id.clone()) {
            return Err(FormatError::invalid(WHAT, format!("it names drive {id} twice")));
        }
        let (is_read_only, is_served) = (is_read_only.unwrap_or(false), socket.is_some());
        drives.push(FcDrive { id, path_on_host, is_root, is_read_only, is_served, is_memory, is_data: false });
    }
    Ok(drives)
}

/// All drives of a VM with this configuration and this data disk.
///
/// There is a root drive always, `rootfs` if the configuration names none; and a data disk, if there is to be one: the
/// drive whose relative path is no artifact, else `data`. What is added has a number after its id if that is taken.
pub(crate) fn vm_drives(
    bytes: &[u8],
    data_disk_mib: u32,
    is_artifact: impl Fn(&Utf8Path) -> bool,
) -> Result<Vec<FcDrive>, FormatError> {
    let mut drives = drives(bytes)?;
    let free =
        |wanted: &str, drives: &[FcDrive]| free_id(wanted, |id| drives.iter().any(|drive| drive.id.as_str() == id));
    if !drives.iter().any(|drive| drive.is_root) {
        match drives.iter_mut().find(|drive| drive.id.as_str() == "rootfs" && !drive.is_memory) {
            Some(drive) => drive.is_root = true,
            None => drives.insert(0, FcDrive::unnamed(&free("rootfs", &drives), true)),
        }
    }
    if data_disk_mib > 0 {
        let is_data = |drive: &FcDrive| {
            let name = drive.path_on_host.as_deref().and_then(below);
            !drive.is_root && !drive.is_served && name.is_some_and(|name| !is_artifact(Utf8Path::new(&name)))
        };
        match drives.iter_mut().find(|drive| is_data(drive)) {
            Some(drive) => drive.is_data = true,
            None => {
                let id = free("data", &drives);
                drives.push(FcDrive { is_data: true, ..FcDrive::unnamed(&id, false) });
            }
        }
    }
    Ok(drives)
}

/// The id that is wanted, or the first with a number that is free. Firecracker takes letters, digits and `_` only.
pub(super) fn free_id(wanted: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = (2u32..).map(|number| format!("{wanted}_{number}"));
    let mut ids = std::iter::once(wanted.to_owned()).chain(numbered);
    ids.find(|id| !is_taken(id)).expect("a configuration names fewer drives than there are numbers")
}

/// A relative path without its `.`; `None` of one that is absolute or empty, or that leads out.
pub(super) fn below(path: &str) -> Option<String> {
    let mut name: Vec<&str> = Vec::new();
    for part in Utf8Path::new(path).components() {
        match part {
            Utf8Component::CurDir => {}
            Utf8Component::Normal(part) => name.push(part),
            _ => return None,
        }
    }
    (!path.is_empty()).then(|| name.join("/"))
}

/// The kernel's command line that a configuration names; empty if it names none (`PUT /boot-source`).
pub(crate) fn boot_args(bytes: &[u8]) -> Result<String, FormatError> {
    let config: Value = super::plain(WHAT, bytes)?;
    Ok(config["boot-source"]["boot_args"].as_str().unwrap_or_default().to_owned())
}

/// The configuration with these resources in its `machine-config`; everything else stays as it is.
///
/// Field names: Firecracker's API, `PUT /machine-config` (`vcpu_count`, `mem_size_mib`).
pub(crate) fn with_machine(bytes: &[u8], vcpus: u8, mem_mib: u32) -> Result<Vec<u8>, FormatError> {
    let mut config: Value = super::plain(WHAT, bytes)?;
    let object = config.as_object_mut().ok_or_else(|| FormatError::invalid(WHAT, "it is not a JSON object"))?;
    let machine = object.entry("machine-config").or_insert_with(|| json!({}));
    let machine =
        machine.as_object_mut().ok_or_else(|| FormatError::invalid(WHAT, "machine-config is not an object"))?;
    machine.insert("vcpu_count".into(), vcpus.into());
    machine.insert("mem_size_mib".into(), mem_mib.into());
    Ok(pretty(&config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(drives: &[FcDrive]) -> Vec<(&str, bool, bool)> {
        drives.iter().map(|drive| (drive.id.as_str(), drive.is_root, drive.is_read_only)).collect()
    }

    #[test]
    fn there_is_a_root_drive_and_a_data_disk_whatever_the_configuration_names() {
        let of = |bytes: &[u8], data| vm_drives(bytes, data, |path| path == "usr.img").unwrap();
        assert_eq!(ids(&of(b"{}", 0)), [("rootfs", true, false)]);
        assert_eq!(ids(&of(b"{}", 64)), [("rootfs", true, false), ("data", false, false)]);
        let named = br#"{"drives":[{"drive_id":"vda","path_on_host":"rootfs.ext4","is_root_device":true,
            "is_read_only":true},{"drive_id":"data","path_on_host":"data.img","is_root_device":false}]}"#;
        assert_eq!(ids(&of(named, 64)), [("vda", true, true), ("data", false, false)]);
        let other =
            br#"{"drives":[{"drive_id":"usr","path_on_host":"./usr.img"},{"drive_id":"d","path_on_host":"d.img"}]}"#;
        assert_eq!(ids(&of(other, 64)), [("rootfs", true, false), ("usr", false, false), ("d", false, false)]);
        let pmem = br#"{"pmem":[{"id":"root","path_on_host":"rootfs.ext4","root_device":true,"read_only":true}]}"#;
        assert_eq!(ids(&of(pmem, 0)), [("root", true, true)]);
        assert_eq!(drives(named).unwrap()[1].path_on_host.as_deref(), Some("data.img"));
    }

    #[test]
    fn a_configuration_that_can_not_be_is_refused() {
        for bad in [
            &b""[..],
            br#"{"drives":[{"drive_id":"../x"}]}"#,
            br#"{"drives":[{"drive_id":"a"},{"drive_id":"a"}]}"#,
            br#"{"drives":7}"#,
        ] {
            assert!(drives(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn boot_args_are_those_of_the_boot_source() {
        assert_eq!(boot_args(br#"{"boot-source":{"boot_args":"console=ttyS0"}}"#).unwrap(), "console=ttyS0");
        assert_eq!(boot_args(b"{}").unwrap(), "");
    }
}
