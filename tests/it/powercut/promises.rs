//! What must hold after a cut.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{Error, Store};

use super::acts::{Act, Place, look_up_all};
use super::states::State;
use super::world::{Broken, Template, World};

/// A directory for trees that live for a moment: in memory where that can be had.
#[derive(Debug)]
pub struct Scratch {
    dir: tempfile::TempDir,
    used: AtomicUsize,
}

impl Scratch {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self { dir: dir.expect("there is a place for temporary files"), used: AtomicUsize::new(0) }
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
        let checked = catch_unwind(AssertUnwindSafe(|| self.check_place(&place, state.acked)));
        clear(&dir).expect("the tree can be removed");
        let checked = checked.unwrap_or_else(|_| Err("the library panicked".to_owned()));
        checked.map_err(|broken| broken.replace(&format!("{dir}/"), ""))
    }

    fn check_place(&self, place: &Place, acked: usize) -> Result<(), Broken> {
        let found = survey(place)?;
        let known = &self.worlds[acked];
        match self.worlds.get(acked + 1) {
            Some(next) => {
                compare(&found, known, next)?;
                self.retry(place, acked, &found)
            }
            None => compare(&found, &self.promised(), known),
        }
    }

    /// The world after all acts, as far as these acts told anybody of it.
    fn promised(&self) -> World {
        let end = &self.worlds[self.acts.len()];
        let Some(ground) = &self.killed_on else { return end.clone() };
        let mut world = World { initialised: end.initialised, templates: ground.templates.clone() };
        for name in self.acts.iter().filter_map(|act| act.template()) {
            if let Some(template) = end.templates.get(name) {
                world.templates.insert(name.to_owned(), template.clone());
            }
        }
        world
    }

    /// The interrupted act and all that were to follow it work, and lead where they would have led.
    fn retry(&self, place: &Place, acked: usize, found: &World) -> Result<(), Broken> {
        for (number, act) in self.acts.iter().enumerate().skip(acked) {
            let interrupted = number == acked;
            if interrupted && act.is_done(found, &self.worlds[number], &self.worlds[number + 1]) {
                continue;
            }
            place.run(*act).map_err(|error| format!("{act:?} fails after the cut: {error}"))?;
        }
        let end = survey(place).map_err(|broken| format!("after the retry: {broken}"))?;
        let expected = &self.worlds[self.acts.len()];
        compare(&end, expected, expected).map_err(|broken| format!("after the retry: {broken}"))
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
    look_up_all(&store)?;
    Ok(world)
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

/// Every part of the store must be as before the interrupted act or as after it.
fn compare(found: &World, old: &World, new: &World) -> Result<(), Broken> {
    if found.initialised != old.initialised && found.initialised != new.initialised {
        return Err("the store that was made is gone".to_owned());
    }
    for name in found.templates.keys().chain(old.templates.keys()) {
        let [found, old, new] = [found, old, new].map(|world| world.templates.get(name));
        match (found, old, new) {
            (None, Some(_), Some(_)) => return Err(format!("the template {name} is gone")),
            (None, ..) => {}
            (Some(_), None, None) => return Err(format!("there is a template {name} that nobody made")),
            (Some(found), Some(old), None) if found == old => {}
            (Some(_), Some(_), None) => return Err(format!("the template {name}, to be removed, is there in part")),
            (Some(found), old, Some(new)) => {
                let fresh = Template { spec: new.spec.clone(), ..Template::default() };
                compare_template(name, found, old.unwrap_or(&fresh), new)?;
            }
        }
    }
    Ok(())
}

fn compare_template(name: &str, found: &Template, old: &Template, new: &Template) -> Result<(), Broken> {
    if found.spec != old.spec && found.spec != new.spec {
        return Err(format!("the definition of {name} is neither the old nor the new"));
    }
    for revision in found.revisions.keys().chain(old.revisions.keys()).chain(new.revisions.keys()) {
        let [found, old, new] = [found, old, new].map(|template| template.revisions.get(revision));
        if found != old && found != new {
            let what = if found.is_none() { "is gone" } else { "does not hold what was published" };
            return Err(format!("{name}@{revision} {what}"));
        }
    }
    if found.current != old.current && found.current != new.current {
        let [found, old, new] = [found, old, new].map(|template| &template.current);
        return Err(format!("`current` of {name} is {found:?}, neither {old:?} nor {new:?}"));
    }
    if found.history != old.history && found.history != new.history {
        let [found, old, new] = [found, old, new].map(|template| &template.history);
        return Err(format!("the history of {name} is {found:?}, neither {old:?} nor {new:?}"));
    }
    Ok(())
}

/// Removes a tree, whatever modes its directories have.
fn clear(dir: &Utf8Path) -> io::Result<()> {
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
