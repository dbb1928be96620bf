//! What must hold after a cut.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::{Error, ErrorKind, Store};

use super::acts::{Act, Place, collect, look_up_all};
use super::instances;
use super::litter;
use super::snapshots;
use super::states::State;
use super::world::{Broken, Template, World};

/// A directory for trees that live for a moment: in memory where that can be had, unless `PROOF_ON_DISK` is set.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    used: AtomicUsize,
}

impl Scratch {
    pub fn new() -> Self {
        // Whoever kills a test can tell from the name what it leaves in memory.
        let mut named = tempfile::Builder::new();
        let prefix = format!("template-store-test.{}.", std::process::id());
        let named = named.prefix(&prefix);
        let in_memory = match std::env::var_os("PROOF_ON_DISK") {
            None => named.tempdir_in("/dev/shm").ok(),
            Some(_) => None,
        };
        let dir = in_memory.unwrap_or_else(|| named.tempdir().expect("there is a place for temporary files"));
        Self { dir, used: AtomicUsize::new(0) }
    }

    /// A new, empty directory.
    pub fn fresh(&self) -> Utf8PathBuf {
        let number = self.used.fetch_add(1, Ordering::Relaxed);
        let path = Utf8Path::from_path(self.dir.path()).expect("UTF-8").join(number.to_string());
        fs::create_dir(&path).expect("the temporary directory takes names");
        path
    }
}

/// What was done, and what the store held after each act; the first is from before them all.
#[derive(Debug)]
pub struct Story {
    pub acts: Vec<Act>,
    pub worlds: Vec<World>,
    /// What was there before a process that was killed half-way: nobody was told of what it did.
    pub killed_on: Option<World>,
}

impl Story {
    /// Makes a state real, opens it, and says which promise is broken.
    pub fn check(&self, state: &State, scratch: &Scratch) -> Result<(), Broken> {
        let dir = scratch.fresh();
        state.materialize(dir.as_std_path()).expect("the tree can be made");
        let place = Place::new(&dir);
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_place(&place, state)));
        clear(&dir).expect("the tree can be removed");
        let checked = checked.unwrap_or_else(|_| Err("the library panicked".to_owned()));
        checked.map_err(|broken| broken.replace(&format!("{dir}/"), ""))
    }

    fn check_place(&self, place: &Place, state: &State) -> Result<(), Broken> {
        let acked = state.acked;
        let mut found = survey(place)?;
        let known = &self.worlds[acked];
        match self.worlds.get(acked + 1) {
            Some(next) => compare(&found, &[known, next])?,
            None => compare(&found, &[&self.promised(), known])?,
        }
        // Who attached a snapshot was told that mvm finds it as well.
        if self.is_settled(acked) {
            snapshots::fields_agree(&place.root())?;
        }
        // A collection takes time: some states have one before they go on, some after, and most have none.
        let turn = state.hash % 4;
        if turn == 0 {
            let everything = Policy::default().keep_last(u32::MAX);
            found = after_collection(place, found, &everything)?;
        }
        if acked < self.acts.len() {
            found = self.retry(place, acked, &found)?;
        }
        if turn == 1 || self.killed_on.is_some() {
            after_collection(place, found, &Policy::default().keep_last(1_u32))?;
        }
        Ok(())
    }

    /// Whether no attachment is under way, and none was killed half-way.
    fn is_settled(&self, acked: usize) -> bool {
        let attaches = |act: Option<&Act>| matches!(act, Some(Act::Attach(..)));
        !attaches(self.acts.get(acked)) && (self.killed_on.is_none() || attaches(self.acts.last()) && acked > 0)
    }

    /// The world after all acts, as far as these acts told anybody of it.
    fn promised(&self) -> World {
        let end = &self.worlds[self.acts.len()];
        let Some(ground) = &self.killed_on else { return end.clone() };
        let mut world = World { initialised: end.initialised, ..ground.clone() };
        for act in &self.acts {
            match act {
                Act::Gc => world.templates.retain(|name, _| end.templates.contains_key(name)),
                Act::Pin(name, template, build, _) => {
                    world.pins.insert((*name).to_owned(), end.pins[*name].clone());
                    let pinned = end.templates[*template].revisions[*build].clone();
                    world
                        .templates
                        .entry((*template).to_owned())
                        .or_default()
                        .revisions
                        .insert((*build).to_owned(), pinned);
                }
                Act::Unpin(name) => drop(world.pins.remove(*name)),
                Act::Instance(..) | Act::RemoveInstance(_) => world.instances.clone_from(&end.instances),
                _ => {}
            }
        }
        let concerned = |name: &str| self.acts.iter().any(|act| act.template() == Some(name));
        for (name, template) in &end.templates {
            let before = ground.templates.get(name);
            let lost =
                before.is_some_and(|before| before.revisions.keys().any(|id| !template.revisions.contains_key(id)));
            if concerned(name) || lost {
                world.templates.insert(name.clone(), template.clone());
            }
        }
        world.templates.retain(|name, _| !concerned(name) || end.templates.contains_key(name));
        world
    }

    /// The interrupted act and all that were to follow it work, and lead where they would have led.
    fn retry(&self, place: &Place, acked: usize, found: &World) -> Result<World, Broken> {
        for (number, act) in self.acts.iter().enumerate().skip(acked) {
            let interrupted = number == acked;
            if interrupted && act.is_done(found, &self.worlds[number], &self.worlds[number + 1]) {
                continue;
            }
            match place.run(*act) {
                // The cut took what a killed process had made, and nobody was told of.
                Err(error) if self.killed_on.is_some() && error.kind() == ErrorKind::NotFound => return survey(place),
                done => done.map_err(|error| format!("{act:?} fails after the cut: {error}"))?,
            }
        }
        let end = survey(place).map_err(|broken| format!("after the retry: {broken}"))?;
        if self.acts[acked..].iter().any(|act| matches!(act, Act::Instance(..))) && end != *found {
            instances::nothing_is_beside(&place.root())?;
        }
        if self.is_settled(self.acts.len()) {
            snapshots::fields_agree(&place.root()).map_err(|broken| format!("after the retry: {broken}"))?;
        }
        let expected = &self.worlds[self.acts.len()];
        // What a killed process did may have gone with the cut.
        let least = self.promised();
        compare(&end, &[&least, expected]).map_err(|broken| format!("after the retry: {broken}"))?;
        Ok(end)
    }
}

