//! Pins: what somebody wants to keep stays, whoever wants it gone, until the pin goes or expires.

use std::thread;

use jiff::{SignedDuration, Timestamp};
use template_store::{ErrorKind, PinOptions, Removal, RevisionId, Store};

use crate::gc::{all, collect, publish, removed};
use crate::support::{Place, assert_error, fresh, fresh_quick, id, listing, until, when_free};

fn two() -> (Place, Store, Vec<RevisionId>) {
    let (place, store) = fresh();
    let ids = publish(&store, "web", &["a", "b"]);
    (place, store, ids)
}

#[test]
fn what_is_pinned_is_neither_removed_nor_collected_until_it_is_unpinned() {
    let (place, store, ids) = two();
    let target = format!("web@{}", ids[0]);
    place.done(&["pin", "release", &target, "--reason", "shipped"]);
    let before = listing(store.layout().root());
    place.done_when_free(&["pins"]);
    for words in [&["rm", &target][..], &["rm", "--force", &target], &["rm", "web"], &["rm", "--force", "web"]] {
        until("nobody uses it", || {
            let ran = place.run(words).with_code(5);
            (!ran.err.contains("in use")).then(|| ran.says(&["pinned as release", "unpin release"]))
        });
    }
    assert_error(store.remove(&id("web"), &ids[0], Removal::Forced), ErrorKind::Refused, &["release"]);
    let (_, report) = collect(&place, &["--keep-last", "0"]);
    assert_eq!(removed(&report), [""; 0]);
    assert_eq!(listing(store.layout().root()), before);

    place.done(&["unpin", "release"]);
    let (_, report) = collect(&place, &["--keep-last", "0"]);
    assert_eq!(removed(&report), [target]);
}

#[test]
fn a_pin_that_has_expired_keeps_nothing() {
    let (_place, store, ids) = two();
    let until = |at: Timestamp| PinOptions::default().until(at);
    store.pin(&id("old"), &id("web"), &ids[0], &until(Timestamp::now() - SignedDuration::from_secs(1))).unwrap();
    assert_eq!(store.pins().unwrap().len(), 1, "it is listed");
    when_free(|| store.remove(&id("web"), &ids[0], Removal::Unused)).unwrap();
}

#[test]
fn pins_are_shown_with_all_that_was_said() {
    let (place, _, ids) = two();
    let target = format!("web@{}", ids[0]);
    place.done(&["pin", "a", &target, "--until", "2126-01-01T00:00:00Z", "--reason", "the reason"]);
    place.done(&["pin", "b", "web"]);
    let shown = place.done(&["pins"]).out;
    for word in ["a", &target, "2126-01-01T00:00:00Z", "the reason", "for ever", ids[1].as_str()] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let json = place.done(&["--json", "pins"]).json();
    assert_eq!((&json[0]["name"], &json[0]["revision"]), (&"a".into(), &ids[0].as_str().into()));
    // The same again with another expiry is a change.
    place.done(&["pin", "a", &target, "--until", "1h"]);
    assert!(!place.done(&["pins"]).out.contains("2126"));
    place.done(&["pin", "a", &target]);
    assert!(place.done(&["--json", "pins"]).json()[0].get("until").is_none());
}

#[test]
fn a_pin_that_would_keep_nothing_or_has_a_name_that_is_taken_is_refused() {
    let (place, store, ids) = two();
    let [old, new] = [&ids[0], &ids[1]].map(|id| format!("web@{id}"));
    place.done(&["pin", "taken", &old]);
    let before = listing(store.layout().root());
    let refusals: [(&[&str], i32, &[&str]); 9] = [
        (&["pin", "a", "web@none"], 3, &["none"]),
        (&["pin", "a", "none@none"], 3, &["no template none"]),
        (&["pin", "a", "none"], 3, &["no template none"]),
        (&["unpin", "a"], 3, &["no pin a", "pins"]),
        (&["pin", "../a", "web"], 2, &[]),
        (&["pin", "", "web"], 2, &[]),
        (&["pin", "a", "web", "--until", "soon"], 2, &["soon"]),
        (&["pin", "a", "web", "--until", "2020-01-01T00:00:00Z"], 2, &["2020", "over"]),
        (&["pin", "taken", &new], 5, &["taken", ids[0].as_str(), "unpin"]),
    ];
    for (words, code, says) in refusals {
        place.run(words).with_code(code).says(says);
        assert_eq!(listing(store.layout().root()), before, "{words:?} changes nothing");
    }
}

#[test]
fn of_a_pin_and_a_collection_at_once_either_the_pin_or_the_collection_wins() {
    for round in 0..40 {
        let (place, store) = fresh_quick();
        let ids = publish(&store, "web", &["a", "b"]);
        let policy = template_store::gc::Policy::default().keep_last(1u32);
        let (pinned, _) = thread::scope(|scope| {
            let pin = scope.spawn(|| store.pin(&id("a"), &id("web"), &ids[0], &PinOptions::default()));
            let other = Store::open(place.root()).unwrap();
            (0..round).for_each(|_| thread::yield_now());
            let collected = other.gc(&policy, &mut ()).unwrap();
            (pin.join().unwrap(), collected)
        });
        let there = all(&store).contains(&format!("web@{}", ids[0]));
        match pinned {
            Ok(_) => assert!(there, "it was pinned, and is gone"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                assert!(!there, "{error}, and it is there");
            }
        }
    }
}
