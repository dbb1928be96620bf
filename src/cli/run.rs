//! `run`: a command that holds a revision.

use std::ffi::OsString;
use std::process::Command;

use template_store::{LeaseNoted, Revision, Store};

use super::args::Target;
use super::child::supervise;
use super::{Failure, Result, Session, Status};

/// The revision that a call names: the one that it says, or the current one.
pub(crate) fn revision(store: &Store, target: &Target) -> Result<Revision> {
    Ok(match &target.revision {
        Some(revision) => store.revision(&target.template, revision)?,
        None => store.current(&target.template)?,
    })
}

pub(crate) fn run(session: &Session, target: &Target, words: &[OsString]) -> Result {
    let store = session.open()?;
    let revision = revision(&store, target)?;
    revision.check()?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).envs(environment(&revision));
    // The command has the lease as well: it is held as long as either of us lives.
    let inherited = revision.lease_for_child()?;
    let _ours = noted(revision.note_holder(std::process::id(), ""));
    let mut theirs = None;
    let started = |pid| {
        drop(inherited);
        theirs = noted(revision.note_holder(pid, "started by `template-store run`"));
    };
    let ended = supervise(&mut command, started)
        .map_err(|error| Failure::Other(format!("cannot run {}: {error}", words[0].display()), 1))?;
    Ok(Status::Code(ended.code()))
}

/// A note is for people; that there is none is no reason not to run.
fn noted(note: template_store::Result<LeaseNoted>) -> Option<LeaseNoted> {
    note.inspect_err(|error| tracing::debug!(%error, "it was not noted who uses the revision")).ok()
}

fn environment(revision: &Revision) -> Vec<(&'static str, String)> {
    let mut environment = vec![
        ("TEMPLATE_ID", revision.template().to_string()),
        ("TEMPLATE_REVISION", revision.id().to_string()),
        ("TEMPLATE_DIR", revision.path().into_string()),
        ("TEMPLATE_VMLINUX", revision.kernel().into_string()),
        ("TEMPLATE_ROOTFS", revision.rootfs().into_string()),
        ("TEMPLATE_FC_BASE", revision.fc_base_config().into_string()),
    ];
    environment.extend(revision.initrd().map(|path| ("TEMPLATE_INITRD", path.into_string())));
    environment
}
