//! What a store must hold and answer, said as simply as it can be.

use std::collections::{BTreeMap, BTreeSet};

use template_store::Error;

use super::images::{CONTENTS, Image, TEMPLATES, definition_by};
use super::steps::{Expecting, Pick, Publishing, Term};

/// Why something is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoTemplate,
    TemplateExists,
    NoRevision,
    NoCurrent,
    Moved,
    NothingToRollBack,
    InUse,
    Pinned,
    IsCurrent,
    NoPin,
    PinTaken,
    NoInstance,
    PlaceTaken,
    Building,
}

impl Refusal {
    /// `None` for what is never expected here.
    pub fn of(error: &Error) -> Option<Refusal> {
        Some(match error {
            Error::TemplateNotFound { .. } => Refusal::NoTemplate,
            Error::TemplateExists { .. } => Refusal::TemplateExists,
            Error::RevisionNotFound { .. } => Refusal::NoRevision,
            Error::NoCurrent { .. } => Refusal::NoCurrent,
            Error::CurrentMoved { .. } => Refusal::Moved,
            Error::NothingToRollBack { .. } => Refusal::NothingToRollBack,
            Error::InUse { .. } => Refusal::InUse,
            Error::Pinned { .. } => Refusal::Pinned,
            Error::IsCurrent { .. } => Refusal::IsCurrent,
            Error::PinNotFound { .. } => Refusal::NoPin,
            Error::PinExists { .. } => Refusal::PinTaken,
            Error::InstanceNotFound { .. } => Refusal::NoInstance,
            Error::DestinationTaken { .. } => Refusal::PlaceTaken,
            Error::AlreadyBuilding { .. } => Refusal::Building,
            _ => return None,
        })
    }
}

/// What an operation is told.
pub type Told<T = ()> = Result<T, Refusal>;

#[derive(Debug, Clone)]
pub struct Revision {
    pub image: Image,
    /// Tells it from an earlier one with the same contents that was removed.
    pub serial: u32,
    /// What it is known to be made from.
    pub keys: BTreeSet<usize>,
    /// The label of its snapshot.
    pub snapshot: Option<usize>,
}

#[derive(Debug, Clone, Default)]
pub struct Template {
    pub definition: usize,
    /// In the order in which they were published.
    pub revisions: Vec<Revision>,
    pub current: Option<Image>,
    /// Who became current, the oldest first.
    pub history: Vec<Image>,
    /// The same, without those that were rolled back: what rollbacks go back to, the last one first.
    pub stack: Vec<Image>,
    /// What a key leads to.
    pub latest: BTreeMap<usize, Image>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    pub template: usize,
    pub image: Image,
    pub term: Term,
}

/// A revision that somebody holds; it may have been removed by force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    pub template: usize,
    pub image: Image,
    pub serial: u32,
}

/// What is published.
#[derive(Debug, Clone, Copy)]
pub struct Publication {
    pub template: usize,
    pub image: Image,
    pub key: Option<usize>,
    /// That of the template when this was begun: if it is gone by then, it is made again so.
    pub definition: usize,
}

impl Publication {
    /// What is built, or reused.
    pub fn by(template: usize, key: usize, image: Image) -> Publication {
        Publication { template, image, key: Some(key), definition: definition_by(key) }
    }
}

/// What is known of the index of keys, which is a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Index {
    /// It may have been lost, in part.
    Doubtful,
    /// It leads to something, whenever there is something.
    Complete,
    /// It leads to what was last built or reused.
    #[default]
    Exact,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub templates: BTreeMap<usize, Template>,
    pub pins: BTreeMap<usize, Pin>,
    pub instances: BTreeMap<usize, Image>,
    pub held: BTreeMap<usize, Held>,
    pub index: Index,
    pub plan: Option<super::collect::Plan>,
    pub building: Option<Publication>,
    serial: u32,
}

impl Template {
    pub fn of(&self, image: Image) -> Option<&Revision> {
        self.revisions.iter().find(|revision| revision.image == image)
    }

    pub fn has(&self, image: Image) -> bool {
        self.of(image).is_some()
    }

    pub fn of_mut(&mut self, image: Image) -> Option<&mut Revision> {
        self.revisions.iter_mut().find(|revision| revision.image == image)
    }

    pub fn activate(&mut self, image: Image) {
        if self.current == Some(image) {
            return;
        }
        self.current = Some(image);
        self.history.push(image);
        self.stack.push(image);
    }

    /// What a rollback goes back to: what was current before, and is still there.
    pub fn back(&self) -> Told<Image> {
        let earlier = self.stack.iter().rev().copied().find(|image| Some(*image) != self.current && self.has(*image));
        earlier.ok_or(Refusal::NothingToRollBack)
    }

    pub fn roll_back(&mut self) -> Told<Image> {
        let image = self.back()?;
        let at = self.stack.iter().rposition(|earlier| *earlier == image).expect("it was found there");
        self.stack.truncate(at + 1);
        self.current = Some(image);
        self.history.push(image);
        Ok(image)
    }

