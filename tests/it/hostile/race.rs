//! Another user of the machine who swaps a directory for a link in a loop, while the store works in it.
//!
//! Root works where `nobody` may write; who is not root is the one and the other.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use template_store::gc::Policy;
use template_store::{Durability, Import, ImportOptions, Removal, Result, Store, StoreOptions};

use super::trap::{Victim, assert_no_secret, bait, exchange, secret_below};
use crate::adopt::{mvm_revision, mvm_template};
use crate::interning::NOBODY;
use crate::proof;
use crate::support::{Place, build, bytes, draft, id, image, inputs, until};

/// Set for the process that swaps: a directory, the way from what is in it to what is swapped, and the link.
const SWAP: &str = "TEMPLATE_STORE_TEST_SWAPS";

/// How many rounds each race has.
fn rounds() -> usize {
    proof::scaled(50, 2000)
}

/// What the process that swaps runs; else it is a test that has nothing to do.
#[test]
fn swaps_names_if_it_was_started_to() {
    let Ok(names) = std::env::var(SWAP) else { return };
    let [base, below, bait] = names.split('\n').collect::<Vec<_>>().try_into().expect("three names");
    let parent = rustix::process::getppid();
    while rustix::process::getppid() == parent {
        for entry in Utf8Path::new(base).read_dir_utf8().into_iter().flatten().flatten() {
            let target = entry.path().join(below);
            exchange(Utf8Path::new(target.as_str().trim_end_matches('/')), Utf8Path::new(bait));
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a tree to the one who swaps.
fn give(dir: &Utf8Path) {
    if is_root() {
        for entry in walkdir::WalkDir::new(dir).follow_root_links(false).into_iter().flatten() {
            std::os::unix::fs::lchown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

fn fill(dir: &Utf8Path) {
    fs::create_dir_all(dir.join("lib/inner")).unwrap();
    image(dir, "raced");
    fs::write(dir.join("lib/inner/module"), bytes("module", 70_000)).unwrap();
    fs::write(dir.join("lib/readme"), "text").unwrap();
}

/// A store, a directory in which somebody else may do what they like, and who does so until this is dropped.
struct Race {
    /// First, so that its directories can be removed with the place.
    victim: Victim,
    place: Place,
    store: Store,
    /// Where the link leads.
    lure: Utf8PathBuf,
    below: &'static str,
    swapping: Option<Child>,
}

impl Race {
    /// What `pattern` makes is what the victim has the names of.
    fn new(below: &'static str, pattern: impl Fn(&Utf8Path)) -> Race {
        let place = Place::in_memory();
        let store = place.quick_store();
        fs::create_dir(place.join("shared")).unwrap();
        give(&place.join("shared"));
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
        pattern(&place.join("pattern"));
        let victim = Victim::like(&place.join("victim"), &place.join("pattern"));
        let lure = victim.dir.clone();
        let mut race = Race { place, store, lure, victim, below, swapping: None };
        race.lay_bait();
        race
    }

    fn shared(&self) -> Utf8PathBuf {
        self.place.join("shared")
    }

    /// A link of the one who swaps; nobody could swap it while it was ours.
    fn lay_bait(&mut self) {
        let link = bait(&self.place.join("link"), &self.lure);
        give(&link);
        fs::rename(&link, self.shared().join(".bait")).unwrap();
    }

    /// Starts who swaps `below` of all that is in `base`.
    fn start(&mut self, base: &Utf8Path) {
        let mut command = self.swapper();
        command.args(["--exact", "hostile::race::swaps_names_if_it_was_started_to"]);
        let bait = self.shared().join(".bait");
        command.env(SWAP, [base.as_str(), self.below, bait.as_str()].join("\n"));
        self.swapping = Some(command.spawn().unwrap());
    }

    /// This very program, as the one who swaps; a copy of it where that one may not reach it.
    fn swapper(&self) -> Command {
        let as_swapper = |program: &Path| {
            let mut command = Command::new(program);
            command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
            if is_root() {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let program = std::env::current_exe().unwrap();
        let listed = as_swapper(&program).args(["--list", "--exact", "nothing"]).status();
        if listed.is_ok_and(|status| status.success()) {
            return as_swapper(&program);
        }
        let copy = self.place.join("swapper");
        fs::copy(program, &copy).unwrap();
        as_swapper(copy.as_std_path())
    }

    /// Shows something that was made where nobody can swap.
    fn show(&self, make: impl Fn(&Utf8Path), to_give: &str) -> Utf8PathBuf {
        let (made, shown) = (self.place.join("made"), self.shared().join("it"));
        make(&made);
        give(Utf8Path::new(made.join(to_give).as_str().trim_end_matches('/')));
        fs::rename(made, &shown).unwrap();
        shown
    }

    /// Takes away what a round left, whatever has which name now.
    fn clear(&mut self) {
        for (number, name) in ["it", ".bait"].into_iter().enumerate() {
            let aside = self.place.join(&format!("aside-{number}"));
            match fs::rename(self.shared().join(name), &aside) {
                Ok(()) if aside.is_symlink() => fs::remove_file(aside).unwrap(),
                Ok(()) => {
                    // A swap that was under way may still end in it, also while it is looked at.
                    until("what is left has nothing of the victim's", || {
                        matches!(secret_below(&aside), Ok(None)).then_some(())
                    });
                    until("what is left can be removed", || fs::remove_dir_all(&aside).ok());
                }
                Err(_) => {}
            }
        }
        self.lay_bait();
    }

    /// Does the same again and again, and then looks at the victim.
    fn run(mut self, name: &str, base: &Utf8Path, round: impl Fn(&Race) -> Result<()>) {
        self.start(base);
        let mut refused = 0;
        for _ in 0..rounds() {
            refused += usize::from(round(&self).is_err());
            self.clear();
        }
        if let Some(mut swapping) = self.swapping.take() {
            let early = swapping.try_wait().unwrap();
            assert!(early.is_none(), "who was to swap has ended: {early:?}");
            swapping.kill().unwrap();
            swapping.wait().unwrap();
        }
        self.victim.assert_untouched(name);
        assert_no_secret(&self.place.root(), name);
        println!("{name}, {:?}: {} rounds, {refused} of them refused", self.below, rounds());
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        if let Some(mut swapping) = self.swapping.take() {
            let _ = swapping.kill();
            let _ = swapping.wait();
        }
    }
}

/// The part of the image that is swapped.
fn part(below: &'static str) -> impl Fn(&Utf8Path) {
    move |dir| {
        let whole = dir.with_file_name("whole");
        fill(&whole);
        fs::rename(whole.join(below), dir).unwrap();
    }
}

fn publish(how: Import, below: &'static str, to_give: &str) {
    let race = if below.is_empty() { Race::new(below, fill) } else { Race::new(below, part(below)) };
    let base = race.shared();
    race.run(&format!("publish by {how:?}"), &base, |race| {
        let dir = race.show(fill, to_give);
        let options = ImportOptions::default().how(how);
        let published = race.store.publish_dir_with(&id("web"), dir, &options, &mut ())?;
        assert_no_secret(&published.revision.path(), "published");
        let (template, revision) = (published.revision.template().clone(), published.revision.id().clone());
        drop(published);
        race.store.remove_template(&template, Removal::Forced).map(|_| drop(revision))
    });
}

#[test]
fn publishing_a_directory_of_somebody_who_swaps_a_part_of_it() {
    publish(Import::Copy, "lib", "");
    publish(Import::Copy, "lib/inner", "");
}

#[test]
fn publishing_a_directory_that_somebody_swaps() {
    publish(Import::Move, "", "lib");
    // One's own links are followed, where one names them.
    if is_root() {
        publish(Import::Copy, "", "");
    }
}

#[test]
fn moving_in_a_directory_of_which_somebody_swaps_a_part() {
    publish(Import::Move, "lib/inner", "lib");
}

#[test]
fn dropping_a_draft_while_somebody_swaps_a_part_of_it() {
    let race = Race::new("lib", part("lib"));
    let drafts = race.store.layout().drafts();
    race.run("a draft is dropped", &drafts, |race| {
        let draft = draft(&race.store, "web", &inputs("lock"));
        let made = race.place.join("made");
        fill(&made);
        give(&made);
        for name in ["lib", "vmlinux"] {
            fs::rename(made.join(name), draft.path().join(name)).unwrap();
        }
        if is_root() {
            std::os::unix::fs::lchown(draft.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        fs::remove_dir_all(made).unwrap();
        draft.abandon()
    });
}

#[test]
fn collecting_what_the_dead_left_while_somebody_swaps_a_part_of_it() {
    let race = Race::new("lib", part("lib"));
    let drafts = race.store.layout().drafts();
    race.run("a dead draft is collected", &drafts, |race| {
        let made = race.place.join("made");
        fill(&made);
        give(&made);
        static DEAD: AtomicUsize = AtomicUsize::new(0);
        let name = format!("dead-{}", DEAD.fetch_add(1, Ordering::Relaxed));
        fs::rename(made, race.store.layout().drafts().join(name)).unwrap();
        race.store.gc(&Policy::default(), &mut ()).map(drop)
    });
}

#[test]
fn adopting_while_somebody_swaps_a_part_of_a_revision() {
    let below = "templates/web/artifacts/r1/lib";
    let race = Race::new(below, part("lib"));
    let base = race.shared();
    race.run("adopt", &base, |race| {
        let make = |root: &Utf8Path| {
            mvm_template(root, "web");
            fill(&mvm_revision(root, "web", "r1", "one"));
        };
        let root = race.show(make, "templates/web/artifacts/r1");
        let options = StoreOptions::default().durability(Durability::None);
        let adopted = Store::adopt(root, &options, &mut ())?;
        assert!(adopted.revisions.len() + adopted.left.len() > 0);
        Ok(())
    });
}

/// The directory that holds the instance is the one that is swapped, for one that holds another.
#[test]
fn removing_an_instance_from_a_directory_that_somebody_swaps() {
    if !is_root() {
        return println!("one's own links are followed, where one names them: not tried");
    }
    let mut race = Race::new("", |dir| fs::create_dir(dir).unwrap());
    let revision = build(&race.store, "web", &inputs("lock"), "one");
    let other = race.victim.dir.join("1");
    fs::set_permissions(&race.victim.dir, Permissions::from_mode(0o755)).unwrap();
    revision.instance(&other).unwrap();
    // What it shares with the store has other links as well, which come and go.
    race.victim = Victim::of(&other.join("rootfs.ext4"));
    let base = race.shared();
    race.run("an instance is removed", &base, |race| {
        let vms = race.show(|dir| fs::create_dir(dir).unwrap(), "");
        let made = revision.instance(vms.join("1"));
        let removed = race.store.remove_instance(vms.join("1"), Removal::Forced);
        made.map(drop).and(removed)
    });
}
