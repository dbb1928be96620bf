//! What must not be shown, and how a remote is named.

use std::fs;

use template_store::{ErrorKind, Remote, RemoteSettings};

use super::host;
use crate::process::Ran;
use crate::support::{Place, assert_error, id};

#[test]
fn no_secret_of_a_url_is_shown_or_kept() {
    let place = Place::new();
    let store = place.store();
    for url in [
        "s3://key:hidden@bucket/x",
        "s3://key:hid/den@bucket/x",
        "https://key:hidden@host:99999999/x",
        "https:/key:hidden@host/x",
        "ftp://key:hidden@host/x",
        "https://host/x?sig=hidden",
    ] {
        for words in [&["remote", "add", "hub", url][..], &["remote", "ls", url], &["pull", "web", "--remote", url]] {
            let ran = place.run(&[words, &["--json"]].concat()).with_code(2);
            assert!(!format!("{}{}", ran.out, ran.err).contains("hid"), "{}{}", ran.out, ran.err);
        }
    }
    let ran = place.run(&["remote", "add", "hub", "s3://b/x", "--endpoint", "https://key:hidden@host"]).with_code(2);
    assert!(!ran.err.contains("hidden") && ran.err.contains("credentials come from"), "{}", ran.err);
    assert!(fs::read_to_string(store.layout().config()).is_err(), "nothing was added");
    // What stands there already, by hand.
    fs::write(store.layout().config(), "[remote.hub]\nurl = \"s3://key:hidden@bucket/x\"\n").unwrap();
    for words in
        [&["remote", "list"][..], &["remote", "list", "--json"], &["remote", "ls"], &["remote", "add", "hub", "/x"]]
    {
        let ran = place.run(words);
        assert!(!format!("{}{}", ran.out, ran.err).contains("hidden"), "{}{}", ran.out, ran.err);
        assert!(format!("{}{}", ran.out, ran.err).contains("s3://…@bucket/x"), "{}{}", ran.out, ran.err);
    }
    fs::write(store.layout().config(), "[gc]\nkeep_last = 3\n[remote.hub]\nurl = \"s3://key:hidden@bucket/x\n")
        .unwrap();
    for words in [&["remote", "list"][..], &["remote", "rm", "hub"], &["gc", "--dry-run"]] {
        let ran = place.run(words);
        assert!(!format!("{}{}", ran.out, ran.err).contains("hidden"), "{}{}", ran.out, ran.err);
    }
    let ran = place.run(&["remote", "list"]);
    assert!(ran.err.contains("line 4"), "{}", ran.err);
}

#[test]
fn an_endpoint_of_the_environment_tells_nobody_a_password() {
    let place = Place::new();
    let mut command = place.program(&["remote", "ls", "s3://bucket/x", "--json"]);
    command.env("AWS_ENDPOINT", "http://key:hidden@127.0.0.1:9").env("AWS_ALLOW_HTTP", "1");
    let ran = Ran::of(command.env("AWS_ACCESS_KEY_ID", "a").env("AWS_SECRET_ACCESS_KEY", "b").output().unwrap());
    assert!(!format!("{}{}", ran.out, ran.err).contains("hidden"), "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("credentials come from the environment"), "{}", ran.err);
}

#[test]
fn a_directory_means_the_same_wherever_it_is_used() {
    let place = Place::new();
    let store = place.store();
    fs::create_dir_all(place.join("sub/hub")).unwrap();
    fs::create_dir(place.join("a:b@c")).unwrap();
    place.done(&["remote", "add", "rel", "sub/hub"]);
    place.done(&["remote", "add", "dots", "./sub/../sub/hub"]);
    place.done(&["remote", "add", "odd", "a:b@c"]);
    let remotes = store.remotes().unwrap();
    for name in ["rel", "dots"] {
        assert_eq!(remotes[&id(name)].url, place.join("sub/hub").as_str());
    }
    assert_eq!(remotes[&id("odd")].url, place.join("a:b@c").as_str());
    let refused = place.run(&["remote", "add", "empty", ""]).with_code(2);
    assert!(refused.err.contains("it is empty; name s3://BUCKET/PREFIX, or a directory"), "{}", refused.err);
    assert_error(Remote::open(&RemoteSettings::at("")), ErrorKind::Invalid, &["it is empty"]);
}

#[test]
fn a_look_into_a_remote_that_cannot_be_read_is_a_warning() {
    let place = Place::new();
    let _store = host(&place, "store");
    let lock = place.lock("lock");
    let words = ["lookup", "--flake-lock", lock.as_str(), "--role", "worker", "--remote"];
    fs::create_dir(place.join("hub")).unwrap();
    // A directory in the place of the file can be read by nobody, not even by root.
    let with_credentials = |more: &[&str]| {
        let mut command = place.program(&[&words[..], &["s3://bucket/x"], more].concat());
        command.env("AWS_SHARED_CREDENTIALS_FILE", place.join("hub"));
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE"] {
            command.env_remove(name);
        }
        Ran::of(command.output().unwrap())
    };
    let ran = with_credentials(&[]).with_code(3);
    assert!(ran.err.contains("going on without the remote") && ran.err.contains("nothing was built"), "{}", ran.err);
    with_credentials(&["--remote-required"]).with_code(1);
    let ran = place.run(&[&words[..], &[place.join("none").as_str()]].concat()).with_code(3);
    assert!(ran.err.contains("going on without the remote"), "{}", ran.err);
}
