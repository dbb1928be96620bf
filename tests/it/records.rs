//! Documents of other versions, and records that say more or less than they should.

use serde::Serialize;
use serde_json::{Value, json};
use template_store::{Content, Digest, RevisionRecord, TemplateSpec};

use crate::support::{Place, build, id, inputs};

fn json_of<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn a_newer_schema_version_is_refused_and_both_numbers_are_named() {
    for (what, error) in [
        ("template.json", TemplateSpec::from_json(br#"{"schema_version":99}"#).unwrap_err()),
        ("revision.json", RevisionRecord::from_json(br#"{"schema_version":99,"contents":7}"#).unwrap_err()),
    ] {
        let text = error.to_string();
        assert!(text.contains(what) && text.contains("99") && text.contains("up to 1"), "{text}");
    }
}

#[test]
fn a_record_keeps_unknown_fields_beside_those_of_the_store() {
    let place = Place::new();
    let revision = build(&place.quick_store(), "web", &inputs("lock"), "one");
    let mut written = json_of(revision.record());
    written["of_a_newer_program"] = json!({"deep": [1, 2.5, "three"]});
    written["artifact_paths"]["sizes"]["more"] = json!(7);
    let read = RevisionRecord::from_json(written.to_string().as_bytes()).unwrap();
    assert_eq!(read.contents.as_deref(), Some(revision.contents()));
    assert_eq!(serde_json::from_slice::<Value>(&read.to_json()).unwrap(), written);
}

#[test]
fn a_listing_names_each_path_once() {
    let place = Place::new();
    let revision = build(&place.quick_store(), "web", &inputs("lock"), "one");
    let mut record = revision.record().clone();
    let below = Content { path: id("vmlinux/deeper"), size: 1, blake3: Digest::of(b"x") };
    record.contents.as_mut().unwrap().push(below);
    let error = RevisionRecord::from_json(&record.to_json()).unwrap_err();
    assert!(error.to_string().contains("vmlinux"), "{error}");
}
