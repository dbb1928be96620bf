//! A disk that loses something, and who sets it right.

use std::collections::BTreeSet;
use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{Activate, ImportOptions, PublishOptions, Store, VerifyOptions};

use super::collect::Name;
use super::images::{Image, TEMPLATES, template};
use super::model::{Index, Model, Refusal};
use super::steps::{Harm, Pick};
use super::sut::Sut;
use crate::powercut::world::{Broken, list};
use crate::support::{flip, inode};

type Done = Result<bool, Broken>;

/// A file of a revision that is to be damaged, and all that has to do with it.
struct Victim {
    of: usize,
    image: Image,
    path: Utf8PathBuf,
    /// The revisions that have the very inode.
    sharers: BTreeSet<Name>,
    /// Whether the store has the bytes elsewhere.
    has_twin: bool,
}

impl Sut {
    pub fn harm(&mut self, store: &Store, harm: Harm) -> Done {
        match harm {
            Harm::Object(n) => self.lose_an_object(n),
            Harm::Keys => self.lose_the_keys(),
            Harm::Bit { template, pick, file, quietly } => match self.victim(template, pick, file)? {
                Some(victim) => self.heal_a_bit(store, &victim, quietly),
                None => Ok(false),
            },
            Harm::Twin { template, pick } => match self.victim_like(template, pick, |victim| victim.has_twin)? {
                Some(victim) => self.mend_by_a_twin(store, &victim),
                None => Ok(false),
            },
            Harm::Loss { template, pick } => {
                let can_be_lost = |victim: &Victim| !victim.has_twin && self.model.may_lose(&victim.sharers);
                match self.victim_like(template, pick, can_be_lost)? {
                    Some(victim) => self.lose_a_revision(store, &victim),
                    None => Ok(false),
                }
            }
        }
    }

    /// Costs space, and no data.
    fn lose_an_object(&mut self, n: usize) -> Done {
        let mut objects = Vec::new();
        for (_, shard) in list(&self.root().join(".store/objects"))? {
            objects.extend(list(&shard)?.into_iter().map(|(_, path)| path));
        }
        if objects.is_empty() {
            return Ok(false);
        }
        fs::remove_file(&objects[n % objects.len()]).expect("it can be removed");
        self.needs_repair = true;
        self.begin_again();
        Ok(true)
    }

    /// Costs time, and no data.
    fn lose_the_keys(&mut self) -> Done {
        let keys = self.root().join(".store/keys");
        let shards = list(&keys)?;
        for (_, shard) in &shards {
            fs::remove_dir_all(shard).expect("it can be removed");
        }
        self.model.index = Index::Doubtful;
        self.needs_repair = true;
        self.begin_again();
        Ok(!shards.is_empty())
    }

    /// Whoever has the files publishes them again, and a repair gives them to all others that had the same.
    fn heal_a_bit(&mut self, store: &Store, victim: &Victim, quietly: bool) -> Done {
        let saved = self.fresh(false);
        copy_files(&store.layout().revision(&template(victim.of), &victim.image.id()), &saved, victim.image);
        flip(&victim.path, 7, quietly);
        self.begin_again();
        if self.undamaged(store).is_ok() {
            return Err(format!("a verification does not find the damage of {}", victim.path));
        }
        let options = ImportOptions::default().publish(PublishOptions::default().activate(Activate::No));
        let healed = store.publish_dir_with(&template(victim.of), &saved, &options, &mut ());
        let healed = healed.map_err(|error| format!("what was published can't be published again: {error}"))?;
        if Image::of_id(healed.revision.id().as_str()) != Some(victim.image) {
            return Err(format!("{:?} was published again, and is {healed:?}", victim.image));
        }
        fs::remove_dir_all(saved).expect("it can be removed");
        self.needs_repair = true;
        self.repair(store)?;
        self.undamaged(store)?;
        Ok(true)
    }

    /// The store has the bytes elsewhere, and needs nobody.
    fn mend_by_a_twin(&mut self, store: &Store, victim: &Victim) -> Done {
        flip(&victim.path, 7, false);
        self.begin_again();
        self.needs_repair = true;
        self.repair(store)?;
        self.undamaged(store)?;
        Ok(true)
    }

