//! Tests of the model itself, on files written by hand.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use template_store::observe::{Observer as _, Op};

use super::choose::{Random, Subset};
use super::medium::{Ino, Medium, Step};
use super::mix;
use super::recorder::{Log, Recorder};
use super::states::{Explorer, Limits, State};
use super::view::{Leaf, View, differences, read_disk};

const ALL: Limits = Limits { all_up_to: 100_000, sample: 0, seed: 1 };

/// Does things to a real directory and tells the recorder, as the store would.
struct Hand {
    root: Utf8PathBuf,
    recorder: Arc<Recorder>,
    _dir: tempfile::TempDir,
}

impl Hand {
    fn new(prepare: impl FnOnce(&Utf8Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap().canonicalize_utf8().unwrap();
        prepare(&root);
        let recorder = Recorder::new(&root).unwrap();
        Self { root, recorder, _dir: dir }
    }

    fn path(&self, name: &str) -> Utf8PathBuf {
        self.root.join(name)
    }

    fn step(&self, op: &Op, act: impl FnOnce() -> io::Result<()>) {
        self.recorder.before(op);
        let outcome = act();
        self.recorder.after(op, outcome.as_ref().map(|_| ()));
        outcome.unwrap();
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        if !path.exists() {
            self.step(&Op::Create { path: path.clone() }, || fs::write(&path, b""));
        }
        let len = bytes.len() as u64;
        let append = || OpenOptions::new().append(true).open(&path)?.write_all(bytes);
        self.step(&Op::Append { path: path.clone(), len }, append);
    }

    fn fsync(&self, name: &str) {
        self.step(&Op::Fsync { path: self.path(name) }, || Ok(()));
    }

    fn fsync_dir(&self, name: &str) {
        self.step(&Op::FsyncDir { path: self.path(name) }, || Ok(()));
    }

    fn mkdir(&self, name: &str) {
        let path = self.path(name);
        self.step(&Op::Mkdir { path: path.clone() }, || fs::create_dir(&path));
    }

    fn rename(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.path(name));
        self.step(&Op::Rename { from: from.clone(), to: to.clone() }, || fs::rename(&from, &to));
    }

    fn link(&self, from: &str, to: &str) {
        let [from, to] = [from, to].map(|name| self.path(name));
        self.step(&Op::Link { from: from.clone(), to: to.clone() }, || fs::hard_link(&from, &to));
    }

    fn unlink(&self, name: &str) {
        let path = self.path(name);
        self.step(&Op::Unlink { path: path.clone() }, || fs::remove_file(&path));
    }

    fn symlink(&self, target: &str, name: &str) {
        let path = self.path(name);
        let op = Op::Symlink { target: target.into(), path: path.clone() };
        self.step(&op, || std::os::unix::fs::symlink(target, &path));
    }

    /// The trees that a cut at the very end may leave, each as one line.
    fn ends(&self) -> BTreeSet<String> {
        let log = self.recorder.finish();
        let mut all = BTreeSet::new();
        let last = Log { start: log.end(), entries: Vec::new() };
        for state in states(&last, ALL) {
            all.insert(line(&state.view()));
        }
        all
    }
}

fn states(log: &Log, limits: Limits) -> Vec<State> {
    Explorer::new(log, limits).collect(0)
}

/// `dir/ file=its bytes link->target`, hard links as `name==first name`.
fn line(view: &View<'_>) -> String {
    let mut words = Vec::new();
    for (path, leaf) in view.leaves() {
        words.push(match leaf {
            Leaf::Dir { .. } => format!("{path}/"),
            Leaf::Symlink(target) => format!("{path}->{target}"),
            Leaf::File { first, .. } if first != path => format!("{path}=={first}"),
            Leaf::File { state, .. } => {
                let mut bytes = state.blob.head().to_vec();
                bytes.resize(usize::try_from(state.blob.len()).unwrap(), 0);
                format!("{path}={}", bytes.escape_ascii())
            }
        });
    }
    words.join(" ")
}

fn lines<const N: usize>(lines: [&str; N]) -> BTreeSet<String> {
    lines.map(str::to_owned).into()
}

#[test]
fn a_file_that_was_never_synced_may_be_missing_empty_short_garbage_or_whole() {
    let hand = Hand::new(|_| {});
    hand.write("a", b"word");
    let garbage = [b'w', b'o', b'r', b'd'].map(|byte: u8| !byte).escape_ascii().to_string();
    let garbage = format!("a={garbage}");
    assert_eq!(hand.ends(), lines(["", "a=", "a=wo", "a=wor", "a=word", "a=\\x00\\x00\\x00\\x00", &garbage]));
    hand.fsync("a");
    assert_eq!(hand.ends(), lines(["", "a=word"]), "a file's fsync says nothing of its name");
    hand.fsync_dir("");
    assert_eq!(hand.ends(), lines(["a=word"]));
}

