//! A store that others can change is said to be one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use template_store::{FindingKind, Severity, VerifyOptions};

use crate::interning::{NOBODY, by_nobody};
use crate::support::{Place, Ran, build, inputs, listing, program};

/// Runs the program as somebody whose new files every user may change.
fn without_umask(place: &Place, words: &[&str]) -> Ran {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$0\" --store \"$@\"", program(), place.root().as_str()]).args(words);
    Ran::of(command.output().unwrap())
}

#[test]
fn a_store_that_every_user_can_change_is_named_with_what_to_do() {
    let place = Place::new();
    let root = place.root();
    let advice = format!("chmod -R o-w {root}");
    without_umask(&place, &["init"]).with_code(0).says(&["every user of the machine", &advice]);
    let files = place.image("files", "one");
    without_umask(&place, &["publish", "web", files.as_str()]).with_code(0);

    let before = listing(&root);
    let ran = place.run(&["verify"]).with_code(4);
    for path in [".store", "templates", ".store/objects", ".store/drafts", "templates/web"] {
        let line = ran.out.lines().find(|line| line.split_whitespace().any(|word| word == path));
        let line = line.unwrap_or_else(|| panic!("{path} is not named: {}", ran.out));
        assert!(line.starts_with("warning") && line.contains("open to all"), "{line}");
    }
    assert!(ran.out.contains("chmod -R"), "{}", ran.out);
    let report = place.store().verify(&VerifyOptions::default(), &mut ()).unwrap();
    assert!(report.findings.iter().all(|finding| finding.kind == FindingKind::OpenToAll), "{report:#?}");
    assert!(report.findings.iter().all(|finding| finding.detail.contains(&advice)), "{report:#?}");

    // Whoever opened it may have meant it: a repair takes no right away.
    place.run(&["verify", "--repair"]).with_code(4);
    assert_eq!(listing(&root), before);
    assert!(Command::new("sh").args(["-c", &advice]).status().unwrap().success());
    place.done(&["verify"]);
}

#[test]
fn one_document_that_every_user_can_change_is_found() {
    let place = Place::new();
    let store = place.store();
    let revision = build(&store, "web", &inputs("lock"), "one");
    for path in [
        revision.path(),
        revision.path().join("revision.json"),
        store.layout().template_json(revision.template()),
        store.layout().activations(revision.template()),
        store.layout().format_json(),
        store.layout().pins(),
    ] {
        let mode = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode.mode() | 0o002)).unwrap();
        let found = store.verify(&VerifyOptions::default(), &mut ()).unwrap().findings;
        assert_eq!(found.len(), 1, "{path}: {found:#?}");
        assert_eq!((found[0].kind, found[0].severity), (FindingKind::OpenToAll, Severity::Warning), "{path}");
        assert_eq!(found[0].path, path);
        fs::set_permissions(&path, mode).unwrap();
    }
    assert!(store.verify(&VerifyOptions::default(), &mut ()).unwrap().findings.is_empty());
}

#[test]
fn what_belongs_to_somebody_else_is_named() {
    let place = Place::new();
    let Some(mut init) = by_nobody(&place, &["init"]) else { return };
    Ran::of(init.output().unwrap()).with_code(0);
    // All of it: a note, and no reason to fail.
    let ran = place.done(&["verify"]);
    assert!(ran.out.contains("other owner") && ran.out.contains(&format!("user {NOBODY}")), "{}", ran.out);

    let place = Place::new();
    let store = place.store();
    let revision = build(&store, "web", &inputs("lock"), "one");
    chown(revision.path(), Some(NOBODY), None).unwrap();
    assert_eq!(fs::metadata(revision.path()).unwrap().uid(), NOBODY);
    let found = store.verify(&VerifyOptions::default(), &mut ()).unwrap().findings;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((found[0].kind, found[0].severity), (FindingKind::OtherOwner, Severity::Note));
    assert_eq!(found[0].path, revision.path());
}