    /// Takes a revision away that is not current.
    pub fn drop_revision(&mut self, image: Image) {
        self.revisions.retain(|revision| revision.image != image);
        let lost: Vec<usize> = self.latest.iter().filter(|(_, led)| **led == image).map(|(key, _)| *key).collect();
        for key in lost {
            // The newest of those that are left.
            match self.revisions.iter().rev().find(|revision| revision.keys.contains(&key)) {
                Some(heir) => self.latest.insert(key, heir.image),
                None => self.latest.remove(&key),
            };
        }
    }
}

impl Model {
    pub fn template(&self, template: usize) -> Told<&Template> {
        self.templates.get(&template).ok_or(Refusal::NoTemplate)
    }

    fn template_mut(&mut self, template: usize) -> Told<&mut Template> {
        self.templates.get_mut(&template).ok_or(Refusal::NoTemplate)
    }

    pub fn revision(&self, template: usize, image: Image) -> Told<&Revision> {
        self.template(template)?.of(image).ok_or(Refusal::NoRevision)
    }

    /// The revision that a step means.
    pub fn pick(&self, template: usize, pick: Pick) -> Image {
        let revisions = self.templates.get(&template).map_or(&[][..], |template| &template.revisions);
        match pick {
            Pick::Nth(n) if !revisions.is_empty() => revisions[n % revisions.len()].image,
            Pick::Nth(n) | Pick::Other(n) => Image::all().nth(n % (2 * CONTENTS)).expect("there are so many"),
        }
    }

    /// The revision that `current` is expected to be: any, none or this one.
    pub fn expected(&self, template: usize, expecting: Expecting) -> Option<Option<Image>> {
        match expecting {
            Expecting::Anything => None,
            Expecting::Nothing => Some(None),
            Expecting::WhatIs => Some(self.current(template)),
            Expecting::A(pick) => Some(Some(self.pick(template, pick))),
        }
    }

    fn current(&self, template: usize) -> Option<Image> {
        self.templates.get(&template)?.current
    }

    fn meet(&self, template: usize, expecting: Expecting) -> Told {
        match self.expected(template, expecting) {
            Some(expected) if expected != self.current(template) => Err(Refusal::Moved),
            _ => Ok(()),
        }
    }

    pub fn is_held(&self, template: usize, image: Image) -> bool {
        let serial = self.revision(template, image).map(|revision| revision.serial);
        self.held.values().any(|held| (held.template, held.image) == (template, image) && Ok(held.serial) == serial)
    }

    pub fn is_pinned(&self, template: usize, image: Image) -> bool {
        self.pins.values().any(|pin| (pin.template, pin.image) == (template, image) && pin.term != Term::Over)
    }

    pub fn create(&mut self, template: usize, definition: usize) -> Told {
        match self.templates.get(&template) {
            Some(found) if found.definition != definition => return Err(Refusal::TemplateExists),
            Some(_) => {}
            None => drop(self.templates.insert(template, Template { definition, ..Template::default() })),
        }
        Ok(())
    }

    pub fn apply(&mut self, template: usize, definition: usize) {
        self.templates.entry(template).or_default().definition = definition;
    }

    /// Whether it is new. Where there is no template, it is made with this definition.
    pub fn publish(&mut self, what: Publication, how: Publishing) -> Told<bool> {
        let Publication { template, image, key, definition } = what;
        self.meet(template, how.expecting)?;
        self.serial += 1;
        let serial = self.serial;
        let into = self.templates.entry(template).or_insert_with(|| Template { definition, ..Template::default() });
        let is_new = !into.has(image);
        if is_new {
            into.revisions.push(Revision { image, serial, keys: BTreeSet::new(), snapshot: None });
        }
        if let (Some(key), Some(revision)) = (key, into.of_mut(image)) {
            revision.keys.insert(key);
            into.latest.insert(key, image);
        }
        if how.activates {
            into.activate(image);
        }
        Ok(is_new)
    }

    pub fn begin(&mut self, template: usize, key: usize, content: usize) {
        let there = self.templates.get(&template);
        let definition = there.map_or(definition_by(key), |template| template.definition);
        self.building = Some(Publication { template, image: Image::built(content), key: Some(key), definition });
    }

    pub fn is_building(&self, key: usize) -> bool {
        self.building.is_some_and(|building| building.key == Some(key))
    }

    /// Those revisions of a template that are made from a key.
    pub fn made_from(&self, template: usize, key: usize) -> BTreeSet<Image> {
        let revisions = self.templates.get(&template).into_iter().flat_map(|template| &template.revisions);
        revisions.filter(|revision| revision.keys.contains(&key)).map(|revision| revision.image).collect()
    }

