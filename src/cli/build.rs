//! `build`: reuse, or run a command and publish what it wrote.

use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use template_store::{
    Activate, Build, BuildInputs, BuildOptions, Difference, Draft, Error, Expect, Known, Match, Outcome,
    PublishOptions, Published, Revision, SealOptions, Store, TemplateId, TemplateSpec, Wait,
};

use super::args::{Activation, Build as Args, Inputs, Names};
use super::cached::{Cache, Found};
use super::child::{bound_to_us, supervise};
use super::output::{Output, revision_json, size};
use super::terminal::Terminal;
use super::{Failure, Result, Session, Status};

pub(crate) fn build(session: &Session, args: &Args) -> Result {
    // A mistake in the call is to leave nothing behind, not even a new store.
    let existing = session.open_if_there()?;
    let inputs = inputs(existing.as_ref(), Some(&args.id), &args.inputs)?;
    let mut cache = Cache::of(existing.as_ref(), &args.cache)?;
    let store = existing.map_or_else(|| session.open_or_init(), Ok)?;
    if args.check {
        return check(session, &store, args, &inputs);
    }
    let mut terminal = Terminal::new(session.output);
    warn_about_machine(&store, args, session.output)?;
    let options = options(args)?;
    match store.build_with(&args.id, &inputs, &options, &mut terminal)? {
        Build::Reused(revision) => {
            if args.push {
                cache.push_known(&store, &revision, &inputs, session.output, &mut terminal)?;
            }
            report_reuse(session.output, &revision, terminal.notes());
            Ok(Status::Done)
        }
        Build::Draft(draft) => {
            let publish = publish_options(&args.activation)?;
            let draft = match cache.fetch(draft, matching(args), &publish, session.output, &mut terminal)? {
                Found::Published(published) => {
                    report(session.output, "pulled", &published, terminal.notes());
                    return Ok(Status::Done);
                }
                Found::Nothing(draft) => *draft,
            };
            let draft = match run(draft, &args.command)? {
                Ran::Wrote(draft) => draft,
                Ran::Stopped(code) => return Ok(Status::Code(code)),
            };
            let sealed = draft.seal_with(&seal_options(&args.names), &mut terminal)?;
            let (verb, published) = match args.push {
                true => cache.share(sealed, &publish, session.output, &mut terminal)?,
                false => ("built", sealed.publish_with(&publish, &mut terminal)?),
            };
            report(session.output, verb, &published, terminal.notes());
            Ok(Status::Done)
        }
    }
}

fn options(args: &Args) -> Result<BuildOptions> {
    let command: Vec<_> = args.command.iter().map(|word| word.to_string_lossy()).collect();
    Ok(BuildOptions::default()
        .known(if args.force { Known::BuildAgain } else { Known::Reuse })
        .matching(matching(args))
        .wait(args.wait.map_or(Wait::Forever, |seconds| Wait::AtMost(Duration::from_secs(seconds))))
        .resources(args.machine.resources())
        .publish(publish_options(&args.activation)?)
        .command(command.join(" ")))
}

fn matching(args: &Args) -> Match {
    if args.strict { Match::Strict } else { Match::Sources }
}

pub(crate) fn seal_options(names: &Names) -> SealOptions {
    SealOptions::default().names(names.artifacts()).revision(names.revision.clone())
}

pub(crate) fn publish_options(args: &Activation) -> Result<PublishOptions> {
    let activate = if args.no_activate { Activate::No } else { Activate::Yes };
    Ok(PublishOptions::default().activate(activate).expect(expect(args.expect.as_deref())?))
}

pub(crate) fn expect(text: Option<&str>) -> Result<Expect> {
    Ok(match text {
        None => Expect::Any,
        Some("none") => Expect::Absent,
        Some(revision) => Expect::Current(revision.parse()?),
    })
}

