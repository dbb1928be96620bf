//! `fc.json`: what Firecracker is started with in an instance (`firecracker --config-file`).
//!
//! Field names: Firecracker's API (`src/firecracker/swagger/firecracker.yaml`, `FullVmConfiguration`).

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};

use super::fc::{below, free_id};
use super::{FormatError, pretty};
use crate::id::ArtifactPath;
use crate::options::Resources;

/// What an instance is made of, as far as its configuration depends on it.
#[derive(Debug)]
pub(crate) struct InstanceParts<'a> {
    /// The instance's directory, absolute.
    pub dir: &'a Utf8Path,
    pub vmlinux: &'a str,
    pub rootfs: &'a str,
    pub initrd: Option<&'a str>,
    pub artifacts: &'a BTreeSet<ArtifactPath>,
    pub resources: Resources,
}

/// A configuration for one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InstanceConfig {
    pub bytes: Vec<u8>,
    /// The artifacts that the VM may write to.
    pub writable: BTreeSet<ArtifactPath>,
    /// Where its data disk lies below the directory, if it has one.
    pub data_disk: Option<ArtifactPath>,
    /// What the VM may write to and is not the instance's: the drive's id, and the absolute path.
    pub of_host: Vec<(String, Utf8PathBuf)>,
}

/// The data disk of a configuration that names none.
pub(crate) const DATA_DISK: &str = "data.img";

const WHAT: &str = "Firecracker configuration";

/// Where else a configuration has paths of the host, which Firecracker makes itself.
const MADE_BY_VMM: [(&str, &str); 4] =
    [("vsock", "uds_path"), ("logger", "log_path"), ("metrics", "metrics_path"), ("serial", "serial_out_path")];

/// `fc-base.json` with absolute paths: kernel, initial RAM disk and root drive are those of the instance, every other
/// relative path is one below its directory, and what is missing for a boot is added.
///
/// A drive that names no artifact is the data disk.
pub(crate) fn for_instance(base: &[u8], parts: &InstanceParts) -> Result<InstanceConfig, FormatError> {
    let mut config: Value = super::plain(WHAT, base)?;
    let config = config.as_object_mut().ok_or_else(|| invalid("it is not a JSON object"))?;
    boot_source(config, parts)?;
    for (section, field) in MADE_BY_VMM {
        if let Some(path) = config.get_mut(section).and_then(|section| section.get_mut(field)) {
            absolute(path, parts.dir)?;
        }
    }
    if let Some(path) = config.get_mut("cpu-config") {
        absolute(path, parts.dir)?;
    }
    let mut found = Found::default();
    drives(config, parts, &mut found)?;
    let machine = json!({ "vcpu_count": parts.resources.vcpus, "mem_size_mib": parts.resources.mem_mib });
    config.entry("machine-config").or_insert(machine);
    let Found { writable, data_disk, of_host } = found;
    Ok(InstanceConfig { bytes: pretty(config), writable, data_disk, of_host })
}

/// What the drives say.
#[derive(Default)]
struct Found {
    writable: BTreeSet<ArtifactPath>,
    data_disk: Option<ArtifactPath>,
    of_host: Vec<(String, Utf8PathBuf)>,
}

fn invalid(reason: impl ToString) -> FormatError {
    FormatError::invalid(WHAT, reason)
}

fn boot_source(config: &mut Map<String, Value>, parts: &InstanceParts) -> Result<(), FormatError> {
    let boot = config.entry("boot-source").or_insert_with(|| json!({}));
    let boot = boot.as_object_mut().ok_or_else(|| invalid("boot-source is not an object"))?;
    boot.insert("kernel_image_path".into(), parts.dir.join(parts.vmlinux).as_str().into());
    match (parts.initrd, boot.get_mut("initrd_path")) {
        (Some(initrd), _) => drop(boot.insert("initrd_path".into(), parts.dir.join(initrd).as_str().into())),
        (None, Some(path)) => drop(absolute(path, parts.dir)?),
        (None, None) => {}
    }
    Ok(())
}

