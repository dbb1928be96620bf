//! Pointers that are damaged, on the way or where they lie, and writes of them whose answer is lost.

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use template_store::{
    BuildInputs, Error, ErrorKind, PublishOptions, PushOptions, Pushed, Remote, RemoteError, Result, SendFiles, Store,
};

use super::faulty::{Fault, Faulty, Writes};
use super::held::{Held, POINTER, sealed};
use super::{assert_sound, current, host, in_memory, publish, pull, push};
use crate::support::{Place, assert_error, assert_right, draft, id, inputs, script};

pub fn resend(store: &Store, remote: &Remote) -> Result<Pushed> {
    store.push(remote, &id("web"), None, &PushOptions::default().files(SendFiles::All), &mut ())
}

#[test]
fn a_pointer_that_was_changed_is_found_out() {
    let place = Place::in_memory();
    let held = Held::pushed(&place);
    let good = held.get(POINTER).to_vec();
    let text = String::from_utf8(good.clone()).unwrap();
    let digest = text.find("\"manifest\"").unwrap() + 15;
    for at in [digest, text.find("\"write\"").unwrap() + 12, text.find("pushed_at").unwrap() + 14, text.len() - 10] {
        let mut bad = good.clone();
        bad[at] = if bad[at] == b'1' { b'2' } else { b'1' };
        held.put(POINTER, bad);
        held.refused(&place, ErrorKind::Damaged, &["templates/web.json", "its check"]);
    }
    let mut unchecked = held_json(&good);
    unchecked.as_object_mut().unwrap().remove("check");
    held.put(POINTER, unchecked.to_string().into_bytes());
    held.refused(&place, ErrorKind::Damaged, &["does not end with a check"]);
    held.put(POINTER, sealed(&unchecked));
    pull(&host(&place, "b"), &in_memory(held.memory.clone()), None).unwrap();
}

fn held_json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

/// A read that was flipped is made again: so nothing of it is believed, or written back.
#[test]
fn what_is_flipped_on_the_way_is_read_again() {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let memory = Arc::new(InMemory::new());
    push(&a, &in_memory(memory.clone()), &publish(&place, &a, "first")).unwrap();
    let second = publish(&place, &a, "second");
    let counting = Faulty::counting(Arc::new(memory.fork()));
    push(&a, &in_memory(counting.clone()), &second).unwrap();
    let mut failed = 0;
    for request in 0..counting.requests() {
        let copy = Arc::new(memory.fork());
        // A write whose answer is lost is no business of this test, if it has no condition.
        failed +=
            usize::from(push(&a, &in_memory(Faulty::at(copy.clone(), Fault::Flipped, request)), &second).is_err());
        push(&a, &in_memory(copy.clone()), &second).unwrap();
        let remote = in_memory(copy);
        assert_sound(&remote);
        assert_eq!(remote.templates().unwrap()[0].revisions.len(), 2, "request {request}");
    }
    assert!(failed <= 6, "{failed}");
    for request in 0..4 {
        let b = host(&place, &format!("b{request}"));
        assert_right(
            &pull(&b, &in_memory(Faulty::at(memory.clone(), Fault::Flipped, request)), None).unwrap().revision,
        );
    }
}

#[test]
fn a_write_with_a_condition_survives_a_connection_that_is_reset() {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let revision = publish(&place, &a, "one");
    for done in [false, true] {
        for times in 1..4 {
            let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let reset = ("connection reset by peer", times, done);
            push(&a, &in_memory(Faulty::saying(memory.clone(), Writes::WithConditions, reset)), &revision).unwrap();
            let remote = in_memory(memory.clone());
            assert_eq!(current(&remote).as_ref(), Some(revision.id()));
            assert_sound(&remote);
            let found = in_memory(Faulty::saying(memory, Writes::WithConditions, reset)).check().unwrap();
            assert_eq!(found.problem, None);
        }
    }
}

#[test]
fn what_a_server_got_changed_is_sent_again() {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let revision = publish(&place, &a, "one");
    let refusal = "Server returned non-2xx status code: 400 Bad Request: <Error><Code>BadDigest</Code></Error>";
    for times in 1..3 {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let remote = in_memory(Faulty::saying(memory.clone(), Writes::All, (refusal, times, false)));
        push(&a, &remote, &revision).unwrap();
        assert_sound(&in_memory(memory));
    }
    let always = in_memory(Faulty::saying(Arc::new(InMemory::new()), Writes::All, (refusal, usize::MAX, false)));
    assert_error(push(&a, &always, &revision), ErrorKind::Failed, &["BadDigest"]);
}

