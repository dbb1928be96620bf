//! How each step is carried out, and what it must be told.

use std::collections::BTreeSet;
use std::fs;

use template_store::gc::{GcReport, Verdict};
use template_store::{
    Activate, Error, Expect, Known, PinOptions, PublishOptions, Removal, Result, Revision, SnapshotFiles,
    SnapshotOptions, Store, VerifyOptions,
};

use super::bugs::Bug;
use super::collect::{Name, Plan, Why};
use super::images::{Image, TEMPLATES, inputs, pause, spec, template};
use super::model::{Index, Pin, Refusal, Told};
use super::steps::{Expecting, Keeping, Pick, Publishing, Step, Term};
use super::sut::Sut;
use crate::powercut::world::Broken;
use crate::support::id;

/// Whether something was done; fails when it was told otherwise than it must be.
pub fn agree<T>(told: Result<T>, expected: Told) -> std::result::Result<Option<T>, Broken> {
    let told = match (told, expected) {
        (Ok(value), Ok(())) => return Ok(Some(value)),
        (Err(error), Err(refusal)) if Refusal::of(&error) == Some(refusal) => return Ok(None),
        (Ok(_), _) => "that it is done".to_owned(),
        (Err(error), _) => format!("{error:?} ({error})"),
    };
    Err(format!("it is told {told}, where {expected:?} was to be expected"))
}

pub fn unexpected(error: Error) -> Broken {
    format!("it fails: {error:?} ({error})")
}

pub fn image_of(revision: &Revision) -> std::result::Result<Image, Broken> {
    Image::of_id(revision.id().as_str()).ok_or(format!("nobody published {revision:?}"))
}

/// The number of the template.
pub fn place_of(revision: &Revision) -> usize {
    TEMPLATES.iter().position(|name| *name == revision.template().as_str()).unwrap_or_default()
}

fn removal(forced: bool) -> Removal {
    if forced { Removal::Forced } else { Removal::Unused }
}

pub type Done = std::result::Result<bool, Broken>;

impl Sut {
    /// Whether the step was done: refusals that were to be expected are none.
    pub fn carry_out(&mut self, handle: usize, step: Step) -> Done {
        let store = self.handles[handle].clone();
        let store = &store;
        match step {
            Step::Create { template: of, definition } => {
                let expected = self.model.create(of, definition);
                Ok(agree(store.create(&spec(of, definition)), expected)?.is_some())
            }
            Step::Apply { template: of, definition } => {
                self.model.apply(of, definition);
                store.apply(&spec(of, definition)).map(|_| true).map_err(unexpected)
            }
            Step::Build { template, key, content, publishing } => {
                self.build(store, (template, key, Some(content)), Known::Reuse, publishing)
            }
            Step::BuildAgain { template, key, content, publishing } => {
                self.build(store, (template, key, Some(content)), Known::BuildAgain, publishing)
            }
            Step::Fail { template, key } => {
                let publishing = Publishing { activates: true, expecting: Expecting::Anything };
                self.build(store, (template, key, None), Known::Reuse, publishing)
            }
            Step::Begin { template, key, content } => self.begin(store, template, key, content),
            Step::Seal => self.seal(),
            Step::Finish { publishing } => self.finish(publishing),
            Step::Abandon => self.abandon(),
            Step::Check { template, key, content } => self.check(store, template, key, content),
            Step::Import { template, content, key, moves, publishing } => {
                self.import(store, template, content, key, moves, publishing)
            }
            Step::Activate { template: of, pick, expecting } => {
                let image = self.model.pick(of, pick);
                let expect = self.expect(of, expecting);
                let expected = self.model.activate(of, image, expecting);
                Ok(agree(store.activate(&template(of), &image.id(), expect), expected)?.is_some())
            }
            Step::Rollback { template: of } => self.roll_back(store, of),
            Step::Remove { template: of, pick, forced } => {
                let image = self.model.pick(of, pick);
                let expected = self.model.remove(of, image, forced);
                Ok(agree(store.remove(&template(of), &image.id(), removal(forced)), expected)?.is_some())
            }
            Step::RemoveTemplate { template: of, forced } => {
                let expected = self.model.remove_template(of, forced);
                Ok(agree(store.remove_template(&template(of), removal(forced)), expected)?.is_some())
            }
            Step::Pin { name, template, pick, term } => self.pin(store, name, template, pick, term),
            Step::Unpin { name } => {
                let expected = self.model.unpin(name);
                Ok(agree(store.unpin(&pin_name(name)), expected)?.is_some())
            }
            Step::Collect { keeping } => self.collect(store, keeping),
            Step::Plan { keeping } => self.plan(store, keeping),
            Step::ApplyPlan => self.apply_plan(store),
            Step::Why { template, pick, keeping } => self.why(store, template, pick, keeping),
            Step::Lookup { template, key } => self.look_up(store, template, key),
            Step::Look { template } => self.look(store, template),
            Step::Hold { slot, template: of, pick } => {
                let image = self.model.pick(of, pick);
                let expected = self.model.hold(slot, of, image);
                self.hold(slot, store.revision(&template(of), &image.id()), expected)
            }
            Step::HoldCurrent { slot, template: of } => {
                let expected = self.model.current_of(of).and_then(|image| self.model.hold(slot, of, image));
                self.hold(slot, store.current(&template(of)), expected)
            }
            Step::NoteHolder { slot } => self.note_holder(slot),
            Step::LetGo { slot } => {
                self.notes.remove(&slot);
                self.model.held.remove(&slot);
                Ok(self.held.remove(&slot).is_some())
            }
            Step::Instance { name, template, pick } => self.instance(store, name, template, pick),
            Step::InstanceOfHeld { name, slot } => self.instance_of_held(name, slot),
            Step::RemoveInstance { name } => {
                let expected = self.model.remove_instance(name);
                Ok(agree(store.remove_instance(self.vm(name), Removal::Unused), expected)?.is_some())
            }
            Step::Attach { template, pick, label } => self.attach(store, template, pick, label),
            Step::Verify => self.undamaged(store).map(|()| true),
            Step::Repair => self.repair(store).map(|()| true),
            Step::Harm(harm) => self.harm(store, harm),
            Step::Reopen => {
                self.handles[handle] = self.open()?;
                Ok(true)
            }
        }
    }