/// A list of devices that have a file, in the words of its section.
struct Devices {
    section: &'static str,
    id: &'static str,
    root: &'static str,
    read_only: &'static str,
}

const DRIVES: Devices =
    Devices { section: "drives", id: "drive_id", root: "is_root_device", read_only: "is_read_only" };
const PMEM: Devices = Devices { section: "pmem", id: "id", root: "root_device", read_only: "read_only" };

/// Whether a device says that it has the root file system. Where none does, a drive that is called so is told to.
fn find_root(config: &mut Map<String, Value>) -> bool {
    let says_so = |devices: &Devices| {
        let list = config.get(devices.section).and_then(Value::as_array);
        list.into_iter().flatten().any(|device| device[devices.root] == true)
    };
    if says_so(&DRIVES) || says_so(&PMEM) {
        return true;
    }
    let drives = config.get_mut(DRIVES.section).and_then(Value::as_array_mut);
    let named = drives.into_iter().flatten().find(|drive| drive[DRIVES.id] == "rootfs");
    named.and_then(Value::as_object_mut).is_some_and(|drive| {
        drive.insert(DRIVES.root.into(), true.into());
        true
    })
}

fn drives(config: &mut Map<String, Value>, parts: &InstanceParts, found: &mut Found) -> Result<(), FormatError> {
    config.entry(DRIVES.section).or_insert_with(|| json!([]));
    let has_root = find_root(config);
    for devices in [&DRIVES, &PMEM] {
        let Some(list) = config.get_mut(devices.section) else { continue };
        let list = list.as_array_mut().ok_or_else(|| invalid(format!("{} is not a list", devices.section)))?;
        for device in list {
            let device = device
                .as_object_mut()
                .ok_or_else(|| invalid(format!("{} has something that is no object", devices.section)))?;
            one_drive(device, devices, parts, found)?;
        }
    }
    if !has_root {
        add(config, 0, "rootfs", (&parts.dir.join(parts.rootfs), true));
    }
    if parts.resources.data_disk_mib > 0 && found.data_disk.is_none() {
        add(config, usize::MAX, "data", (&parts.dir.join(DATA_DISK), false));
        found.data_disk = Some(DATA_DISK.parse().expect("it is a name"));
    }
    Ok(())
}

/// Adds a drive that the VM writes to, under an id that no other one has.
fn add(config: &mut Map<String, Value>, at: usize, id: &str, (path, is_root): (&Utf8Path, bool)) {
    let is_taken = |id: &str| {
        let has = |devices: &Devices| {
            let list = config.get(devices.section).and_then(Value::as_array);
            list.into_iter().flatten().any(|device| device[devices.id] == id)
        };
        has(&DRIVES) || has(&PMEM)
    };
    let id = free_id(id, is_taken);
    let drive = json!({ "drive_id": id, "path_on_host": path, "is_root_device": is_root, "is_read_only": false });
    match config[DRIVES.section].as_array_mut() {
        Some(drives) => drives.insert(at.min(drives.len()), drive),
        None => unreachable!("it was looked through before"),
    }
}

fn one_drive(
    drive: &mut Map<String, Value>,
    devices: &Devices,
    parts: &InstanceParts,
    found: &mut Found,
) -> Result<(), FormatError> {
    let is = |drive: &Map<String, Value>, field| drive.get(field) == Some(&Value::Bool(true));
    // A vhost-user device has a socket in place of a file.
    if let Some(socket) = drive.get_mut("socket").filter(|socket| !socket.is_null()) {
        return absolute(socket, parts.dir).map(drop);
    }
    if is(drive, devices.root) {
        drive.insert("path_on_host".into(), parts.dir.join(parts.rootfs).as_str().into());
        return Ok(());
    }
    let id = drive.get(devices.id).and_then(Value::as_str).unwrap_or("without an id").to_owned();
    let read_only = is(drive, devices.read_only);
    let Some(path) = drive.get_mut("path_on_host") else { return Ok(()) };
    let Some(name) = absolute(path, parts.dir)? else {
        if let Some(of_host) = path.as_str().filter(|path| !path.is_empty() && !read_only) {
            found.of_host.push((id, of_host.into()));
        }
        return Ok(());
    };
    match name.parse().ok().filter(|name| parts.artifacts.contains(name)) {
        Some(artifact) if !read_only => drop(found.writable.insert(artifact)),
        Some(_) => {}
        None if parts.resources.data_disk_mib == 0 => {
            return Err(invalid(format!(
                "drive {id} is the file {name}, which the revision does not have; publish it, or say how large a data \
                 disk is to be"
            )));
        }
        None if found.data_disk.is_some() => {
            return Err(invalid(format!(
                "drive {id} is the file {name}, which the revision does not have; publish it"
            )));
        }
        None => {
            let disk = name.parse().map_err(|error| invalid(format!("drive {id} can't be the data disk: {error}")))?;
            found.data_disk = Some(disk);
        }
    }
    Ok(())
}

