//! The store that is tried, its handles, and the power that fails.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::{GcPlan, Policy};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{Draft, LeaseNoted, Revision, Sealed, Severity, Store, StoreOptions, VerifyOptions};

use super::bugs::Bug;
use super::facts::{Facts, after_cut, pins_that_are_over};
use super::model::{Index, Model};
use super::steps::{HANDLES, Transition};
use super::tally::Tally;
use crate::powercut::recorder::Recorder;
use crate::powercut::states::State;
use crate::powercut::world::{Broken, list};
use crate::sound::assert_sound;
use crate::support::{Place, assert_clean};

/// A store, all that hold something of it, and what it must hold.
pub struct Sut {
    base: Place,
    /// The directory with the store; after each cut another one.
    pub dir: Utf8PathBuf,
    watch: Arc<Watch>,
    pub handles: Vec<Store>,
    pub held: BTreeMap<usize, Revision>,
    pub notes: BTreeMap<usize, LeaseNoted>,
    pub plan: Option<GcPlan>,
    /// What is being built.
    pub work: Option<Work>,
    pub model: Model,
    pub bug: Option<Bug>,
    /// How many directories were made.
    made: usize,
    /// Whether a cut or a harm may have left what only a repair removes.
    pub needs_repair: bool,
    steps: usize,
    pub tally: Tally,
}

/// A build that is under way.
pub enum Work {
    Draft(Box<Draft>),
    Sealed(Box<Sealed>),
}

/// Records what the store does. A sync is noted, and left out: nothing here needs to last.
#[derive(Debug)]
pub struct Watch {
    recorder: Mutex<Arc<Recorder>>,
    bug: Option<Bug>,
}

impl Watch {
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(&self, dir: &Utf8Path) {
        *self.recorder.lock().unwrap_or_else(PoisonError::into_inner) = record(dir);
    }
}

impl Observer for Watch {
    fn before(&self, op: &Op) -> Verdict {
        if self.bug.is_some_and(|bug| bug.leaves_out(op)) {
            return Verdict::Skip;
        }
        let recorder = self.recorder();
        let verdict = recorder.before(op);
        match op {
            // One of what is not there fails.
            Op::Fsync { path } | Op::FsyncDir { path } | Op::SyncFileSystem { path } if path.exists() => {
                recorder.after(op, Ok(()));
                Verdict::Skip
            }
            _ => verdict,
        }
    }

    fn after(&self, op: &Op, outcome: Result<(), &io::Error>) {
        self.recorder().after(op, outcome);
    }
}

fn record(dir: &Utf8Path) -> Arc<Recorder> {
    Recorder::new(dir).expect("the place can be read")
}

impl Sut {
    pub fn new(bug: Option<Bug>) -> Sut {
        let base = Place::new();
        let dir = base.join("0");
        fs::create_dir_all(dir.join("vms")).expect("the place takes directories");
        let watch = Arc::new(Watch { recorder: Mutex::new(record(&dir)), bug });
        let mut sut = Sut {
            base,
            dir,
            watch,
            handles: Vec::new(),
            held: BTreeMap::new(),
            notes: BTreeMap::new(),
            plan: None,
            work: None,
            model: Model::default(),
            bug,
            made: 0,
            needs_repair: false,
            steps: 0,
            tally: Tally::default(),
        };
        Store::init(sut.root(), &sut.options()).expect("a store can be made");
        sut.open_all();
        sut
    }

    pub fn root(&self) -> Utf8PathBuf {
        self.dir.join("store")
    }

    pub fn vm(&self, name: usize) -> Utf8PathBuf {
        self.dir.join("vms").join(format!("v{name}"))
    }

    /// A name for a directory that somebody else makes: where the store is, or where nobody looks.
    pub fn fresh(&mut self, inside: bool) -> Utf8PathBuf {
        self.made += 1;
        let name = format!("made-{}", self.made);
        if inside { self.dir.join(name) } else { self.base.join(&name) }
    }

    /// Notes that somebody else wrote what is in a directory.
    pub fn note_foreign(&self, dir: &Utf8Path) {
        self.watch.recorder().note_foreign(dir);
    }

    fn options(&self) -> StoreOptions {
        StoreOptions::default().observer(self.watch.clone())
    }

    pub fn open(&self) -> Result<Store, Broken> {
        Store::open_with(self.root(), &self.options()).map_err(|error| format!("the store does not open: {error}"))
    }

    fn open_all(&mut self) {
        self.handles = (0..HANDLES).map(|_| self.open().expect("it was made")).collect();
    }

    /// From here on, all that is there now lasts: somebody else has changed it.
    pub fn begin_again(&self) {
        self.watch.begin(&self.dir);
    }

    /// Takes a step, with the power cut in it if there is one, and looks whether all is as it must be.
    pub fn take(&mut self, transition: Transition) -> Result<(), Broken> {
        let before = self.model.clone();
        self.watch.recorder().ack("what was before");
        let done = self.carry_out(transition.handle, transition.step)?;
        self.tally.count(transition.step.name(), done);
        self.steps += 1;
        if let Some(seed) = transition.cut {
            self.cut(&before, seed)?;
        }
        if transition.cut.is_some() || self.steps.is_multiple_of(4) {
            self.compare()?;
        }
        Ok(())
    }

