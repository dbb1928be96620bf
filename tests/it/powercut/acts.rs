//! What callers do with a store.

use std::sync::{Arc, LazyLock};
use std::{fs, io};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{
    Activate, Build, BuildInputs, Draft, Error, Expect, Import, ImportOptions, PublishOptions, Removal, SealOptions,
    Store, StoreOptions, TemplateId, TemplateSpec,
};

use super::recorder::Recorder;
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
    Activate(&'static str, &'static str),
    Rollback(&'static str),
    Remove(&'static str, &'static str),
    /// Removes a revision that is current.
    RemoveCurrent(&'static str, &'static str),
    RemoveTemplate(&'static str),
    /// Two builders seal the same files before the second one publishes.
    SealTwice(&'static str, &'static str),
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
        Self { dir: dir.to_owned(), recorder: None, options }
    }

    /// The same place; from now on all that happens there is recorded.
    pub fn recorded(self) -> io::Result<(Self, Arc<Recorder>)> {
        let recorder = Recorder::new(&self.dir)?;
        Ok((self.watched(&recorder), recorder))
    }

    pub fn watched(self, recorder: &Arc<Recorder>) -> Self {
        let options = StoreOptions::default().observer(recorder.clone());
        Self { recorder: Some(recorder.clone()), options, ..self }
    }

    pub fn root(&self) -> Utf8PathBuf {
        self.dir.join("store")
    }

    pub fn open(&self) -> Result<Store, Error> {
        Store::open_with(self.root(), &self.options)
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
            Act::Activate(template, build) => store.activate(&id(template), &revision(build), Expect::Any).map(drop),
            Act::Rollback(template) => store.rollback(&id(template)).map(drop),
            Act::Remove(template, build) => store.remove(&id(template), &revision(build), Removal::Unused),
            Act::RemoveCurrent(template, build) => store.remove(&id(template), &revision(build), Removal::Forced),
            Act::RemoveTemplate(template) => store.remove_template(&id(template), Removal::Unused),
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
        }
    }

    fn import(&self, store: &Store, template: &str, build: &str, how: Import) -> Result<(), Error> {
        let source = self.dir.join("built");
        // A caller whose directory was taken by a cut builds it again.
        if source.exists() {
            fs::remove_dir_all(&source).expect("the source directory can be removed");
        }
        fill(&source, build);
        if let Some(recorder) = &self.recorder {
            recorder.note_foreign(&source);
        }
        let options = ImportOptions::default().how(how).inputs(inputs(build)).seal(sealing(build));
        store.publish_dir_with(&id(template), &source, &options, &mut ()).map(drop)
    }
}

impl Act {
    /// The template that it is about.
    pub fn template(self) -> Option<&'static str> {
        match self {
            Self::Init => None,
            Self::Create(template)
            | Self::Apply(template)
            | Self::Build(template, _)
            | Self::Fail(template, _)
            | Self::Rebuild(template, _)
            | Self::RebuildOnly(template, _)
            | Self::Import(template, _)
            | Self::MoveIn(template, _)
            | Self::Activate(template, _)
            | Self::Rollback(template)
            | Self::Remove(template, _)
            | Self::RemoveCurrent(template, _)
            | Self::RemoveTemplate(template)
            | Self::SealTwice(template, _) => Some(template),
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
            _ => false,
        }
    }
}

/// Whatever is left of earlier builds, looking for them is no error.
pub fn look_up_all(store: &Store) -> Result<(), Broken> {
    for build in BUILD_NAMES {
        let found = store.lookup(None, &inputs(build)).map_err(|error| format!("a look-up fails: {error}"))?;
        if let Some(found) = found
            && found.id().as_str() != build
        {
            return Err(format!("a look-up for {build} finds {}", found.id()));
        }
    }
    Ok(())
}

/// Whether every revision holds just what its builder wrote.
pub fn holds_what_was_built(world: &World) -> bool {
    world.templates.iter().all(|(template, of)| {
        of.revisions.iter().all(|(build, found)| {
            // A larger machine has a configuration of its own, which no builder wrote.
            let theirs = |name: &str| name == "fc-base.json" && template == "large";
            let digest = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
            let holds = |name: &str, bytes: &[u8]| found.get(Utf8Path::new(name)) == Some(&digest(bytes));
            let built = files(build);
            found.len() == built.len() && built.iter().all(|(name, bytes)| theirs(name) || holds(name, bytes))
        })
    })
}

fn publish(draft: Draft, build: &str, activate: Activate) -> Result<(), Error> {
    fill(draft.path(), build);
    let sealed = draft.seal_with(&sealing(build), &mut ())?;
    sealed.publish_with(&PublishOptions::default().activate(activate), &mut ()).map(drop)
}

fn fill(dir: &Utf8Path, build: &str) {
    for (name, bytes) in files(build) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("it is in the draft")).expect("the draft takes directories");
        fs::write(&path, bytes).expect("the draft takes files");
    }
}

type Files = Vec<(&'static str, Vec<u8>)>;

/// Enough to have every kind: objects that are new, objects that are shared, small files, a directory.
fn files(build: &str) -> &'static Files {
    static BUILDS: LazyLock<[Files; 3]> = LazyLock::new(|| {
        let config = br#"{"boot-source":{},"machine-config":{"vcpu_count":2,"mem_size_mib":512}}"#;
        let image =
            |kernel, rootfs| vec![("vmlinux", kernel), ("rootfs.ext4", rootfs), ("fc-base.json", config.to_vec())];
        let mut one = image(bytes(1, 70_000), bytes(2, 900));
        one.push(("modules/net.ko", bytes(3, 300)));
        [one, image(bytes(1, 70_000), bytes(4, 66_000)), image(bytes(5, 200), bytes(6, 100))]
    });
    let which = BUILD_NAMES.iter().position(|name| *name == build).expect("a known build");
    &BUILDS[which]
}

const BUILD_NAMES: [&str; 3] = ["one", "two", "three"];

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut words = 0;
    while bytes.len() < len {
        bytes.extend_from_slice(&super::mix(seed, words).to_le_bytes());
        words += 1;
    }
    bytes.truncate(len);
    bytes
}

fn id(template: &str) -> TemplateId {
    template.parse().expect("a valid id")
}

fn revision(build: &str) -> template_store::RevisionId {
    build.parse().expect("a valid id")
}

fn sealing(build: &str) -> SealOptions {
    SealOptions::default().revision(Some(revision(build)))
}

fn inputs(build: &str) -> BuildInputs {
    let part = "the parts are valid";
    BuildInputs::new(
        format!("lock-{build}").parse().expect(part),
        "minimal".parse().expect(part),
        "worker".parse().expect(part),
    )
}

fn spec(template: &str) -> TemplateSpec {
    let part = "the parts are valid";
    let (profile, role) = ("minimal".parse().expect(part), "worker".parse().expect(part));
    let mut spec = TemplateSpec::new(&id(template), ".", &profile, &role, "2026-01-01T00:00:00Z");
    // Another machine needs another Firecracker configuration.
    spec.vcpus = if template == "large" { 8 } else { 2 };
    spec
}
