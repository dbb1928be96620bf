//! `instance`: what one VM starts from.

use camino::Utf8Path;
use serde_json::{Value, json};
use template_store::{Instance, InstanceFile, InstanceOptions, Reflink, Removal, Start, Strategy};

use super::args::{Instance as Args, InstanceCommand, MakeInstance};
use super::output::{size, table};
use super::run::revision;
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status};

pub(crate) fn instance(session: &Session, args: &Args) -> Result {
    match (&args.command, &args.make) {
        (Some(InstanceCommand::Rm { dir, force }), _) => remove(session, dir, *force),
        (Some(InstanceCommand::List), _) => list(session),
        (None, Some(make_args)) => make(session, make_args),
        (None, None) => Err(Failure::Usage("say ID and DEST, or rm, or list".into())),
    }
}

fn make(session: &Session, args: &MakeInstance) -> Result {
    let store = session.open()?;
    let revision = revision(&store, &args.target)?;
    let options = InstanceOptions::default()
        .reflink(if args.require_reflink { Reflink::Require } else { Reflink::Prefer })
        .owner(args.owner)
        .data_disk_mib(args.extra_disk)
        .start(if args.snapshot { Start::Snapshot } else { Start::Boot });
    let mut terminal = Terminal::new(session.output);
    let instance = revision.instance_with(&args.dest, &options, &mut terminal)?;
    session.output.result(|| document(&instance), || text(&instance));
    Ok(Status::Done)
}

fn document(instance: &Instance) -> Value {
    let mut document = json!(instance.record());
    document["path"] = json!(instance.path());
    document
}

fn text(instance: &Instance) -> String {
    let record = instance.record();
    let row = |file: &InstanceFile| vec![file.path.to_string(), how(file)];
    let head = format!("{} is an instance of {}@{}\n\n", instance.path(), record.template, record.revision);
    head + &table(&["FILE", "HOW"], record.files.iter().map(row))
}

fn how(file: &InstanceFile) -> String {
    let how = match file.strategy {
        Strategy::Reflink => "clone".to_owned(),
        Strategy::Copy { bytes } => format!("copy, {}", size(bytes)),
        Strategy::HardLink => "hard link".to_owned(),
        Strategy::Written => "new".to_owned(),
        _ => "in a way that this program does not know".to_owned(),
    };
    if file.writable { how + ", writable" } else { how }
}

fn list(session: &Session) -> Result {
    let instances = session.open()?.instances()?;
    let row = |instance: &Instance| {
        let record = instance.record();
        let of = format!("{}@{}", record.template, record.revision);
        vec![instance.path().to_string(), of, record.created_at.to_string()]
    };
    session.output.result(
        || json!({ "instances": instances.iter().map(document).collect::<Vec<_>>() }),
        || match instances.is_empty() {
            true => "there is no instance on the store's file system".into(),
            false => table(&["INSTANCE", "REVISION", "MADE"], instances.iter().map(row)),
        },
    );
    Ok(Status::Done)
}

fn remove(session: &Session, dir: &Utf8Path, force: bool) -> Result {
    let how = if force { Removal::Forced } else { Removal::Unused };
    session.open()?.remove_instance(dir, how)?;
    session.output.result(|| json!({ "removed": dir }), || format!("removed {dir}"));
    Ok(Status::Done)
}
