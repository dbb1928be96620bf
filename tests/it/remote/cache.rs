//! A remote as a cache of builds: here, else there, else built and pushed.

use std::collections::HashSet;
use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::{
    Build, BuildOptions, FromRemote, Known, Match, PublishOptions, Remote, RemoteSettings, Resources, Store,
};

use super::server::{self, KEY, SECRET};
use super::{assert_sound, host, with_each};
use crate::support::{Place, Ran, Running, assert_right, bytes, draft, image, inputs, script};

/// Builds as a host does: here, else there, else by itself.
fn build(store: &Store, remote: &template_store::Remote, label: &str) -> (template_store::RevisionId, &'static str) {
    let draft = match store.build(&"web".parse().unwrap(), &inputs("lock")).unwrap() {
        Build::Reused(revision) => return (revision.id().clone(), "reused"),
        Build::Draft(draft) => draft,
    };
    let options = PublishOptions::default();
    match draft.publish_from(remote, Match::Sources, &options, &mut ()).unwrap() {
        FromRemote::Published(published) => (published.revision.id().clone(), "fetched"),
        FromRemote::Nothing(draft) => {
            image(draft.path(), label);
            let shared = draft.seal().unwrap().publish_shared(remote, &options, &mut ()).unwrap();
            assert!(shared.failed.is_none(), "{:?}", shared.failed);
            assert_right(&shared.published.revision);
            (shared.published.revision.id().clone(), if shared.theirs { "theirs" } else { "built" })
        }
        FromRemote::Failed(_, error) => panic!("{error}"),
    }
}

#[test]
fn what_one_host_built_others_fetch() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let (built, how) = build(&a, &remote, "one");
        assert_eq!(how, "built");
        assert_eq!(build(&b, &remote, "two"), (built.clone(), "fetched"));
        assert_eq!(build(&b, &remote, "three"), (built.clone(), "reused"));
        let c = host(place, "c");
        let options = PublishOptions::default();
        let found = c.lookup_remote(&remote, None, &inputs("lock"), Match::Sources, &options, &mut ()).unwrap();
        assert_eq!(found.unwrap().id(), &built);
        assert!(c.lookup(None, &inputs("lock")).unwrap().is_some());
        assert!(!remote.knows(&inputs("other lock")).unwrap());
        assert_sound(&remote);
    });
}

#[test]
fn of_two_hosts_that_build_at_once_the_first_to_push_wins() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let drafts = [&a, &b].map(|store| draft(store, "web", &inputs("lock")));
        let options = PublishOptions::default();
        let ended: Vec<_> = drafts
            .into_iter()
            .enumerate()
            .map(|(number, draft)| {
                image(draft.path(), &format!("host {number}"));
                draft.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap()
            })
            .collect();
        assert_eq!(ended.iter().map(|shared| shared.theirs).collect::<Vec<_>>(), [false, true]);
        let ids: HashSet<_> = ended.iter().map(|shared| shared.published.revision.id()).collect();
        assert_eq!(ids.len(), 1);
        let listed = &remote.templates().unwrap()[0].revisions;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(b.revisions(&"web".parse().unwrap()).unwrap().len(), 1, "nothing is left of what gave way");
        assert_sound(&remote);
    });
}

#[test]
fn what_is_built_again_is_built_and_strictness_counts_there_too() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        let flake = |flake_ref: &str| inputs("lock").with_flake_ref(flake_ref);
        let options = PublishOptions::default();
        let draft_of = |store: &Store, known, flake_ref: &str| {
            let options = BuildOptions::default().known(known);
            crate::support::draft_with(store, "web", &flake(flake_ref), &options)
        };
        let first = draft_of(&a, Known::Reuse, "here");
        image(first.path(), "first");
        first.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap();

        let again = draft_of(&b, Known::BuildAgain, "here").publish_from(&remote, Match::Sources, &options, &mut ());
        let FromRemote::Nothing(again) = again.unwrap() else { panic!("it is to be built") };
        image(again.path(), "second");
        let shared = again.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap();
        assert!(!shared.theirs && shared.failed.is_none(), "{:?}", shared.failed);
        assert_eq!(remote.templates().unwrap()[0].revisions.len(), 2, "it stands beside the first");
        drop(shared);

        let c = host(place, "c");
        let strict = draft_of(&c, Known::Reuse, "elsewhere").publish_from(&remote, Match::Strict, &options, &mut ());
        let FromRemote::Nothing(draft) = strict.unwrap() else { panic!("it is from another flake reference") };
        draft.abandon().unwrap();
        let found = c.lookup_remote(&remote, None, &flake("elsewhere"), Match::Strict, &options, &mut ()).unwrap();
        assert!(found.is_none());
        assert_sound(&remote);
    });
}

