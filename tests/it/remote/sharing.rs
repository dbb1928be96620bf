//! Push on one host, pull on another: with every kind of object store.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use camino::Utf8PathBuf;
use object_store::memory::InMemory;
use template_store::{
    Activate, Error, ErrorKind, ImportOptions, Move, Outcome, PublishOptions, PullOptions, PushOptions, RemoteError,
    RemoteSettings, SealOptions, Severity, Store, VerifyOptions,
};

use super::faulty::Faulty;
use super::{assert_sound, current, host, in_memory, publish, pull, push, with_each};
use crate::support::{Place, Ran, assert_clean, assert_error, assert_right, build, id, inode, inputs};

#[test]
fn what_one_host_pushes_another_pulls() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b) = (host(place, "a"), host(place, "b"));
        let revision = publish(place, &a, "one");
        let remote = kind.open();
        let pushed = push(&a, &remote, &revision).unwrap();
        assert_eq!((pushed.files_sent, pushed.files_known, pushed.changed), (4, 0, true));
        assert!(pushed.bytes_sent < 11 << 20, "zeros are not sent: {}", pushed.bytes_sent);
        assert_eq!(current(&remote).as_ref(), Some(revision.id()));

        let pulled = pull(&b, &kind.open(), None).unwrap();
        assert_eq!((pulled.outcome, pulled.files_fetched), (Outcome::New, 4));
        assert_eq!(pulled.revision.id(), revision.id());
        assert_eq!(pulled.revision.contents(), revision.contents());
        assert_right(&pulled.revision);
        let blocks = fs::metadata(pulled.revision.rootfs()).unwrap().blocks() * 512;
        assert!(blocks < 12 << 20, "holes are holes: {blocks}");
        assert_eq!(b.current_id(&id("web")).unwrap().as_ref(), Some(revision.id()));
        assert_eq!(pulled.revision.build().built_at, revision.build().built_at);
        assert_eq!(b.template(&id("web")).unwrap(), a.template(&id("web")).unwrap());
        assert_clean(b.layout());
        Ran::of(place.program_of(b.layout().root(), &["verify"]).output().unwrap()).with_code(0);
        assert_sound(&remote);
    });
}

#[test]
fn only_what_differs_is_sent_and_fetched() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        push(&a, &remote, &publish(place, &a, "one")).unwrap();
        let first = pull(&b, &remote, None).unwrap().revision;
        let second = publish(place, &a, "two");
        let pushed = push(&a, &remote, &second).unwrap();
        assert_eq!((pushed.files_sent, pushed.files_known), (2, 2));
        assert!(pushed.bytes_sent < 10 << 20);

        let pulled = pull(&b, &remote, None).unwrap();
        assert_eq!((pulled.files_fetched, pulled.files_known), (2, 2));
        assert_eq!(inode(pulled.revision.kernel()), inode(first.kernel()));
        assert_right(&pulled.revision);

        let again = push(&a, &remote, &second).unwrap();
        assert_eq!((again.files_sent, again.bytes_sent, again.changed), (0, 0, false));
        let again = pull(&b, &remote, None).unwrap();
        assert_eq!((again.outcome, again.files_fetched), (Outcome::Unchanged, 0));
        let history: Vec<_> = remote.templates().unwrap().remove(0).history.into_iter().map(|one| one.0).collect();
        assert_eq!(history, [first.id().clone(), second.id().clone()]);
        assert_sound(&remote);
    });
}

#[test]
fn an_older_revision_can_be_pulled_and_need_not_become_current() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let (one, two) = (publish(place, &a, "one"), publish(place, &a, "two"));
        push(&a, &remote, &one).unwrap();
        let stay = PushOptions::default().moves(Move::No);
        a.push(&remote, &id("web"), Some(two.id()), &stay, &mut ()).unwrap();
        assert_eq!(current(&remote).as_ref(), Some(one.id()), "it was only listed");
        let options = PullOptions::default().publish(PublishOptions::default().activate(Activate::No));
        b.pull(&remote, &id("web"), Some(two.id()), &options, &mut ()).unwrap();
        assert_eq!(b.current_id(&id("web")).unwrap(), None);
        pull(&b, &remote, None).unwrap();
        assert_eq!(b.current_id(&id("web")).unwrap().as_ref(), Some(one.id()));
        assert_error(pull(&b, &remote, Some(&id("other"))), ErrorKind::NotFound, &["web@other", "remote ls"]);
    });
}

