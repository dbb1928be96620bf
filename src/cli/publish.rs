//! `publish`: files that were built elsewhere.

use template_store::{Import, ImportOptions, TemplateSpec};

use super::args::Publish;
use super::build::{inputs, publish_options, report, seal_options};
use super::change::now;
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status};

pub(crate) fn publish(session: &Session, args: &Publish) -> Result {
    let existing = session.open_if_there()?;
    // Without a lock file, nothing is known of what it was made from, and no look-up will find it.
    let inputs = match &args.inputs.flake_lock {
        Some(_) => Some(inputs(existing.as_ref(), Some(&args.id), &args.inputs)?),
        None => None,
    };
    if !args.dir.is_dir() {
        return Err(Failure::Other(
            format!("{} is not a directory; name the one that holds the artifacts", args.dir),
            1,
        ));
    }
    let store = existing.map_or_else(|| session.open_or_init(), Ok)?;
    let options = ImportOptions::default()
        .how(if args.move_in { Import::Move } else { Import::Copy })
        .inputs(inputs)
        .new_template(new_template(args))
        .seal(seal_options(&args.names))
        .publish(publish_options(&args.activation)?);
    let mut terminal = Terminal::new(session.output);
    let published = store.publish_dir_with(&args.id, &args.dir, &options, &mut terminal)?;
    report(session.output, "published", &published, terminal.notes());
    Ok(Status::Done)
}

/// The definition that the template gets if it does not exist.
fn new_template(args: &Publish) -> TemplateSpec {
    let (profile, role) = (args.inputs.profile.clone(), args.inputs.role.clone());
    let profile = profile.unwrap_or_else(|| "minimal".parse().expect("it is a valid profile"));
    let role = role.unwrap_or_else(|| "default".parse().expect("it is a valid role"));
    let flake_ref = args.inputs.flake_ref.as_deref().unwrap_or(".");
    let mut spec = TemplateSpec::new(&args.id, flake_ref, &profile, &role, &now());
    let resources = args.machine.resources();
    (spec.vcpus, spec.mem_mib, spec.data_disk_mib) = (resources.vcpus, resources.mem_mib, resources.data_disk_mib);
    spec
}