/// A template keeps its resources: `apply` changes them.
fn warn_about_machine(store: &Store, args: &Args, output: &Output) -> Result<()> {
    let Some(spec) = spec(store, &args.id)? else { return Ok(()) };
    let machine = &args.machine;
    let asked = machine.vcpus.is_some_and(|vcpus| vcpus != spec.vcpus)
        || machine.mem.is_some_and(|mem| mem != spec.mem_mib)
        || machine.data_disk.is_some_and(|disk| disk != spec.data_disk_mib);
    if asked {
        output.note(&format!("{} exists with other resources, which it keeps; `apply` changes them", args.id));
    }
    Ok(())
}

fn spec(store: &Store, id: &TemplateId) -> Result<Option<TemplateSpec>> {
    match store.template(id) {
        Ok(spec) => Ok(Some(spec)),
        Err(Error::TemplateNotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The inputs that the call names; what it leaves out is the template's.
pub(crate) fn inputs(store: Option<&Store>, id: Option<&TemplateId>, args: &Inputs) -> Result<BuildInputs> {
    let spec = match (store, id) {
        (Some(store), Some(id)) => spec(store, id)?,
        _ => None,
    };
    let missing =
        |what: &str| Failure::Usage(format!("say {what}: there is no template yet that it could be taken from"));
    let of_spec = |given: Option<&str>, field: fn(&TemplateSpec) -> &String| {
        given.map(str::to_owned).or_else(|| spec.as_ref().map(|spec| field(spec).clone()))
    };
    let profile = of_spec(args.profile.as_ref().map(AsRef::as_ref), |spec| &spec.profile);
    let profile = profile.unwrap_or_else(|| "minimal".into());
    let role = of_spec(args.role.as_ref().map(AsRef::as_ref), |spec| &spec.role).ok_or_else(|| missing("--role"))?;
    let flake_ref = of_spec(args.flake_ref.as_deref(), |spec| &spec.flake_ref);
    let lock = match (&args.flake_lock, &flake_ref) {
        (Some(lock), _) => lock.clone(),
        (None, Some(flake)) => lock_of(flake)?,
        (None, None) => return Err(missing("--flake-lock")),
    };
    let mut inputs = BuildInputs::from_flake_lock(&lock, &profile, &role)?;
    if let Some(dir) = &args.source {
        inputs = inputs.with_source_tree(dir)?;
    }
    Ok(match flake_ref {
        Some(flake_ref) => inputs.with_flake_ref(flake_ref),
        None => inputs,
    })
}

/// The lock file of a flake that is a directory.
fn lock_of(flake_ref: &str) -> Result<Utf8PathBuf> {
    let dir = flake_ref.strip_prefix("path:").unwrap_or(flake_ref);
    let lock = Utf8Path::new(dir).join("flake.lock");
    if lock.is_file() {
        return Ok(lock);
    }
    Err(Failure::Usage(format!("the template's flake {flake_ref:?} has no flake.lock here; say --flake-lock FILE")))
}

enum Ran {
    Wrote(Box<Draft>),
    /// Somebody asked us to stop: the next in line builds.
    Stopped(u8),
}

/// Runs the builder; its output goes to stderr, so that stdout has our result alone.
fn run(draft: Draft, words: &[std::ffi::OsString]) -> Result<Ran> {
    let ended = bound_to_us(words).and_then(|mut command| {
        command.env("OUT", draft.path()).stdout(io::stderr());
        supervise(&mut command, |_| ())
    });
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            let text = format!("the build command could not be started: {error}");
            draft.fail(text.clone())?;
            return Err(Failure::Other(text, 1));
        }
    };
    if let Some(signal) = ended.asked_to_stop {
        draft.abandon()?;
        return Ok(Ran::Stopped(128 + signal as u8));
    }
    if ended.status.success() {
        return Ok(Ran::Wrote(Box::new(draft)));
    }
    let text = format!("the build command `{}` {}", words[0].display(), ended.describe());
    draft.fail(text.clone())?;
    Err(Failure::Other(format!("{text}; nothing was published"), 1))
}

fn check(session: &Session, store: &Store, args: &Args, inputs: &BuildInputs) -> Result {
    let mut terminal = Terminal::new(session.output);
    let Some(known) = store.lookup_with(Some(&args.id), inputs, Match::Sources, &mut terminal)? else {
        return Err(Failure::Other(
            format!("{} has no revision from these inputs to compare with; build it first", args.id),
            3,
        ));
    };
    let draft = match run(store.rebuild(&args.id, inputs)?, &args.command)? {
        Ran::Wrote(draft) => draft,
        Ran::Stopped(code) => return Ok(Status::Code(code)),
    };
    let found = draft.compare(&known, &seal_options(&args.names), &mut terminal)?;
    let result = if found.is_empty() { "reproducible" } else { "differs" };
    let document = || {
        let mut document = revision_json(&known);
        document["result"] = result.into();
        document["differences"] = differences_json(&found);
        document
    };
    let name = format!("{}@{}", known.template(), known.id());
    session.output.result(document, || match found.is_empty() {
        true => format!("reproducible: the new build of {name} has the same bytes"),
        false => format!("not reproducible: the new build of {name} differs\n{}", differences_text(&found)),
    });
    Ok(if found.is_empty() { Status::Done } else { Status::Failed })
}

fn report_reuse(output: &Output, revision: &Revision, notes: Vec<String>) {
    let document = || {
        let mut document = revision_json(revision);
        document["result"] = "reused".into();
        document["reused"] = true.into();
        document["notes"] = notes.into();
        document
    };
    output.result(document, || {
        format!(
            "reused {}@{}: it was built from the same inputs\n{}",
            revision.template(),
            revision.id(),
            revision.path()
        )
    });
}

/// Says what publishing did; `verb` is what it is called when there is a new revision.
pub(crate) fn report(output: &Output, verb: &str, published: &Published, notes: Vec<String>) {
    let revision = &published.revision;
    let verb = if published.outcome == Outcome::Unchanged { "unchanged" } else { verb };
    let document = || {
        let mut document = revision_json(revision);
        document["result"] = verb.into();
        document["reused"] = false.into();
        document["shared_bytes"] = published.shared_bytes.into();
        document["notes"] = notes.into();
        if let Some((earlier, differences)) = &published.differs {
            document["differs_from"] = json!({ "revision": earlier, "differences": differences_json(differences) });
        }
        document
    };
    output.result(document, || {
        let shared = match published.shared_bytes {
            0 => String::new(),
            bytes => format!(" ({} were in the store already)", size(bytes)),
        };
        let differs = match &published.differs {
            Some((earlier, found)) => format!("\ndiffers from {earlier}, which stays:\n{}", differences_text(found)),
            None => String::new(),
        };
        format!("{verb} {}@{}{shared}\n{}{differs}", revision.template(), revision.id(), revision.path())
    });
}

fn differences_json(found: &[Difference]) -> Value {
    let one = |difference: &Difference| match difference {
        Difference::Removed { path } => json!({ "path": path, "kind": "removed" }),
        Difference::Added { path } => json!({ "path": path, "kind": "added" }),
        Difference::Changed { path, ranges } => json!({ "path": path, "kind": "changed", "ranges": ranges }),
        other => json!({ "path": other.path() }),
    };
    found.iter().map(one).collect()
}

fn differences_text(found: &[Difference]) -> String {
    let one = |difference: &Difference| match difference {
        Difference::Removed { path } => format!("  {path}: only the earlier build has it\n"),
        Difference::Added { path } => format!("  {path}: only the new build has it\n"),
        Difference::Changed { path, ranges } => {
            let ranges: Vec<_> = ranges.iter().map(|(start, len)| format!("{start}+{len}")).collect();
            format!("  {path}: other bytes at {}\n", ranges.join(", "))
        }
        other => format!("  {}\n", other.path()),
    };
    found.iter().map(one).collect()
}