#[test]
fn nobody_puts_his_own_in_the_place_of_what_he_does_not_know() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let (ours, theirs) = (publish(place, &a, "ours"), publish(place, &b, "theirs"));
        push(&a, &remote, &ours).unwrap();
        let refused = push(&b, &remote, &theirs);
        assert_error(refused, ErrorKind::Refused, &["web", ours.id().as_str(), "Pull it", "--expect"]);
        assert_eq!(current(&remote).as_ref(), Some(ours.id()));
        assert_eq!(remote.templates().unwrap()[0].revisions.len(), 1);

        let expecting = |moves| b.push(&remote, &id("web"), None, &PushOptions::default().moves(moves), &mut ());
        assert!(matches!(expecting(Move::FromAbsent), Err(Error::Remote(RemoteError::Moved { .. }))));
        assert!(matches!(expecting(Move::From(id("x"))), Err(Error::Remote(RemoteError::Moved { .. }))));
        expecting(Move::ForwardOrStay).unwrap();
        assert_eq!(current(&remote).as_ref(), Some(ours.id()), "it is listed beside what stays");
        assert_eq!(remote.templates().unwrap()[0].revisions.len(), 2);
        expecting(Move::From(ours.id().clone())).unwrap();
        assert_eq!(current(&remote).as_ref(), Some(theirs.id()));

        pull(&a, &remote, None).unwrap();
        push(&a, &remote, &ours).unwrap();
        assert_eq!(current(&remote).as_ref(), Some(ours.id()), "who has it may go back from it");
        assert_sound(&remote);
    });
}

#[test]
fn a_revision_of_a_remote_never_becomes_another() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let named = |store: &template_store::Store, label: &str| {
            let seal = SealOptions::default().revision(id::<template_store::RevisionId>("r1"));
            let options = ImportOptions::default().seal(seal);
            store.publish_dir_with(&id("web"), place.image(label, label), &options, &mut ()).unwrap().revision
        };
        let (ours, theirs) = (named(&a, "ours"), named(&b, "theirs"));
        push(&a, &remote, &ours).unwrap();
        for moves in [Move::Forward, Move::No, Move::From(id("r1"))] {
            let options = PushOptions::default().moves(moves);
            let refused = b.push(&remote, &id("web"), Some(theirs.id()), &options, &mut ());
            assert_error(refused, ErrorKind::Refused, &["web@r1", "other contents", "another id"]);
        }
        let pulled = pull(&host(place, "c"), &remote, None).unwrap().revision;
        assert_eq!(pulled.contents(), ours.contents());
        assert_sound(&remote);
    });
}

#[test]
fn what_is_pulled_again_heals_what_is_damaged_here() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        push(&a, &remote, &publish(place, &a, "one")).unwrap();
        let revision = pull(&b, &remote, None).unwrap().revision;
        crate::support::flip(&revision.rootfs(), 6 << 20, true);
        pull(&b, &remote, None).unwrap();
        assert_right(&revision);
        assert_eq!(b.verify(&VerifyOptions::default(), &mut ()).unwrap().findings, []);
    });
}

#[test]
fn what_is_damaged_here_is_not_pushed() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, remote) = (host(place, "a"), kind.open());
        let revision = publish(place, &a, "one");
        crate::support::flip(&revision.rootfs(), 6 << 20, true);
        assert_error(push(&a, &remote, &revision), ErrorKind::Damaged, &["rootfs.ext4", "verify --repair"]);
        assert!(remote.templates().unwrap().is_empty());
        assert_sound(&remote);
    });
}

#[test]
fn a_repair_fetches_what_nobody_here_has() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, remote) = (host(place, "a"), kind.open());
        let revision = publish(place, &a, "one");
        push(&a, &remote, &revision).unwrap();
        let (rootfs, kernel, config) = (revision.rootfs(), revision.kernel(), revision.fc_base_config());
        drop(revision);
        crate::support::flip(&rootfs, 6 << 20, true);
        fs::set_permissions(kernel.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in [&kernel, &config, &crate::support::object_of(a.layout(), &kernel)] {
            fs::remove_file(path).unwrap();
        }
        let repaired = a.repair_from(&remote, &VerifyOptions::default(), &mut ()).unwrap();
        assert_eq!(repaired.remaining, []);
        let how = |path: &Utf8PathBuf| &repaired.mended.iter().find(|mended| mended.path == *path).unwrap().how;
        assert!(how(&rootfs).contains("fetched again"), "{:?}", repaired.mended);
        assert_right(&a.current(&id("web")).unwrap());
        assert_eq!(a.verify(&VerifyOptions::default(), &mut ()).unwrap().count(Severity::Error), 0);
    });
}

/// A store of which a file has rotted, and a remote that has its bytes.
fn rotten(place: &Place) -> (Store, Arc<InMemory>) {
    let (a, memory) = (host(place, "a"), Arc::new(InMemory::new()));
    let revision = publish(place, &a, "one");
    push(&a, &in_memory(memory.clone()), &revision).unwrap();
    crate::support::flip(&revision.rootfs(), 6 << 20, true);
    (a, memory)
}