    fn expect(&self, of: usize, expecting: Expecting) -> Expect {
        match self.model.expected(of, expecting) {
            _ if self.bug == Some(Bug::ExpectsAnything) => Expect::Any,
            None => Expect::Any,
            Some(None) => Expect::Absent,
            Some(Some(image)) => Expect::Current(image.id()),
        }
    }

    pub fn publish_options(&self, of: usize, how: Publishing) -> PublishOptions {
        let activate = if how.activates { Activate::Yes } else { Activate::No };
        PublishOptions::default().activate(activate).expect(self.expect(of, how.expecting))
    }

    fn roll_back(&mut self, store: &Store, of: usize) -> Done {
        let mut told = store.rollback(&template(of));
        if self.bug == Some(Bug::RollsBackTwice) && told.is_ok() {
            told = store.rollback(&template(of)).or(told);
        }
        let expected = self.model.roll_back(of);
        match (agree(told, expected.map(drop))?, expected) {
            (Some(revision), Ok(image)) if image_of(&revision)? != image => {
                Err(format!("a rollback leads to {revision:?}, where {image:?} was to be expected"))
            }
            (revision, _) => Ok(revision.is_some()),
        }
    }

    fn pin(&mut self, store: &Store, name: usize, of: usize, pick: Pick, term: Term) -> Done {
        let image = self.model.pick(of, pick);
        let expected = self.model.pin(name, Pin { template: of, image, term });
        let until = match term {
            Term::Always => None,
            Term::Long => Some("2200-01-01T00:00:00Z"),
            Term::Over => Some("2001-01-01T00:00:00Z"),
        };
        let until = until.map(|time| time.parse::<jiff::Timestamp>().expect("it is a time"));
        let options = PinOptions::default().until(until);
        Ok(agree(store.pin(&pin_name(name), &template(of), &image.id(), &options), expected)?.is_some())
    }

    fn collect(&mut self, store: &Store, keeping: Keeping) -> Done {
        let expected = self.model.plan(keeping);
        let mut ignored = store.pins().map_err(unexpected)?;
        ignored.retain(|pin| self.bug == Some(Bug::CollectsPinned) && pin.holds_at(jiff::Timestamp::now()));
        ignored.iter().for_each(|pin| store.unpin(&id(pin.name())).expect("it is there"));
        let told = store.gc(&keeping.policy(), &mut ());
        for pin in &ignored {
            let _ = store.pin(&id(pin.name()), &pin.template, &pin.revision, &PinOptions::default().until(pin.until));
        }
        let (plan, report) = told.map_err(unexpected)?;
        same_plan(&plan, &expected)?;
        self.collected(&report, &expected)
    }

