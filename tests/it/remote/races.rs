//! Many who push at once.

use std::collections::HashSet;
use std::sync::Arc;

use template_store::{Error, Move, PushOptions, RemoteError, RevisionId, Store};

use super::{Kind, assert_sound, current, host, publish, pull, with_each};
use crate::proof;
use crate::support::{Place, id};

const PUSHERS: usize = 8;

/// Of all who push what they have in place of `was`, those who did.
fn winners(kind: &Kind, stores: &[Store], was: &Move) -> Vec<RevisionId> {
    let push = |store: &Store| {
        let options = PushOptions::default().moves(was.clone());
        match store.push(&kind.open(), &id("web"), None, &options, &mut ()) {
            Ok(pushed) => Some(pushed.revision),
            Err(Error::Remote(RemoteError::Moved { .. })) => None,
            Err(error) => panic!("{error}"),
        }
    };
    std::thread::scope(|scope| {
        let pushing: Vec<_> = stores.iter().map(|store| scope.spawn(|| push(store))).collect();
        pushing.into_iter().filter_map(|pushing| pushing.join().unwrap()).collect()
    })
}

fn race(place: &Place, kind: &Kind, rounds: usize) {
    let stores: Vec<Store> = (0..PUSHERS).map(|number| host(place, &format!("host-{number}"))).collect();
    let mut won = Vec::new();
    for round in 0..rounds {
        for (number, store) in stores.iter().enumerate() {
            small(place, store, &format!("round {round}, host {number}"));
        }
        let was = won.last().map_or(Move::FromAbsent, |last: &RevisionId| Move::From(last.clone()));
        let now = winners(kind, &stores, &was);
        assert_eq!(now.len(), 1, "round {round}: {now:?}");
        won.extend(now);
    }
    let remote = kind.open();
    assert_eq!(current(&remote).as_ref(), won.last());
    let template = remote.templates().unwrap().remove(0);
    let history: Vec<_> = template.history.into_iter().map(|(revision, _)| revision).collect();
    assert_eq!(history, won, "no activation is lost");
    assert_sound(&remote);
}

fn small(place: &Place, store: &Store, label: &str) {
    store.publish_dir(&id("web"), place.image("image", label)).unwrap();
}

#[test]
fn of_many_who_push_at_once_one_wins() {
    race(&Place::in_memory(), &Kind::Memory(Arc::default()), 50);
    // A server takes longer for each.
    let rounds = proof::scaled(3, 50);
    with_each(&Place::in_memory(), |place, kind| race(place, kind, rounds));
}

/// Without a word of what is expected: who does not have what is current there does not push over it.
#[test]
fn the_same_holds_for_those_who_expect_nothing() {
    with_each(&Place::in_memory(), |place, kind| {
        let stores: Vec<Store> = (0..PUSHERS).map(|number| host(place, &format!("host-{number}"))).collect();
        stores.iter().enumerate().for_each(|(number, store)| small(place, store, &format!("host {number}")));
        let won = winners(kind, &stores, &Move::Forward);
        assert_eq!(won.len(), 1, "{won:?}");
        stores.iter().for_each(|store| drop(pull(store, &kind.open(), None).unwrap()));
        assert_eq!(current(&kind.open()).as_ref(), won.first());
    });
}

#[test]
fn two_templates_do_not_disturb_each_other() {
    with_each(&Place::in_memory(), |place, kind| {
        let store = host(place, "a");
        let revision = publish(place, &store, "one");
        let names: Vec<String> = (0..PUSHERS).map(|number| format!("t{number}")).collect();
        for name in &names {
            store.publish_dir(&id(name), place.image("image", name)).unwrap();
        }
        std::thread::scope(|scope| {
            for name in &names {
                let store = &store;
                scope.spawn(move || {
                    store.push(&kind.open(), &id(name), None, &PushOptions::default(), &mut ()).unwrap();
                });
            }
        });
        drop(revision);
        let found: HashSet<String> =
            kind.open().templates().unwrap().into_iter().map(|one| one.template.to_string()).collect();
        assert_eq!(found, names.into_iter().collect());
        assert_sound(&kind.open());
    });
}
