//! Whether a VM of a host can go on from a snapshot, or why not.

use std::fs;

use template_store::{DriveId, Host, Incompatibility, Platform, SnapshotOptions};

use super::{MEM_MIB, Paused};
use crate::support::{edit_json, flip, id};

fn platform() -> Platform {
    let some = |text: &str| Some(text.to_owned());
    Platform {
        vmm: some("firecracker"),
        vmm_version: some("1.13.0"),
        snapshot_version: some("8.0.0"),
        cpu_model: some("Xeon"),
        cpu_template: some("T2"),
        host_kernel: some("6.1"),
        architecture: some("x86_64"),
    }
}

#[test]
fn each_reason_why_a_vm_can_not_go_on_is_named() {
    use Incompatibility as I;
    let paused = Paused::new();
    let options = SnapshotOptions::default().platform(platform()).drive_path(id("rootfs"), "/vms/1/rootfs.ext4");
    let snapshot = paused.revision().attach_snapshot(&paused.files(), &options, &mut ()).unwrap();
    assert_eq!(snapshot.record().platform, platform());

    let mut same = Host::default();
    same.platform = platform();
    same.drive_paths.insert(id("rootfs"), "/vms/1/rootfs.ext4".into());
    let same = same.vcpus(2).mem_mib(MEM_MIB).boot_args("quiet".to_owned());
    assert_eq!(snapshot.compatible_with(&same), []);
    assert_eq!(snapshot.compatible_with(&Host::default()), [], "what is not known is not compared");

    let text = |text: &str| (text.to_owned(), "other".to_owned());
    let with = |change: &dyn Fn(&mut Host)| {
        let mut host = same.clone();
        change(&mut host);
        snapshot.compatible_with(&host)
    };
    let other = || Some("other".to_owned());
    assert_eq!(with(&|host| host.vcpus = Some(3)), [I::Vcpus { snapshot: 2, host: 3 }]);
    assert_eq!(with(&|host| host.mem_mib = Some(9)), [I::MemMib { snapshot: 8, host: 9 }]);
    macro_rules! each {
        ($($field:expr, $reason:ident, $known:literal;)*) => {$(
            let (snapshot, host) = text($known);
            let set: fn(&mut Host) -> &mut Option<String> = $field;
            assert_eq!(with(&|host| *set(host) = other()), [I::$reason { snapshot, host }]);
            assert_eq!(with(&|host| *set(host) = None), [], "what is not known is not compared");
        )*};
    }
    each! {
        |host| &mut host.boot_args, BootArgs, "quiet";
        |host| &mut host.platform.vmm, Vmm, "firecracker";
        |host| &mut host.platform.vmm_version, VmmVersion, "1.13.0";
        |host| &mut host.platform.snapshot_version, SnapshotVersion, "8.0.0";
        |host| &mut host.platform.cpu_model, CpuModel, "Xeon";
        |host| &mut host.platform.cpu_template, CpuTemplate, "T2";
        |host| &mut host.platform.host_kernel, HostKernel, "6.1";
        |host| &mut host.platform.architecture, Architecture, "x86_64";
    }
    let moved = with(&|host| drop(host.drive_paths.insert(id("rootfs"), "/elsewhere".into())));
    let (drive, at, host) = (id::<DriveId>("rootfs"), "/vms/1/rootfs.ext4".to_owned(), "/elsewhere".to_owned());
    assert_eq!(moved, [I::DrivePath { drive, snapshot: at, host }]);

    fs::remove_file(snapshot.vmstate()).unwrap();
    assert_eq!(snapshot.compatible_with(&same), [I::FileMissing { path: snapshot.vmstate() }]);
    flip(&snapshot.mem(), 77, false);
    assert_eq!(snapshot.compatible_with(&same)[0], I::FileChanged { path: snapshot.mem() });
}

#[test]
fn a_snapshot_without_a_writable_drive_is_not_compatible() {
    let paused = Paused::new();
    let snapshot = paused.attach();
    edit_json(snapshot.path().join("snapshot.json"), |record| record["drives"] = serde_json::json!([]));
    let snapshot = paused.revision().snapshot().unwrap().unwrap();
    let drive = id::<DriveId>("rootfs");
    assert_eq!(snapshot.compatible_with(&Host::here()), [Incompatibility::DriveMissing { drive }]);
}
