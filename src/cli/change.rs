//! Commands that change templates and `current`.

use camino::Utf8Path;
use serde_json::json;
use template_store::{Applied, Durability, Error, Removal, Store, TemplateConfig, TemplateId, TemplateSpec};

use super::args::{Activate, Create, DurabilityArg, Init, Target};
use super::build::expect;
use super::output::{revision_json, size};
use super::{Failure, Result, Session, Status, input};

pub(crate) fn init(session: &Session, args: &Init) -> Result {
    let durability = args.durability.map(|durability| match durability {
        DurabilityArg::Full => Durability::Full,
        DurabilityArg::None => Durability::None,
    });
    let store = Store::init(session.root()?, &session.options().durability(durability))?;
    let root = store.layout().root();
    session.output.result(|| json!({ "store": root }), || format!("the store is at {root}"));
    Ok(Status::Done)
}

pub(crate) fn create(session: &Session, args: &Create) -> Result {
    let store = session.open_or_init()?;
    let mut spec = TemplateSpec::new(&args.id, &args.flake_ref, &args.profile, &args.role, &now());
    let resources = args.machine.resources();
    (spec.vcpus, spec.mem_mib, spec.data_disk_mib) = (resources.vcpus, resources.mem_mib, resources.data_disk_mib);
    store.create(&spec)?;
    session.output.result(|| json!(spec), || format!("template {} is there", args.id));
    Ok(Status::Done)
}

pub(crate) fn apply(session: &Session, file: &Utf8Path) -> Result {
    let not_text = |_| Failure::Other(format!("cannot read {file}: it is not UTF-8"), 1);
    let text = String::from_utf8(input::read(file)?).map_err(not_text)?;
    let in_file = |source| Error::Format { path: file.to_owned(), source };
    let specs = TemplateConfig::specs_from_toml(&text, &now()).map_err(in_file)?;
    let store = session.open_or_init()?;
    let mut results = Vec::new();
    for spec in specs {
        let result = match store.apply(&spec)? {
            Applied::Created => "created",
            Applied::Changed => "changed",
            _ => "unchanged",
        };
        results.push((spec.template_id, result));
    }
    let document = || results.iter().map(|(id, result)| json!({ "template": id, "result": result })).collect();
    session.output.result(document, || results.iter().map(|(id, result)| format!("{result} {id}\n")).collect());
    Ok(Status::Done)
}

pub(crate) fn activate(session: &Session, args: &Activate) -> Result {
    let store = session.open()?;
    let revision = store.activate(&args.id, &args.revision, expect(args.expect.as_deref())?)?;
    let text = || format!("{} is current in {}", revision.id(), args.id);
    session.output.result(|| revision_json(&revision), text);
    Ok(Status::Done)
}

pub(crate) fn rollback(session: &Session, id: &TemplateId) -> Result {
    let store = session.open()?;
    let revision = store.rollback(id)?;
    session.output.result(|| revision_json(&revision), || format!("{} is current in {id} again", revision.id()));
    Ok(Status::Done)
}

pub(crate) fn remove(session: &Session, target: &Target, force: bool) -> Result {
    let store = session.open()?;
    let how = if force { Removal::Forced } else { Removal::Unused };
    let Target { template, revision } = target;
    let (name, report) = match revision {
        Some(revision) => (format!("{template}@{revision}"), store.remove(template, revision, how)?),
        None => (template.to_string(), store.remove_template(template, how)?),
    };
    let text = || match report.held_by_instances {
        0 => format!("removed {name}"),
        bytes => format!(
            "removed {name}\n{} stay for instances that have links to them (`template-store instance list`)",
            size(bytes)
        ),
    };
    session.output.result(|| json!({ "removed": name, "held_by_instances": report.held_by_instances }), text);
    Ok(Status::Done)
}

pub(crate) fn now() -> String {
    jiff::Timestamp::now().to_string()
}
