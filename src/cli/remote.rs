//! Remotes themselves: which there are, and what they have.

use serde_json::json;
use template_store::{
    Error, Remote, RemoteError, RemoteName, RemoteRevision, RemoteSettings, RemoteTemplate, Store, TemplateId,
};

use super::args::{AddRemote, Remote as Command};
use super::output::{shown, size, table};
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status};

pub(crate) fn remote(session: &Session, command: &Command) -> Result {
    match command {
        Command::Add(args) => add(session, args),
        Command::Rm { name } => remove(session, name),
        Command::List => list(session),
        Command::Check { remote } => check(session, remote.as_deref()),
        Command::Ls { remote, template } => ls(session, remote.as_deref(), template.as_ref()),
        Command::Verify { remote, data } => verify(session, remote.as_deref(), *data),
    }
}

/// The remote that a call means: a name of the store's configuration, a URL, a directory, or the only one that there is.
pub(crate) fn settings(store: Option<&Store>, named: Option<&str>) -> Result<RemoteSettings> {
    let known = store.map_or_else(|| Ok(Default::default()), Store::remotes)?;
    let Some(named) = named else {
        return match known.len() {
            1 => Ok(known.into_values().next().expect("there is one")),
            0 => Err(Failure::Usage(
                "there is no remote; say --remote, or add one with `template-store remote add`".into(),
            )),
            _ => {
                let names: Vec<_> = known.keys().map(AsRef::as_ref).collect();
                Err(Failure::Usage(format!("there are several remotes; say which with --remote: {}", names.join(", "))))
            }
        };
    };
    if named.contains('/') || named == "." || named == ".." {
        return Ok(RemoteSettings::at(named));
    }
    let name: RemoteName = named.parse()?;
    let found = known.get(&name).cloned();
    found.ok_or_else(|| Error::from(RemoteError::Unknown { name: named.to_owned() }).into())
}

fn opened(session: &Session, named: Option<&str>) -> Result<Remote> {
    // A URL needs no store.
    let store = match named.is_some_and(|named| named.contains('/')) {
        true => None,
        false => Some(session.open()?),
    };
    Ok(Remote::open(&settings(store.as_ref(), named)?)?)
}

fn add(session: &Session, args: &AddRemote) -> Result {
    let store = session.open_or_init()?;
    store.add_remote(&args.name, &args.settings())?;
    let name = &args.name;
    let url = store.remotes()?.remove(name).map(|added| added.url).unwrap_or_default();
    session.output.result(|| json!({ "remote": name, "url": url }), || format!("{name} is {url}"));
    Ok(Status::Done)
}

fn remove(session: &Session, name: &RemoteName) -> Result {
    session.open()?.remove_remote(name)?;
    session.output.result(|| json!({ "removed": name }), || format!("{name} is forgotten; what it holds stays"));
    Ok(Status::Done)
}

fn list(session: &Session) -> Result {
    let remotes = session.open()?.remotes()?.into_iter().map(|(name, settings)| (name, settings.shown()));
    let remotes: Vec<(RemoteName, RemoteSettings)> = remotes.collect();
    let document = || {
        let one = |(name, settings): &(RemoteName, RemoteSettings)| {
            let mut document = serde_json::to_value(settings).expect("settings are JSON");
            document["name"] = json!(name);
            document
        };
        json!({ "remotes": remotes.iter().map(one).collect::<Vec<_>>() })
    };
    session.output.result(document, || {
        let rows = remotes.iter().map(|(name, settings)| {
            let through = settings.endpoint.clone().unwrap_or_default();
            vec![name.to_string(), settings.url.clone(), through]
        });
        table(&["REMOTE", "URL", "ENDPOINT"], rows)
    });
    Ok(Status::Done)
}