#[test]
fn bytes_before_an_append_are_safe() {
    let hand = Hand::new(|root| fs::write(root.join("log"), b"one\n").unwrap());
    hand.write("log", b"2\n");
    let ends = hand.ends();
    assert!(ends.iter().all(|end| end.starts_with("log=one\\n")), "{ends:?}");
    assert!(ends.contains("log=one\\n2"), "a line may lack its end: {ends:?}");
    assert!(ends.contains("log=one\\n\\x00\\x00"), "{ends:?}");
}

#[test]
fn names_of_one_directory_persist_in_order_and_those_of_two_independently() {
    let hand = Hand::new(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::create_dir(root.join("e")).unwrap();
    });
    hand.write("d/1", b"");
    hand.write("d/2", b"");
    hand.write("e/3", b"");
    let expected = ["d/ e/", "d/ d/1= e/", "d/ d/1= d/2= e/", "d/ e/ e/3=", "d/ d/1= e/ e/3=", "d/ d/1= d/2= e/ e/3="];
    assert_eq!(hand.ends(), lines(expected));
}

#[test]
fn a_rename_persists_in_both_directories_or_in_neither() {
    let hand = Hand::new(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::create_dir(root.join("e")).unwrap();
        fs::write(root.join("e/old"), b"old").unwrap();
    });
    hand.write("d/new", b"");
    hand.rename("d/new", "e/old");
    assert_eq!(hand.ends(), lines(["d/ e/ e/old=old", "d/ d/new= e/ e/old=old", "d/ e/ e/old="]));
    hand.fsync_dir("e");
    assert_eq!(hand.ends(), lines(["d/ e/ e/old="]), "one directory's fsync is enough for a rename of both");
}

#[test]
fn a_new_directory_is_empty_until_its_own_names_persist() {
    let hand = Hand::new(|_| {});
    hand.mkdir("d");
    hand.write("d/a", b"");
    hand.fsync_dir("d");
    assert_eq!(hand.ends(), lines(["", "d/ d/a="]), "a directory's fsync says nothing of its own name");

    let hand = Hand::new(|_| {});
    hand.mkdir("d");
    hand.write("d/a", b"");
    hand.fsync_dir("");
    assert_eq!(hand.ends(), lines(["d/", "d/ d/a="]));
}

#[test]
fn fsync_of_a_directory_makes_durable_what_its_changes_need_and_no_more() {
    let hand = Hand::new(|root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::create_dir(root.join("e")).unwrap();
    });
    hand.mkdir("d/draft");
    hand.write("d/draft/a", b"");
    hand.rename("d/draft", "e/final");
    hand.write("d/later", b"");
    hand.fsync_dir("e");
    let expected = [
        "d/ e/ e/final/",
        "d/ e/ e/final/ e/final/a=",
        "d/ d/later= e/ e/final/",
        "d/ d/later= e/ e/final/ e/final/a=",
    ];
    assert_eq!(hand.ends(), lines(expected));
}

#[test]
fn hard_links_stay_one_file() {
    let hand = Hand::new(|root| fs::write(root.join("a"), b"x").unwrap());
    hand.link("a", "b");
    assert_eq!(hand.ends(), lines(["a=x", "a=x b==a"]));
    hand.rename("b", "a");
    assert_eq!(hand.ends(), lines(["a=x", "a=x b==a"]), "a rename onto the same inode does nothing");
    hand.unlink("a");
    assert_eq!(hand.ends(), lines(["a=x", "a=x b==a", "b=x"]));
}

#[test]
fn a_swapped_link_is_the_old_or_the_new_and_never_absent() {
    let hand = Hand::new(|root| std::os::unix::fs::symlink("1", root.join("current")).unwrap());
    hand.symlink("2", "tmp");
    hand.rename("tmp", "current");
    assert_eq!(hand.ends(), lines(["current->1", "current->1 tmp->2", "current->2"]));
}

#[test]
fn what_a_builder_wrote_is_not_synced() {
    let hand = Hand::new(|_| {});
    hand.mkdir("draft");
    fs::create_dir(hand.path("draft/sub")).unwrap();
    fs::write(hand.path("draft/sub/a"), b"").unwrap();
    fs::hard_link(hand.path("draft/sub/a"), hand.path("draft/b")).unwrap();
    hand.step(&Op::Foreign { path: hand.path("draft") }, || Ok(()));
    hand.fsync_dir("");
    let expected =
        ["draft/", "draft/ draft/b=", "draft/ draft/b= draft/sub/", "draft/ draft/b= draft/sub/ draft/sub/a==draft/b"];
    assert_eq!(hand.ends(), lines(expected));
}

#[test]
#[should_panic(expected = "past the seam")]
fn a_change_past_the_seam_is_noticed_at_the_end() {
    let hand = Hand::new(|root| fs::write(root.join("a"), b"").unwrap());
    fs::write(hand.path("a"), b"secretly").unwrap();
    hand.recorder.finish();
}

#[test]
#[should_panic(expected = "past the seam")]
fn a_write_past_the_seam_is_noticed_at_the_next_fsync() {
    let hand = Hand::new(|_| {});
    hand.write("a", b"openly");
    fs::write(hand.path("a"), b"secretly").unwrap();
    hand.fsync("a");
    hand.write("a", b"openly");
    hand.recorder.finish();
}