    /// The power fails while the last step is taken, or right after it.
    fn cut(&mut self, before: &Model, seed: u64) -> Result<(), Broken> {
        let log = self.watch.recorder().finish();
        let state = State::at_random(&log, log.last_ack(), seed);
        self.let_all_go();
        self.made += 1;
        let old = std::mem::replace(&mut self.dir, self.base.join(&self.made.to_string()));
        fs::create_dir(&self.dir).expect("the place takes directories");
        state.materialize(self.dir.as_std_path()).expect("the tree can be made");
        fs::remove_dir_all(old).expect("the old tree can be removed");
        self.begin_again();
        self.needs_repair = true;
        self.tally.cuts += 1;
        let acknowledged = state.cut == log.entries.len();
        self.come_back(before, acknowledged).map_err(|broken| format!("{broken}\n{}", state.describe(&log)))
    }

    /// Reads back what the cut left.
    fn come_back(&mut self, before: &Model, acknowledged: bool) -> Result<(), Broken> {
        self.handles = (0..HANDLES).map(|_| self.open()).collect::<Result<_, _>>()?;
        let found = Facts::read(&self.root(), &self.handles[0])?;
        self.model = after_cut(before, &self.model, &found, acknowledged)?;
        self.model.pins.extend(pins_that_are_over(&self.root())?);
        Ok(())
    }

    /// Nobody has anything of the store any more, as after a crash.
    fn let_all_go(&mut self) {
        self.notes.clear();
        self.held.clear();
        self.handles.clear();
        self.plan = None;
        self.work = None;
    }

    /// The whole store is what the model says.
    pub fn compare(&self) -> Result<(), Broken> {
        let found = Facts::read(&self.root(), &self.handles[0])?;
        let expected = self.model.facts();
        match found == expected {
            true => Ok(()),
            false => Err(format!("there is\n{found:?}\nwhere there must be\n{expected:?}")),
        }
    }

    /// The store's own verification finds nothing damaged.
    pub fn undamaged(&self, store: &Store) -> Result<(), Broken> {
        let report = store.verify(&VerifyOptions::default(), &mut ()).map_err(|error| error.to_string())?;
        match report.findings.iter().find(|finding| finding.severity == Severity::Error) {
            Some(finding) => Err(format!("a verification finds {finding:?}")),
            None => Ok(()),
        }
    }

    /// At the end, nobody holds anything, and a collection leaves nothing that nobody needs.
    pub fn end(&mut self) -> Result<(), Broken> {
        self.compare()?;
        self.notes.clear();
        self.held.clear();
        self.model.held.clear();
        (self.work, self.model.building) = (None, None);
        let store = self.handles[0].clone();
        self.undamaged(&store)?;
        for name in self.model.instances.keys() {
            store
                .remove_instance(self.vm(*name), template_store::Removal::Unused)
                .map_err(|error| format!("an instance can't be removed: {error}"))?;
        }
        self.model.instances.clear();
        if self.needs_repair {
            self.set_right(&store)?;
        }
        let policy = Policy::default().keep_last(u32::MAX);
        let (_, report) = store.gc(&policy, &mut ()).map_err(|error| format!("the last collection: {error}"))?;
        if !report.removed.is_empty() || !report.failed.is_empty() {
            return Err(format!("a collection that is to keep all does {report:?}"));
        }
        self.model.pins.retain(|_, pin| pin.term != super::steps::Term::Over);
        self.compare()?;
        self.nothing_is_left(&store)
    }

    /// A repair mends all there is to mend; what it put aside is thrown away, and what is left beside instances.
    fn set_right(&mut self, store: &Store) -> Result<(), Broken> {
        let repaired = store.repair(&VerifyOptions::default(), &mut ()).map_err(|error| error.to_string())?;
        if !repaired.remaining.is_empty() {
            return Err(format!("a repair leaves {:?}", repaired.remaining));
        }
        self.model.index = self.model.index.max(Index::Complete);
        let aside = list(&self.root().join(".store/damaged"))?;
        // The next instance there would remove what a cut has left beside.
        let beside = list(&self.dir.join("vms"))?.into_iter().filter(|(name, _)| name.starts_with('.'));
        for (_, path) in aside.into_iter().chain(beside) {
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("it can be removed");
        }
        self.begin_again();
        Ok(())
    }

    fn nothing_is_left(&self, store: &Store) -> Result<(), Broken> {
        for dir in ["damaged", "leases", "instances"] {
            if let Some((name, _)) = list(&self.root().join(".store").join(dir))?.first() {
                return Err(format!("a collection leaves {dir}/{name}"));
            }
        }
        assert_clean(store.layout());
        let report = store.verify(&VerifyOptions::default(), &mut ()).map_err(|error| error.to_string())?;
        if !report.findings.is_empty() {
            return Err(format!("after all, a verification finds {:?}", report.findings));
        }
        let revisions = self.model.templates.values().flat_map(|template| &template.revisions);
        // The memory of a snapshot is in no other revision, and is no object.
        if revisions.into_iter().all(|revision| revision.snapshot.is_none()) {
            assert_sound(store);
        }
        Ok(())
    }
}
