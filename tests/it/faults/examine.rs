//! What must hold after an operation that met a failing disk.

use std::collections::BTreeSet;
use std::fs::File;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::io::Errno;
use template_store::gc::Policy;
use template_store::observe::Op;
use template_store::{FindingKind, VerifyOptions};

use super::calls::{Did, said};
use super::cases::{Case, Ground, Work};
use super::failing::{clears, paths};
use super::unsaid::unsaid;
use crate::powercut::acts::{Act, Place};
use crate::powercut::litter;
use crate::powercut::mending::Before;
use crate::powercut::promises::{compare, survey};
use crate::powercut::snapshots;
use crate::powercut::world::{Broken, World, list};
use crate::support::until;

/// What there was before the work, and what there is after it.
pub struct Ends {
    pub old: Option<World>,
    pub new: World,
    pub before: Option<Before>,
    /// What others have left before.
    pub litter: BTreeSet<Utf8PathBuf>,
}

/// What happened to an operation.
#[derive(Debug)]
pub struct Happened {
    pub errno: Errno,
    /// The steps that failed.
    pub failed: Vec<Op>,
    pub did: Did,
}

impl Case {
    /// What there is, when all of it agrees.
    pub fn look(&self, place: &Place) -> Result<World, Broken> {
        match self.ground {
            Ground::Whole | Ground::Rotten => survey(place),
            Ground::Mending(by) => by.world(place),
        }
    }

    pub fn run(&self, place: &Place) -> Did {
        match self.work {
            Work::Act(Act::Gc) => super::calls::collect(place),
            Work::Act(act) => place.run(act).map_err(said),
            Work::Call(call) => call(place),
        }
    }

    /// All that must hold, from the first look to the next try and a collection after it.
    pub fn examine(&self, place: &Place, ends: &Ends, happened: &Happened) -> Result<(), Broken> {
        let found = self.old_or_new(place, ends)?;
        match &happened.did {
            Ok(()) => {
                may_be_unsaid(happened)?;
                self.mend_the_rest(place, happened)?;
                if self.look(place).map_err(|broken| format!("it reports success: {broken}"))? != ends.new {
                    return Err(format!("it reports success without the effect: there is {found:?}"));
                }
            }
            Err(text) => says_what_failed(text, happened)?,
        }
        nothing_is_left(place, ends, happened)?;
        nobody_holds_a_lock(&place.root())?;
        if happened.did.is_err() && !self.is_done(found.as_ref(), ends) {
            self.run(place).map_err(|text| format!("the next try fails: {text}"))?;
            self.mend_the_rest(place, happened)?;
        }
        let end = self.look(place).map_err(|broken| format!("after the next try: {broken}"))?;
        if end != ends.new {
            return Err(format!("the next try leads to {end:?}, not {:?}", ends.new));
        }
        self.is_clean_at_last(place, happened)?;
        match self.look(place).map_err(|broken| format!("after a collection: {broken}"))? == ends.new {
            true => Ok(()),
            false => Err("a collection of the dead takes something else".to_owned()),
        }
    }

    /// What was rotten may be half healed, and what is healthy is not looked at again: a repair does the rest.
    fn mend_the_rest(&self, place: &Place, happened: &Happened) -> Did {
        match self.ground {
            Ground::Rotten if !happened.failed.is_empty() => super::calls::repair(place),
            _ => Ok(()),
        }
    }

    fn old_or_new(&self, place: &Place, ends: &Ends) -> Result<Option<World>, Broken> {
        match (self.ground, &ends.old) {
            (Ground::Whole, Some(old)) => {
                let found = survey(place)?;
                compare(&found, &[old, &ends.new])?;
                Ok(Some(found))
            }
            (Ground::Mending(by), _) => by.keeps(place, ends.before.as_ref().expect("it was looked at")).map(|()| None),
            _ => Ok(None),
        }
    }

    /// Whether a caller sees that it is done already.
    fn is_done(&self, found: Option<&World>, ends: &Ends) -> bool {
        match (self.work, found, &ends.old) {
            (Work::Act(act), Some(found), Some(old)) => act.is_done(found, old, &ends.new),
            _ => false,
        }
    }

    /// A collection by somebody whose disk is healthy takes all that the dead have left, and nothing else; then a
    /// verification finds nothing.
    fn is_clean_at_last(&self, place: &Place, happened: &Happened) -> Did {
        let store = place.open().map_err(said)?;
        let (_, report) = store.gc(&Policy::default().keep_last(u32::MAX), &mut ()).map_err(said)?;
        if !report.skipped.is_empty() || !report.failed.is_empty() || !report.removed.is_empty() {
            return Err(format!("a collection afterwards: {report:?}"));
        }
        let Ground::Whole = self.ground else { return Ok(()) };
        litter::none_is_left(&place.root())?;
        snapshots::fields_agree(&place.root())?;
        let explained: Vec<FindingKind> = match &happened.did {
            Ok(()) => happened
                .failed
                .iter()
                .filter_map(|op| unsaid(op, happened.errno))
                .flat_map(|u| u.finds)
                .copied()
                .collect(),
            Err(_) => Vec::new(),
        };
        let report = store.verify(&VerifyOptions::default(), &mut ()).map_err(said)?;
        match report.findings.iter().find(|finding| !explained.contains(&finding.kind)) {
            Some(finding) => Err(format!("a verification finds {finding:?}")),
            None => Ok(()),
        }
    }
}

