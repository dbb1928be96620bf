//! What one process of the crowd does, and the errors that the others explain.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::Duration;

use camino::Utf8Path;
use template_store::{
    Build, BuildOptions, Error, Expect, Known, PinOptions, Removal, Result, Revision, RevisionId, Store, TemplateId,
    Wait,
};

use crate::support::{bytes, id, inputs};

const TEMPLATES: u64 = 50;
const KEYS: u64 = 30;

/// Numbers that look random and are the same for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Works in two threads until `stop` lies beside the store; then says how much was done.
pub fn work(root: &Utf8Path, seed: u64) {
    let store = Store::open(root).unwrap();
    let stop = root.with_file_name("stop");
    let counts = thread::scope(|scope| {
        let work = |thread: u64| {
            let (store, stop) = (store.clone(), stop.clone());
            scope.spawn(move || {
                let mut worker = Worker { store, dice: Dice(seed * 1000 + thread + 1), done: BTreeMap::new(), pins: 0 };
                while !stop.exists() {
                    worker.act();
                }
                worker.done
            })
        };
        [1, 2].map(work).map(|thread| thread.join().unwrap())
    });
    for (act, count) in counts.into_iter().flatten() {
        println!("done: {act}={count}");
    }
}

struct Worker {
    store: Store,
    dice: Dice,
    /// How often each act came to its end.
    done: BTreeMap<&'static str, u64>,
    pins: u64,
}

impl Worker {
    fn act(&mut self) {
        let template: TemplateId = id(&format!("t{:02}", self.dice.roll(TEMPLATES)));
        let (name, result) = match self.dice.roll(21) {
            0..=5 => ("build", self.build(&template)),
            6..=9 => ("hold", self.hold(&template)),
            10..=12 => ("activate", self.activate(&template)),
            13 => ("rollback", self.rollback(&template)),
            14 | 15 => ("pin", self.pin(&template)),
            16 | 17 => ("remove", self.remove(&template)),
            18 => ("lookup", self.lookup()),
            19 => ("instance", self.instance(&template)),
            _ if self.dice.roll(10) == 0 => ("remove-template", self.remove_template(&template)),
            _ => ("use", self.look_around(&template)),
        };
        match result {
            Ok(true) => *self.done.entry(name).or_default() += 1,
            Ok(false) => {}
            Err(error) if is_explained(name, &error) => {}
            Err(error) => panic!("{name} {template}: {error:?}: {error}"),
        }
    }

    /// Reuses what is there, or builds it; sometimes builds other bytes of the same key. Never fails.
    fn build(&mut self, template: &TemplateId) -> Result<bool> {
        let key = format!("key{}", self.dice.roll(KEYS));
        let again = self.dice.roll(4) == 0;
        let known = if again { Known::BuildAgain } else { Known::Reuse };
        let options = BuildOptions::default().known(known).wait(Wait::AtMost(Duration::from_secs(60)));
        let draft = match self.store.build_with(template, &inputs(&key), &options, &mut ())? {
            Build::Reused(revision) => {
                assert_bytes(&revision, Some(&key));
                *self.done.entry("reuse").or_default() += 1;
                return Ok(true);
            }
            Build::Draft(draft) => draft,
        };
        if self.dice.roll(10) == 0 {
            draft.abandon()?;
            return Ok(false);
        }
        let label = format!("{key} of {}", self.dice.roll(3));
        write_image(draft.path(), &label);
        let revision = draft.seal()?.publish()?;
        assert_bytes(&revision, Some(&key));
        Ok(true)
    }

    /// Some revision of a template, held.
    fn any(&mut self, template: &TemplateId) -> Result<Option<Revision>> {
        let all = self.store.revisions(template)?;
        if all.is_empty() {
            return Ok(None);
        }
        let one: &RevisionId = &all[self.dice.roll(all.len() as u64) as usize];
        self.store.revision(template, one).map(Some)
    }

    /// Holds a revision, which has all its bytes as long as it is held.
    fn hold(&mut self, template: &TemplateId) -> Result<bool> {
        let held = match self.dice.roll(2) {
            0 => self.store.current(template)?,
            _ => match self.any(template)? {
                Some(held) => held,
                None => return Ok(false),
            },
        };
        let note = (self.dice.roll(2) == 0).then(|| held.note_holder(std::process::id(), "a test")).transpose()?;
        for _ in 0..=self.dice.roll(3) {
            assert_bytes(&held, None);
            thread::sleep(Duration::from_millis(self.dice.roll(15)));
        }
        assert_bytes(&held, None);
        drop(note);
        Ok(true)
    }

    fn activate(&mut self, template: &TemplateId) -> Result<bool> {
        let all = self.store.revisions(template)?;
        if all.is_empty() {
            return Ok(false);
        }
        let one = &all[self.dice.roll(all.len() as u64) as usize];
        assert_bytes(&self.store.activate(template, one, Expect::Any)?, None);
        Ok(true)
    }

    fn rollback(&mut self, template: &TemplateId) -> Result<bool> {
        assert_bytes(&self.store.rollback(template)?, None);
        Ok(true)
    }