#[test]
fn a_template_with_other_resources_gets_its_own_configuration() {
    with_each(&Place::in_memory(), |place, kind| {
        let (a, b, remote) = (host(place, "a"), host(place, "b"), kind.open());
        build(&a, &remote, "one");
        let resources = Resources { vcpus: 7, mem_mib: 700, ..Resources::default() };
        let draft =
            crate::support::draft_with(&b, "web", &inputs("lock"), &BuildOptions::default().resources(resources));
        let published = match draft.publish_from(&remote, Match::Sources, &PublishOptions::default(), &mut ()).unwrap()
        {
            FromRemote::Published(published) => published,
            other => panic!("{other:?}"),
        };
        assert_right(&published.revision);
        let config = fs::read_to_string(published.revision.fc_base_config()).unwrap();
        assert!(config.contains("\"vcpu_count\": 7") || config.contains("\"vcpu_count\":7"), "{config}");
        assert_eq!(b.current(&"web".parse().unwrap()).unwrap().id(), published.revision.id());
    });
}

/// A place with a directory that is a remote, in which a test can change what it likes.
fn with_hub() -> (Place, Utf8PathBuf, Remote) {
    let place = Place::in_memory();
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let remote = Remote::open(&RemoteSettings::at(hub.as_str())).unwrap();
    (place, hub, remote)
}

