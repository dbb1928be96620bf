//! A real server behind a bad wire: the remote is as it was, or as it was to be, and so is the store.
//!
//! A sample has every sixteenth request, and [`proof`] says which others. Each fault befalls another one of them.

use std::sync::Arc;

use template_store::{Remote, Revision, Store};

use super::server::{self, Bucket};
use super::wire::{FAULTS, Fault, When, Wire};
use super::{assert_sound, current, host, publish, publish_of, pull, push};
use crate::proof;
use crate::support::{Place, assert_clean, assert_right};

const SMALL: usize = 300_000;

/// The faults and the requests of so many that they befall: some once, some from then on, which no retry helps against.
fn injections(requests: usize) -> impl Iterator<Item = (Fault, When)> {
    FAULTS.into_iter().enumerate().flat_map(move |(number, fault)| {
        let mine = move |at: &usize| proof::chosen(at + number, 16);
        let once = (0..requests).filter(mine).map(When::Once);
        // To find out that nobody answers takes as long as one waits.
        let rarely = if fault == Fault::Silent { 4 } else { 2 };
        let lasting = (0..requests).filter(mine).step_by(rarely).map(When::From);
        once.chain(lasting).map(move |when| (fault, when))
    })
}

/// An empty place at the server with the first of two revisions.
fn prepared(a: &Store, first: &Revision) -> Option<Bucket> {
    let bucket = server::bucket()?;
    push(a, &bucket.remote(), first).unwrap();
    Some(bucket)
}

fn through(bucket: &Bucket, wire: &Arc<Wire>) -> Remote {
    bucket.remote_by(wire.port)
}

#[test]
fn a_push_over_a_bad_wire_leaves_the_old_or_the_new() {
    push_over_bad_wires(SMALL, 1);
}

#[test]
fn a_push_of_many_parts_over_a_bad_wire_leaves_the_old_or_the_new() {
    push_over_bad_wires(5 << 20, 5);
}

/// Only some of the injections are tried with large files: the server keeps them all.
fn push_over_bad_wires(bytes: usize, some: usize) {
    let place = Place::new();
    let a = host(&place, "a");
    let [first, second] =
        [("first", SMALL), ("second", bytes)].map(|(label, bytes)| publish_of(&place, &a, label, bytes));
    let Some(bucket) = prepared(&a, &first) else { return };
    let counting = Wire::to(bucket.port());
    push(&a, &through(&bucket, &counting), &second).unwrap();
    let (mut failed, mut done) = (0, 0);
    for (fault, when) in injections(counting.requests()).step_by(some) {
        let bucket = prepared(&a, &first).unwrap();
        let wire = Wire::with(bucket.port(), fault, when);
        let ended = push(&a, &through(&bucket, &wire), &second);
        *(if ended.is_ok() { &mut done } else { &mut failed }) += 1;
        let what = format!("{fault:?}, {when:?} of {}: {ended:?}", counting.requests());
        let remote = bucket.remote();
        let now = current(&remote).unwrap();
        assert!(now == *second.id() || ended.is_err() && now == *first.id(), "{what}");
        assert_sound(&remote);
        push(&a, &remote, &second).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(current(&remote).as_ref(), Some(second.id()), "{what}");
    }
    println!("{failed} pushes failed, {done} did not, and left the old or the new");
    assert!(failed > 0 && done > 0);
}

#[test]
fn a_pull_over_a_bad_wire_leaves_nothing_or_all() {
    let place = Place::new();
    let a = host(&place, "a");
    let Some(bucket) = prepared(&a, &publish(&place, &a, "first")) else { return };
    let counting = Wire::to(bucket.port());
    pull(&host(&place, "whole"), &through(&bucket, &counting), None).unwrap();
    let (mut failed, mut done) = (0, 0);
    for (fault, when) in injections(counting.requests()) {
        let b = host(&place, "b");
        let wire = Wire::with(bucket.port(), fault, when);
        let ended = pull(&b, &through(&bucket, &wire), None);
        *(if ended.is_ok() { &mut done } else { &mut failed }) += 1;
        match ended {
            Ok(pulled) => assert_right(&pulled.revision),
            Err(error) => {
                assert!(b.templates().unwrap().is_empty(), "{fault:?}, {when:?}: {error}");
                assert_right(&pull(&b, &bucket.remote(), None).unwrap().revision);
            }
        }
        b.gc(&template_store::gc::Policy::default(), &mut ()).unwrap();
        assert_clean(b.layout());
        std::fs::remove_dir_all(b.layout().root()).unwrap();
    }
    println!("{failed} pulls failed, {done} did not, and left nothing or all");
    assert!(failed > 0 && done > 0);
}