    /// Pins a revision, lets go of it, and finds it whole.
    fn pin(&mut self, template: &TemplateId) -> Result<bool> {
        let Some(held) = self.any(template)? else { return Ok(false) };
        let revision = held.id().clone();
        self.pins += 1;
        let name = id(&format!("{}-{}-{}", std::process::id(), self.dice.roll(u64::MAX), self.pins));
        let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        drop(held);
        self.store.pin(&name, template, &revision, &PinOptions::default().until(until))?;
        thread::sleep(Duration::from_millis(self.dice.roll(30)));
        let pinned = self.store.revision(template, &revision).expect("it is pinned");
        assert_bytes(&pinned, None);
        self.store.unpin(&name).expect("it has a name of its own");
        Ok(true)
    }

    fn remove(&mut self, template: &TemplateId) -> Result<bool> {
        let all = self.store.revisions(template)?;
        if all.is_empty() {
            return Ok(false);
        }
        let one = &all[self.dice.roll(all.len() as u64) as usize];
        self.store.remove(template, one, Removal::Unused).map(|_| true)
    }

    fn remove_template(&mut self, template: &TemplateId) -> Result<bool> {
        self.store.remove_template(template, Removal::Unused).map(|_| true)
    }

    fn lookup(&mut self) -> Result<bool> {
        let key = format!("key{}", self.dice.roll(KEYS));
        let found = self.store.lookup(None, &inputs(&key))?;
        found.iter().for_each(|found| assert_bytes(found, Some(&key)));
        Ok(found.is_some())
    }

    /// Makes an instance, which has all its bytes whatever becomes of its revision.
    fn instance(&mut self, template: &TemplateId) -> Result<bool> {
        let Some(held) = self.any(template)? else { return Ok(false) };
        let name = format!("{}-{}", std::process::id(), self.dice.roll(u64::MAX));
        let (kernel, rootfs) = (fs::read(held.kernel()).unwrap(), fs::read(held.rootfs()).unwrap());
        let vm = held.instance(self.store.layout().root().with_file_name("vms").join(name))?;
        drop(held);
        thread::sleep(Duration::from_millis(self.dice.roll(20)));
        assert!(fs::read(vm.path().join("vmlinux")).unwrap() == kernel, "the kernel of {vm:?}");
        assert!(fs::read(vm.path().join("rootfs.ext4")).unwrap() == rootfs, "the disk of {vm:?}");
        self.store.remove_instance(vm.path(), Removal::Unused).map(|()| true)
    }

    fn look_around(&mut self, template: &TemplateId) -> Result<bool> {
        match self.dice.roll(3) {
            0 => drop(self.store.pins()?),
            1 => drop(self.store.plan_gc(&self.store.policy()?)?),
            _ => drop(self.store.history(template)?),
        }
        Ok(true)
    }
}

/// What others explain, who remove, activate or pin at the same time.
fn is_explained(act: &str, error: &Error) -> bool {
    match error {
        // A template that was not made yet, or was removed.
        Error::TemplateNotFound { .. } => act != "build" && act != "lookup",
        // Its first revision is not there yet, or its builder was killed before it was.
        Error::NoCurrent { .. } => act == "hold",
        // A revision that was removed or collected after it was listed.
        Error::RevisionNotFound { .. } => ["hold", "activate", "pin", "remove", "instance"].contains(&act),
        Error::NothingToRollBack { .. } => act == "rollback",
        Error::IsCurrent { .. } => act == "remove",
        Error::InUse { .. } | Error::Pinned { .. } => act == "remove" || act == "remove-template",
        _ => false,
    }
}

/// An image whose files all follow from the label; kernels are the same for many.
fn write_image(dir: &Utf8Path, label: &str) {
    fs::write(dir.join("vmlinux"), kernel(label)).unwrap();
    fs::write(dir.join("rootfs.ext4"), rootfs(label)).unwrap();
    let config = format!(r#"{{"label":"{label}","machine-config":{{"vcpu_count":2,"mem_size_mib":512}}}}"#);
    fs::write(dir.join("fc-base.json"), config).unwrap();
}

fn kernel(label: &str) -> Vec<u8> {
    bytes(&format!("kernel {}", &label[..4]), 70_000)
}

fn rootfs(label: &str) -> Vec<u8> {
    bytes(&format!("rootfs {label}"), 90_000)
}

/// Every byte is there, and the label is one of the key if that is known.
fn assert_bytes(revision: &Revision, key: Option<&str>) {
    let read = |path: &Utf8Path| fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let config: serde_json::Value = serde_json::from_slice(&read(&revision.fc_base_config())).unwrap();
    let label = config["label"].as_str().unwrap();
    assert!(key.is_none_or(|key| label.starts_with(&format!("{key} "))), "{label} was built for {key:?}");
    assert!(read(&revision.kernel()) == kernel(label), "the kernel of {revision:?}");
    assert!(read(&revision.rootfs()) == rootfs(label), "the root file system of {revision:?}");
}

/// The current revision, if there is one, has all its bytes.
pub fn assert_current_right(store: &Store, template: &TemplateId) {
    match store.current(template) {
        Ok(current) => assert_bytes(&current, None),
        Err(Error::NoCurrent { .. } | Error::TemplateNotFound { .. }) => {}
        Err(error) => panic!("{template}: {error}"),
    }
}