/// Makes a path one below the directory, unless it is absolute already; gives its form below the directory.
fn absolute(path: &mut Value, dir: &Utf8Path) -> Result<Option<String>, FormatError> {
    let Some(text) = path.as_str().filter(|text| !text.is_empty()) else { return Ok(None) };
    if Utf8Path::new(text).is_absolute() {
        return Ok(None);
    }
    let name = below(text).ok_or_else(|| invalid(format!("the path {text:?} leads out of the revision")))?;
    *path = dir.join(&name).as_str().into();
    Ok(Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(base: &str, data_disk_mib: u32) -> Result<(Value, InstanceConfig), FormatError> {
        let artifacts = ["vmlinux", "rootfs.ext4", "fc-base.json", "usr.img"].map(|name| name.parse().unwrap()).into();
        let parts = InstanceParts {
            dir: Utf8Path::new("/vms/1"),
            vmlinux: "vmlinux",
            rootfs: "rootfs.ext4",
            initrd: None,
            artifacts: &artifacts,
            resources: Resources { vcpus: 3, mem_mib: 99, data_disk_mib },
        };
        let config = for_instance(base.as_bytes(), &parts)?;
        Ok((serde_json::from_slice(&config.bytes).unwrap(), config))
    }

    #[test]
    fn what_a_boot_needs_is_added() {
        let (json, config) = config("{}", 0).unwrap();
        assert_eq!(json["boot-source"]["kernel_image_path"], "/vms/1/vmlinux");
        assert_eq!(json["drives"][0]["path_on_host"], "/vms/1/rootfs.ext4");
        assert_eq!(json["drives"][0]["is_root_device"], true);
        assert_eq!(json["machine-config"], json!({ "vcpu_count": 3, "mem_size_mib": 99 }));
        assert_eq!((config.writable, config.data_disk), (BTreeSet::new(), None));
    }

    #[test]
    fn what_is_there_stays_and_relative_paths_become_absolute() {
        let base = r#"{
            "boot-source": { "kernel_image_path": "./old", "boot_args": "quiet" },
            "drives": [
                { "drive_id": "usr", "path_on_host": "./usr.img", "is_read_only": false },
                { "drive_id": "host", "path_on_host": "/srv/shared.img", "is_read_only": true },
                { "drive_id": "r", "path_on_host": "x", "is_root_device": true, "is_read_only": true }
            ],
            "machine-config": { "vcpu_count": 1, "smt": true },
            "vsock": { "guest_cid": 3, "uds_path": "./v.sock" }
        }"#;
        let (json, config) = config(base, 0).unwrap();
        assert_eq!(json["boot-source"], json!({ "kernel_image_path": "/vms/1/vmlinux", "boot_args": "quiet" }));
        let paths: Vec<_> = json["drives"].as_array().unwrap().iter().map(|drive| &drive["path_on_host"]).collect();
        assert_eq!(paths, ["/vms/1/usr.img", "/srv/shared.img", "/vms/1/rootfs.ext4"]);
        assert_eq!(json["drives"][2]["is_read_only"], true);
        assert_eq!(json["machine-config"], json!({ "vcpu_count": 1, "smt": true }));
        assert_eq!(json["vsock"]["uds_path"], "/vms/1/v.sock");
        assert_eq!(config.writable, ["usr.img".parse().unwrap()].into());
    }

    #[test]
    fn a_drive_that_is_called_rootfs_is_the_root_where_none_says_it_is() {
        let (json, config) = config(r#"{ "drives": [{ "drive_id": "rootfs", "path_on_host": "x" }] }"#, 0).unwrap();
        assert_eq!(json["drives"].as_array().unwrap().len(), 1);
        assert_eq!(json["drives"][0]["path_on_host"], "/vms/1/rootfs.ext4");
        assert_eq!(config.writable, BTreeSet::new());
    }

    #[test]
    fn persistent_memory_is_a_drive_as_well() {
        let base = r#"{ "pmem": [
            { "id": "a", "path_on_host": "usr.img" }, { "id": "b", "path_on_host": "x", "root_device": true }
        ] }"#;
        let (json, config) = config(base, 0).unwrap();
        assert_eq!(config.writable, ["usr.img".parse().unwrap()].into());
        assert_eq!(json["pmem"][1]["path_on_host"], "/vms/1/rootfs.ext4");
        assert_eq!(json["drives"], json!([]), "there is a root device already");
    }

    #[test]
    fn a_drive_without_an_artifact_is_the_data_disk() {
        let base = r#"{ "drives": [{ "drive_id": "d", "path_on_host": "disks/d.img" }] }"#;
        assert_eq!(config(base, 64).unwrap().1.data_disk, Some("disks/d.img".parse().unwrap()));
        assert_eq!(config("{}", 64).unwrap().1.data_disk, Some(DATA_DISK.parse().unwrap()));
        assert!(config(base, 0).unwrap_err().to_string().contains("disks/d.img"));
        let two = r#"{ "drives": [{ "path_on_host": "a" }, { "drive_id": "b", "path_on_host": "b" }] }"#;
        assert!(config(two, 64).unwrap_err().to_string().contains("drive b"));
    }

    #[test]
    fn a_data_disk_has_a_name_that_a_file_of_an_instance_can_have() {
        for bad in ["snapshot/data.img", "revision.json", "a\\u0007b", "."] {
            let base = format!(r#"{{ "drives": [{{ "drive_id": "d", "path_on_host": "{bad}" }}] }}"#);
            let error = config(&base, 64).unwrap_err().to_string();
            assert!(error.contains("drive d can't be the data disk"), "{error}");
        }
    }

    #[test]
    fn what_is_added_has_an_id_of_its_own() {
        let base = r#"{ "drives": [
            { "drive_id": "data", "path_on_host": "usr.img" }, { "drive_id": "data_2", "path_on_host": "/dev/x" }
        ], "pmem": [{ "id": "rootfs", "path_on_host": "vmlinux", "read_only": true }] }"#;
        let (json, config) = config(base, 64).unwrap();
        let ids: Vec<_> = json["drives"].as_array().unwrap().iter().map(|drive| &drive["drive_id"]).collect();
        assert_eq!(ids, ["rootfs_2", "data", "data_2", "data_3"]);
        let known =
            super::super::vm_drives(base.as_bytes(), 64, |path| ["usr.img", "vmlinux"].contains(&path.as_str()));
        let known: Vec<_> = known.unwrap().into_iter().map(|drive| drive.id.to_string()).collect();
        assert_eq!(known, ["rootfs_2", "data", "data_2", "rootfs", "data_3"]);
        assert_eq!(config.of_host, [("data_2".to_owned(), "/dev/x".into())]);
    }

    #[test]
    fn paths_that_lead_out_and_shapes_that_are_none_are_refused() {
        for base in [
            r#"{ "drives": [{ "path_on_host": "../../etc/shadow" }] }"#,
            r#"{ "vsock": { "uds_path": "../v" } }"#,
            r#"{ "drives": {} }"#,
            r#"{ "drives": [7] }"#,
            r#"{ "boot-source": [] }"#,
            "[]",
            "",
        ] {
            assert!(config(base, 64).is_err(), "{base}");
        }
    }
}