    fn plan(&mut self, store: &Store, keeping: Keeping) -> Done {
        let plan = store.plan_gc(&keeping.policy()).map_err(unexpected)?;
        let expected = self.model.plan(keeping);
        same_plan(&plan, &expected)?;
        (self.plan, self.model.plan) = (Some(plan), Some(expected));
        Ok(true)
    }

    fn apply_plan(&mut self, store: &Store) -> Done {
        let (Some(mut plan), Some(expected)) = (self.plan.take(), self.model.plan.take()) else { return Ok(false) };
        if self.bug == Some(Bug::PlansAnew) {
            plan = store.plan_gc(&plan.policy).map_err(unexpected)?;
        }
        let report = store.apply_gc(&plan, &mut ()).map_err(unexpected)?;
        self.collected(&report, &expected)
    }

    /// A collection takes what it must, leaves the rest, and says so. It is one that did something if it took something.
    fn collected(&mut self, report: &GcReport, plan: &Plan) -> Done {
        let (gone, stays) = self.model.collect(plan);
        let removed = report.removed.iter().map(|one| name(one.template.as_str(), one.revision.as_str()));
        let removed = removed.collect::<std::result::Result<BTreeSet<Name>, Broken>>()?;
        let skipped = report
            .skipped
            .iter()
            .map(|one| Ok((name(one.template.as_str(), one.revision.as_str())?, Why::of(&one.why))));
        let skipped = skipped.collect::<std::result::Result<_, Broken>>()?;
        match removed == gone && stays == skipped && report.failed.is_empty() {
            true => Ok(!gone.is_empty()),
            false => Err(format!("a collection does {report:?}, where {gone:?} was to go and {stays:?} to stay")),
        }
    }

    fn why(&self, store: &Store, of: usize, pick: Pick, keeping: Keeping) -> Done {
        let image = self.model.pick(of, pick);
        let expected = self.model.revision(of, image).map(drop);
        let told = store.why(&template(of), &image.id(), &keeping.policy());
        let Some(planned) = agree(told, expected)? else { return Ok(false) };
        let goes = self.model.plan(keeping).going.contains_key(&(of, image));
        match goes == (planned.verdict == Verdict::Goes) && !planned.reasons.is_empty() {
            true => Ok(true),
            false => Err(format!("{planned:?}, where it goes: {goes}")),
        }
    }

    fn look_up(&mut self, store: &Store, only: Option<usize>, key: usize) -> Done {
        let only_id = only.map(template);
        let found = store.lookup(only_id.as_ref(), &inputs(key)).map_err(unexpected)?;
        let among: Vec<usize> = only.map_or((0..TEMPLATES.len()).collect(), |only| vec![only]);
        let Some(found) = found else {
            let missed: Vec<_> = among.iter().flat_map(|of| self.model.made_from(*of, key)).collect();
            return match missed.is_empty() || self.model.index == Index::Doubtful {
                true => Ok(false),
                false => Err(format!("a look-up of {key} in {only:?} does not find {missed:?}")),
            };
        };
        let (of, image) = (place_of(&found), image_of(&found)?);
        let mut fits = among.contains(&of) && self.model.made_from(of, key).contains(&image);
        if self.model.index == Index::Exact {
            fits &= self.model.templates[&of].latest.get(&key) == Some(&image);
        }
        if fits { Ok(true) } else { Err(format!("a look-up of {key} in {only:?} finds {found:?}")) }
    }

    fn look(&mut self, store: &Store, of: usize) -> Done {
        let expected = self.model.template(of);
        let Some(mut revisions) = agree(store.revisions(&template(of)), expected.map(drop))? else { return Ok(false) };
        let expected = expected.expect("both agree");
        let mut images: Vec<_> = expected.revisions.iter().map(|one| one.image.id()).collect();
        images.sort();
        revisions.sort();
        let current = store.current_id(&template(of)).map_err(unexpected)?;
        let history = store.history(&template(of)).map_err(unexpected)?;
        let history: Vec<_> = history.into_iter().map(|entry| entry.revision).collect();
        let flake = store.template(&template(of)).map_err(unexpected)?.flake_ref;
        let pins: Vec<String> = store.pins().map_err(unexpected)?.iter().map(|pin| pin.name().to_owned()).collect();
        let instances: Vec<_> =
            store.instances().map_err(unexpected)?.iter().map(|one| one.path().to_owned()).collect();
        let fits = revisions == images
            && current == expected.current.map(Image::id)
            && history == expected.history.iter().map(|image| image.id()).collect::<Vec<_>>()
            && flake == spec(of, expected.definition).flake_ref
            && pins == self.model.pins.keys().map(|name| format!("p{name}")).collect::<Vec<_>>()
            && instances == self.model.instances.keys().map(|name| self.vm(*name)).collect::<Vec<_>>();
        let seen = format!("{revisions:?} {current:?} {history:?} {flake} {pins:?} {instances:?}");
        if fits { Ok(true) } else { Err(format!("one sees {seen} of {expected:?} in {:?}", self.model)) }
    }