fn check(session: &Session, named: Option<&str>) -> Result {
    let remote = opened(session, named)?;
    let found = remote.check()?;
    let honoured = found.problem.is_none();
    let document = || {
        json!({
            "remote": remote.url(), "conditions": honoured, "passed": found.passed, "problem": found.problem,
        })
    };
    session.output.result(document, || {
        let passed = found.passed.iter().map(|line| format!("ok    {}\n", shown(line))).collect::<String>();
        match &found.problem {
            None => passed,
            Some(problem) => format!(
                "{passed}FAIL  {}: two who push at once could lose what one of them pushed; \
                 if nobody else ever pushes there, say so with `remote add --single-writer`\n",
                shown(problem)
            ),
        }
    });
    Ok(if honoured { Status::Done } else { Status::Refused })
}

fn ls(session: &Session, named: Option<&str>, only: Option<&TemplateId>) -> Result {
    let remote = opened(session, named)?;
    let mut templates = remote.templates()?;
    if let Some(only) = only {
        templates.retain(|one| one.template == *only);
    }
    let document =
        || json!({ "remote": remote.url(), "templates": templates.iter().map(template_json).collect::<Vec<_>>() });
    session.output.result(document, || {
        let rows = templates.iter().flat_map(|one| one.revisions.iter().map(|revision| row(one, revision)));
        table(&["TEMPLATE", "REVISION", "", "SIZE", "", "PUSHED"], rows)
    });
    let damaged = || templates.iter().filter_map(|one| Some((&one.template, one.problem.as_ref()?)));
    for (template, problem) in damaged() {
        session.output.note(&format!(
            "template {template} is damaged there: {problem}; `template-store push --resend` from a store that has it mends it"
        ));
    }
    Ok(match only {
        Some(_) if templates.is_empty() => Status::NotFound,
        _ if damaged().next().is_some() => Status::Damaged,
        _ => Status::Done,
    })
}

fn row(template: &RemoteTemplate, revision: &RemoteRevision) -> Vec<String> {
    let current = if template.current.as_ref() == Some(&revision.revision) { "current" } else { "" };
    vec![
        template.template.to_string(),
        revision.revision.to_string(),
        current.to_owned(),
        size(revision.bytes),
        if revision.has_snapshot { "snapshot" } else { "" }.to_owned(),
        revision.pushed_at.to_string(),
    ]
}

fn template_json(template: &RemoteTemplate) -> serde_json::Value {
    let revision = |one: &RemoteRevision| json!({ "revision": one.revision, "bytes": one.bytes, "pushed_at": one.pushed_at, "snapshot": one.has_snapshot });
    json!({
        "template": template.template,
        "problem": template.problem,
        "current": template.current,
        "revisions": template.revisions.iter().map(revision).collect::<Vec<_>>(),
        "history": template.history.iter().map(|(revision, at)| json!({ "revision": revision, "at": at })).collect::<Vec<_>>(),
    })
}

fn verify(session: &Session, named: Option<&str>, data: bool) -> Result {
    let remote = opened(session, named)?;
    let mut terminal = Terminal::new(session.output);
    let report = remote.verify(data, &mut terminal)?;
    let clean = report.findings.is_empty();
    let document = || {
        let findings: Vec<_> =
            report.findings.iter().map(|one| json!({ "object": one.object, "problem": one.problem })).collect();
        json!({
            "remote": remote.url(), "clean": clean, "templates": report.templates, "keys": report.keys,
            "revisions": report.revisions, "files": report.files, "data": data, "findings": findings,
        })
    };
    session.output.result(document, || {
        let line = |(object, problem)| format!("{}: {}\n", shown(object), shown(problem));
        let findings = report.findings.iter().map(|one| line((&one.object, &one.problem))).collect::<String>();
        let how = if data { "read and hashed" } else { "there" };
        let end = match clean {
            true => format!("{} revisions, {} files: all are {how}", report.revisions, report.files),
            false => {
                format!("{} findings in {} revisions, {} files", report.findings.len(), report.revisions, report.files)
            }
        };
        format!("{findings}{end}")
    });
    Ok(if clean { Status::Done } else { Status::Damaged })
}