/// Collects, and gives what is there then: nothing has changed but that revisions are gone, and leftovers.
pub fn after_collection(place: &Place, before: World, policy: &Policy) -> Result<World, Broken> {
    if !before.initialised {
        return Ok(before);
    }
    let store = place.open().map_err(|error| format!("the store does not open: {error}"))?;
    collect(&store, policy).map_err(|error| format!("a collection fails after the cut: {error}"))?;
    litter::none_is_left(&place.root())?;
    let after = survey(place).map_err(|broken| format!("after a collection: {broken}"))?;
    let mut expected = before;
    for (name, template) in &mut expected.templates {
        let stays = |id: &String| policy.keep_last > 1 || after.has(name, id);
        template.revisions.retain(|id, _| stays(id));
    }
    match after == expected {
        true => Ok(after),
        false => Err(format!("a collection makes {after:?} of {expected:?}")),
    }
}

/// What a store holds, when all that it says of itself agrees.
pub fn survey(place: &Place) -> Result<World, Broken> {
    let mut world = World::read(&place.root())?;
    if !world.initialised {
        return match place.open() {
            Err(Error::NoStore { .. }) => Ok(world),
            other => Err(format!("a directory that is no store opens as {other:?}")),
        };
    }
    let store = place.open().map_err(|error| format!("the store does not open: {error}"))?;
    for (name, template) in &mut world.templates {
        ask(&store, name, template)?;
    }
    let listed = store.templates().map_err(|error| error.to_string())?;
    if !listed.iter().map(|id| id.as_str()).eq(world.templates.keys().map(String::as_str)) {
        return Err(format!("the store lists {listed:?}"));
    }
    look_up_all(&store, &world)?;
    let pins = store.pins().map_err(|error| error.to_string())?;
    match world.pins.keys().find(|name| !pins.iter().any(|pin| pin.name() == name.as_str())) {
        Some(name) => Err(format!("the store does not know the pin {name}")),
        None => Ok(world),
    }
}

