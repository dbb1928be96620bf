//! Repairs and adoptions, killed after each step and cut: nothing that was there is lost, and the next one completes it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use camino::Utf8Path;
use template_store::{Finding, FindingKind, Severity, VerifyOptions};

use super::acts::Act::{Build, Init};
use super::acts::Place;
use super::medium::Step;
use super::parallel::in_parallel;
use super::promises::{Scratch, survey};
use super::recorder::{Log, Recorder};
use super::states::{Explorer, Limits, State};
use super::view::View;
use super::world::{Broken, World, list};
use crate::adopt::{all_bytes, mvm_current, mvm_revision, mvm_template};
use crate::proof;

/// Something that is done to a whole store at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    Repair,
    Adopt,
}

impl Work {
    /// What is to be worked on.
    pub fn prepare(self, place: &Place) {
        let root = place.root();
        if self == Self::Adopt {
            for (revision, label) in [("r1", "one"), ("r2", "two"), ("r3", "one")] {
                mvm_template(&root, "web");
                mvm_revision(&root, "web", revision, label);
            }
            // mvm makes it, and puts nothing there.
            fs::remove_dir(root.join("templates/web/artifacts/revisions")).expect("it is empty");
            return;
        }
        for act in [Init, Build("web", "one"), Build("shop", "one"), Build("web", "two"), Build("web", "three")] {
            place.run(act).expect("a store");
        }
        let [web, shop] = ["web", "shop"].map(|name| root.join("templates").join(name));
        let rot = |path: &Utf8Path, bytes: &str| {
            fs::remove_file(path).expect("it is there");
            fs::write(path, bytes).expect("its directory takes names");
        };
        // Its object is intact; nothing has the bytes of the other, which is current; the record says the third.
        fs::remove_file(web.join("artifacts/one/vmlinux")).expect("it is there");
        rot(&web.join("artifacts/three/rootfs.ext4"), "rotten");
        rot(&shop.join("template.json"), "{");
        fs::remove_file(shop.join("revisions")).expect("it is there");
        fs::remove_dir_all(root.join(".store/keys")).expect("it is there");
    }

    /// Does it, and says what there is then.
    fn run(self, place: &Place) -> Result<World, Broken> {
        let fails = |error| format!("{self:?} fails: {error}");
        match self {
            Self::Repair => {
                let repaired =
                    place.open().map_err(fails)?.repair(&VerifyOptions::default(), &mut ()).map_err(fails)?;
                let lost = |finding: &&template_store::Finding| !finding.path.as_str().contains("/artifacts/three");
                if let Some(finding) = repaired.remaining.iter().find(lost) {
                    return Err(format!("a repair leaves {finding:?}"));
                }
            }
            Self::Adopt => {
                let adopted = place.adopt().map_err(fails)?;
                if let Some(left) = adopted.left.first() {
                    return Err(format!("an adoption leaves {left:?}"));
                }
            }
        }
        self.world(place)
    }

    pub fn world(self, place: &Place) -> Result<World, Broken> {
        if self == Self::Adopt {
            let store = place.open().map_err(|error| error.to_string())?;
            let report = store.verify(&VerifyOptions::default(), &mut ()).map_err(|error| error.to_string())?;
            // An object may be lost; a log may not.
            let is_wrong =
                |finding: &Finding| finding.severity == Severity::Error || finding.kind == FindingKind::Missing;
            let wrong = report.findings.iter().find(|finding| is_wrong(finding));
            return wrong.map_or_else(|| World::read(&place.root()), |finding| Err(format!("{finding:?}")));
        }
        let mut world = survey(place)?;
        // How often a repair was begun is no difference.
        world.templates.values_mut().for_each(|template| template.history.clear());
        Ok(world)
    }

    /// Fails when bytes are gone that were there before.
    pub fn keeps(self, place: &Place, before: &Before) -> Result<(), Broken> {
        let root = place.root();
        if self == Self::Adopt {
            mvm_current(&root, "web");
            let now = all_bytes(&root);
            let lost = before.files.iter().find(|(path, bytes)| now.get(path) != Some(bytes));
            return lost.map_or(Ok(()), |(path, _)| Err(format!("{path} is not what mvm wrote")));
        }
        let mut found = BTreeSet::new();
        for dir in ["templates", ".store/damaged"] {
            digests(&root.join(dir), &mut found)?;
        }
        match before.digests.difference(&found).next() {
            Some(lost) => Err(format!("the bytes with the digest {lost} are gone")),
            None => Ok(()),
        }
    }
}

/// What was there before the work.
pub struct Before {
    files: Vec<(String, Vec<u8>)>,
    digests: BTreeSet<String>,
}

impl Before {
    pub fn of(place: &Place) -> Self {
        let mut digests = BTreeSet::new();
        self::digests(&place.root().join("templates"), &mut digests).expect("files that can be read");
        Self { files: all_bytes(&place.root()).into_iter().collect(), digests }
    }
}