    /// What may be given to a template that asks for a key; whether something must be.
    pub fn reusable(&self, template: usize, key: usize) -> (BTreeSet<Image>, bool) {
        let own = self.made_from(template, key);
        let linked: BTreeSet<Image> = (0..TEMPLATES.len())
            .filter(|other| *other != template)
            .flat_map(|other| self.made_from(other, key).into_iter().map(move |image| image.linked(other, template)))
            .collect();
        match self.templates.get(&template).and_then(|template| template.latest.get(&key)) {
            Some(latest) if self.index == Index::Exact => (BTreeSet::from([*latest]), true),
            _ if self.index >= Index::Complete && !own.is_empty() => (own, true),
            _ => {
                let must = !own.is_empty() || self.index >= Index::Complete && !linked.is_empty();
                (own.union(&linked).copied().collect(), must)
            }
        }
    }

    /// What a template was given for a key, with what else it is made from: the source may have been made from more.
    pub fn reuse(&mut self, template: usize, key: usize, image: Image, keys: BTreeSet<usize>, how: Publishing) -> Told {
        let latest = self.templates.get(&template).and_then(|template| template.latest.get(&key)).copied();
        self.publish(Publication::by(template, key, image), how)?;
        let into = self.template_mut(template)?;
        into.of_mut(image).expect("it was published").keys.extend(keys);
        // Where the index leads elsewhere by now is not known.
        if latest.is_some_and(|latest| latest != image) {
            self.index = self.index.min(Index::Complete);
        }
        Ok(())
    }

    pub fn activate(&mut self, template: usize, image: Image, expecting: Expecting) -> Told {
        self.revision(template, image)?;
        self.meet(template, expecting)?;
        self.template_mut(template)?.activate(image);
        Ok(())
    }

    pub fn roll_back(&mut self, template: usize) -> Told<Image> {
        self.template_mut(template)?.roll_back()
    }

    pub fn remove(&mut self, template: usize, image: Image, forced: bool) -> Told {
        self.revision(template, image)?;
        self.may_go(template, image, forced)?;
        let from = self.template_mut(template)?;
        if from.current == Some(image) {
            if !forced {
                return Err(Refusal::IsCurrent);
            }
            from.roll_back().map_err(|_| Refusal::IsCurrent)?;
        }
        from.drop_revision(image);
        Ok(())
    }

    fn may_go(&self, template: usize, image: Image, forced: bool) -> Told {
        match () {
            () if !forced && self.is_held(template, image) => Err(Refusal::InUse),
            () if self.is_pinned(template, image) => Err(Refusal::Pinned),
            () => Ok(()),
        }
    }

    pub fn remove_template(&mut self, template: usize, forced: bool) -> Told {
        let mut images: Vec<Image> = self.template(template)?.revisions.iter().map(|one| one.image).collect();
        // The first one that may not go is told.
        images.sort_by_key(|image| image.id());
        images.into_iter().try_for_each(|image| self.may_go(template, image, forced))?;
        self.templates.remove(&template);
        Ok(())
    }

    pub fn pin(&mut self, name: usize, pin: Pin) -> Told {
        self.revision(pin.template, pin.image)?;
        match self.pins.get(&name) {
            Some(old) if (old.template, old.image) != (pin.template, pin.image) => Err(Refusal::PinTaken),
            _ => {
                self.pins.insert(name, pin);
                Ok(())
            }
        }
    }

    pub fn unpin(&mut self, name: usize) -> Told {
        self.pins.remove(&name).map(drop).ok_or(Refusal::NoPin)
    }

    pub fn hold(&mut self, slot: usize, template: usize, image: Image) -> Told {
        let serial = self.revision(template, image)?.serial;
        self.held.insert(slot, Held { template, image, serial });
        Ok(())
    }

    pub fn current_of(&self, template: usize) -> Told<Image> {
        self.template(template)?.current.ok_or(Refusal::NoCurrent)
    }

    pub fn instance(&mut self, name: usize, image: Image) -> Told {
        if self.instances.contains_key(&name) {
            return Err(Refusal::PlaceTaken);
        }
        self.instances.insert(name, image);
        Ok(())
    }

    pub fn remove_instance(&mut self, name: usize) -> Told {
        self.instances.remove(&name).map(drop).ok_or(Refusal::NoInstance)
    }

    pub fn attach(&mut self, template: usize, image: Image, label: usize) -> Told {
        self.revision(template, image)?;
        let revision = self.template_mut(template)?.of_mut(image).expect("it was there a line ago");
        revision.snapshot = Some(label);
        Ok(())
    }

    /// What linking may add to the keys of a revision: the source may have been made from others as well.
    pub fn keys_of_sources(&self, template: usize, key: usize, image: Image) -> BTreeSet<usize> {
        let mut keys = BTreeSet::from([key]);
        for (other, from) in &self.templates {
            let sources = from.revisions.iter().filter(|one| {
                *other == template && one.image == image
                    || one.keys.contains(&key) && one.image.linked(*other, template) == image
            });
            keys.extend(sources.flat_map(|source| &source.keys));
        }
        keys
    }
}
