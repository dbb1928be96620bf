//! Of all who ask for one key at once, in threads or processes, one builds.

use std::fs;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use template_store::{
    Attempt, Build, BuildOptions, Difference, Draft, Error, ErrorKind, Known, Progress, PublishOptions, Result,
    RevisionId, SealOptions, Store, Wait,
};

use crate::support::{
    Place, Running, assert_clean, assert_error, assert_right, build, bytes, draft, draft_with, fresh, id, image,
    inputs, is_dead, names, reused, script, until,
};

/// Says on a channel that it waits.
struct Tell(Sender<Attempt>);

impl Progress for Tell {
    fn waiting(&mut self, on: &Attempt) {
        self.0.send(on.clone()).expect("the test listens");
    }
}

/// What threads got that asked for one key while somebody had it; `end` is called once all of them wait.
fn while_many_wait(
    store: &Store,
    count: usize,
    options: &BuildOptions,
    end: impl FnOnce(Vec<Attempt>),
) -> Vec<Result<Build>> {
    let (tell, told) = channel();
    // Nobody waits that long, unless the store is broken.
    let options = &options.clone().wait(Wait::AtMost(Duration::from_secs(60)));
    thread::scope(|scope| {
        let ask = |tell| move || store.build_with(&id("web"), &inputs("a"), options, &mut Tell(tell));
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(ask(tell.clone()))).collect();
        end((0..count).map(|_| told.recv_timeout(Duration::from_secs(60)).expect("each says that it waits")).collect());
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn publish(draft: Draft, label: &str) -> RevisionId {
    image(draft.path(), label);
    draft.seal().unwrap().publish().unwrap().id().clone()
}

#[test]
fn of_many_threads_one_builds_and_all_get_its_revision() {
    let (_place, store) = fresh();
    let options = BuildOptions::default().command("make image");
    let draft = draft_with(&store, "web", &inputs("a"), &options);
    let mut built = None;
    let got = while_many_wait(&store, 8, &BuildOptions::default(), |waiting| {
        for attempt in waiting {
            assert_eq!(
                (attempt.pid, attempt.command.as_str()),
                (std::process::id(), "make image"),
                "for whom it waits"
            );
            assert_eq!(attempt.template.as_str(), "web");
        }
        built = Some(publish(draft, "one"));
    });
    for got in got {
        match got.unwrap() {
            Build::Reused(revision) => assert_eq!(Some(revision.id()), built.as_ref()),
            Build::Draft(_) => panic!("it was built already"),
        }
    }
    assert_eq!(store.history(&id("web")).unwrap().len(), 1, "one of them published");
    assert_clean(store.layout());
}

#[test]
fn a_build_that_fails_in_whatever_way_fails_all_who_wait_with_its_error() {
    let (_place, store) = fresh();
    type End = fn(Draft);
    let ends: [(&str, End); 4] = [
        ("the compiler is on fire", |draft| draft.fail("the compiler is on fire").unwrap()),
        ("the last line", |draft| {
            draft.fail(format!("{}the last line", "a line of the log of the build\n".repeat(4000))).unwrap();
        }),
        ("no rootfs.ext4", |draft| {
            fs::write(draft.path().join("vmlinux"), "kernel").unwrap();
            assert!(draft.seal().is_err(), "it has no root file system");
        }),
        ("gave up", drop),
    ];
    for (says, end) in ends {
        let draft = draft(&store, "web", &inputs("a"));
        for got in while_many_wait(&store, 4, &BuildOptions::default(), |_| end(draft)) {
            let Err(Error::BuildFailed { attempt, message }) = &got else { panic!("{says}: {got:?}") };
            assert_eq!(attempt.pid, std::process::id(), "the error is one of that builder");
            assert!(message.contains(says), "{says:?} is not in {message}");
            assert_error(got, ErrorKind::Failed, &[says]);
        }
        assert_clean(store.layout());
    }
    publish(draft(&store, "web", &inputs("a")), "one");
}

#[test]
fn a_builder_that_gives_up_lets_the_next_in_line_build() {
    let (_place, store) = fresh();
    let draft = draft(&store, "web", &inputs("a"));
    let (abandon, (tell, told)) = (|| draft.abandon().unwrap(), channel());
    let ask = |tell| match store.build_with(&id("web"), &inputs("a"), &BuildOptions::default(), &mut Tell(tell)) {
        Ok(Build::Draft(draft)) => (true, publish(draft, "one")),
        Ok(Build::Reused(revision)) => (false, revision.id().clone()),
        Err(error) => panic!("{error}"),
    };
    let got: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = [tell.clone(), tell].map(|tell| scope.spawn(move || ask(tell))).into();
        told.iter().take(2).for_each(drop);
        abandon();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(got.iter().filter(|(built, _)| *built).count(), 1, "one of the two built");
    assert_eq!(got[0].1, got[1].1);
    assert_clean(store.layout());
}

#[test]
fn a_thread_that_asks_twice_gets_an_error() {
    let (place, store) = fresh();
    let first = draft(&store, "web", &inputs("a"));
    let ask = |store: &Store, template: &str| {
        let patience = BuildOptions::default().wait(Wait::AtMost(Duration::from_secs(1)));
        store.build_with(&id(template), &inputs("a"), &patience, &mut ())
    };
    assert_error(ask(&store, "web"), ErrorKind::Refused, &["this thread", "web"]);
    // The key counts, not the template, nor the handle of the store.
    assert_error(ask(&place.store(), "db"), ErrorKind::Refused, &["this thread", "db"]);
    assert_error(ask(&store, "web"), ErrorKind::Refused, &["this thread", "web"]);
    draft(&store, "web", &inputs("b")).abandon().unwrap();
    publish(first, "one");
    reused(&store, "web", &inputs("a"));
}

#[test]
fn a_wait_that_is_too_long_names_the_builder() {
    let (_place, store) = fresh();
    let options = BuildOptions::default().command("make image");
    let draft = draft_with(&store, "web", &inputs("a"), &options);
    let patience = BuildOptions::default().wait(Wait::AtMost(Duration::from_millis(5)));
    let result = thread::scope(|scope| {
        scope.spawn(|| store.build_with(&id("web"), &inputs("a"), &patience, &mut ())).join().unwrap()
    });
    assert_error(result, ErrorKind::Refused, &[&format!("process {}", std::process::id()), "make image", "web"]);
    publish(draft, "one");
}

#[test]
fn of_many_forcers_one_builds_and_all_get_its_revision() {
    let (_place, store) = fresh();
    let old = build(&store, "web", &inputs("a"), "one");
    let again = BuildOptions::default().known(Known::BuildAgain);
    let draft = draft_with(&store, "web", &inputs("a"), &again);
    let mut built = None;
    let got = while_many_wait(&store, 4, &again, |_| built = Some(publish(draft, "two")));
    for got in got {
        match got.unwrap() {
            Build::Reused(revision) => assert_eq!(Some(revision.id()), built.as_ref(), "the new build"),
            Build::Draft(_) => panic!("it was built anew while it waited"),
        }
    }
    assert_ne!(built.as_ref(), Some(old.id()));
    assert_eq!(reused(&store, "web", &inputs("a")).id(), &built.unwrap(), "the newest is what is reused");
    assert_right(&old);
}

#[test]
fn other_bytes_from_the_same_inputs_are_a_second_revision_and_the_difference_is_told() {
    let (_place, store) = fresh();
    let build = |label: &str| {
        let again = BuildOptions::default().known(Known::BuildAgain);
        let draft = draft_with(&store, "web", &inputs("a"), &again);
        image(draft.path(), "one");
        let mut rootfs = bytes("one: rootfs", 256 << 10);
        rootfs[100_000..100_000 + label.len()].copy_from_slice(label.as_bytes());
        fs::write(draft.path().join("rootfs.ext4"), rootfs).unwrap();
        let sealed = draft.seal_with(&SealOptions::default().revision(id::<RevisionId>("r1")), &mut ()).unwrap();
        sealed.publish_with(&PublishOptions::default(), &mut ()).unwrap()
    };
    let first = build("A");
    assert_eq!((first.revision.id().as_str(), first.differs), ("r1", None));
    let second = build("B");
    let (base, contents) = second.revision.id().as_str().split_once('+').expect("the id has a second part");
    assert_eq!((base, contents.len()), ("r1", 12));
    assert!(contents.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{contents}");
    let changed = Difference::Changed { path: id("rootfs.ext4"), ranges: vec![(98304, 4096)] };
    assert_eq!(second.differs, Some((id("r1"), vec![changed])), "which file, and where");
    assert_right(&first.revision);
    assert_right(&second.revision);
    assert_eq!(store.current(&id("web")).unwrap().id(), second.revision.id());

    let third = build("B");
    assert_eq!((third.revision.id(), third.differs), (second.revision.id(), None), "the same bytes once more");
    assert_eq!(store.revisions(&id("web")).unwrap().len(), 2);
}

#[test]
fn a_rebuild_is_compared_and_nothing_of_it_is_published() {
    let (_place, store) = fresh();
    let known = build(&store, "web", &inputs("a"), "one");
    let before = crate::support::listing(store.layout().root());
    let compare = |change: &dyn Fn(&camino::Utf8Path)| {
        let draft = store.rebuild(&id("web"), &inputs("a")).unwrap();
        image(draft.path(), "one");
        change(draft.path());
        draft.compare(&known, &SealOptions::default(), &mut ()).unwrap()
    };
    assert_eq!(compare(&|_| ()), [], "the same bytes are no difference");
    let found = compare(&|dir| {
        fs::write(dir.join("vmlinux"), bytes("other", 128 << 10)).unwrap();
        fs::write(dir.join("added"), "").unwrap();
    });
    let whole = Difference::Changed { path: id("vmlinux"), ranges: vec![(0, 128 << 10)] };
    assert_eq!(found, [Difference::Added { path: id("added") }, whole]);
    assert_eq!(crate::support::listing(store.layout().root()), before, "the store is as it was");
}

/// How often the command of a build has begun.
fn runs(place: &Place) -> Vec<u32> {
    let text = fs::read_to_string(place.join("runs")).unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// A command that notes that it runs, then waits until `go` is there, then does the rest.
fn counted(place: &Place, rest: &str) -> String {
    format!("echo $$ >>{0}/runs; until [ -e {0}/go ]; do sleep 0.01; done; {rest}", place.path())
}

/// Starts builds of one key: the first builds, the others wait for it.
fn one_builds_others_wait(place: &Place, others: usize, script: &str) -> (Running, Vec<Running>) {
    let first = place.start_build("web", "a", &["--json"], script);
    until("the command runs", || (runs(place).len() == 1).then_some(()));
    let mut waiting: Vec<_> = (0..others).map(|_| place.start_build("web", "a", &["--json"], script)).collect();
    waiting.iter_mut().for_each(Running::until_it_waits);
    (first, waiting)
}

#[test]
fn of_many_processes_one_builds_and_all_get_its_revision() {
    let place = Place::new();
    let (first, waiting) = one_builds_others_wait(&place, 7, &counted(&place, &script("one")));
    for process in &waiting {
        assert!(process.said().contains(&format!("process {}", first.pid())), "for whom it waits: {}", process.said());
    }
    fs::write(place.join("go"), "").unwrap();
    let built = first.end().with_code(0).json();
    assert_eq!(built["result"], "built");
    for process in waiting {
        let reused = process.end().with_code(0).json();
        assert_eq!((&reused["result"], &reused["revision"]), (&"reused".into(), &built["revision"]));
    }
    assert_eq!(runs(&place).len(), 1, "the command ran once");
    assert_right(&place.store().current(&id("web")).unwrap());
    assert_clean(place.store().layout());
}

#[test]
fn a_command_that_fails_fails_all_processes_that_wait_and_ran_once() {
    let place = Place::new();
    let (first, waiting) = one_builds_others_wait(&place, 4, &counted(&place, "exit 7"));
    let pid = first.pid().to_string();
    fs::write(place.join("go"), "").unwrap();
    first.end().with_code(1).says(&["exited with code 7"]);
    for process in waiting {
        process.end().with_code(1).says(&["exited with code 7", &pid]);
    }
    assert_eq!(runs(&place).len(), 1, "the command ran once");
    assert_clean(place.store().layout());
}

#[test]
fn a_builder_that_is_killed_is_followed_by_another_and_its_command_dies() {
    let place = Place::new();
    // The first to run waits for ever; the second has `go`.
    let (first, waiting) = one_builds_others_wait(&place, 4, &counted(&place, &script("one")));
    let command = runs(&place)[0];
    assert!(!is_dead(command));
    first.signal(Signal::KILL);
    assert_eq!(first.end().code, None, "it was killed");
    until("its command dies with it", || is_dead(command).then_some(()));
    until("another takes over", || (runs(&place).len() == 2).then_some(()));
    fs::write(place.join("go"), "").unwrap();
    let ended: Vec<_> = waiting.into_iter().map(|process| process.end().with_code(0).json()).collect();
    assert_eq!(ended.iter().filter(|ended| ended["result"] == "built").count(), 1, "{ended:?}");
    assert!(ended.iter().all(|end| end["revision"] == ended[0]["revision"]), "all got one revision: {ended:?}");
    assert_eq!(runs(&place).len(), 2, "the command ran twice");
    assert_right(&place.store().current(&id("web")).unwrap());
    assert_clean(place.store().layout());
}

#[test]
fn a_builder_that_is_asked_to_stop_leaves_no_draft_and_the_next_in_line_builds() {
    let place = Place::new();
    let (first, mut waiting) = one_builds_others_wait(&place, 1, &counted(&place, &script("one")));
    let layout = place.store().layout().clone();
    let (draft, command) = (names(layout.drafts()), runs(&place)[0]);
    assert_eq!(draft.len(), 1);
    first.signal(Signal::TERM);
    first.end().with_code(128 + 15);
    assert!(is_dead(command), "the command got the signal");
    until("the next one builds", || (runs(&place).len() == 2).then_some(()));
    assert!(!names(layout.drafts()).contains(&draft[0]), "the first draft is gone");
    fs::write(place.join("go"), "").unwrap();
    assert_eq!(waiting.remove(0).end().with_code(0).json()["result"], "built");
    assert_clean(&layout);
}

#[test]
fn a_builder_that_is_asked_to_stop_while_it_seals_stops() {
    let (place, store) = fresh();
    // So many holes to hash that there is time to ask.
    let large = format!(r#"{}; truncate -s 16G "$OUT/rootfs.ext4""#, script("one"));
    let sealing = place.start_build("web", "a", &[], &large);
    until("it seals the file", || {
        use std::os::unix::fs::MetadataExt;
        let drafts = names(store.layout().drafts());
        let rootfs = store.layout().drafts().join(drafts.first()?).join("rootfs.ext4");
        (fs::metadata(rootfs).ok()?.mode() & 0o777 == 0o444).then_some(())
    });
    sealing.signal(Signal::TERM);
    let ended = sealing.end();
    assert_ne!(ended.code, Some(0), "it was asked to stop, and went on");
    assert!(store.current(&id("web")).is_err(), "nothing was published");
    place.build("web", "a", &[], &script("one")).with_code(0);
    assert_clean(store.layout());
}
