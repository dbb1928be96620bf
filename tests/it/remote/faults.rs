//! Every request of a push and of a pull fails in every way: the remote is as it was, or as it was to be.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use template_store::{Error, ErrorKind, RemoteError, RevisionId, Store};

use super::faulty::{FAULTS, Fault, Faulty};
use super::{assert_sound, current, host, in_memory, publish, publish_of, pull, push};
use crate::proof;
use crate::support::{Place, assert_clean, assert_error, assert_right, id};

/// How large the images are: what comes in one part, and what comes in several and takes longer; and of how many cases
/// one is tried when not all are.
const SIZES: [(usize, usize); 2] = [(100 << 10, 2), (5 << 20, 8)];

/// A remote with a first revision, and a store with a second.
fn prepared(place: &Place, a: &Store, size: usize) -> (Arc<InMemory>, [RevisionId; 2]) {
    let memory = Arc::new(InMemory::new());
    let first = publish_of(place, a, "first", size);
    push(a, &in_memory(memory.clone()), &first).unwrap();
    let second = publish_of(place, a, "second", size);
    (memory, [first.id().clone(), second.id().clone()])
}

#[test]
fn a_push_that_is_cut_anywhere_leaves_the_old_or_the_new() {
    SIZES.into_iter().for_each(|(size, sparse)| cut_pushes(size, sparse));
}

fn cut_pushes(size: usize, sparse: usize) {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let (memory, [first, second]) = prepared(&place, &a, size);
    let fork = |memory: &InMemory| Arc::new(memory.fork());
    let second_revision = a.revision(&id("web"), &second).unwrap();

    let counting = Faulty::counting(fork(&memory));
    push(&a, &in_memory(counting.clone()), &second_revision).unwrap();
    let requests = counting.requests();
    assert!(requests > 10, "{requests}");
    let (mut failed, mut done) = (0, 0);
    for (number, fault) in FAULTS.into_iter().enumerate() {
        for request in (0..requests).filter(|request| proof::chosen(number + request, sparse)) {
            let copy = fork(&memory);
            let ended = push(&a, &in_memory(Faulty::at(copy.clone(), fault, request)), &second_revision);
            match &ended {
                Ok(_) => done += 1,
                Err(_) => failed += 1,
            }
            let remote = in_memory(copy.clone());
            let now = current(&remote).unwrap();
            let what = format!("{fault:?} at request {request} of {requests}: {ended:?}");
            assert!(now == second || ended.is_err() && now == first, "{what}");
            assert_sound(&remote);
            // Whoever comes then finds all of it, and the next attempt ends it.
            let b = host(&place, "b");
            assert_right(&pull(&b, &remote, None).unwrap().revision);
            std::fs::remove_dir_all(b.layout().root()).unwrap();
            push(&a, &remote, &second_revision).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(current(&remote), Some(second.clone()), "{what}");
        }
    }
    println!("{size}: {failed} pushes failed, {done} did not, and left the old or the new");
    assert!(failed > requests / sparse && done > 0 || !proof::quick(), "{failed} failed, {done} did not");
}

#[test]
fn a_pull_that_is_cut_anywhere_leaves_nothing_that_is_seen() {
    SIZES.into_iter().for_each(|(size, sparse)| cut_pulls(size, sparse));
}

fn cut_pulls(size: usize, sparse: usize) {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let (memory, [_, second]) = prepared(&place, &a, size);
    push(&a, &in_memory(memory.clone()), &a.revision(&id("web"), &second).unwrap()).unwrap();

    let counting = Faulty::counting(memory.clone());
    pull(&host(&place, "whole"), &in_memory(counting.clone()), None).unwrap();
    let mut failed = 0;
    for (number, fault) in FAULTS.into_iter().enumerate() {
        for request in (0..counting.requests()).filter(|request| proof::chosen(number + request, sparse)) {
            let b = host(&place, "b");
            let ended = pull(&b, &in_memory(Faulty::at(memory.clone(), fault, request)), None);
            let what = format!("{fault:?} at request {request}: {ended:?}");
            match ended {
                Ok(pulled) => assert_right(&pulled.revision),
                Err(_) => {
                    failed += 1;
                    assert!(b.templates().unwrap().is_empty(), "{what}");
                    let pulled = pull(&b, &in_memory(memory.clone()), None).unwrap();
                    assert_right(&pulled.revision);
                }
            }
            b.gc(&template_store::gc::Policy::default(), &mut ()).unwrap();
            assert_clean(b.layout());
            std::fs::remove_dir_all(b.layout().root()).unwrap();
        }
    }
    println!("{size}: of {} requests, {failed} failed their pull", counting.requests());
    assert!(failed > 5 / sparse || !proof::quick(), "{failed}");
}

#[test]
fn what_came_whole_need_not_come_again() {
    let place = Place::new();
    let (a, b) = (host(&place, "a"), host(&place, "b"));
    let memory = Arc::new(InMemory::new());
    push(&a, &in_memory(memory.clone()), &publish(&place, &a, "one")).unwrap();
    let counting = Faulty::counting(memory.clone());
    pull(&host(&place, "whole"), &in_memory(counting.clone()), None).unwrap();
    // The large file comes first; then the server goes.
    let last = counting.requests() - 1;
    pull(&b, &in_memory(Faulty::at(memory.clone(), Fault::Down, last)), None).unwrap_err();
    let pulled = pull(&b, &in_memory(memory), None).unwrap();
    assert!(pulled.files_known > 0 && pulled.bytes_fetched < 1 << 20, "{pulled:?}");
    assert_right(&pulled.revision);
}

#[test]
fn a_server_without_conditions_is_found_out() {
    let place = Place::new();
    let a = host(&place, "a");
    let revision = publish(&place, &a, "one");
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    assert_eq!(in_memory(memory.clone()).check().unwrap().problem, None);
    let remote = in_memory(Faulty::without_conditions(memory));
    let problem = remote.check().unwrap().problem.unwrap();
    assert!(problem.contains("only if it is missing"), "{problem}");
    let refused = push(&a, &remote, &revision);
    assert!(matches!(refused, Err(Error::Remote(RemoteError::Unconditional { .. }))));
    assert_error(refused, ErrorKind::Refused, &["--single-writer"]);
    assert!(remote.templates().unwrap().is_empty());
}
