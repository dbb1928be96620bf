//! What callers do with a store.

use std::sync::Arc;
use std::{fs, io};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::observe::{Observer, Op, Verdict};
use template_store::{
    Activate, Adopted, Build, Draft, Error, Expect, Import, ImportOptions, PinName, PinOptions, PublishOptions,
    Removal, Store, StoreOptions, TemplateSpec, VerifyOptions,
};

use super::builds::{BUILD_NAMES, fill, id, inputs, revision, sealing, spec};
use super::instances;
use super::litter;
use super::pulled;
use super::recorder::Recorder;
use super::snapshots;
use super::world::{Broken, World};

/// One call, from a process that opens the store for it.
///
/// Names of builds stand for their files, their inputs and the ids of their revisions.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    Init,
    Create(&'static str),
    /// Gives a template more memory.
    Apply(&'static str),
    /// Builds what has no revision yet, else reuses it.
    Build(&'static str, &'static str),
    /// Builds and fails.
    Fail(&'static str, &'static str),
    /// Builds again, whatever is there.
    Rebuild(&'static str, &'static str),
    /// The same, without making it current.
    RebuildOnly(&'static str, &'static str),
    /// Publishes a copy of a directory.
    Import(&'static str, &'static str),
    /// Publishes a directory by moving it in.
    MoveIn(&'static str, &'static str),
    /// Fetches what another host has built.
    Pull(&'static str, &'static str),
    Activate(&'static str, &'static str),
    Rollback(&'static str),
    Remove(&'static str, &'static str),
    /// Removes a revision that is current.
    RemoveCurrent(&'static str, &'static str),
    RemoveTemplate(&'static str),
    /// Two builders seal the same files before the second one publishes.
    SealTwice(&'static str, &'static str),
    /// Pins a revision under a name.
    Pin(&'static str, &'static str, &'static str, Term),
    Unpin(&'static str),
    /// Collects all but what is current, pinned, or the newest of its template.
    Gc,
    /// The same while others are at work: it skips what they have come to use.
    GcBeside,
    /// Leaves what processes that die leave.
    Litter,
    /// Makes an instance of what is current in a template.
    Instance(&'static str, &'static str),
    RemoveInstance(&'static str),
    /// Attaches a snapshot to what is current in a template, another one for each label.
    Attach(&'static str, &'static str),
    /// Mends the whole store.
    Repair,
}

/// How long a pin keeps.
#[derive(Debug, Clone, Copy)]
pub enum Term {
    Always,
    Long,
    Over,
}

impl Term {
    fn options(self) -> PinOptions {
        let until = match self {
            Self::Always => None,
            Self::Long => Some("2200-01-01T00:00:00Z"),
            Self::Over => Some("2001-01-01T00:00:00Z"),
        };
        PinOptions::default().until(until.map(|time| time.parse::<jiff::Timestamp>().expect("a time")))
    }
}

/// Where an act happens: the store, and space beside it.
#[derive(Debug, Clone)]
pub struct Place {
    dir: Utf8PathBuf,
    recorder: Option<Arc<Recorder>>,
    options: StoreOptions,
}

/// Leaves out every sync.
#[derive(Debug)]
struct NoSyncs;

impl Observer for NoSyncs {
    fn before(&self, op: &Op) -> Verdict {
        match op {
            Op::Fsync { .. } | Op::FsyncDir { .. } => Verdict::Skip,
            _ => Verdict::Proceed,
        }
    }
}

impl Place {
    /// A place where nothing needs to last: syncs are left out.
    pub fn new(dir: &Utf8Path) -> Self {
        let options = StoreOptions::default().observer(Arc::new(NoSyncs));
        fs::create_dir_all(dir.join("vms")).expect("the place takes directories");
        Self { dir: dir.to_owned(), recorder: None, options }
    }

    /// The same place; from now on all that happens there is recorded.
    pub fn recorded(self) -> io::Result<(Self, Arc<Recorder>)> {
        let recorder = Recorder::new(&self.dir)?;
        Ok((self.watched(&recorder), recorder))
    }

    pub fn watched(self, recorder: &Arc<Recorder>) -> Self {
        Self { recorder: Some(recorder.clone()), ..self.observed(recorder.clone()) }
    }

    /// The same place, where each step of the store is seen by an observer.
    pub fn observed(self, observer: Arc<dyn Observer>) -> Self {
        let options = StoreOptions::default().observer(observer);
        Self { options, ..self }
    }

    pub fn dir(&self) -> &Utf8Path {
        &self.dir
    }

    pub fn root(&self) -> Utf8PathBuf {
        self.dir.join("store")
    }

    pub fn open(&self) -> Result<Store, Error> {
        Store::open_with(self.root(), &self.options)
    }

    /// Makes an mvm directory a store.
    pub fn adopt(&self) -> Result<Adopted, Error> {
        Store::adopt(self.root(), &self.options, &mut ())
    }

    pub fn run(&self, act: Act) -> Result<(), Error> {
        if let Act::Init = act {
            return Store::init(self.root(), &self.options).map(drop);
        }
        let store = self.open()?;
        match act {
            Act::Init => Ok(()),
            Act::Create(template) => store.create(&spec(template)),
            Act::Apply(template) => store.apply(&TemplateSpec { mem_mib: 4096, ..spec(template) }).map(drop),
            Act::Build(template, build) => match store.build(&id(template), &inputs(build))? {
                Build::Reused(_) => Ok(()),
                Build::Draft(draft) => publish(draft, build, Activate::Yes),
            },
            Act::Fail(template, build) => match store.build(&id(template), &inputs(build))? {
                Build::Reused(_) => Ok(()),
                Build::Draft(draft) => draft.fail("the command exited with 7"),
            },
            Act::Rebuild(template, build) => {
                publish(store.rebuild(&id(template), &inputs(build))?, build, Activate::Yes)
            }
            Act::RebuildOnly(template, build) => {
                publish(store.rebuild(&id(template), &inputs(build))?, build, Activate::No)
            }
            Act::Import(template, build) => self.import(&store, template, build, Import::Copy),
            Act::MoveIn(template, build) => self.import(&store, template, build, Import::Move),
            Act::Pull(template, build) => pulled::pull(&store, template, build),
            Act::Activate(template, build) => store.activate(&id(template), &revision(build), Expect::Any).map(drop),
            Act::Rollback(template) => store.rollback(&id(template)).map(drop),
            Act::Remove(template, build) => store.remove(&id(template), &revision(build), Removal::Unused).map(drop),
            Act::RemoveCurrent(template, build) => {
                store.remove(&id(template), &revision(build), Removal::Forced).map(drop)
            }
            Act::RemoveTemplate(template) => store.remove_template(&id(template), Removal::Unused).map(drop),
            Act::SealTwice(template, build) => {
                let drafts =
                    [store.rebuild(&id(template), &inputs(build))?, store.rebuild(&id(template), &inputs(build))?];
                let [first, second] = drafts.map(|draft| {
                    fill(draft.path(), build);
                    draft.seal_with(&sealing(build), &mut ())
                });
                let first = first?;
                second?.publish()?;
                drop(first);
                Ok(())
            }
            Act::Pin(name, template, build, term) => {
                store.pin(&pin_name(name), &id(template), &revision(build), &term.options()).map(drop)
            }
            Act::Unpin(name) => store.unpin(&pin_name(name)),
            Act::Gc => collect(&store, &newest()),
            Act::GcBeside => store.gc(&newest(), &mut ()).map(drop),
            Act::Litter => litter::leave(&self.root()),
            Act::Instance(template, name) => store.current(&id(template))?.instance(self.vm(name)).map(drop),
            Act::Attach(template, label) => self.attach(&store, template, label),
            Act::RemoveInstance(name) => store.remove_instance(self.vm(name), Removal::Unused),
            Act::Repair => mend(&store),
        }
    }

    pub fn vm(&self, name: &str) -> Utf8PathBuf {
        instances::vms(&self.root()).join(name)
    }

    fn attach(&self, store: &Store, template: &str, label: &str) -> Result<(), Error> {
        let revision = store.current(&id(template))?;
        let vm = self.written_by_others(&format!("paused-{label}"), |dir| snapshots::pause(dir, &revision, label));
        snapshots::attach(&vm, &revision, label)
    }

    /// A directory beside the store that somebody else has filled.
    fn written_by_others(&self, name: &str, fill: impl FnOnce(&Utf8Path)) -> Utf8PathBuf {
        let source = self.dir.join(name);
        // A caller whose directory was taken by a cut makes it again.
        if source.exists() {
            fs::remove_dir_all(&source).expect("the source directory can be removed");
        }
        fs::create_dir(&source).expect("the place takes directories");
        fill(&source);
        if let Some(recorder) = &self.recorder {
            recorder.note_foreign(&source);
        }
        source
    }

    fn import(&self, store: &Store, template: &str, build: &str, how: Import) -> Result<(), Error> {
        let source = self.written_by_others(&format!("built-for-{template}"), |dir| fill(dir, build));
        let options = ImportOptions::default().how(how).inputs(inputs(build)).seal(sealing(build));
        store.publish_dir_with(&id(template), &source, &options, &mut ()).map(drop)
    }
}

impl Act {
    /// The template that it is about.
    pub fn template(self) -> Option<&'static str> {
        match self {
            Self::Init
            | Self::Unpin(_)
            | Self::Pin(..)
            | Self::Gc
            | Self::GcBeside
            | Self::Litter
            | Self::Repair
            | Self::Instance(..)
            | Self::RemoveInstance(_) => None,
            Self::Create(template)
            | Self::Apply(template)
            | Self::Build(template, _)
            | Self::Fail(template, _)
            | Self::Rebuild(template, _)
            | Self::RebuildOnly(template, _)
            | Self::Import(template, _)
            | Self::MoveIn(template, _)
            | Self::Pull(template, _)
            | Self::Activate(template, _)
            | Self::Rollback(template)
            | Self::Remove(template, _)
            | Self::RemoveCurrent(template, _)
            | Self::RemoveTemplate(template)
            | Self::SealTwice(template, _)
            | Self::Attach(template, _) => Some(template),
        }
    }

    /// Whether the caller sees that it is done already: what it would do then would be something else.
    pub fn is_done(self, found: &World, before: &World, after: &World) -> bool {
        let current = |world: &World, template: &str| world.templates.get(template).and_then(|t| t.current.clone());
        match self {
            Self::Rollback(template) => {
                let [found, before, after] = [found, before, after].map(|world| current(world, template));
                found == after && before != after
            }
            Self::Remove(template, build) | Self::RemoveCurrent(template, build) => {
                !found.templates.get(template).is_some_and(|t| t.revisions.contains_key(build))
            }
            Self::RemoveTemplate(template) => !found.templates.contains_key(template),
            Self::Unpin(name) => !found.pins.contains_key(name),
            Self::Instance(_, name) => found.instances.contains_key(name),
            Self::RemoveInstance(name) => !found.instances.contains_key(name),
            _ => false,
        }
    }
}

/// Whatever is left of earlier builds, looking for them is no error, and finds what is there.
pub fn look_up_all(store: &Store, world: &World) -> Result<(), Broken> {
    for build in BUILD_NAMES {
        let found = store.lookup(None, &inputs(build)).map_err(|error| format!("a look-up fails: {error}"))?;
        let Some(found) = found else { continue };
        // The definition may have changed since the cut: the same build is another revision then.
        let id = found.id().as_str();
        let built = id.split_once('+').map_or(id, |(built, _)| built);
        if built != build || !world.has(found.template().as_str(), id) {
            return Err(format!("a look-up for {build} finds {}@{}", found.template(), found.id()));
        }
    }
    Ok(())
}

/// A collection that nobody is in the way of.
pub fn collect(store: &Store, policy: &Policy) -> Result<(), Error> {
    let (_, report) = store.gc(policy, &mut ())?;
    assert!(report.skipped.is_empty(), "a collection skips {:?}", report.skipped);
    Ok(())
}

fn newest() -> Policy {
    Policy::default().keep_last(1_u32)
}

/// A repair of what nothing is wrong with.
fn mend(store: &Store) -> Result<(), Error> {
    let repaired = store.repair(&VerifyOptions::default(), &mut ())?;
    assert!(repaired.remaining.is_empty(), "a repair leaves {:?}", repaired.remaining);
    Ok(())
}

fn publish(draft: Draft, build: &str, activate: Activate) -> Result<(), Error> {
    fill(draft.path(), build);
    let sealed = draft.seal_with(&sealing(build), &mut ())?;
    sealed.publish_with(&PublishOptions::default().activate(activate), &mut ()).map(drop)
}

fn pin_name(name: &str) -> PinName {
    name.parse().expect("a valid name")
}
