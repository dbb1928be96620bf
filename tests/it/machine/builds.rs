//! Building, reusing and importing: carried out, and what must come of it.

use std::collections::BTreeSet;
use std::fs;

use template_store::{
    Build, BuildOptions, Error, Import, ImportOptions, Known, Outcome, Published, Result, Revision, Store,
};

use super::carry::{Done, agree, image_of, place_of, unexpected};
use super::images::{Image, fill, inputs, keys_of, resources, spec, template};
use super::model::{Index, Publication, Told};
use super::steps::Publishing;
use super::sut::{Sut, Work};

impl Sut {
    pub fn build(
        &mut self,
        store: &Store,
        asked: (usize, usize, Option<usize>),
        known: Known,
        how: Publishing,
    ) -> Done {
        let (of, key, content) = asked;
        let (may, must) = match known {
            Known::Reuse => self.model.reusable(of, key),
            Known::BuildAgain => Default::default(),
        };
        let publish = self.publish_options(of, how);
        let options = options(of, known).publish(publish.clone());
        let is_building = self.model.is_building(key);
        let draft = match store.build_with(&template(of), &inputs(key), &options, &mut ()) {
            Ok(Build::Reused(revision)) => return self.reused(&revision, (of, key), &may, how),
            Ok(Build::Draft(draft)) => draft,
            // Who only looks into the index is not kept waiting.
            Err(Error::AlreadyBuilding { .. }) if is_building && !(must && self.model.index >= Index::Complete) => {
                return Ok(false);
            }
            Err(error) => {
                let any = *may.first().ok_or(format!("there is nothing to reuse, and it is told {error:?}"))?;
                let expected = self.model.clone().publish(Publication::by(of, key, any), how).map(drop);
                return agree(Err::<(), _>(error), expected).map(|_| false);
            }
        };
        if is_building {
            return Err(format!("a draft is given, while somebody builds {key}"));
        }
        if must {
            return Err(format!("a draft is given, where one of {may:?} was to be reused"));
        }
        let Some(content) = content else {
            return draft.fail("the command exited with 7").map(|()| true).map_err(unexpected);
        };
        fill(draft.path(), content);
        let published = draft.seal().map_err(unexpected)?.publish_with(&publish, &mut ());
        self.published(published, Publication::by(of, key, Image::built(content)), how)
    }

    fn published(&mut self, published: Result<Published>, what: Publication, how: Publishing) -> Done {
        told_of(published, what.image, self.model.publish(what, how))
    }

    fn reused(
        &mut self,
        revision: &Revision,
        (of, key): (usize, usize),
        may: &BTreeSet<Image>,
        how: Publishing,
    ) -> Done {
        let record = serde_json::to_value(revision.record()).expect("it is JSON");
        let (image, keys) = (image_of(revision)?, keys_of(&record)?);
        if place_of(revision) != of || !may.contains(&image) {
            return Err(format!("{revision:?} was reused, where one of {may:?} was to be"));
        }
        let allowed = self.model.keys_of_sources(of, key, image);
        if !keys.contains(&key) || !keys.is_subset(&allowed) {
            return Err(format!("{revision:?} was reused for {key}; it says {keys:?} of those in {allowed:?}"));
        }
        let expected = self.model.reuse(of, key, image, keys, how);
        Ok(agree(Ok(()), expected)?.is_some())
    }

    pub fn begin(&mut self, store: &Store, of: usize, key: usize, content: usize) -> Done {
        if self.work.is_some() {
            return Ok(false);
        }
        let draft = match store.build_with(&template(of), &inputs(key), &options(of, Known::BuildAgain), &mut ()) {
            Ok(Build::Draft(draft)) => draft,
            other => return Err(format!("nobody builds {key}, and who wants to is told {other:?}")),
        };
        fill(draft.path(), content);
        self.note_foreign(draft.path());
        self.model.begin(of, key, content);
        self.work = Some(Work::Draft(Box::new(draft)));
        Ok(true)
    }

    pub fn seal(&mut self) -> Done {
        match self.work.take() {
            Some(Work::Draft(draft)) => {
                self.work = Some(Work::Sealed(Box::new(draft.seal().map_err(unexpected)?)));
                Ok(true)
            }
            other => {
                self.work = other;
                Ok(false)
            }
        }
    }

    pub fn finish(&mut self, how: Publishing) -> Done {
        self.seal()?;
        let (Some(Work::Sealed(sealed)), Some(building)) = (self.work.take(), self.model.building.take()) else {
            return Ok(false);
        };
        let published = sealed.publish_with(&self.publish_options(building.template, how), &mut ());
        self.published(published, building, how)
    }

    pub fn abandon(&mut self) -> Done {
        self.model.building = None;
        match self.work.take() {
            Some(Work::Draft(draft)) => draft.abandon().map(|()| true).map_err(unexpected),
            sealed => Ok(sealed.is_some()),
        }
    }

    pub fn check(&mut self, store: &Store, of: usize, key: usize, content: usize) -> Done {
        let draft = store.rebuild(&template(of), &inputs(key)).map_err(unexpected)?;
        let Some(current) = agree(store.current(&template(of)), self.model.current_of(of).map(drop))? else {
            return draft.abandon().map(|()| false).map_err(unexpected);
        };
        fill(draft.path(), content);
        let differences = draft.compare(&current, &Default::default(), &mut ()).map_err(unexpected)?;
        let is_same = image_of(&current)?.content == content;
        match differences.is_empty() == is_same {
            true => Ok(true),
            false => Err(format!("{content} differs from {current:?} in {differences:?}")),
        }
    }

    pub fn import(
        &mut self,
        store: &Store,
        of: usize,
        content: usize,
        key: Option<usize>,
        moves: bool,
        how: Publishing,
    ) -> Done {
        let dir = self.fresh(moves);
        fs::create_dir(&dir).expect("the place takes directories");
        fill(&dir, content);
        if moves {
            self.note_foreign(&dir);
        }
        let options = ImportOptions::default()
            .how(if moves { Import::Move } else { Import::Copy })
            .inputs(key.map(inputs))
            .new_template(spec(of, 0))
            .publish(self.publish_options(of, how));
        let published = store.publish_dir_with(&template(of), &dir, &options, &mut ());
        let what = Publication { template: of, image: Image::built(content), key, definition: 0 };
        let done = self.published(published, what, how)?;
        match dir.exists() {
            there if there == (moves && done) => Err(format!("{dir} is there: {there}")),
            _ => Ok(done),
        }
    }
}

fn options(of: usize, known: Known) -> BuildOptions {
    BuildOptions::default().known(known).resources(resources(of))
}

/// What was published is told.
fn told_of(published: Result<Published>, image: Image, expected: Told<bool>) -> Done {
    let Some(published) = agree(published, expected.map(drop))? else { return Ok(false) };
    let outcome = if expected == Ok(true) { Outcome::New } else { Outcome::Unchanged };
    match image_of(&published.revision)? == image && published.outcome == outcome {
        true => Ok(true),
        false => Err(format!("{image:?} was published, and it is told {published:?}")),
    }
}