/// Takes the end from the largest file that a remote's directory has.
fn damage_largest(hub: &Utf8Path) {
    let files = walkdir::WalkDir::new(hub.join("blobs")).into_iter().map(|entry| entry.unwrap().into_path());
    let largest = files.filter(|path| path.is_file()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let good = fs::read(&largest).unwrap();
    fs::write(&largest, &good[..good.len() - 100]).unwrap();
}

/// What can't be fetched is built, and whoever waits is not told that the build failed.
#[test]
fn what_the_remote_can_not_give_is_built() {
    let (place, hub, remote) = with_hub();
    build(&host(&place, "a"), &remote, "one");
    damage_largest(&hub);

    let b = host(&place, "b");
    let asked = draft(&b, "web", &inputs("lock"));
    let failed = asked.publish_from(&remote, Match::Sources, &PublishOptions::default(), &mut ()).unwrap();
    let FromRemote::Failed(draft, error) = failed else { panic!("it can't be fetched") };
    assert!(error.to_string().contains("blobs/") && error.to_string().contains("--resend"), "{error}");
    image(draft.path(), "two");
    draft.seal().unwrap().publish().unwrap();

    // Who has it sends it again.
    let a = host(&place, "a");
    let pushed = a.push(&remote, &"web".parse().unwrap(), None, &Default::default(), &mut ()).unwrap();
    assert!(!pushed.changed);
    let all = template_store::PushOptions::default().files(template_store::SendFiles::All);
    a.push(&remote, &"web".parse().unwrap(), None, &all, &mut ()).unwrap();
    assert_sound(&remote);
}

/// What is built because the remote's is damaged takes its place: the same bytes are sent again, others are led to.
#[test]
fn a_build_takes_the_place_of_what_is_damaged_at_the_remote() {
    for label in ["one", "two"] {
        let (place, hub, remote) = with_hub();
        build(&host(&place, "a"), &remote, "one");
        damage_largest(&hub);

        let b = host(&place, "b");
        let options = PublishOptions::default();
        let asked = draft(&b, "web", &inputs("lock")).publish_from(&remote, Match::Sources, &options, &mut ());
        let FromRemote::Failed(draft, _) = asked.unwrap() else { panic!("it can't be fetched") };
        image(draft.path(), label);
        let shared = draft.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap();
        assert!(shared.failed.is_none() && !shared.theirs && shared.bytes_sent > 0, "{shared:?}");
        let built = shared.published.revision.id().clone();
        assert_eq!(build(&host(&place, "c"), &remote, "three"), (built, "fetched"));
        assert_eq!(remote.verify(true, &mut ()).unwrap().findings.is_empty(), label == "one");
    }
}

/// Of two builds of one key, damaged one after the other, the other host's is taken as long as one is whole.
#[test]
fn what_is_damaged_is_passed_over_for_what_is_whole() {
    let (place, hub, remote) = with_hub();
    let options = PublishOptions::default();
    let again = |name: &str, label: &str| {
        let known = BuildOptions::default().known(Known::BuildAgain);
        let draft = crate::support::draft_with(&host(&place, name), "web", &inputs("lock"), &known);
        image(draft.path(), label);
        fs::write(draft.path().join("large"), bytes(label, 2 << 20)).unwrap();
        let shared = draft.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap();
        assert!(shared.failed.is_none());
        shared.published.revision.id().clone()
    };
    let first = again("a", "first");
    // The only large one.
    damage_largest(&hub);
    let second = again("b", "second");
    assert_ne!(first, second);
    assert_eq!(build(&host(&place, "c"), &remote, "three"), (second.clone(), "fetched"));
    let d = host(&place, "d");
    let found = d.lookup_remote(&remote, None, &inputs("lock"), Match::Sources, &options, &mut ()).unwrap();
    assert_eq!(found.unwrap().id(), &second);

    // When neither is whole, what is built takes the place of both.
    damage_largest(&hub);
    let e = host(&place, "e");
    let asked = draft(&e, "web", &inputs("lock")).publish_from(&remote, Match::Sources, &options, &mut ());
    let FromRemote::Failed(draft, _) = asked.unwrap() else { panic!("neither can be fetched") };
    image(draft.path(), "fourth");
    let shared = draft.seal().unwrap().publish_shared(&remote, &options, &mut ()).unwrap();
    assert!(shared.failed.is_none() && !shared.theirs, "{shared:?}");
    let fourth = shared.published.revision.id().clone();
    assert_eq!(build(&host(&place, "f"), &remote, "five"), (fourth, "fetched"));
}

/// A manifest that is gone leads nobody any more, once somebody has built it again.
#[test]
fn a_manifest_that_is_gone_is_replaced_by_the_next_build() {
    let (place, hub, remote) = with_hub();
    build(&host(&place, "a"), &remote, "one");
    fs::remove_dir_all(hub.join("manifests")).unwrap();
    let (again, how) = build(&host(&place, "b"), &remote, "one");
    assert_eq!(how, "built");
    assert_eq!(build(&host(&place, "c"), &remote, "three"), (again, "fetched"));
}

/// Who learns of the damage only when it has built does the same.
#[test]
fn a_build_does_not_give_way_to_what_is_damaged() {
    let (place, hub, remote) = with_hub();
    let b = host(&place, "b");
    let late = draft(&b, "web", &inputs("lock"));
    build(&host(&place, "a"), &remote, "one");
    damage_largest(&hub);
    image(late.path(), "two");
    let shared = late.seal().unwrap().publish_shared(&remote, &PublishOptions::default(), &mut ()).unwrap();
    assert!(shared.failed.is_none() && !shared.theirs, "{shared:?}");
    let built = shared.published.revision.id().clone();
    assert_eq!(build(&host(&place, "c"), &remote, "three"), (built, "fetched"));
}

/// `build web --remote … --push` from 16 processes on four hosts, each of which would build something else.
fn build_everywhere(place: &Place, words: &[&str], env: &[(&str, &str)]) -> Vec<Ran> {
    let started: Vec<Running> = (0..16)
        .map(|number| {
            let root = place.join(&format!("host-{}", number % 4));
            let script = script(&format!("process {number}"));
            let mut build = place.build_words("web", "lock", &["--json", "--push"], &script);
            let at = build.iter().position(|word| word == "--").unwrap();
            build.splice(at..at, words.iter().map(|word| (*word).to_owned()));
            let build: Vec<&str> = build.iter().map(String::as_str).collect();
            Running::start(place.program_of(&root, &build).envs(env.iter().copied()))
        })
        .collect();
    started.into_iter().map(|running| running.end().with_code(0)).collect()
}

#[test]
fn sixteen_processes_on_four_hosts_end_with_one_revision() {
    let place = Place::in_memory();
    let hub = place.join("hub");
    fs::create_dir(&hub).unwrap();
    let ran = build_everywhere(&place, &["--remote", hub.as_str()], &[]);
    let ids: HashSet<_> = ran.iter().map(|ran| ran.json()["revision"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let listed = place.done(&["remote", "ls", hub.as_str(), "--json"]).json();
    assert_eq!(listed["templates"][0]["revisions"].as_array().unwrap().len(), 1);

    let Some(bucket) = server::bucket() else { return };
    let place = Place::in_memory();
    for number in 0..4 {
        let root = place.join(&format!("host-{number}"));
        let (url, endpoint) = (bucket.url(), &bucket.endpoint);
        let words = ["remote", "add", "hub", &url, "--allow-http", "--endpoint", endpoint];
        Ran::of(place.program_of(&root, &words).output().unwrap()).with_code(0);
    }
    let env = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let ran = build_everywhere(&place, &["--remote", "hub"], &env);
    let ids: HashSet<_> = ran.iter().map(|ran| ran.json()["revision"].to_string()).collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(bucket.remote().templates().unwrap()[0].revisions.len(), 1);
    assert_sound(&bucket.remote());
}

#[test]
fn without_the_remote_it_is_built_unless_the_remote_is_required() {
    let place = Place::in_memory();
    let dead = ["remote", "add", "dead", "s3://images/x", "--endpoint", "http://127.0.0.1:1", "--allow-http"];
    place.done(&dead);
    let with = |more: &[&str], lock: &str| {
        let mut words = place.build_words("web", lock, more, &script("one"));
        words.insert(0, "--json".into());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = place.program(&words);
        command.env("AWS_ACCESS_KEY_ID", "k").env("AWS_SECRET_ACCESS_KEY", "s");
        Ran::of(command.output().unwrap())
    };
    let ran = with(&["--remote", "dead", "--push"], "one").with_code(0);
    assert!(ran.err.contains("going on without the remote") && ran.json()["result"] == "built", "{}", ran.err);
    let ran = with(&["--remote", "dead", "--remote-required"], "two").with_code(1);
    assert!(ran.err.contains("Connection refused"), "{}", ran.err);
    assert!(!ran.out.contains("secret") && !ran.err.contains("AWS_SECRET_ACCESS_KEY=s"));
    // Nobody was told that the build failed: the next builds.
    with(&[], "two").with_code(0);
    with(&["--remote", "nowhere"], "three").with_code(3);
}
