//! Removing: nothing that is current or in use goes unasked, and what goes gives its blocks back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use camino::Utf8PathBuf;
use template_store::{Build, ErrorKind, Removal, Revision, RevisionId, Store, TemplateSpec};

use crate::gc::build_again;
use crate::support::{
    Place, assert_clean, assert_error, assert_right, build, draft, fresh, fresh_quick, id, image, inputs, listing,
    names, object_of, reused, script, template, when_free,
};

fn remove(store: &Store, revision: &RevisionId, how: Removal) -> template_store::Result<()> {
    store.remove(&template("web"), revision, how).map(drop)
}

/// The objects of a revision's large files.
fn objects(store: &Store, revision: &Revision) -> Vec<Utf8PathBuf> {
    [revision.kernel(), revision.rootfs()].map(|file| object_of(store.layout(), &file)).into()
}

/// Publishes two revisions, lets go of both, and gives the first, which is not current.
fn two(store: &Store) -> (RevisionId, RevisionId) {
    let ids = ["a", "b"].map(|label| build(store, "web", &inputs(label), label).id().clone());
    ids.into()
}

#[test]
fn what_nobody_uses_is_removed_with_its_objects() {
    let (_place, store) = fresh();
    let (old, new) = two(&store);
    let gone = objects(&store, &store.revision(&id("web"), &old).unwrap());
    let kept = objects(&store, &store.revision(&id("web"), &new).unwrap());
    when_free(|| remove(&store, &old, Removal::Unused)).unwrap();
    assert_eq!(store.revisions(&id("web")).unwrap(), std::slice::from_ref(&new));
    assert!(gone.iter().all(|object| !object.exists()), "nobody else has these bytes");
    assert!(kept.iter().all(|object| object.exists()));
    assert_right(&store.current(&id("web")).unwrap());
    assert_clean(store.layout());
    assert_error(remove(&store, &old, Removal::Unused), ErrorKind::NotFound, &["web", old.as_str()]);
    assert!(matches!(store.build(&id("web"), &inputs("a")).unwrap(), Build::Draft(_)), "it is not reused any more");
}

#[test]
fn an_object_goes_with_the_last_revision_that_has_it() {
    let (_place, store) = fresh();
    let (old, _) = two(&store);
    let shared = objects(&store, &store.revision(&id("web"), &old).unwrap());
    let other = reused(&store, "db", &inputs("a"));
    when_free(|| remove(&store, &old, Removal::Unused)).unwrap();
    assert!(shared.iter().all(|object| object.exists()), "another template has these bytes");
    assert_right(&other);
    drop(other);
    when_free(|| store.remove_template(&id("db"), Removal::Unused)).unwrap();
    assert!(shared.iter().all(|object| !object.exists()), "nobody has them any more");
    assert_clean(store.layout());
}

#[test]
fn what_is_current_stays() {
    let (_place, store) = fresh();
    let (old, new) = two(&store);
    let before = listing(store.layout().root());
    let refused = when_free(|| remove(&store, &new, Removal::Unused));
    assert_error(refused, ErrorKind::Refused, &["web", new.as_str(), "is current"]);
    assert_eq!(listing(store.layout().root()), before);

    remove(&store, &new, Removal::Forced).unwrap();
    assert_eq!(store.current(&id("web")).unwrap().id(), &old, "the earlier one is current again");
    assert_right(&store.current(&id("web")).unwrap());
    assert_clean(store.layout());
}

#[test]
fn the_only_revision_is_current_whatever_is_forced() {
    let (_place, store) = fresh();
    let only = build(&store, "web", &inputs("a"), "a").id().clone();
    let before = listing(store.layout().root());
    assert_error(remove(&store, &only, Removal::Forced), ErrorKind::Refused, &["is current", "whole template"]);
    assert_eq!(listing(store.layout().root()), before, "current always resolves");
}

#[test]
fn what_is_in_use_stays_until_it_is_let_go() {
    let (place, store) = fresh();
    let (old, _) = two(&store);
    let lease = store.revision(&id("web"), &old).unwrap();
    let second = lease.clone();
    let before = listing(store.layout().root());
    let refused = || {
        assert_error(remove(&store, &old, Removal::Unused), ErrorKind::Refused, &["web", old.as_str(), "in use"]);
        let target = format!("web@{old}");
        place.run(&["rm", &target]).with_code(5).says(&["in use"]);
        assert_error(store.remove_template(&id("web"), Removal::Unused), ErrorKind::Refused, &["in use"]);
        assert_eq!(listing(store.layout().root()), before);
    };
    refused();
    drop(lease);
    refused();
    assert_right(&second);
    drop(second);
    when_free(|| remove(&store, &old, Removal::Unused)).unwrap();
}