#[test]
fn a_tree_made_real_reads_back_as_it_was() {
    let hand = Hand::new(|_| {});
    busy(&hand, 60, 7);
    let log = hand.recorder.finish();
    for state in states(&log, Limits { all_up_to: 3, sample: 3, seed: 1 }) {
        let dir = tempfile::tempdir().unwrap();
        state.materialize(dir.path()).unwrap();
        let disk = read_disk(Utf8Path::from_path(dir.path()).unwrap()).unwrap();
        assert_eq!(differences(&state.view().leaves(), &disk), Vec::<String>::new(), "{}", state.describe(&log));
    }
}

/// The steps that can only take states away are skipped, and a step is asked only for what it adds.
/// This search knows no such thing.
#[test]
fn the_states_of_a_log_are_those_that_a_plain_search_finds() {
    for seed in 0..30 {
        let hand = Hand::new(|_| {});
        busy(&hand, 14, seed);
        let log = hand.recorder.finish();
        let clever: BTreeSet<u64> = states(&log, ALL).iter().map(|state| state.hash).collect();
        assert_eq!(clever, plain_search(&log), "seed {seed}: {:#?}", log.entries);
    }
}

#[test]
fn steps_of_many_threads_are_logged_in_the_order_of_the_disk() {
    let hand = Hand::new(|_| {});
    hand.mkdir("d");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let hand = &hand;
            scope.spawn(move || {
                for round in 0..20 {
                    let [mine, moved] = ["new", "moved"].map(|what| format!("d/{what}-{thread}-{round}"));
                    hand.write(&mine, b"x");
                    hand.rename(&mine, &moved);
                    // All threads at once: each takes the place of another's file.
                    hand.rename(&moved, "d/one-for-all");
                }
            });
        }
    });
    // Says so when the last to come is not the one that is there.
    hand.recorder.finish();
}

#[test]
fn at_least_half_of_a_sample_is_no_prefix() {
    let hand = Hand::new(|_| {});
    busy(&hand, 80, 3);
    let log = hand.recorder.finish();
    let all = states(&log, Limits { all_up_to: 50, sample: 40, seed: 5 });
    let sampled: Vec<&State> = all.iter().filter(|state| state.sampled).collect();
    let prefixes = sampled.iter().filter(|state| state.prefix).count();
    assert!(sampled.len() > 500 && prefixes * 2 < sampled.len(), "{prefixes} of {}", sampled.len());
}

/// Random steps over a few names.
fn busy(hand: &Hand, steps: usize, seed: u64) {
    let mut random = Random(mix(seed, 99));
    for dir in ["d", "e"] {
        hand.mkdir(dir);
    }
    for number in 0..steps {
        let name = ["d/a", "d/b", "e/a", "e/c", "f"][random.below(5)];
        let other = ["d/b", "e/b", "e/a", "g"][random.below(4)];
        let (there, taken) = (hand.path(name).exists(), hand.path(other).exists());
        match random.below(8) {
            0 | 1 if !there => hand.write(name, format!("{number}").as_bytes()),
            2 if there => hand.write(name, b"+"),
            3 if there => hand.fsync(name),
            4 => hand.fsync_dir(["", "d", "e"][random.below(3)]),
            5 if there && name != other => hand.rename(name, other),
            6 if there && !taken => hand.link(name, other),
            7 if there => hand.unlink(name),
            _ => hand.recorder.ack("a step"),
        }
    }
}

fn plain_search(log: &Log) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut medium = log.start.clone();
    let mut acks = 0;
    for number in 0..=log.entries.len() {
        for bits in 0..1_u32 << medium.pending.len() {
            let kept: Vec<bool> = (0..medium.pending.len()).map(|i| bits >> i & 1 == 1).collect();
            if in_order(&medium, &kept) {
                every_content(&medium, kept, |hash| found.insert(mix(hash, acks)));
            }
        }
        let Some(entry) = log.entries.get(number) else { break };
        medium.apply(number, &entry.step);
        acks += u64::from(entry.step == Step::Ack);
    }
    found
}

fn in_order(medium: &Medium, kept: &[bool]) -> bool {
    let dirs = |i: usize| medium.pending[i].edits.iter().map(|edit| edit.dir);
    (0..kept.len()).filter(|&i| kept[i]).all(|i| {
        let earlier = (0..i).filter(|&j| dirs(j).any(|dir| medium.pending[i].touches(dir)));
        earlier.into_iter().all(|j| kept[j])
    })
}

fn every_content(medium: &Medium, kept: Vec<bool>, mut found: impl FnMut(u64) -> bool) {
    let subset = Subset::new(medium, kept);
    let count: usize = subset.files.iter().map(|(_, outcomes)| outcomes.len()).product();
    for mut number in 0..count {
        let mut files: Vec<(Ino, _)> = Vec::new();
        for (ino, outcomes) in &subset.files {
            files.push((*ino, outcomes[number % outcomes.len()].1.clone()));
            number /= outcomes.len();
        }
        found(View::after_cut(medium, &subset.kept, &files).hash());
    }
}