/// The digests of all files below a directory but the logs, which are written to.
fn digests(dir: &Utf8Path, found: &mut BTreeSet<String>) -> Result<(), Broken> {
    for (name, path) in list(dir)? {
        if path.is_symlink() || name == "activations.jsonl" {
            continue;
        }
        match path.is_dir() {
            true => digests(&path, found)?,
            false => {
                let bytes = fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
                found.insert(blake3::hash(&bytes).to_hex().to_string());
            }
        }
    }
    Ok(())
}

/// Work that was done once, and what came of it.
pub struct Done {
    work: Work,
    pub log: Log,
    before: Before,
    world: World,
}

const LIMITS: Limits = Limits { all_up_to: 16, sample: 10, seed: 0x2b17 };

impl Done {
    pub fn record(work: Work, scratch: &Scratch) -> Self {
        let place = Place::new(&scratch.fresh());
        fs::create_dir(place.root()).expect("a new directory");
        work.prepare(&place);
        let before = Before::of(&place);
        let (place, recorder) = place.recorded().expect("the tree can be read");
        let world = work.run(&place).expect("it can be done");
        recorder.ack(&format!("{work:?}"));
        Self { work, log: recorder.finish(), before, world }
    }

    /// The logs of those who go on after a kill, for each step that they could see.
    fn killed(&self, scratch: &Scratch) -> Vec<Log> {
        let visible = |step: &Step| !matches!(step, Step::Fsync(_) | Step::FsyncDir(_) | Step::Ack);
        let steps: Vec<usize> =
            (1..self.log.entries.len()).filter(|&steps| visible(&self.log.entries[steps - 1].step)).collect();
        let steps: Vec<usize> = every(steps, 8);
        in_parallel(&steps, |&steps| {
            let log = Log { start: self.log.start.clone(), entries: self.log.entries[..steps].to_vec() };
            let dir = scratch.fresh();
            View::live(&log.end()).materialize(dir.as_std_path()).expect("the tree can be made");
            let recorder = Recorder::resume(&dir, log).expect("the tree can be read");
            let place = Place::new(&dir).watched(&recorder);
            let world = self.work.run(&place).unwrap_or_else(|broken| panic!("killed after step {steps}: {broken}"));
            assert_eq!(world, self.world, "{:?} is killed after step {steps}, and done again", self.work);
            recorder.ack("the second one");
            recorder.finish()
        })
    }

    pub fn check(&self, state: &State, scratch: &Scratch) -> Result<(), Broken> {
        let dir = scratch.fresh();
        state.materialize(dir.as_std_path()).expect("the tree can be made");
        let place = Place::new(&dir);
        let checked = catch_unwind(AssertUnwindSafe(|| {
            self.work.keeps(&place, &self.before)?;
            if state.acked > 0 && self.work.world(&place)? != self.world {
                return Err("what was done is not there".to_owned());
            }
            let again = self.work.run(&place)?;
            self.work.keeps(&place, &self.before)?;
            if again == self.world { Ok(()) } else { Err(format!("the next one makes {again:?} of it")) }
        }));
        fs::remove_dir_all(&dir).expect("the tree can be removed");
        checked.unwrap_or_else(|_| Err("something panicked".to_owned()))
    }
}

pub fn states(log: &Log, first: usize) -> Vec<State> {
    Explorer::new(log, LIMITS).collect(first)
}

/// All of them, or the part that this run does.
fn every<T>(all: Vec<T>, sparse: usize) -> Vec<T> {
    all.into_iter().enumerate().filter(|(number, _)| proof::chosen(*number, sparse)).map(|(_, one)| one).collect()
}

fn survives_kills_and_cuts(work: Work) {
    let scratch = Scratch::new();
    let done = Done::record(work, &scratch);
    let killed = done.killed(&scratch);
    let mut all: Vec<(&Log, State)> =
        every(states(&done.log, 0), 8).into_iter().map(|state| (&done.log, state)).collect();
    let whole = all.len();
    for log in &killed {
        all.extend(states(log, log.entries.len()).into_iter().map(|state| (log, state)));
    }
    let broken = in_parallel(&all, |(log, state)| {
        let broken = done.check(state, &scratch).err()?;
        Some(format!("{broken}\n{}", state.describe(log)))
    });
    let broken: Vec<String> = broken.into_iter().flatten().collect();
    let (steps, last) = (done.log.entries.len(), all.len() - whole);
    let _ = writeln!(
        std::io::stderr(),
        "{work:?}: {whole} states of {steps} steps, {last} after {} kills, {} broken",
        killed.len(),
        broken.len()
    );
    assert!(broken.is_empty(), "{} states, such as\n{}", broken.len(), broken[..broken.len().min(4)].join("\n"));
}

#[test]
fn a_repair_that_is_cut_short_loses_nothing_and_the_next_one_completes_it() {
    survives_kills_and_cuts(Work::Repair);
}

#[test]
fn an_adoption_that_is_cut_short_loses_nothing_and_the_next_one_completes_it() {
    survives_kills_and_cuts(Work::Adopt);
}
