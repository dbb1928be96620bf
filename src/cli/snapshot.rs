//! `snapshot`: attaching, showing and checking what a VM goes on from.

use serde_json::{Value, json};
use template_store::{
    Error, Host, Incompatibility, Platform, Revision, Snapshot, SnapshotFiles, SnapshotOptions, TemplateKind,
};

use super::args::{AttachSnapshot, HostArgs, Snapshot as SnapshotArgs, Target};
use super::output::{shown, size, table};
use super::run::revision;
use super::terminal::Terminal;
use super::{Result, Session, Status};

pub(crate) fn snapshot(session: &Session, args: &SnapshotArgs) -> Result {
    match args {
        SnapshotArgs::Attach(args) => attach(session, args),
        SnapshotArgs::Show { target } => show(session, target),
        SnapshotArgs::Check { target, host } => check(session, target, host),
    }
}

fn attach(session: &Session, args: &AttachSnapshot) -> Result {
    let store = session.open()?;
    let revision = revision(&store, &args.target)?;
    let mut files = SnapshotFiles::new(&args.vmstate, &args.mem);
    for (id, path) in &args.drives {
        files = files.drive(id.clone(), path);
    }
    let known = if args.taken_here { Host::here().platform } else { Platform::default() };
    let mut options = SnapshotOptions::default()
        .boot_args(args.host.boot_args.clone())
        .vcpus(args.host.vcpus)
        .mem_mib(args.host.mem_mib)
        .created_at(args.created_at.map(|time| time.to_string()))
        .platform(args.host.platform(known));
    for (id, path) in &args.host.drive_paths {
        options = options.drive_path(id.clone(), path);
    }
    let mut terminal = Terminal::new(session.output);
    let snapshot = revision.attach_snapshot(&files, &options, &mut terminal)?;
    let document = || json!({ "attached": document(&snapshot), "notes": terminal.notes() });
    let text = || format!("attached a snapshot to {}@{}", revision.template(), revision.id());
    session.output.result(document, text);
    Ok(Status::Done)
}

/// The snapshot of a revision, which must have one.
fn of(revision: &Revision) -> Result<Snapshot> {
    let (template, id) = (revision.template().clone(), revision.id().clone());
    Ok(revision.snapshot()?.ok_or(Error::NoSnapshot { template, revision: id })?)
}

fn show(session: &Session, target: &Target) -> Result {
    let store = session.open()?;
    let revision = revision(&store, target)?;
    let snapshot = match (revision.snapshot()?, revision.kind()?) {
        (Some(snapshot), _) => snapshot,
        (None, TemplateKind::Snapshot(info)) => {
            let document = || json!({ "template": revision.template(), "revision": revision.id(), "made_by_mvm": true, "record": info });
            let text = || {
                format!(
                    "snapshot  {}@{}, made by mvm\ntaken     {}\nmachine   {} vcpus, {} MiB\n",
                    revision.template(),
                    revision.id(),
                    shown(&info.created_at),
                    info.vcpus,
                    info.mem_mib
                )
            };
            session.output.result(document, text);
            return Ok(Status::Done);
        }
        (None, _) => of(&revision)?,
    };
    session.output.result(|| document(&snapshot), || text(&snapshot));
    Ok(Status::Done)
}

fn document(snapshot: &Snapshot) -> Value {
    let drives = snapshot.drives().map(|(id, path)| json!({ "id": id, "path": path }));
    json!({
        "template": snapshot.revision().template(),
        "revision": snapshot.revision().id(),
        "path": snapshot.path(),
        "vmstate": snapshot.vmstate(),
        "mem": snapshot.mem(),
        "drives": drives.collect::<Vec<_>>(),
        "record": snapshot.record(),
    })
}

fn text(snapshot: &Snapshot) -> String {
    let (record, revision) = (snapshot.record(), snapshot.revision());
    let info = &record.info;
    let mut text = format!("snapshot  {}@{}\npath      {}\n", revision.template(), revision.id(), snapshot.path());
    let taken = shown(&info.created_at);
    text += &format!("taken     {taken}\nmachine   {} vcpus, {} MiB\n", info.vcpus, info.mem_mib);
    let platform = &record.platform;
    let known = [
        ("boot args", Some(&info.boot_args).filter(|args| !args.is_empty())),
        ("vmm", platform.vmm.as_ref()),
        ("version", platform.vmm_version.as_ref()),
        ("format", platform.snapshot_version.as_ref()),
        ("cpu", platform.cpu_model.as_ref()),
        ("template", platform.cpu_template.as_ref()),
        ("kernel", platform.host_kernel.as_ref()),
        ("arch", platform.architecture.as_ref()),
    ];
    for (name, value) in known {
        text += &value.map(|value| format!("{name:<9} {}\n", shown(value))).unwrap_or_default();
    }
    for drive in &record.drives {
        let line = |path| format!("drive     {} at {}\n", drive.id, shown(path));
        text += &drive.path_on_host.as_ref().map(line).unwrap_or_default();
    }
    let row = |content: &template_store::Content| {
        vec![content.path.to_string(), size(content.size), content.blake3.to_string()]
    };
    text + "\n" + &table(&["FILE", "SIZE", "BLAKE3"], snapshot.contents().iter().map(row))
}

fn check(session: &Session, target: &Target, args: &HostArgs) -> Result {
    let store = session.open()?;
    let revision = revision(&store, target)?;
    let mut host = Host::for_revision(&revision)?;
    host.vcpus = args.vcpus.or(host.vcpus);
    host.mem_mib = args.mem_mib.or(host.mem_mib);
    host.boot_args = args.boot_args.clone().or(host.boot_args);
    host.platform = args.platform(host.platform);
    host.drive_paths = args.drive_paths.iter().cloned().collect();
    let replaced = |reason: &Incompatibility| matches!(reason, Incompatibility::Replaced { .. });
    let reasons = loop {
        let reasons = of(&revision)?.compatible_with(&host);
        if !reasons.iter().any(replaced) {
            break reasons;
        }
    };
    let document = || {
        let reasons = reasons.iter().map(|reason| {
            let mut document = json!(reason);
            document["text"] = reason.to_string().into();
            document
        });
        json!({ "compatible": reasons.len() == 0, "reasons": reasons.collect::<Vec<_>>() })
    };
    let name = format!("{}@{}", revision.template(), revision.id());
    let text = || match reasons.is_empty() {
        true => format!("a VM of this host can go on from the snapshot of {name}"),
        false => {
            let reasons: Vec<String> =
                reasons.iter().map(|reason| format!("  {}\n", shown(&reason.to_string()))).collect();
            format!("no VM of this host can go on from the snapshot of {name}:\n{}", reasons.concat())
        }
    };
    session.output.result(document, text);
    Ok(if reasons.is_empty() { Status::Done } else { Status::Refused })
}
