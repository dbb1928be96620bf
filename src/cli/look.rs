//! Commands that only look.

use std::collections::HashMap;

use camino::Utf8PathBuf;
use rayon::prelude::*;
use serde_json::{Value, json};
use template_store::{
    Activation, Error, Match, Overview, Result as StoreResult, Revision, RevisionId, SnapshotInfo, Store, TemplateId,
    TemplateKind, TemplateSpec,
};

use super::args::{Lookup, Target};
use super::build::inputs;
use super::cached::Cache;
use super::output::{revision_json, shown, size, table};
use super::run::revision;
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status};

pub(crate) fn lookup(session: &Session, args: &Lookup) -> Result {
    let store = session.open()?;
    let inputs = inputs(Some(&store), args.id.as_ref(), &args.inputs)?;
    let matching = if args.strict { Match::Strict } else { Match::Sources };
    let mut terminal = Terminal::new(session.output);
    let found = match store.lookup_with(args.id.as_ref(), &inputs, matching, &mut terminal)? {
        None => {
            let mut cache = Cache::of(Some(&store), &args.cache)?;
            cache.lookup(&store, args.id.as_ref(), (&inputs, matching), session.output, &mut terminal)?
        }
        found => found,
    };
    match found {
        Some(revision) => {
            let notes = terminal.notes();
            let document = || {
                let mut document = revision_json(&revision);
                document["found"] = true.into();
                document["notes"] = notes.into();
                document
            };
            session.output.result(document, || revision.path().into_string());
            Ok(Status::Done)
        }
        None => {
            let key = inputs.key();
            session.output.result(|| json!({ "found": false, "cache_key": key }), String::new);
            session.output.note(&format!("nothing was built from these inputs (cache key {key})"));
            Ok(Status::NotFound)
        }
    }
}

/// A template, as far as it can be read.
struct Summary {
    id: TemplateId,
    spec: StoreResult<TemplateSpec>,
    current: StoreResult<Option<RevisionId>>,
    revisions: Vec<(RevisionId, StoreResult<Line>)>,
}

/// What is shown of a revision among others.
struct Line {
    path: Utf8PathBuf,
    built_at: String,
    published_at: Option<jiff::Timestamp>,
    bytes: u64,
}

/// What the store's catalog says of revisions: they are not read then.
type Known = HashMap<(TemplateId, RevisionId), Overview>;

impl Line {
    /// What is known, else what is read.
    fn known_or_read(store: &Store, known: &Known, id: &TemplateId, revision: &RevisionId) -> StoreResult<Line> {
        match known.get(&(id.clone(), revision.clone())) {
            Some(known) => Ok(Line {
                path: store.layout().revision(id, revision),
                built_at: known.built_at.clone(),
                published_at: known.published_at,
                bytes: known.bytes,
            }),
            None => Line::of(store, id, revision),
        }
    }

    /// The revision is held only while it is looked at: a store may have more than a process may open.
    fn of(store: &Store, id: &TemplateId, revision: &RevisionId) -> StoreResult<Line> {
        let revision = store.revision(id, revision)?;
        revision.check()?;
        Ok(Line {
            path: revision.path(),
            built_at: revision.build().built_at.clone(),
            published_at: revision.record().published_at,
            bytes: bytes(&revision),
        })
    }
}

impl Summary {
    /// Others may remove it meanwhile, or some of its revisions: that is no problem of what is there.
    fn of(store: &Store, known: &Known, id: &TemplateId) -> StoreResult<Summary> {
        let line = |revision: RevisionId| match Line::known_or_read(store, known, id, &revision) {
            Err(Error::RevisionNotFound { .. } | Error::TemplateNotFound { .. }) => None,
            line => Some((revision, line)),
        };
        let revisions = store.revisions(id)?.into_par_iter().filter_map(line).collect();
        let (spec, current) = (store.template(id), current(store, id));
        match (spec, current) {
            (Err(gone @ Error::TemplateNotFound { .. }), _) | (_, Err(gone @ Error::TemplateNotFound { .. })) => {
                Err(gone)
            }
            (spec, current) => Ok(Summary { id: id.clone(), spec, current, revisions }),
        }
    }

    /// `None` if somebody removed it meanwhile.
    fn if_there(store: &Store, known: &Known, id: &TemplateId) -> Option<StoreResult<Summary>> {
        match Summary::of(store, known, id) {
            Err(Error::TemplateNotFound { .. }) => None,
            summary => Some(summary),
        }
    }

    fn problems(&self) -> Vec<String> {
        let spec = self.spec.as_ref().err();
        let current = self.current.as_ref().err();
        let revisions = self.revisions.iter().filter_map(|(_, revision)| revision.as_ref().err());
        spec.into_iter().chain(current).chain(revisions).map(ToString::to_string).collect()
    }