#[test]
fn what_is_in_use_goes_when_it_is_forced() {
    let (_place, store) = fresh();
    let (old, _) = two(&store);
    let lease = store.revision(&id("web"), &old).unwrap();
    let open = fs::File::open(lease.rootfs()).unwrap();
    remove(&store, &old, Removal::Forced).unwrap();
    assert!(!lease.path().exists());
    assert_clean(store.layout());
    let read = std::io::read_to_string(std::io::Read::take(open, 0));
    assert!(read.is_ok(), "who had it open still reads it");

    // A handle to what is gone is no lease on what comes after it.
    let again = build(&store, "web", &inputs("a"), "a");
    assert_eq!(again.id(), lease.id());
    store.rollback(&id("web")).unwrap();
    drop(again);
    when_free(|| remove(&store, &old, Removal::Unused)).unwrap();

    let lease = store.current(&id("web")).unwrap();
    store.remove_template(&id("web"), Removal::Forced).unwrap();
    assert!(!lease.path().exists() && store.templates().unwrap().is_empty());
}

#[test]
fn every_way_to_get_a_revision_is_a_lease() {
    let (place, store) = fresh();
    let (old, new) = two(&store);
    let other = place.store();
    let web = template("web");
    type Way<'a> = (&'a str, Box<dyn Fn() -> Revision + 'a>);
    let ways: Vec<Way> = vec![
        ("revision", Box::new(|| store.revision(&web, &old).unwrap())),
        ("lookup", Box::new(|| store.lookup(None, &inputs("a")).unwrap().unwrap())),
        ("build", Box::new(|| reused(&store, "web", &inputs("a")))),
        ("activate", Box::new(|| store.activate(&web, &old, Default::default()).unwrap())),
        ("rollback", Box::new(|| store.rollback(&web).unwrap())),
        ("publish", Box::new(|| store.publish_dir(&web, place.image("files", "a")).unwrap())),
    ];
    for (name, way) in ways {
        let lease = way();
        store.activate(&web, &new, Default::default()).unwrap();
        if name == "rollback" {
            store.activate(&web, &old, Default::default()).unwrap();
            store.activate(&web, &new, Default::default()).unwrap();
        }
        assert_eq!(lease.id(), &old, "{name}");
        assert_error(other.remove(&web, &old, Removal::Unused), ErrorKind::Refused, &["in use"]);
    }
    when_free(|| other.remove(&web, &old, Removal::Unused)).unwrap();
}

#[test]
fn a_template_goes_with_all_its_revisions() {
    let (_place, store) = fresh();
    let (old, new) = two(&store);
    let kept = build(&store, "db", &inputs("c"), "c");
    let gone: Vec<_> =
        [&old, &new].iter().flat_map(|id| objects(&store, &store.revision(&template("web"), id).unwrap())).collect();
    when_free(|| store.remove_template(&id("web"), Removal::Unused)).unwrap();
    assert_eq!(store.templates().unwrap(), [id("db")]);
    assert!(gone.iter().all(|object| !object.exists()));
    assert_right(&kept);
    assert_clean(store.layout());
    for result in [
        store.remove_template(&id("web"), Removal::Unused).map(drop),
        store.remove_template(&id("web"), Removal::Forced).map(drop),
        store.current(&id("web")).map(|_| ()),
    ] {
        assert_error(result, ErrorKind::NotFound, &["no template web"]);
    }
    assert_right(&build(&store, "web", &inputs("a"), "a"));
}

#[test]
fn a_template_without_revisions_or_with_damaged_ones_can_be_removed() {
    let (place, store) = fresh();
    let (old, new) = two(&store);
    for revision in [&old, &new] {
        fs::write(store.layout().revision_json(&id("web"), revision), "{").unwrap();
    }
    place.done_when_free(&["rm", &format!("web@{old}")]);
    fs::write(store.layout().template_json(&id("web")), "{").unwrap();
    place.done_when_free(&["rm", "web"]);
    place.done(&["create", "empty", "--role", "worker"]);
    place.done(&["rm", "empty"]);
    assert!(store.templates().unwrap().is_empty());
    assert_eq!(names(store.layout().trash()), [""; 0]);
}

