//! What is on the disk, in the words of the model, and what of it a power cut may have left.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use template_store::Store;

use super::images::{DEFINITIONS, Files, Image, TEMPLATES, keys_of, resources, spec, state, template};
use super::model::{Index, Model, Pin, Revision, Template};
use super::steps::Term;
use crate::powercut::world::{self, Broken, World, read_json};

/// All that must last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub templates: BTreeMap<usize, TemplateFacts>,
    /// Those that keep something.
    pub pins: BTreeMap<usize, Pin>,
    pub instances: BTreeMap<usize, Image>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateFacts {
    definition: usize,
    revisions: BTreeMap<Image, RevisionFacts>,
    current: Option<Image>,
    history: Vec<Image>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionFacts {
    keys: BTreeSet<usize>,
    snapshot: Option<usize>,
}

impl Model {
    pub fn facts(&self) -> Facts {
        let pins = self.pins.iter().filter(|(_, pin)| pin.term != Term::Over);
        Facts {
            templates: self.templates.iter().map(|(name, template)| (*name, template.facts())).collect(),
            pins: pins.map(|(name, pin)| (*name, *pin)).collect(),
            instances: self.instances.clone(),
        }
    }
}

impl Template {
    fn facts(&self) -> TemplateFacts {
        let revisions = self.revisions.iter().map(|one| {
            let facts = RevisionFacts { keys: one.keys.clone(), snapshot: one.snapshot };
            (one.image, facts)
        });
        let (current, history) = (self.current, self.history.clone());
        TemplateFacts { definition: self.definition, revisions: revisions.collect(), current, history }
    }
}

impl Facts {
    /// Reads the store at `root` from the bare disk; only what counts of the log, the store says itself.
    pub fn read(root: &Utf8Path, store: &Store) -> Result<Facts, Broken> {
        let world = World::read(root)?;
        let mut facts = Facts::default();
        for (name, found) in world.templates {
            let at =
                TEMPLATES.iter().position(|known| *known == name).ok_or(format!("{name} is no template of ours"))?;
            let history = store.history(&template(at)).map_err(|error| format!("the history of {name}: {error}"))?;
            let history = history.into_iter().map(|entry| image_of(entry.revision.as_str()));
            let mut read = TemplateFacts {
                definition: definition_of(at, &found.spec)?,
                current: found.current.as_deref().map(image_of).transpose()?,
                history: history.collect::<Result<_, _>>()?,
                ..TemplateFacts::default()
            };
            if read.history.last() != read.current.as_ref() {
                return Err(format!("{name}: {:?} is current, and the history is {:?}", read.current, read.history));
            }
            for (id, files) in found.revisions {
                let dir = root.join("templates").join(&name).join("artifacts").join(&id);
                read.revisions.insert(image_of(&id)?, read_revision(&dir, image_of(&id)?, files)?);
            }
            facts.templates.insert(at, read);
        }
        for (name, pin) in world.pins {
            let template = TEMPLATES.iter().position(|known| *known == pin.template).unwrap_or_default();
            let term = if pin.until.is_some() { Term::Long } else { Term::Always };
            facts.pins.insert(number(&name)?, Pin { template, image: image_of(&pin.revision)?, term });
        }
        for (name, files) in world.instances {
            let image = Image::all().find(|image| *image.files() == files);
            facts.instances.insert(number(&name)?, image.ok_or(format!("the instance {name} holds {files:?}"))?);
        }
        Ok(facts)
    }
}

/// Pins that are over, of which it does not matter whether they are there.
pub fn pins_that_are_over(root: &Utf8Path) -> Result<BTreeMap<usize, Pin>, Broken> {
    let mut over = BTreeMap::new();
    for (name, path) in world::list(&root.join(".store/pins"))? {
        let pin = read_json(&path)?;
        if pin["until"].as_str().is_some_and(|until| until.starts_with("2001")) {
            let template = TEMPLATES.iter().position(|known| pin["template"] == **known).unwrap_or_default();
            let image = image_of(pin["revision"].as_str().unwrap_or_default())?;
            over.insert(number(name.trim_end_matches(".json"))?, Pin { template, image, term: Term::Over });
        }
    }
    Ok(over)
}

/// Names of pins and instances are a letter and a number.
fn number(name: &str) -> Result<usize, Broken> {
    name[1..].parse().map_err(|_| format!("{name} is no name of ours"))
}

fn image_of(id: &str) -> Result<Image, Broken> {
    Image::of_id(id).ok_or(format!("nobody published a revision {id}"))
}

fn definition_of(at: usize, found: &str) -> Result<usize, Broken> {
    let found: Value = serde_json::from_str(found).map_err(|error| format!("template.json: {error}"))?;
    if found["vcpus"] != resources(at).vcpus {
        return Err(format!("the machine of {} is another one: {found}", TEMPLATES[at]));
    }
    let is = |definition: &usize| {
        let spec = spec(at, *definition);
        found["flake_ref"] == *spec.flake_ref && found["role"] == *spec.role
    };
    let known = (0..DEFINITIONS).find(is);
    known.ok_or(format!("nobody defined {} so: {found}", TEMPLATES[at]))
}

/// A revision holds its image, and its snapshot what was attached.
fn read_revision(dir: &Utf8Path, image: Image, files: Files) -> Result<RevisionFacts, Broken> {
    let (attached, files): (Files, Files) = files.into_iter().partition(|(path, _)| path.starts_with("snapshot"));
    if files != *image.files() {
        return Err(format!("{dir} holds {files:?}, not {image:?}"));
    }
    let label = |digest: &String| (0..2).find(|label| blake3::hash(&state(*label)).to_hex().as_str() == digest);
    let snapshot = match attached.get(&Utf8PathBuf::from("snapshot/vmstate.bin")) {
        Some(digest) => Some(label(digest).ok_or(format!("nobody attached the snapshot of {dir}"))?),
        None if attached.is_empty() => None,
        None => return Err(format!("{dir} has half a snapshot: {attached:?}")),
    };
    let record = read_json(&dir.join("revision.json"))?;
    let keys = keys_of(&record).map_err(|what| format!("{dir}: {what}"))?;
    Ok(RevisionFacts { keys, snapshot })
}

/// What the store is after a cut: in each part as before the operation that was cut short, or as after it; or as after
/// it in all, if the caller had been told.
pub fn after_cut(old: &Model, new: &Model, found: &Facts, acknowledged: bool) -> Result<Model, Broken> {
    let (before, after) = (old.facts(), new.facts());
    if acknowledged && *found != after {
        return Err(format!("what was acknowledged is lost: there is\n{found:?}\nof\n{after:?}"));
    }
    let part = |what: String, found: &dyn std::fmt::Debug, fits: bool| match fits {
        true => Ok(()),
        false => {
            Err(format!("{what} is {found:?}, neither as before nor as after; before:\n{before:?}\nafter:\n{after:?}"))
        }
    };
    for (at, name) in TEMPLATES.iter().enumerate() {
        let all = [found, &before, &after].map(|facts| facts.templates.get(&at));
        compare_templates(all).or_else(|what| part(format!("{what} of {name}"), &all[0], false))?;
    }
    for name in 0..3 {
        let [now, old, new] = [found, &before, &after].map(|facts| facts.pins.get(&name));
        part(format!("the pin {name}"), &now, now == old || now == new)?;
        let [now, old, new] = [found, &before, &after].map(|facts| facts.instances.get(&name));
        part(format!("the instance {name}"), &now, now == old || now == new)?;
    }
    Ok(resumed(old, new, found))
}

/// Fails with the part that is as it was never meant to be.
fn compare_templates([found, old, new]: [Option<&TemplateFacts>; 3]) -> Result<(), String> {
    let Some(found) = found else {
        return if old.is_none() || new.is_none() { Ok(()) } else { Err("all".to_owned()) };
    };
    let fresh = TemplateFacts { definition: old.or(new).map_or(0, |one| one.definition), ..TemplateFacts::default() };
    let (old, new) = match (old, new) {
        (None, None) => return Err("its being there".to_owned()),
        // What is to be removed goes at once.
        (Some(old), None) => (old, old),
        (old, Some(new)) => (old.unwrap_or(&fresh), new),
    };
    for image in Image::all() {
        let [found, old, new] = [found, old, new].map(|facts| facts.revisions.get(&image));
        if found != old && found != new {
            return Err(format!("the revision {image:?}"));
        }
    }
    match () {
        () if found.definition != old.definition && found.definition != new.definition => Err("the definition".into()),
        () if found.current != old.current && found.current != new.current => Err("current".into()),
        () if found.history != old.history && found.history != new.history => Err("the history".into()),
        () => Ok(()),
    }
}

/// The model of what was found; nobody holds anything any more.
fn resumed(old: &Model, new: &Model, found: &Facts) -> Model {
    let mut model = new.clone();
    (model.held, model.plan, model.building, model.index) = (BTreeMap::new(), None, None, Index::Doubtful);
    model.templates = found
        .templates
        .iter()
        .map(|(name, facts)| {
            let known = [old, new].map(|model| model.templates.get(name));
            (*name, resumed_template(known, facts))
        })
        .collect();
    model.pins.clone_from(&found.pins);
    model.instances.clone_from(&found.instances);
    model
}

fn resumed_template(known: [Option<&Template>; 2], facts: &TemplateFacts) -> Template {
    let known = || known.into_iter().flatten();
    let mut revisions: Vec<Revision> = Vec::new();
    for one in known().flat_map(|template| &template.revisions) {
        if let Some(found) = facts.revisions.get(&one.image) {
            revisions.retain(|earlier| earlier.image != one.image);
            revisions.push(Revision { keys: found.keys.clone(), snapshot: found.snapshot, ..one.clone() });
        }
    }
    revisions.sort_by_key(|revision| revision.serial);
    let stack = known().find(|template| template.history == facts.history).map(|template| template.stack.clone());
    Template {
        definition: facts.definition,
        revisions,
        current: facts.current,
        history: facts.history.clone(),
        stack: stack.unwrap_or_default(),
        latest: BTreeMap::new(),
    }
}
