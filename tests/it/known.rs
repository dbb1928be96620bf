//! Large files from elsewhere that are objects already: they are hashed, and not copied.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer, Op, Verdict};
use template_store::{ImportOptions, Published, Removal, Store, StoreOptions};

use crate::support::{Place, assert_clean, assert_right, bytes, flip, id, inode, names, object_of};

/// Remembers what was written, and how much.
#[derive(Debug, Default)]
struct Written(Mutex<u64>);

impl Observer for Written {
    fn before(&self, op: &Op) -> Verdict {
        if let Op::Write { len, .. } = op {
            *self.0.lock().unwrap() += len;
        }
        Verdict::Proceed
    }
}

const LARGE: usize = 3 << 20;

/// A store, and an image with files of several parts.
fn world() -> (Place, Store, Utf8PathBuf) {
    let place = Place::new();
    let (store, dir) = (place.store(), place.join("image"));
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("vmlinux"), bytes("kernel", LARGE)).unwrap();
    fs::write(dir.join("rootfs.ext4"), bytes("rootfs", LARGE + 1000)).unwrap();
    fs::write(dir.join("fc-base.json"), "{}").unwrap();
    (place, store, dir)
}

fn publish(store: &Store, template: &str, dir: &Utf8Path) -> Published {
    store.publish_dir_with(&id(template), dir, &ImportOptions::default(), &mut ()).unwrap()
}

/// Publishes, and says how many bytes were written for it.
fn watched(place: &Place, template: &str, dir: &Utf8Path) -> (Published, u64) {
    let written = Arc::new(Written::default());
    let store = Store::open_with(place.root(), &StoreOptions::default().observer(written.clone())).unwrap();
    let published = publish(&store, template, dir);
    let written = *written.0.lock().unwrap();
    (published, written)
}

#[test]
fn what_is_an_object_is_not_written_again() {
    let (place, store, dir) = world();
    let (first, written) = watched(&place, "web", &dir);
    // On a file system that shares blocks, nothing is written either.
    assert!(written >= 2 * LARGE as u64 || written < 64 << 10, "{written} bytes");
    let (second, written) = watched(&place, "shop", &dir);
    assert!(written < 64 << 10, "{written} bytes");
    assert_eq!(second.shared_bytes, 2 * LARGE as u64 + 1000);
    assert_eq!(inode(second.revision.rootfs()), inode(first.revision.rootfs()));
    assert_eq!(fs::metadata(second.revision.rootfs()).unwrap().nlink(), 3, "two revisions and the object");
    assert_right(&second.revision);
    assert_clean(store.layout());
}

#[test]
fn one_that_only_looks_like_an_object_is_copied() {
    let (_place, store, dir) = world();
    let first = publish(&store, "web", &dir);
    flip(&dir.join("rootfs.ext4"), LARGE as u64 / 4, false);
    let second = publish(&store, "shop", &dir);
    assert_ne!(inode(second.revision.rootfs()), inode(first.revision.rootfs()));
    assert_ne!(second.revision.id(), first.revision.id());
    assert_eq!(inode(second.revision.kernel()), inode(first.revision.kernel()));
    assert_right(&second.revision);
    assert_right(&first.revision);
}

#[test]
fn an_object_that_changed_is_healed_or_not_linked_to() {
    // Where the change shows, in whichever template; unseen, as the same revision is published again.
    for (again, quietly) in [("shop", false), ("web", true)] {
        let (_place, store, dir) = world();
        let first = publish(&store, "web", &dir).revision;
        flip(&object_of(store.layout(), &first.rootfs()), 70_000, quietly);
        let second = publish(&store, again, &dir).revision;
        assert_eq!(second.id(), first.id(), "{again}");
        assert_right(&second);
        assert_right(&first);
    }
}

#[test]
fn where_damage_is_known_nothing_is_linked_to_unread() {
    let (place, store, dir) = world();
    let first = publish(&store, "web", &dir).revision;
    flip(&object_of(store.layout(), &first.rootfs()), 70_000, true);
    place.run(&["verify", "--repair"]).with_code(4);
    assert!(store.layout().damage_mark(&id("web"), first.id()).exists());
    assert_right(&publish(&store, "shop", &dir).revision);
}

#[test]
fn the_samples_follow_the_objects() {
    let (_place, store, dir) = world();
    let revision = publish(&store, "web", &dir).revision;
    assert_eq!(names(store.layout().samples()).len(), 2);
    // Without them, all is copied and shared as before.
    fs::remove_dir_all(store.layout().samples()).unwrap();
    let other = publish(&store, "shop", &dir).revision;
    assert_eq!(inode(other.rootfs()), inode(revision.rootfs()));
    fs::write(dir.join("vmlinux"), bytes("other kernel", LARGE)).unwrap();
    drop(publish(&store, "db", &dir));
    assert_eq!(names(store.layout().samples()).len(), 1);
    drop((revision, other));
    for template in ["web", "shop", "db"] {
        store.remove_template(&id(template), Removal::Forced).unwrap();
    }
    assert_eq!(names(store.layout().samples()), [""; 0]);
    assert_clean(store.layout());
}