    /// Nobody has the files. The revisions are set aside, and what is current is another one.
    fn lose_a_revision(&mut self, store: &Store, victim: &Victim) -> Done {
        flip(&victim.path, 7, false);
        self.begin_again();
        self.needs_repair = true;
        let repaired = store.repair(&VerifyOptions::default(), &mut ()).map_err(|error| error.to_string())?;
        let told: BTreeSet<_> = repaired.remaining.iter().filter_map(|one| one.revision.clone()).collect();
        if told != victim.sharers.iter().map(|(_, image)| image.id()).collect() {
            return Err(format!("{:?} is lost, and a repair says {:?}", victim.sharers, repaired.remaining));
        }
        self.model.lose(&victim.sharers);
        self.undamaged(store)?;
        self.compare()?;
        Ok(true)
    }

    /// A file of a revision that is as it is asked for.
    fn victim_like(&self, of: usize, pick: Pick, like: impl Fn(&Victim) -> bool) -> Result<Option<Victim>, Broken> {
        for file in 0..4 {
            if let Some(victim) = self.victim(of, pick, file)?.filter(|victim| like(victim)) {
                return Ok(Some(victim));
            }
        }
        Ok(None)
    }

    /// `None` where there is no such revision, or where an instance or a sealed draft may have the file as well.
    fn victim(&self, of: usize, pick: Pick, file: usize) -> Result<Option<Victim>, Broken> {
        let image = self.model.pick(of, pick);
        if self.model.revision(of, image).is_err() || self.work.is_some() {
            return Ok(None);
        }
        let files: Vec<_> = image.files().keys().collect();
        let file = files[file % files.len()];
        let dir = self.root().join("templates").join(TEMPLATES[of]).join("artifacts").join(image.id().as_str());
        let path = dir.join(file);
        let (ino, digest) = (inode(&path), &image.files()[file]);
        let (mut sharers, mut has_twin) = (BTreeSet::new(), false);
        for place in ["store/templates", "store/.store/objects", "vms"] {
            for other in files_below(&self.dir.join(place)) {
                let is_same = inode(&other) == ino;
                let is_twin =
                    !is_same && blake3::hash(&fs::read(&other).expect("it can be read")).to_hex().as_str() == digest;
                if place == "vms" && (is_same || is_twin) {
                    return Ok(None);
                }
                has_twin |= is_twin;
                sharers.extend(is_same.then(|| sharer(&self.dir, &other)).flatten());
            }
        }
        Ok(Some(Victim { of, image, path, sharers, has_twin }))
    }
}

/// The revision that a file is of.
fn sharer(dir: &Utf8Path, path: &Utf8Path) -> Option<Name> {
    let below = path.strip_prefix(dir.join("store/templates")).ok()?;
    let mut parts = below.components().map(|part| part.as_str());
    let of = parts.next()?;
    let at = TEMPLATES.iter().position(|name| *name == of)?;
    Some((at, Image::of_id(parts.nth(1)?)?))
}

fn files_below(dir: &Utf8Path) -> Vec<Utf8PathBuf> {
    let walk = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    let files = walk.filter(|entry| entry.file_type().is_file());
    files.map(|entry| Utf8PathBuf::from_path_buf(entry.into_path()).expect("our names are UTF-8")).collect()
}

fn copy_files(from: &Utf8Path, to: &Utf8Path, image: Image) {
    for path in image.files().keys() {
        let to = to.join(path);
        fs::create_dir_all(to.parent().expect("it is below")).expect("the place takes directories");
        fs::copy(from.join(path), to).expect("it can be copied");
    }
}

impl Model {
    /// Whether revisions can be set aside: nobody needs them, and where one is current, another one can be so.
    fn may_lose(&self, lost: &BTreeSet<Name>) -> bool {
        let is_free = |&(of, image): &Name| !self.is_held(of, image) && !self.is_pinned(of, image);
        let has_successor = |of: &usize| {
            let template = &self.templates[of];
            let is_current = template.current.is_some_and(|image| lost.contains(&(*of, image)));
            !is_current || template.revisions.iter().any(|one| !lost.contains(&(*of, one.image)))
        };
        lost.iter().all(is_free) && self.templates.keys().all(has_successor)
    }

    fn lose(&mut self, lost: &BTreeSet<Name>) {
        for (of, template) in &mut self.templates {
            let gone = |image: &Image| lost.contains(&(*of, *image));
            let current = template.current;
            template.revisions.retain(|one| !gone(&one.image));
            if current.is_some_and(|image| gone(&image)) && template.roll_back() == Err(Refusal::NothingToRollBack) {
                let newest = template.revisions.last().expect("there is another one").image;
                template.activate(newest);
            }
        }
        // Whether a key leads to the last of what is left is not known.
        self.templates.values_mut().for_each(|template| template.latest.clear());
        self.index = self.index.min(Index::Complete);
    }
}
