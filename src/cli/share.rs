//! `push` and `pull`.

use serde_json::json;
use template_store::{Move, Outcome, PullOptions, PushOptions, Remote, SendFiles, WithSnapshot};

use super::args::{Pull, Push};
use super::build::publish_options;
use super::output::{revision_json, size};
use super::remote::settings;
use super::terminal::Terminal;
use super::{Result, Session, Status};

pub(crate) fn push(session: &Session, args: &Push) -> Result {
    let store = session.open()?;
    let remote = Remote::open(&settings(Some(&store), args.remote.remote.as_deref())?)?;
    let moves = match args.expect.as_deref() {
        _ if args.no_activate => Move::No,
        None => Move::Forward,
        Some("none") => Move::FromAbsent,
        Some(revision) => Move::From(revision.parse()?),
    };
    let options = PushOptions::default()
        .moves(moves)
        .snapshot(with_snapshot(args.with_snapshot))
        .files(if args.resend { SendFiles::All } else { SendFiles::Missing });
    let mut terminal = Terminal::new(session.output);
    let pushed = store.push(&remote, &args.target.template, args.target.revision.as_ref(), &options, &mut terminal)?;
    let name = format!("{}@{}", pushed.template, pushed.revision);
    let document = || {
        json!({
            "result": if pushed.changed { "pushed" } else { "unchanged" },
            "remote": remote.url(), "template": pushed.template, "revision": pushed.revision,
            "current": pushed.current, "files_sent": pushed.files_sent, "files_known": pushed.files_known,
            "bytes_sent": pushed.bytes_sent,
        })
    };
    session.output.result(document, || match pushed.changed {
        true => format!(
            "pushed {name} to {}: {} files ({}) were sent, {} were there",
            remote.url(),
            pushed.files_sent,
            size(pushed.bytes_sent),
            pushed.files_known
        ),
        false => format!("unchanged: {} has {name}", remote.url()),
    });
    Ok(Status::Done)
}

fn with_snapshot(is_asked_for: bool) -> WithSnapshot {
    if is_asked_for { WithSnapshot::Yes } else { WithSnapshot::No }
}

pub(crate) fn pull(session: &Session, args: &Pull) -> Result {
    let existing = session.open_if_there()?;
    let remote = Remote::open(&settings(existing.as_ref(), args.remote.remote.as_deref())?)?;
    let store = existing.map_or_else(|| session.open_or_init(), Ok)?;
    let options =
        PullOptions::default().publish(publish_options(&args.activation)?).snapshot(with_snapshot(args.with_snapshot));
    let mut terminal = Terminal::new(session.output);
    let (template, revision) = (&args.target.template, args.target.revision.as_ref());
    let pulled = match args.mvm_registry {
        true => store.pull_mvm(&remote, template, revision, &options, &mut terminal)?,
        false => store.pull(&remote, template, revision, &options, &mut terminal)?,
    };
    let result = if pulled.outcome == Outcome::Unchanged { "unchanged" } else { "pulled" };
    let revision = &pulled.revision;
    let document = || {
        let mut document = revision_json(revision);
        document["result"] = result.into();
        document["remote"] = remote.url().into();
        document["files_fetched"] = pulled.files_fetched.into();
        document["bytes_fetched"] = pulled.bytes_fetched.into();
        document["files_known"] = pulled.files_known.into();
        document["notes"] = terminal.notes().into();
        document
    };
    session.output.result(document, || {
        format!(
            "{result} {}@{}: {} files ({}) were fetched, {} were here\n{}",
            revision.template(),
            revision.id(),
            pulled.files_fetched,
            size(pulled.bytes_fetched),
            pulled.files_known,
            revision.path()
        )
    });
    Ok(Status::Done)
}