/// Success is reported only when each step that failed is one that may.
fn may_be_unsaid(happened: &Happened) -> Result<(), Broken> {
    match happened.failed.iter().find(|op| unsaid(op, happened.errno).is_none()) {
        Some(op) => Err(format!("it reports success, although {op:?} failed")),
        None => Ok(()),
    }
}

/// The error names a path of a step that failed, what the system answered, and the next step where there is one.
fn says_what_failed(text: &str, happened: &Happened) -> Result<(), Broken> {
    let advice = match happened.errno {
        Errno::NOSPC | Errno::DQUOT => "free space",
        Errno::ACCESS => "owner of the store",
        Errno::ROFS => "mounted writable",
        Errno::IO => "kernel's log",
        _ => "",
    };
    let answer = std::io::Error::from(happened.errno).to_string();
    let path = happened.failed.iter().flat_map(paths).find(|path| text.contains(path.as_str()));
    match path {
        None => Err(format!("the error does not name what failed: {text}")),
        Some(_) if !text.contains(&answer) => Err(format!("the error does not say {answer:?}: {text}")),
        Some(_) if !text.contains(advice) => Err(format!("the error does not advise: {text}")),
        Some(_) => Ok(()),
    }
}

/// No private work is left but that of others, and what could not be cleared away.
fn nothing_is_left(place: &Place, ends: &Ends, happened: &Happened) -> Result<(), Broken> {
    let failed_to_clear = |path: &Utf8Path| {
        let mut cleared = happened.failed.iter().filter(|op| clears(op)).flat_map(paths);
        cleared.any(|of| of.starts_with(place.dir().join(path)))
    };
    let still_needed = |path: &Utf8Path| happened.failed.iter().any(|op| is_needed(op, path));
    let left = private_work(place)?;
    match left.iter().find(|path| !ends.litter.contains(*path) && !failed_to_clear(path) && !still_needed(path)) {
        Some(path) => Err(format!("{path} is left")),
        None => Ok(()),
    }
}

/// What was moved out of sight stays until that lasts: the sync failed that says so.
fn is_needed(op: &Op, path: &Utf8Path) -> bool {
    let Op::FsyncDir { path: synced } = op else { return false };
    match path.starts_with("vms") {
        true => synced.ends_with("vms"),
        false => {
            path.starts_with("store/.store/drafts") && synced.parent().is_some_and(|dir| dir.ends_with("artifacts"))
        }
    }
}

/// All that is nobody's once nobody works, by its path below the place.
pub fn private_work(place: &Place) -> Result<BTreeSet<Utf8PathBuf>, Broken> {
    let private = place.root().join(".store");
    let mut left = Vec::new();
    for dir in ["drafts", "locks", "leases"] {
        left.extend(list(&private.join(dir))?);
    }
    left.extend(list(&place.dir().join("built"))?.into_iter().filter(|(name, _)| name == "revision.json"));
    left.extend(list(&place.dir().join("vms"))?.into_iter().filter(|(name, _)| name.starts_with('.')));
    // What is in the trash says which objects go with it.
    if list(&private.join("trash"))?.is_empty() {
        for (_, shard) in list(&private.join("objects"))? {
            left.extend(list(&shard)?.into_iter().filter(|(_, object)| is_alone(object)));
        }
    }
    Ok(left.into_iter().map(|(_, path)| below(place, &path)).collect())
}

/// The objects that there are: when the draft of a dead process goes, they stay for a collection.
pub fn objects(place: &Place) -> Vec<Utf8PathBuf> {
    let walk = walkdir::WalkDir::new(place.root().join(".store/objects")).into_iter().filter_map(Result::ok);
    walk.map(|entry| below(place, Utf8Path::from_path(entry.path()).expect("UTF-8"))).collect()
}

fn below(place: &Place, path: &Utf8Path) -> Utf8PathBuf {
    path.strip_prefix(place.dir()).expect("it is there").to_owned()
}

/// Whether an object is in no revision.
fn is_alone(object: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    object.metadata().is_ok_and(|found| found.is_file() && found.nlink() == 1)
}

/// Whoever tries gets each lock of the store.
///
/// A program that another test starts just now has the descriptors of this process until it runs.
fn nobody_holds_a_lock(root: &Utf8Path) -> Result<(), Broken> {
    let mut lockable = Vec::new();
    for entry in walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok) {
        let path = Utf8PathBuf::from_path_buf(entry.path().to_owned()).expect("UTF-8");
        if entry.file_type().is_dir() || path.parent().is_some_and(|dir| dir.ends_with("locks")) {
            lockable.push(path);
        }
    }
    for path in lockable {
        until(&format!("nobody holds the lock of {path}"), || {
            let file = File::open(&path).ok()?;
            fs2::FileExt::try_lock_exclusive(&file).ok()
        });
    }
    Ok(())
}