/// What a busy server refuses once is asked for again, and nobody notices.
#[test]
fn what_passes_is_waited_for() {
    let place = Place::new();
    let a = host(&place, "a");
    let [first, second] = ["first", "second"].map(|label| publish_of(&place, &a, label, SMALL));
    for fault in [Fault::Broken, Fault::SlowDown] {
        for request in [0, 3, 7] {
            let Some(bucket) = prepared(&a, &first) else { return };
            let wire = Wire::with(bucket.port(), fault, When::Once(request));
            push(&a, &through(&bucket, &wire), &second).unwrap_or_else(|error| panic!("{fault:?} {request}: {error}"));
        }
    }
}

/// The server is told what it is to get: what comes otherwise it refuses, and it is sent again.
#[test]
fn what_is_flipped_on_the_way_up_is_sent_again() {
    let place = Place::new();
    let a = host(&place, "a");
    let [first, second] =
        [("first", SMALL), ("second", 5 << 20)].map(|(label, len)| publish_of(&place, &a, label, len));
    let Some(bucket) = prepared(&a, &first) else { return };
    let counting = Wire::to(bucket.port());
    push(&a, &through(&bucket, &counting), &second).unwrap();
    for request in 0..counting.requests() {
        let bucket = prepared(&a, &first).unwrap();
        let wire = Wire::with(bucket.port(), Fault::FlippedSent, When::Once(request));
        push(&a, &through(&bucket, &wire), &second).unwrap_or_else(|error| panic!("request {request}: {error}"));
        let remote = bucket.remote();
        assert_sound(&remote);
        assert_eq!(remote.templates().unwrap()[0].revisions.len(), 2, "request {request}");
    }
}

#[test]
fn only_what_is_new_goes_over_the_wire() {
    let place = Place::new();
    let (a, b) = (host(&place, "a"), host(&place, "b"));
    let [first, second] = ["first", "second"].map(|label| publish(&place, &a, label));
    let Some(bucket) = prepared(&a, &first) else { return };
    pull(&b, &bucket.remote(), None).unwrap();
    // 9 MiB of the second root file system are no hole, and can't be compressed.
    let new = (9 << 20) - 100..(9 << 20) + (100 << 10);
    let wire = Wire::to(bucket.port());
    push(&a, &through(&bucket, &wire), &second).unwrap();
    assert!(new.contains(&wire.bytes().0), "{} bytes were sent", wire.bytes().0);
    let wire = Wire::to(bucket.port());
    assert_right(&pull(&b, &through(&bucket, &wire), None).unwrap().revision);
    assert!(new.contains(&wire.bytes().1), "{} bytes came", wire.bytes().1);
    // And again: nothing.
    let wire = Wire::to(bucket.port());
    push(&a, &through(&bucket, &wire), &second).unwrap();
    pull(&b, &through(&bucket, &wire), None).unwrap();
    let (sent, came) = wire.bytes();
    assert!(sent + came < 50 << 10, "{sent} bytes were sent and {came} came");
}

/// A list may be older than what is at the server. Nothing that is changed or fetched depends on one.
#[test]
fn old_lists_hide_what_is_new_and_nothing_else() {
    let place = Place::new();
    let (a, b) = (host(&place, "a"), host(&place, "b"));
    let [first, second] = ["first", "second"].map(|label| publish(&place, &a, label));
    let Some(bucket) = server::bucket() else { return };
    let wire = Wire::with_stale_lists(bucket.port());
    let remote = through(&bucket, &wire);
    assert_eq!(remote.templates().unwrap().len(), 0);
    push(&a, &remote, &first).unwrap();
    assert_eq!(remote.templates().unwrap().len(), 0, "the list is old");
    push(&a, &remote, &second).unwrap();
    assert_right(&pull(&b, &remote, None).unwrap().revision);
    assert_right(&pull(&b, &remote, Some(first.id())).unwrap().revision);
    assert_sound(&remote);
    assert_eq!(current(&bucket.remote()).as_ref(), Some(second.id()));
    assert_sound(&bucket.remote());
}