    fn current(&self) -> Option<&RevisionId> {
        self.current.as_ref().ok().and_then(Option::as_ref)
    }

    /// Bytes of all artifacts, each revision counted by itself.
    fn bytes(&self) -> u64 {
        let bytes = self.revisions.iter().filter_map(|(_, line)| line.as_ref().ok()).map(|line| line.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    fn json(&self) -> Value {
        let revisions = self.revisions.iter().map(|(id, line)| match line {
            Ok(line) => json!({
                "revision": id,
                "path": line.path,
                "built_at": line.built_at,
                "published_at": line.published_at,
                "bytes": line.bytes,
                "current": self.current() == Some(id),
            }),
            Err(error) => json!({ "revision": id, "problem": error.to_string() }),
        });
        json!({
            "template": self.id,
            "spec": self.spec.as_ref().ok(),
            "current": self.current(),
            "revisions": revisions.collect::<Vec<_>>(),
            "problems": self.problems(),
        })
    }
}

/// The current revision's id, if it resolves.
fn current(store: &Store, id: &TemplateId) -> StoreResult<Option<RevisionId>> {
    match store.current(id) {
        Ok(revision) => Ok(Some(revision.id().clone())),
        Err(Error::NoCurrent { .. }) => Ok(None),
        // What is wrong with the revision is said beside the revision.
        Err(error @ Error::DanglingCurrent { .. }) => Err(error),
        Err(_) => store.current_id(id),
    }
}

/// Bytes of a revision's artifacts.
fn bytes(revision: &Revision) -> u64 {
    match &revision.record().contents {
        // A record may say anything.
        Some(contents) => contents.iter().map(|content| content.size).fold(0, u64::saturating_add),
        None => {
            let named =
                [Some(revision.kernel()), Some(revision.rootfs()), Some(revision.fc_base_config()), revision.initrd()];
            named.into_iter().flatten().filter_map(|path| path.metadata().ok()).map(|metadata| metadata.len()).sum()
        }
    }
}

pub(crate) fn list(session: &Session) -> Result {
    let store = session.open()?;
    let known = store.overviews()?;
    let summaries: Vec<Summary> =
        store.templates()?.iter().filter_map(|id| Summary::if_there(&store, &known, id)).collect::<StoreResult<_>>()?;
    let row = |summary: &Summary| {
        let spec = summary.spec.as_ref().ok();
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        vec![
            summary.id.to_string(),
            text(summary.current().map(ToString::to_string)),
            summary.revisions.len().to_string(),
            text(spec.map(|spec| spec.profile.clone())),
            text(spec.map(|spec| spec.role.clone())),
            text(spec.map(|spec| spec.vcpus.to_string())),
            text(spec.map(|spec| format!("{} MiB", spec.mem_mib))),
            size(summary.bytes()),
        ]
    };
    let header = ["TEMPLATE", "CURRENT", "REVISIONS", "PROFILE", "ROLE", "VCPUS", "MEMORY", "SIZE"];
    session.output.result(
        || summaries.iter().map(Summary::json).collect(),
        || match summaries.is_empty() {
            true => "there is no template yet".into(),
            false => table(&header, summaries.iter().map(row)),
        },
    );
    for problem in summaries.iter().flat_map(Summary::problems) {
        session.output.note(&problem);
    }
    Ok(Status::Done)
}

pub(crate) fn show(session: &Session, target: &Target) -> Result {
    let store = session.open()?;
    if target.revision.is_some() {
        let revision = revision(&store, target)?;
        let (snapshot, damage) = match revision.kind() {
            Ok(TemplateKind::Snapshot(info)) => (Some(info), None),
            Ok(TemplateKind::Image) => (None, None),
            Err(error) => (None, Some(error)),
        };
        let problem = revision.check().err().or(damage).map(|error| error.to_string());
        session.output.result(
            || {
                let mut document = revision_json(&revision);
                document["record"] = json!(revision.record());
                document["problem"] = json!(problem);
                document["snapshot"] = snapshot.as_ref().map_or(Value::Null, |info| json!(info));
                document
            },
            || show_revision(&revision, snapshot.as_ref()),
        );
        problem.iter().for_each(|problem| session.output.note(problem));
        return Ok(if problem.is_some() { Status::Damaged } else { Status::Done });
    }
    let summary = Summary::of(&store, &Known::new(), &target.template)?;
    let problems = summary.problems();
    session.output.result(|| summary.json(), || show_template(&summary));
    for problem in &problems {
        session.output.note(problem);
    }
    Ok(if problems.is_empty() { Status::Done } else { Status::Damaged })
}

fn show_template(summary: &Summary) -> String {
    let mut text = format!("template  {}\n", summary.id);
    if let Ok(spec) = &summary.spec {
        let (flake, profile, role) = (shown(&spec.flake_ref), shown(&spec.profile), shown(&spec.role));
        text += &format!("flake     {flake}\nprofile   {profile}\nrole      {role}\n");
        text += &format!("machine   {} vcpus, {} MiB", spec.vcpus, spec.mem_mib);
        text += &match spec.data_disk_mib {
            0 => "\n".to_owned(),
            mib => format!(", data disk {mib} MiB\n"),
        };
        text += &format!("created   {}\n", shown(&spec.created_at));
    }
    text += "\n";
    let row = |(id, line): &(RevisionId, StoreResult<Line>)| {
        let mark = if summary.current() == Some(id) { "current" } else { "" };
        match line {
            Ok(line) => vec![id.to_string(), mark.into(), line.built_at.clone(), size(line.bytes)],
            Err(_) => vec![id.to_string(), "damaged".into(), "-".into(), "-".into()],
        }
    };
    if summary.revisions.is_empty() {
        return text + "no revision yet\n";
    }
    text + &table(&["REVISION", "", "BUILT", "SIZE"], summary.revisions.iter().map(row))
}

fn show_revision(revision: &Revision, snapshot: Option<&SnapshotInfo>) -> String {
    let build = revision.build();
    let mut text = format!("revision  {}@{}\npath      {}\n", revision.template(), revision.id(), revision.path());
    text += &format!(
        "built     {} from {} (profile {}, role {})\n",
        shown(&build.built_at),
        shown(&build.flake_ref),
        shown(&build.profile),
        shown(&build.role)
    );
    if let Some(origin) = &revision.record().reused_from {
        text += &format!("reused    the files of {}@{}\n", origin.template, origin.revision);
    }
    if let Some(key) = revision.cache_key() {
        text += &format!("key       {key}\n");
    }
    text += &format!("machine   {} vcpus, {} MiB\n", build.vcpus, build.mem_mib);
    if let Some(info) = snapshot {
        text += &format!("snapshot  {}, {} vcpus, {} MiB\n", shown(&info.created_at), info.vcpus, info.mem_mib);
    }
    text.push('\n');
    if revision.record().contents.is_none() {
        return text + "made by mvm: it lists no contents\n";
    }
    let row = |content: &template_store::Content| {
        vec![content.path.to_string(), size(content.size), content.blake3.to_string()]
    };
    text + &table(&["FILE", "SIZE", "BLAKE3"], revision.contents().iter().map(row))
}

pub(crate) fn path(session: &Session, target: &Target, artifact: Option<&str>) -> Result {
    let store = session.open()?;
    let revision = revision(&store, target)?;
    let path = match artifact {
        None => revision.path(),
        Some(name) => artifact_path(&revision, name)?,
    };
    session.output.result(|| json!({ "path": path }), || path.to_string());
    Ok(Status::Done)
}

fn artifact_path(revision: &Revision, name: &str) -> Result<Utf8PathBuf> {
    let missing = || Failure::Other(format!("{}@{} has no {name}", revision.template(), revision.id()), 3);
    let path = match name {
        "vmlinux" | "kernel" => revision.kernel(),
        "rootfs" => revision.rootfs(),
        "fc-base" => revision.fc_base_config(),
        "initrd" => revision.initrd().ok_or_else(missing)?,
        _ => revision.artifact(&name.parse()?),
    };
    if path.is_file() {
        return Ok(path);
    }
    revision.check()?;
    Err(missing())
}

pub(crate) fn history(session: &Session, id: &TemplateId) -> Result {
    let store = session.open()?;
    let history = store.history(id)?;
    session.output.document(&history, || match history.is_empty() {
        true => format!("{id} has had no current revision"),
        false => history_text(&history),
    });
    Ok(Status::Done)
}

/// A table by hand: a log may have a million lines.
fn history_text(history: &[Activation]) -> String {
    use std::fmt::Write as _;
    let width =
        history.iter().map(|entry| entry.revision.as_str().len()).max().unwrap_or_default().max("REVISION".len());
    let mut text = format!("{:<30}  {:<width$}  WHY\n", "WHEN", "REVISION");
    for entry in history {
        let (at, why) = (entry.at.to_string(), format!("{:?}", entry.action).to_lowercase());
        let _ = writeln!(text, "{at:<30}  {:<width$}  {why}", entry.revision.as_str());
    }
    text
}
