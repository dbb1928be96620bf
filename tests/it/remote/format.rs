//! Remotes of other programs.

use serde_json::json;
use template_store::{BuildInputs, ErrorKind, Match, PublishOptions, Remote};

use super::held::{Held, POINTER, sealed};
use super::{host, in_memory, pull, push};
use crate::support::{Place, assert_error, id, inputs};

const FORMAT: &str = "images/format.json";

/// Everybody refuses the remote, and says why.
#[track_caller]
fn all_refuse(place: &Place, held: &Held, kind: ErrorKind, words: &[&str]) {
    let open = || -> Remote { in_memory(held.memory.clone()) };
    let (a, b) = (host(place, "a"), host(place, "b"));
    let inputs: BuildInputs = inputs("lock");
    assert_error(pull(&b, &open(), None), kind, words);
    assert_error(push(&a, &open(), &a.current(&id("web")).unwrap()), kind, words);
    let options = PublishOptions::default();
    assert_error(b.lookup_remote(&open(), None, &inputs, Match::Sources, &options, &mut ()), kind, words);
    assert_error(open().knows(&inputs), kind, words);
    assert_error(open().templates(), kind, words);
    assert_error(open().check(), kind, words);
    assert_error(open().verify(false, &mut ()), kind, words);
    assert!(b.templates().unwrap().is_empty());
}

#[test]
fn a_remote_of_a_newer_program_is_refused_by_all() {
    let place = Place::new();
    let held = Held::pushed(&place);
    held.put(FORMAT, br#"{"version":2,"features":["changed-blocks"],"what":"x"}"#.to_vec());
    all_refuse(&place, &held, ErrorKind::Failed, &["format.json", "version 2", "up to 1"]);
    held.put(FORMAT, br#"{"version":1,"features":["changed-blocks","\u001b[2Jx"],"what":"x"}"#.to_vec());
    all_refuse(&place, &held, ErrorKind::Failed, &["format.json", "it uses changed-blocks, \\u{1b}[2Jx"]);
    let long = json!({ "version": 1, "features": ["y".repeat(1 << 20)], "what": "x" });
    held.put(FORMAT, long.to_string().into_bytes());
    let error = pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap_err().to_string();
    assert!(error.contains("yyy…") && error.len() < 2000, "{} characters", error.len());
    held.put(FORMAT, br#"{"version":0,"what":"x"}"#.to_vec());
    all_refuse(&place, &held, ErrorKind::Damaged, &["format.json", "version 0"]);
}

#[test]
fn who_sends_all_again_mends_what_says_what_a_remote_is() {
    let place = Place::new();
    let held = Held::pushed(&place);
    held.put(FORMAT, b"garbage".to_vec());
    all_refuse(&place, &held, ErrorKind::Damaged, &["format.json"]);
    super::pointers::resend(&host(&place, "a"), &in_memory(held.memory.clone())).unwrap();
    pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap();
}

#[test]
fn a_pointer_of_a_newer_program_is_not_held_for_damaged() {
    let place = Place::new();
    let held = Held::pushed(&place);
    let mut pointer = held.pointer();
    pointer["version"] = 3.into();
    pointer["revisions"] = "x".into();
    for bytes in [pointer.to_string().into_bytes(), sealed(&pointer)] {
        held.put(POINTER, bytes);
        let a = host(&place, "a");
        let again = super::pointers::resend(&a, &in_memory(held.memory.clone()));
        assert_error(again, ErrorKind::Failed, &["version 3", "up to 1"]);
    }
}