#[test]
fn a_repair_that_can_fetch_nothing_ahead_fetches_in_the_end() {
    let place = Place::in_memory();
    let (a, memory) = rotten(&place);
    build(&a, "other", &inputs("a"), "a");
    let artifacts = a.layout().artifacts(&id("other"));
    fs::rename(&artifacts, place.join("away")).unwrap();
    fs::write(&artifacts, "what is no directory").unwrap();
    let repaired = a.repair_from(&in_memory(memory), &VerifyOptions::default(), &mut ()).unwrap();
    assert!(repaired.mended.iter().any(|mended| mended.how.contains("fetched again")), "{:?}", repaired.mended);
    assert_right(&a.current(&id("web")).unwrap());
}

/// What is fetched takes as long as the network does; others publish meanwhile.
#[test]
fn a_repair_that_fetches_keeps_nobody_from_the_store() {
    let place = Place::in_memory();
    let (a, memory) = rotten(&place);
    let (root, came) = (a.layout().root().to_owned(), Arc::new(AtomicUsize::new(0)));
    let count = came.clone();
    let others = Faulty::while_reading(memory, move |path| {
        if path.as_ref().contains("/blobs/") {
            let (store, (done, is_done)) = (Store::open(&root).unwrap(), mpsc::channel());
            let template = format!("other-{}", count.load(Ordering::Relaxed));
            std::thread::spawn(move || {
                build(&store, &template, &inputs(&template), &template);
                let _ = done.send(());
            });
            // Were the store held, it would come only when this is over.
            is_done.recv_timeout(Duration::from_secs(30)).expect("another one publishes meanwhile");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let repaired = a.repair_from(&in_memory(others), &VerifyOptions::default(), &mut ()).unwrap();
    assert_eq!(repaired.remaining, []);
    assert!(came.load(Ordering::Relaxed) > 2);
    assert_right(&a.current(&id("web")).unwrap());
    assert_clean(a.layout());
}

#[test]
fn what_the_remote_lacks_as_well_remains() {
    let place = Place::in_memory();
    let store = place.store();
    let revision = publish(&place, &store, "one");
    fs::create_dir(place.join("hub")).unwrap();
    crate::support::flip(&revision.rootfs(), 6 << 20, true);
    drop(revision);
    let ran = place.run(&["verify", "--repair", "--remote", place.join("hub").as_str()]).with_code(4);
    assert!(ran.out.contains("rootfs.ext4"), "{}", ran.out);
}

#[test]
fn remotes_are_kept_in_the_configuration() {
    let place = Place::in_memory();
    let store = place.store();
    fs::create_dir(place.join("hub")).unwrap();
    fs::write(store.layout().config(), "# ours\n[gc]\nkeep_last = 7\n").unwrap();
    let (hub, web) = (place.join("hub"), publish(&place, &store, "one"));
    place.done(&["remote", "add", "hub", hub.as_str()]);
    place.run(&["remote", "add", "hub", "/elsewhere"]).with_code(5);
    place.run(&["remote", "add", "bad/name", hub.as_str()]).with_code(2);
    place.run(&["remote", "add", "plain", "s3://b/x", "--endpoint", "http://localhost:1"]).with_code(2);
    place.run(&["remote", "add", "user", "https://user:password@host/x"]).with_code(2);
    assert_eq!(store.remotes().unwrap()[&id("hub")], RemoteSettings::at(hub.as_str()));
    let text = fs::read_to_string(store.layout().config()).unwrap();
    assert!(text.starts_with("# ours\n[gc]\nkeep_last = 7\n"), "{text}");
    assert_eq!(store.policy().unwrap().keep_last, 7);

    // The only remote need not be named.
    let pushed = place.done(&["push", "web", "--json"]).json();
    assert_eq!((&pushed["result"], &pushed["files_sent"]), (&"pushed".into(), &4.into()));
    let listed = place.done(&["remote", "ls", "--json"]).json();
    assert_eq!(listed["templates"][0]["current"], web.id().as_str());
    let other = place.join("other");
    let mut command = place.program_of(&other, &["pull", "web", "--remote", hub.as_str(), "--json"]);
    let pulled = Ran::of(command.output().unwrap()).with_code(0).json();
    assert_eq!(pulled["revision"], web.id().as_str());
    place.done(&["remote", "check"]);
    place.done(&["remote", "verify", "--data"]);
    place.done(&["remote", "rm", "hub"]);
    place.run(&["remote", "rm", "hub"]).with_code(3);
    place.run(&["push", "web"]).with_code(2);
    place.run(&["pull", "web", "--remote", "hub"]).with_code(3);
    let nowhere = place.run(&["pull", "web", "--remote", "/no/such/place"]).with_code(2);
    assert!(nowhere.err.contains("make it, or mount it"), "{}", nowhere.err);
    assert_eq!(fs::read_to_string(store.layout().config()).unwrap().trim_end(), "# ours\n[gc]\nkeep_last = 7");
}
