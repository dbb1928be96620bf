//! The program is killed while it pushes and pulls, and run again.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use template_store::gc::Policy;
use template_store::{Remote, RemoteSettings, RevisionId, Store};

use super::server::{self, KEY, SECRET};
use super::{Kind, assert_sound, current, host, publish, pull, push};
use crate::proof;
use crate::support::{Place, Ran, Running, assert_clean, assert_right, id};

/// How many moments there are at which it is killed.
fn rounds() -> u32 {
    if proof::quick() { 8 } else { 12 }
}

/// What the program needs to reach a remote.
struct Reach {
    words: Vec<String>,
    env: Vec<(&'static str, String)>,
}

impl Reach {
    fn of(kind: &Kind) -> Reach {
        match kind {
            Kind::Server(bucket) => Reach {
                words: vec!["--remote".into(), format!("{}/images", bucket.url())],
                env: vec![
                    ("AWS_ENDPOINT", bucket.endpoint.clone()),
                    ("AWS_ALLOW_HTTP", "true".into()),
                    ("AWS_ACCESS_KEY_ID", KEY.into()),
                    ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
                ],
            },
            Kind::Directory(dir) => Reach { words: vec!["--remote".into(), dir.to_string()], env: Vec::new() },
            Kind::Memory(_) => unreachable!("another process can't see it"),
        }
    }

    fn start(&self, place: &Place, store: &Store, words: &[&str]) -> Running {
        let words: Vec<&str> = words.iter().copied().chain(self.words.iter().map(String::as_str)).collect();
        let mut command = place.program_of(store.layout().root(), &words);
        Running::start(command.envs(self.env.iter().map(|(name, value)| (*name, value.as_str()))))
    }

    /// Runs it to its end, and says how long that took.
    fn done(&self, place: &Place, store: &Store, words: &[&str]) -> (Ran, Duration) {
        let start = Instant::now();
        let ran = self.start(place, store, words).end().with_code(0);
        (ran, start.elapsed())
    }

    /// Kills it at the given part of the time that it takes.
    fn killed(&self, place: &Place, store: &Store, words: &[&str], after: Duration) {
        let running = self.start(place, store, words);
        std::thread::sleep(after);
        running.signal(Signal::KILL);
        running.end();
    }
}

fn with_each(test: impl Fn(&Place, &Kind)) {
    let place = Place::in_memory();
    std::fs::create_dir(place.join("hub")).unwrap();
    test(&place, &Kind::Directory(place.join("hub")));
    if let Some(bucket) = server::bucket() {
        test(&Place::in_memory(), &Kind::Server(bucket));
    }
}

/// The same remote as the program is told.
fn opened(kind: &Kind) -> Remote {
    match kind {
        Kind::Server(bucket) => bucket.remote_at(&format!("{}/images", bucket.prefix)),
        Kind::Directory(dir) => Remote::open(&RemoteSettings::at(dir.as_str())).unwrap(),
        Kind::Memory(_) => unreachable!("another process can't see it"),
    }
}

#[test]
fn a_push_that_is_killed_leaves_the_old_or_the_new() {
    with_each(|place, kind| {
        let (a, remote, reach) = (host(place, "a"), opened(kind), Reach::of(kind));
        push(&a, &remote, &publish(place, &a, "first")).unwrap();
        publish(place, &a, "timed");
        let (_, whole) = reach.done(place, &a, &["push", "web"]);
        let mut old = current(&remote).unwrap();
        for round in 0..rounds() {
            let new: RevisionId = publish(place, &a, &format!("round {round}")).id().clone();
            reach.killed(place, &a, &["push", "web"], whole * round / rounds());
            let now = current(&remote).unwrap();
            assert!(now == old || now == new, "round {round}: {now} is neither {old} nor {new}");
            assert_sound(&remote);
            reach.done(place, &a, &["push", "web"]);
            assert_eq!(current(&remote), Some(new.clone()));
            old = new;
        }
        let b = host(place, "b");
        assert_right(&pull(&b, &remote, None).unwrap().revision);
        assert_sound(&remote);
    });
}

#[test]
fn a_pull_that_is_killed_is_completed_by_the_next() {
    with_each(|place, kind| {
        let (a, remote, reach) = (host(place, "a"), opened(kind), Reach::of(kind));
        push(&a, &remote, &publish(place, &a, "one")).unwrap();
        let (_, whole) = reach.done(place, &host(place, "timed"), &["pull", "web"]);
        for round in 0..rounds() {
            let b = host(place, &format!("b{round}"));
            reach.killed(place, &b, &["pull", "web"], whole * round / rounds());
            for revision in b.templates().unwrap().iter().flat_map(|one| b.revisions(one).unwrap()) {
                assert_right(&b.revision(&id("web"), &revision).unwrap());
            }
            reach.done(place, &b, &["pull", "web"]);
            assert_right(&b.current(&id("web")).unwrap());
            b.gc(&Policy::default(), &mut ()).unwrap();
            assert_clean(b.layout());
            assert_eq!(b.verify(&Default::default(), &mut ()).unwrap().findings, []);
        }
    });
}