/// The store's own view of a template must be what is on the disk.
fn ask(store: &Store, name: &str, template: &mut Template) -> Result<(), Broken> {
    let fails = |error: Error| format!("the store can't read {name}: {error}");
    let id = name.parse().map_err(|_| format!("{name} is no valid id, and visible"))?;
    store.template(&id).map_err(fails)?;
    let current = store.current_id(&id).map_err(fails)?.map(|revision| revision.to_string());
    if current != template.current {
        return Err(format!("the store says that {current:?} is current in {name}, not {:?}", template.current));
    }
    if current.is_some() {
        store.current(&id).map_err(fails)?;
    }
    let history = store.history(&id).map_err(fails)?;
    template.history = history.into_iter().map(|entry| entry.revision.to_string()).collect();
    if template.history.last() != template.current.as_ref() {
        return Err(format!(
            "the history of {name} ends with {:?}, but {current:?} is current",
            template.history.last()
        ));
    }
    Ok(())
}

/// Every part of the store must be as one of these worlds has it; the first is the oldest.
pub fn compare(found: &World, worlds: &[&World]) -> Result<(), Broken> {
    if !worlds.iter().any(|world| world.initialised == found.initialised) {
        return Err("the store that was made is gone".to_owned());
    }
    for name in names(found, worlds, |world| &world.templates) {
        let known: Vec<_> = worlds.iter().map(|world| world.templates.get(name)).collect();
        match found.templates.get(name) {
            None if known.contains(&None) => {}
            None => return Err(format!("the template {name} is gone")),
            Some(found) => compare_template(name, found, &known)?,
        }
    }
    for name in names(found, worlds, |world| &world.pins) {
        let found = found.pins.get(name);
        if !worlds.iter().any(|world| world.pins.get(name) == found) {
            let known: Vec<_> = worlds.iter().map(|world| world.pins.get(name)).collect();
            return Err(format!("the pin {name} is {found:?}, and none of {known:?}"));
        }
    }
    for name in names(found, worlds, |world| &world.instances) {
        let found = found.instances.get(name);
        if !worlds.iter().any(|world| world.instances.get(name) == found) {
            let what = if found.is_none() { "is gone" } else { "does not hold what it did" };
            return Err(format!("the instance {name} {what}"));
        }
    }
    Ok(())
}

/// The names that one of the worlds has.
fn names<'w, T: 'w>(
    found: &'w World,
    worlds: &[&'w World],
    of: fn(&World) -> &BTreeMap<String, T>,
) -> BTreeSet<&'w String> {
    worlds.iter().copied().chain([found]).flat_map(|world| of(world).keys()).collect()
}

/// A template that is being made may be there without anything in it.
fn compare_template(name: &str, found: &Template, known: &[Option<&Template>]) -> Result<(), Broken> {
    let mut known_whole: Vec<&Template> = known.iter().copied().flatten().collect();
    let Some(any) = known_whole.first() else {
        return Err(format!("there is a template {name} that nobody made"));
    };
    let fresh = Template { spec: any.spec.clone(), ..Template::default() };
    let made_later = known.iter().skip_while(|known| known.is_some()).any(|known| known.is_some());
    if made_later {
        known_whole.push(&fresh);
    }
    let is_known = |same: &dyn Fn(&Template) -> bool| known_whole.iter().any(|known| same(known));
    if !is_known(&|known| known.spec == found.spec) {
        return Err(format!("the definition of {name} is neither the old nor the new"));
    }
    let revisions = known_whole.iter().copied().chain([found]).flat_map(|template| template.revisions.keys());
    for revision in revisions.collect::<BTreeSet<_>>() {
        let found = found.revisions.get(revision);
        if !is_known(&|known| known.revisions.get(revision) == found) {
            let what = if found.is_none() { "is gone" } else { "does not hold what was published" };
            return Err(format!("{name}@{revision} {what}"));
        }
    }
    if !is_known(&|known| known.current == found.current) {
        let known: Vec<_> = known_whole.iter().map(|known| &known.current).collect();
        return Err(format!("`current` of {name} is {:?}, and none of {known:?}", found.current));
    }
    if !is_known(&|known| known.history == found.history) {
        let known: Vec<_> = known_whole.iter().map(|known| &known.history).collect();
        return Err(format!("the history of {name} is {:?}, and none of {known:?}", found.history));
    }
    Ok(())
}

/// Removes a tree, whatever modes its directories have.
pub fn clear(dir: &Utf8Path) -> io::Result<()> {
    fs::remove_dir_all(dir).or_else(|_| {
        use std::os::unix::fs::PermissionsExt as _;
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            for entry in dir.read_dir_utf8()? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    dirs.push(entry.path().to_owned());
                }
            }
        }
        fs::remove_dir_all(dir)
    })
}
