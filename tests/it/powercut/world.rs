//! What a store holds, read from the bare disk: the checks don't ask the store whether it is right.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::Value;

use super::instances;
use super::snapshots;

/// A promise that does not hold, in words.
pub type Broken = String;

/// A store, as far as the promises go: no times, no leftovers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    pub initialised: bool,
    pub templates: BTreeMap<String, Template>,
    /// Those that keep something.
    pub pins: BTreeMap<String, Pin>,
    /// The digests of their files.
    pub instances: BTreeMap<String, Files>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub template: String,
    pub revision: String,
    pub until: Option<Timestamp>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    /// What `template.json` defines.
    pub spec: String,
    pub revisions: BTreeMap<String, Files>,
    pub current: Option<String>,
    /// Who became current, the oldest first; filled in from the store.
    pub history: Vec<String>,
}

/// The digest of each file of a revision.
pub type Files = BTreeMap<Utf8PathBuf, String>;

impl World {
    /// Reads the store at `root`.
    ///
    /// Fails when something that has a valid name is not whole.
    pub fn read(root: &Utf8Path) -> Result<Self, Broken> {
        let format = root.join(".store/format.json");
        let mut world = Self { initialised: format.exists(), ..Self::default() };
        if world.initialised {
            read_json(&format)?;
        }
        let mut digests = Digests::default();
        for (id, dir) in list(&root.join("templates"))? {
            world.templates.insert(id, read_template(&dir, &mut digests)?);
        }
        for (shard, dir) in list(&root.join(".store/objects"))? {
            for (rest, object) in list(&dir)? {
                let found = digests.of(&object)?;
                if found != format!("{shard}{rest}") {
                    return Err(format!("the object {shard}{rest} holds the bytes of {found}"));
                }
            }
        }
        world.instances = instances::read(root, &mut digests)?;
        world.pins = read_pins(&root.join(".store/pins"))?;
        match world.pins.iter().find(|(_, pin)| !world.has(&pin.template, &pin.revision)) {
            Some((name, pin)) => Err(format!("the pin {name} is there, and {}@{} is gone", pin.template, pin.revision)),
            None => Ok(world),
        }
    }

    pub fn has(&self, template: &str, revision: &str) -> bool {
        self.templates.get(template).is_some_and(|template| template.revisions.contains_key(revision))
    }
}

/// Digests of files; hard links are read once.
#[derive(Default)]
pub struct Digests(BTreeMap<u64, String>);

impl Digests {
    pub fn of(&mut self, path: &Utf8Path) -> Result<String, Broken> {
        let meta = path.symlink_metadata().map_err(|error| format!("{path}: {error}"))?;
        if !meta.is_file() {
            return Err(format!("{path} is no file"));
        }
        if let Some(digest) = self.0.get(&meta.ino()) {
            return Ok(digest.clone());
        }
        let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        let digest = blake3::hash(&bytes).to_hex().to_string();
        self.0.insert(meta.ino(), digest.clone());
        Ok(digest)
    }
}

/// The names in a directory, with their paths; none when it does not exist.
pub fn list(dir: &Utf8Path) -> Result<Vec<(String, Utf8PathBuf)>, Broken> {
    let bad = |error: std::io::Error| format!("{dir}: {error}");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for entry in dir.read_dir_utf8().map_err(bad)? {
        let entry = entry.map_err(bad)?;
        all.push((entry.file_name().to_owned(), entry.path().to_owned()));
    }
    all.sort();
    Ok(all)
}

pub fn read_json(path: &Utf8Path) -> Result<Value, Broken> {
    let bytes = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{path} is not whole: {error}"))
}

fn read_pins(dir: &Utf8Path) -> Result<BTreeMap<String, Pin>, Broken> {
    let mut pins = BTreeMap::new();
    for (name, path) in list(dir)? {
        let pin = read_json(&path)?;
        let text = |field: &str| pin[field].as_str().unwrap_or_default().to_owned();
        let until: Option<Timestamp> =
            pin["until"].as_str().map(str::parse).transpose().map_err(|error| format!("{path}: {error}"))?;
        if until.is_none_or(|until| until > Timestamp::now()) {
            let pin = Pin { template: text("template"), revision: text("revision"), until };
            pins.insert(name.trim_end_matches(".json").to_owned(), pin);
        }
    }
    Ok(pins)
}

fn read_template(dir: &Utf8Path, digests: &mut Digests) -> Result<Template, Broken> {
    let mut spec = read_json(&dir.join("template.json"))?;
    for time in ["created_at", "updated_at"] {
        spec[time] = Value::Null;
    }
    let mut template = Template { spec: spec.to_string(), ..Template::default() };
    for (id, revision) in list(&dir.join("artifacts"))? {
        template.revisions.insert(id, read_revision(&revision, digests)?);
    }
    template.current = read_current(dir)?;
    Ok(template)
}

/// The revision that `current` names; it must be there, by mvm's way and by the file system's.
fn read_current(dir: &Utf8Path) -> Result<Option<String>, Broken> {
    let link = dir.join("current");
    if link.symlink_metadata().is_err() {
        return Ok(None);
    }
    let text = link.read_link_utf8().map_err(|error| format!("{link}: {error}"))?;
    let id = text.strip_prefix("revisions").map_err(|_| format!("{link} holds {text:?}"))?;
    if !link.join("revision.json").is_file() {
        return Err(format!("`current` is {text}, which does not resolve"));
    }
    if !dir.join("artifacts").join(id).is_dir() {
        return Err(format!("`current` is {text}, which is no revision"));
    }
    Ok(Some(id.to_string()))
}

/// A revision that is visible must be whole, and hold what its `revision.json` says.
fn read_revision(dir: &Utf8Path, digests: &mut Digests) -> Result<Files, Broken> {
    let record = read_json(&dir.join("revision.json"))?;
    let mut listed = Files::new();
    for content in record["contents"].as_array().into_iter().flatten() {
        let text = |field: &str| content[field].as_str().unwrap_or_default().to_owned();
        listed.insert(text("path").into(), text("blake3"));
    }
    listed.extend(snapshots::listed(dir)?);
    let mut found = Files::new();
    collect(dir, Utf8Path::new(""), digests, &mut found)?;
    for document in ["revision.json", "snapshot/snapshot.json"] {
        found.remove(Utf8Path::new(document));
    }
    for (path, digest) in &listed {
        match found.get(path) {
            None => return Err(format!("{dir} is visible and lacks {path}")),
            Some(real) if real != digest => return Err(format!("{dir}/{path} is not what was published")),
            Some(_) => {}
        }
    }
    match found.keys().find(|path| !listed.contains_key(*path)) {
        Some(extra) => Err(format!("{dir} has {extra}, which was not published")),
        None => Ok(found),
    }
}

fn collect(root: &Utf8Path, at: &Utf8Path, digests: &mut Digests, found: &mut Files) -> Result<(), Broken> {
    for (name, path) in list(&root.join(at))? {
        let below = at.join(&name);
        if path.is_dir() {
            collect(root, &below, digests, found)?;
            continue;
        }
        let digest = digests.of(&path)?;
        let meta = path.metadata().map_err(|error| format!("{path}: {error}"))?;
        let document = ["revision.json", "snapshot.json"].contains(&&*name);
        if !document && (meta.mode() & 0o7777 != 0o444 || meta.mtime() != 1) {
            return Err(format!("{path} is visible and not sealed: mode {:o}, time {}", meta.mode(), meta.mtime()));
        }
        found.insert(below, digest);
    }
    Ok(())
}