    fn hold(&mut self, slot: usize, told: Result<Revision>, expected: Told) -> Done {
        let Some(revision) = agree(told, expected)? else { return Ok(false) };
        self.notes.remove(&slot);
        if self.bug != Some(Bug::HoldsNothing) {
            self.held.insert(slot, revision);
        }
        Ok(true)
    }

    fn note_holder(&mut self, slot: usize) -> Done {
        let Some(revision) = self.held.get(&slot) else { return Ok(false) };
        // Of two notes of one process, the first to go takes the one file with it.
        self.notes.remove(&slot);
        let note = revision.note_holder(std::process::id(), "a step").map_err(unexpected)?;
        self.notes.insert(slot, note);
        Ok(true)
    }

    fn instance(&mut self, store: &Store, name: usize, of: usize, pick: Pick) -> Done {
        let image = self.model.pick(of, pick);
        let expected = self.model.revision(of, image).map(drop);
        let told = store.revision(&template(of), &image.id());
        let Some(revision) = agree(told, expected)? else { return Ok(false) };
        let expected = self.model.instance(name, image);
        Ok(agree(revision.instance(self.vm(name)), expected)?.is_some())
    }

    /// A revision that was removed and published again is as good as the one that is held.
    fn instance_of_held(&mut self, name: usize, slot: usize) -> Done {
        let (Some(revision), Some(held)) = (self.held.get(&slot), self.model.held.get(&slot).copied()) else {
            return Ok(false);
        };
        let is_taken = self.model.instances.contains_key(&name);
        let is_there = self.model.revision(held.template, held.image).is_ok();
        let expected = match () {
            () if !is_taken && !is_there => Err(Refusal::NoRevision),
            () => self.model.instance(name, held.image),
        };
        Ok(agree(revision.instance(self.vm(name)), expected)?.is_some())
    }

    fn attach(&mut self, store: &Store, of: usize, pick: Pick, label: usize) -> Done {
        let image = self.model.pick(of, pick);
        let expected = self.model.attach(of, image, label);
        let told = store.revision(&template(of), &image.id());
        let Some(revision) = agree(told, expected)? else { return Ok(false) };
        let dir = self.fresh(false);
        pause(&dir, label);
        let files = SnapshotFiles::new(dir.join("vmstate"), dir.join("mem")).drive(id("rootfs"), dir.join("disk"));
        let options = SnapshotOptions::default().mem_mib(1_u32);
        revision.attach_snapshot(&files, &options, &mut ()).map_err(unexpected)?;
        fs::remove_dir_all(dir).expect("it can be removed");
        Ok(true)
    }

    /// Mends all there is to mend.
    pub fn repair(&mut self, store: &Store) -> std::result::Result<(), Broken> {
        let repaired = store.repair(&VerifyOptions::default(), &mut ()).map_err(unexpected)?;
        self.model.index = self.model.index.max(Index::Complete);
        match repaired.remaining.is_empty() {
            true => Ok(()),
            false => Err(format!("a repair leaves {:?}", repaired.remaining)),
        }
    }
}

fn same_plan(plan: &template_store::gc::GcPlan, expected: &Plan) -> std::result::Result<(), Broken> {
    let going = plan.going().map(|one| name(one.template.as_str(), one.revision.as_str()));
    let going = going.collect::<std::result::Result<BTreeSet<Name>, Broken>>()?;
    match going == expected.going.keys().copied().collect() {
        true => Ok(()),
        false => Err(format!("{going:?} is planned to go, where it was to be {:?}", expected.going)),
    }
}

fn name(of: &str, revision: &str) -> std::result::Result<Name, Broken> {
    let at = TEMPLATES.iter().position(|name| *name == of).ok_or(format!("{of} is no template of ours"))?;
    Ok((at, Image::of_id(revision).ok_or(format!("nobody published {revision}"))?))
}

fn pin_name(name: usize) -> template_store::PinName {
    id(&format!("p{name}"))
}
