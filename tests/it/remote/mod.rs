//! Remotes: what one host pushes, others have.

mod cache;
mod faults;
mod faulty;
mod format;
mod held;
mod hostile;
mod http;
mod kills;
mod limits;
mod mvm;
mod pointers;
mod races;
mod refusals;
mod secrets;
mod server;
mod sharing;
mod snapshots;
mod wire;
mod wires;

use std::fs;
use std::sync::Arc;

use camino::Utf8PathBuf;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use template_store::{
    PullOptions, Pulled, PushOptions, Pushed, Remote, RemoteSettings, Result, Revision, RevisionId, Store,
};

use crate::support::{Place, bytes, id};

/// Object stores of every kind that there is here; each is empty.
pub enum Kind {
    Memory(Arc<InMemory>),
    Directory(Utf8PathBuf),
    Server(server::Bucket),
}

impl Kind {
    /// A remote as another host would open it.
    pub fn open(&self) -> Remote {
        match self {
            Kind::Memory(memory) => in_memory(memory.clone()),
            Kind::Directory(dir) => Remote::open(&RemoteSettings::at(dir.as_str())).unwrap(),
            Kind::Server(bucket) => bucket.remote(),
        }
    }
}

/// Does the same with every kind.
pub fn with_each(place: &Place, test: impl Fn(&Place, &Kind)) {
    let dir = place.join("hub");
    fs::create_dir(&dir).unwrap();
    let mut kinds = vec![Kind::Memory(Arc::default()), Kind::Directory(dir)];
    kinds.extend(server::bucket().map(Kind::Server));
    for kind in &kinds {
        let place = Place::in_memory();
        test(&place, kind);
    }
}

pub fn in_memory(objects: Arc<dyn ObjectStore>) -> Remote {
    Remote::of("memory", objects, "images").unwrap()
}

/// A store of another host.
pub fn host(place: &Place, name: &str) -> Store {
    Store::open_or_init(place.join(name)).unwrap()
}

/// Publishes an image of 9 MiB and more, with a hole, a kernel that many have, and a directory. It takes several parts.
pub fn publish(place: &Place, store: &Store, label: &str) -> Revision {
    publish_of(place, store, label, 5 << 20)
}

/// The same, of so many bytes before its hole and nearly as many behind it; the hole is four times as large.
pub fn publish_of(place: &Place, store: &Store, label: &str, bytes_before: usize) -> Revision {
    let dir = place.join(&format!("image-{label}"));
    fs::create_dir_all(dir.join("extra/deep")).unwrap();
    fs::write(dir.join("vmlinux"), bytes("one kernel for all", 300_000)).unwrap();
    let mut rootfs = bytes(&format!("{label}: start"), bytes_before);
    rootfs.extend(vec![0; bytes_before * 4]);
    rootfs.extend(bytes(&format!("{label}: end"), bytes_before / 5 * 4 + 17));
    fs::write(dir.join("rootfs.ext4"), rootfs).unwrap();
    fs::write(dir.join("fc-base.json"), format!("{{\"label\":\"{label}\"}}")).unwrap();
    fs::write(dir.join("extra/deep/empty"), "").unwrap();
    let revision = store.publish_dir(&id("web"), &dir).unwrap();
    fs::remove_dir_all(dir).unwrap();
    revision
}

pub fn push(store: &Store, remote: &Remote, revision: &Revision) -> Result<Pushed> {
    store.push(remote, revision.template(), Some(revision.id()), &PushOptions::default(), &mut ())
}

pub fn pull(store: &Store, remote: &Remote, revision: Option<&RevisionId>) -> Result<Pulled> {
    store.pull(remote, &id("web"), revision, &PullOptions::default(), &mut ())
}

/// What is current at a remote in the template that the tests use.
pub fn current(remote: &Remote) -> Option<RevisionId> {
    remote.templates().unwrap().into_iter().find(|one| one.template == id("web"))?.current
}

/// All that pointers lead to is there, with its bytes.
#[track_caller]
pub fn assert_sound(remote: &Remote) {
    assert_eq!(remote.verify(true, &mut ()).unwrap().findings, []);
}