#[test]
fn a_server_that_refuses_conditions_is_found_out() {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let revision = publish(&place, &a, "one");
    for refusal in [
        "Server returned non-2xx status code: 501 Not Implemented: <Error><Code>NotImplemented</Code></Error>",
        "Server returned non-2xx status code: 400 Bad Request: <Error><Code>InvalidArgument</Code></Error>",
    ] {
        let remote =
            in_memory(Faulty::saying(Arc::new(InMemory::new()), Writes::WithConditions, (refusal, 1000, false)));
        let problem = remote.check().unwrap().problem.unwrap();
        assert!(problem.contains("it knows no conditions"), "{problem}");
        let refused = push(&a, &remote, &revision);
        assert!(matches!(refused, Err(Error::Remote(RemoteError::Unconditional { .. }))), "{refused:?}");
        assert_error(refused, ErrorKind::Refused, &["--single-writer"]);
        // A server that takes nothing at all says nothing of conditions.
        let remote = in_memory(Faulty::saying(Arc::new(InMemory::new()), Writes::All, (refusal, 1000, false)));
        assert_error(remote.check(), ErrorKind::Failed, &["cannot write"]);
        assert_error(push(&a, &remote, &revision), ErrorKind::Failed, &["cannot write"]);
    }
}

#[test]
fn a_damaged_pointer_hides_no_other_and_can_be_mended() {
    let place = Place::in_memory();
    let a = host(&place, "a");
    let hub = place.join("hub");
    std::fs::create_dir(&hub).unwrap();
    a.publish_dir(&id("other"), place.image("image", "other")).unwrap();
    publish(&place, &a, "one");
    let push_words = |id, more: &[&'static str]| {
        let words = [&["push", id, "--remote", hub.as_str()], more].concat();
        crate::process::Ran::of(place.program_of(a.layout().root(), &words).output().unwrap())
    };
    push_words("web", &[]).with_code(0);
    push_words("other", &[]).with_code(0);
    let pointer = hub.join("templates/web.json");
    let good = std::fs::read(&pointer).unwrap();
    for bad in [b"{".to_vec(), good[..good.len() / 2].to_vec(), Vec::new(), vec![b' '; 17 << 20]] {
        std::fs::write(&pointer, bad).unwrap();
        let listed = place.run(&["remote", "ls", hub.as_str()]).with_code(4);
        assert!(listed.out.contains("other") && !listed.out.contains("web"), "{}", listed.out);
        assert!(
            listed.err.contains("template web is damaged there") && listed.err.contains("--resend"),
            "{}",
            listed.err
        );
        let json = place.run(&["remote", "ls", hub.as_str(), "--json"]).with_code(4).json();
        assert!(json["templates"][1]["problem"].is_string() && json["templates"][0]["problem"].is_null(), "{json}");
        place.run(&["remote", "ls", hub.as_str(), "--template", "other"]).with_code(0);
        let refused = push_words("web", &[]).with_code(4);
        assert!(refused.err.contains("--resend"), "{}", refused.err);
        push_words("web", &["--resend"]).with_code(0);
        assert_sound(&Remote::open(&template_store::RemoteSettings::at(hub.as_str())).unwrap());
        place.run(&["remote", "ls", hub.as_str()]).with_code(0);
    }
}

#[test]
fn a_damaged_pointer_of_a_key_is_replaced_by_the_next_build() {
    let place = Place::in_memory();
    let (a, b, memory) = (host(&place, "a"), host(&place, "b"), Arc::new(InMemory::new()));
    let inputs: BuildInputs = inputs("lock");
    let share = |store: &Store| {
        let draft = draft(store, "web", &inputs);
        crate::support::image(draft.path(), "built");
        let sealed = draft.seal().unwrap();
        sealed.publish_shared(&in_memory(memory.clone()), &PublishOptions::default(), &mut ()).unwrap()
    };
    assert!(share(&a).failed.is_none());
    let held = Held { memory: memory.clone() };
    let key = inputs.key().to_hex();
    held.put(&format!("images/keys/{}/{}.json", &key[..2], &key[2..]), b"{\"version\":1".to_vec());
    let remote = in_memory(memory.clone());
    assert!(!remote.knows(&inputs).unwrap());
    assert_eq!(remote.verify(false, &mut ()).unwrap().findings.len(), 1);
    let shared = share(&b);
    assert!(shared.failed.is_none(), "{:?}", shared.failed);
    assert!(remote.knows(&inputs).unwrap());
    assert_sound(&remote);
    let _ = script;
}