#[test]
fn directories_that_cannot_be_written_are_removed() {
    let (_place, store) = fresh();
    let old = draft(&store, "web", &inputs("a"));
    fs::create_dir_all(old.path().join("lib/deep")).unwrap();
    fs::write(old.path().join("lib/deep/file"), "x").unwrap();
    image(old.path(), "a");
    let old = old.seal().unwrap().publish().unwrap();
    build(&store, "web", &inputs("b"), "b");
    for dir in ["lib/deep", "lib", ""] {
        fs::set_permissions(old.path().join(dir), fs::Permissions::from_mode(0o555)).unwrap();
    }
    let revision = old.id().clone();
    drop(old);
    when_free(|| remove(&store, &revision, Removal::Unused)).unwrap();
    assert_clean(store.layout());
}

#[test]
fn a_removal_beside_builds_and_reuses_breaks_none_of_them() {
    let (_place, store) = fresh_quick();
    build(&store, "web", &inputs("b"), "b");
    let web = template("web");
    let rounds = 30;
    // It may be refused: the other thread links to its files just now, or it is current again.
    let may_be_refused = |result: template_store::Result<()>| {
        result.unwrap_or_else(|error| assert_eq!(error.kind(), ErrorKind::Refused, "{error}"));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                // The source may go at any moment: it is a miss then, and built again.
                assert_right(&build_or_reuse(&store, "db", "a"));
                if round % 2 == 1 {
                    may_be_refused(store.remove_template(&template("db"), Removal::Unused).map(drop));
                }
            }
        });
        for _ in 0..rounds {
            let revision = build_or_reuse(&store, "web", "a").id().clone();
            let other = store.lookup(Some(&web), &inputs("b")).unwrap().unwrap().id().clone();
            store.activate(&web, &other, Default::default()).unwrap();
            may_be_refused(remove(&store, &revision, Removal::Unused));
        }
    });
    assert_clean(store.layout());
    assert_right(&store.current(&web).unwrap());
}

fn build_or_reuse(store: &Store, name: &str, label: &str) -> Revision {
    match store.build(&template(name), &inputs(label)).unwrap() {
        Build::Reused(revision) => revision,
        Build::Draft(draft) => {
            image(draft.path(), label);
            draft.seal().unwrap().publish().unwrap()
        }
    }
}

#[test]
fn the_program_says_what_it_removed() {
    let place = Place::new();
    place.build("web", "a", &[], &script("a")).with_code(0);
    place.build("web", "b", &[], &script("b")).with_code(0);
    let current = place.store().current_id(&id("web")).unwrap().unwrap();
    let refused = place.run(&["rm", &format!("web@{current}")]).with_code(5);
    refused.says(&["is current", "activate another"]);
    let removed = place.done(&["--json", "rm", "--force", &format!("web@{current}")]).json();
    assert_eq!(removed["removed"], format!("web@{current}"));
    assert_eq!(place.done(&["rm", "web"]).out, "removed web\n");
    place.run(&["rm", "web"]).with_code(3).says(&["no template web"]);
}

#[test]
fn a_key_leads_to_the_revision_that_stays() {
    let (_place, store) = fresh_quick();
    let older = build(&store, "web", &inputs("k"), "older").id().clone();
    let newer = build_again(&store, "web", "k", "newer");
    drop(store.activate(&id("web"), &older, template_store::Expect::Any).unwrap());
    when_free(|| store.remove(&id("web"), &newer, Removal::Unused)).unwrap();
    let found = store.lookup(None, &inputs("k")).unwrap().expect("one of the two is there");
    assert_eq!(found.id(), &older);
}

#[test]
fn a_template_that_is_removed_and_made_again_is_never_taken_for_damaged() {
    let (_place, store) = fresh_quick();
    let spec = TemplateSpec::new(&id("web"), ".", &id("minimal"), &id("worker"), "2026-01-01T00:00:00Z");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3000 {
                store.create(&spec).unwrap();
                store.remove_template(&template("web"), Removal::Unused).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            match store.template(&template("web")) {
                Ok(found) => assert_eq!(found, spec),
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
            }
        }
    });
}
