//! Another host's builds, and the remote from which they are pulled. Nothing of it is in the model.

use std::sync::{Arc, LazyLock};

use camino::Utf8Path;
use object_store::memory::InMemory;
use template_store::{Durability, Error, PullOptions, PushOptions, Remote, Store, StoreOptions};

use super::builds::{BUILD_NAMES, fill, id, inputs, revision, sealing, spec};

/// A remote that has every build in these templates.
const TEMPLATES: [&str; 2] = ["web", "shop"];

static REMOTE: LazyLock<Arc<InMemory>> = LazyLock::new(|| {
    let objects = Arc::new(InMemory::new());
    fill_remote(&objects).expect("another host pushes");
    objects
});

fn remote(objects: &Arc<InMemory>) -> Result<Remote, Error> {
    Remote::of("memory", objects.clone(), "images")
}

fn fill_remote(objects: &Arc<InMemory>) -> Result<(), Error> {
    let dir = tempfile::tempdir().expect("a directory");
    let root = Utf8Path::from_path(dir.path()).expect("its path is text").join("store");
    let store = Store::init(&root, &StoreOptions::default().durability(Durability::None))?;
    let remote = remote(objects)?;
    for template in TEMPLATES {
        store.create(&spec(template))?;
        for build in BUILD_NAMES {
            let draft = store.rebuild(&id(template), &inputs(build))?;
            fill(draft.path(), build);
            draft.seal_with(&sealing(build), &mut ())?.publish()?;
            store.push(&remote, &id(template), Some(&revision(build)), &PushOptions::default(), &mut ())?;
        }
    }
    Ok(())
}

/// Pulls a build into a template, and makes it current.
pub fn pull(store: &Store, template: &str, build: &str) -> Result<(), Error> {
    let remote = remote(&REMOTE)?;
    store.pull(&remote, &id(template), Some(&revision(build)), &PullOptions::default(), &mut ()).map(drop)
}
