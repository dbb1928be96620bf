//! What the tests share: a place to work in, an image to build, a look at what is on the disk.

use std::fmt::Debug;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use proptest::test_runner::{Config as ProptestConfig, FileFailurePersistence};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use template_store::{
    Attempt, Build, BuildInputs, BuildOptions, Digest, Draft, Durability, Error, ErrorKind, Layout, Note, Progress,
    Result, Revision, Store, StoreOptions, TemplateId,
};

pub use crate::process::{Ran, Running};

/// The artifacts that every image has, in the order of their names.
pub const ARTIFACTS: [&str; 3] = ["fc-base.json", "rootfs.ext4", "vmlinux"];

/// A directory that is removed with all that a test left in it.
pub struct Place {
    path: Utf8PathBuf,
    _dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place::of(tempfile::tempdir().expect("the temporary directory can be written"))
    }

    /// A place in memory, for tests that make many trees and do not ask what a file system can do.
    ///
    /// It is one like others where `TMPDIR` says which file system is to be tried, and where memory is short.
    pub fn in_memory() -> Place {
        const ENOUGH: u64 = 2 << 30;
        let free = rustix::fs::statvfs("/dev/shm").map_or(0, |found| found.f_bavail * found.f_frsize);
        if std::env::var_os("TMPDIR").is_some() || free < ENOUGH {
            return Place::new();
        }
        tempfile::tempdir_in("/dev/shm").map_or_else(|_| Place::new(), Place::of)
    }

    fn of(dir: tempfile::TempDir) -> Place {
        let path = dir.path().canonicalize().unwrap();
        Place { path: Utf8PathBuf::from_path_buf(path).expect("the temporary directory has a UTF-8 name"), _dir: dir }
    }

    pub fn path(&self) -> &Utf8Path {
        &self.path
    }

    pub fn join(&self, name: &str) -> Utf8PathBuf {
        self.path.join(name)
    }

    /// Where the store of this place is.
    pub fn root(&self) -> Utf8PathBuf {
        self.join("store")
    }

    pub fn store(&self) -> Store {
        Store::open_or_init(self.root()).unwrap()
    }

    /// A store that syncs nothing: for tests that do much and do not care.
    pub fn quick_store(&self) -> Store {
        Store::init(self.root(), &StoreOptions::default().durability(Durability::None)).unwrap()
    }

    /// A directory of this name with an image of its own for each label.
    pub fn image(&self, name: &str, label: &str) -> Utf8PathBuf {
        let dir = self.join(name);
        fs::create_dir_all(&dir).unwrap();
        image(&dir, label);
        dir
    }

    /// A flake with a lock file of its own for each name; the path of that file.
    pub fn lock(&self, name: &str) -> Utf8PathBuf {
        let dir = self.join(&format!("flake-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let lock = dir.join("flake.lock");
        // One that is there may be read just now.
        if !lock.exists() {
            fs::write(&lock, flake_lock(name)).unwrap();
        }
        lock
    }

    /// The program, told to use the store of this place.
    pub fn program(&self, words: &[&str]) -> Command {
        self.program_of(&self.root(), words)
    }

    /// The program, told to use another store, as on another host.
    pub fn program_of(&self, store: &Utf8Path, words: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(["--store", store.as_str()]).args(words).stdin(Stdio::null());
        command.env_remove("MVM_DATA_DIR").env_remove("TEMPLATE_STORE_DIR").current_dir(&self.path);
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, words: &[&str]) -> Ran {
        Ran::of(self.program(words).output().expect("the program can be started"))
    }

    /// Runs the program, and expects success.
    pub fn done(&self, words: &[&str]) -> Ran {
        self.run(words).with_code(0)
    }

    /// Runs the program until what it needs is not in use any more; see [`when_free`].
    pub fn done_when_free(&self, words: &[&str]) -> Ran {
        until("nobody uses it", || Some(self.run(words)).filter(|ran| !ran.err.contains("in use"))).with_code(0)
    }

    /// `build ID` from the lock of this name, with `script` as its command.
    pub fn build_words<'a>(&self, id: &'a str, lock: &str, more: &[&'a str], script: &'a str) -> Vec<String> {
        let lock = self.lock(lock);
        let start = ["build", id, "--flake-lock", lock.as_str(), "--role", "worker"];
        let end = ["--", "sh", "-c", script];
        start.iter().chain(more).chain(&end).map(|word| (*word).to_owned()).collect()
    }

    /// Runs `build ID` to its end.
    pub fn build(&self, id: &str, lock: &str, more: &[&str], script: &str) -> Ran {
        let words = self.build_words(id, lock, more, script);
        self.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Starts `build ID`, and goes on.
    pub fn start_build(&self, id: &str, lock: &str, more: &[&str], script: &str) -> Running {
        let words = self.build_words(id, lock, more, script);
        Running::start(&mut self.program(&words.iter().map(String::as_str).collect::<Vec<_>>()))
    }
}

/// The path of the program.
pub fn program() -> &'static str {
    env!("CARGO_BIN_EXE_template-store")
}

/// The bytes of a `flake.lock`, others for each name.
pub fn flake_lock(name: &str) -> String {
    format!(
        r#"{{"nodes":{{"nixpkgs":{{"locked":{{"type":"github","owner":"NixOS","repo":"nixpkgs","rev":"{name}"}}}},"root":{{"inputs":{{"nixpkgs":"nixpkgs"}}}}}},"root":"root","version":7}}"#
    )
}

/// A shell script that writes a small image to `$OUT`: each large file starts with the label.
pub fn script(label: &str) -> String {
    format!(
        r#"for name in vmlinux rootfs.ext4; do yes "$name of {label}" | head -c 131072 >"$OUT/$name"; done
        printf '{{"machine-config":{{"vcpu_count":2,"mem_size_mib":512}}}}' >"$OUT/fc-base.json""#
    )
}

/// Bytes that differ for each seed and repeat nowhere.
pub fn bytes(seed: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Writes a kernel of 128 KiB, a root file system of 256 KiB and a configuration.
pub fn image(dir: &Utf8Path, label: &str) {
    fs::write(dir.join("vmlinux"), bytes(&format!("{label}: kernel"), 128 << 10)).unwrap();
    fs::write(dir.join("rootfs.ext4"), bytes(&format!("{label}: rootfs"), 256 << 10)).unwrap();
    let config = format!(
        r#"{{"boot-source":{{"boot_args":"label={label}"}},"machine-config":{{"vcpu_count":2,"mem_size_mib":512}}}}"#
    );
    fs::write(dir.join("fc-base.json"), config).unwrap();
}

/// A value from text that is valid.
pub fn id<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// The inputs of a build, others for each name.
pub fn inputs(name: &str) -> BuildInputs {
    BuildInputs::new(id(name), id("minimal"), id("worker"))
}

/// Asks for a build, and expects a draft.
pub fn draft(store: &Store, template: &str, inputs: &BuildInputs) -> Draft {
    draft_with(store, template, inputs, &BuildOptions::default())
}

pub fn draft_with(store: &Store, template: &str, inputs: &BuildInputs, options: &BuildOptions) -> Draft {
    match store.build_with(&id(template), inputs, options, &mut ()).unwrap() {
        Build::Draft(draft) => draft,
        Build::Reused(revision) => panic!("{revision:?} was reused, where a draft was expected"),
    }
}

/// Asks for a build, and expects what is there already.
pub fn reused(store: &Store, template: &str, inputs: &BuildInputs) -> Revision {
    reused_with(store, template, inputs, &BuildOptions::default(), &mut ())
}

pub fn reused_with(
    store: &Store,
    template: &str,
    inputs: &BuildInputs,
    options: &BuildOptions,
    progress: &mut dyn Progress,
) -> Revision {
    match store.build_with(&id(template), inputs, options, progress).unwrap() {
        Build::Reused(revision) => revision,
        Build::Draft(_) => panic!("a draft, where a revision was to be reused"),
    }
}

/// Builds and publishes the image of a label.
pub fn build(store: &Store, template: &str, inputs: &BuildInputs, label: &str) -> Revision {
    let draft = draft(store, template, inputs);
    image(draft.path(), label);
    draft.seal().unwrap().publish().unwrap()
}

/// Every file of the revision has the size and digest that `revision.json` says, and is sealed.
pub fn assert_right(revision: &Revision) {
    assert!(!revision.contents().is_empty(), "{revision:?} lists its files");
    for content in revision.contents() {
        let path = revision.artifact(&content.path);
        let (bytes, metadata) = (fs::read(&path).unwrap(), fs::symlink_metadata(&path).unwrap());
        assert_eq!(bytes.len() as u64, content.size, "the size of {path}");
        assert_eq!(blake3::hash(&bytes).to_hex().as_str(), content.blake3.to_hex(), "the digest of {path}");
        assert_eq!(metadata.mode() & 0o7777, 0o444, "the mode of {path}");
        assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1, 0), "the modification time of {path}");
    }
}

/// The path of the object that holds the bytes of a file.
pub fn object_of(layout: &Layout, file: &Utf8Path) -> Utf8PathBuf {
    layout.object(&Digest::of(&fs::read(file).unwrap()))
}

pub fn inode(path: impl AsRef<Utf8Path>) -> u64 {
    fs::symlink_metadata(path.as_ref()).unwrap().ino()
}

/// The names in a directory, sorted.
pub fn names(dir: impl AsRef<Utf8Path>) -> Vec<String> {
    let entries = fs::read_dir(dir.as_ref()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Nothing that a build left behind: no draft, no trash, no lock of a build, no object that no revision has.
#[track_caller]
pub fn assert_clean(layout: &Layout) {
    for dir in [layout.drafts(), layout.trash(), layout.locks()] {
        assert_eq!(names(&dir), [""; 0], "{dir} is empty");
    }
    for shard in names(layout.objects()) {
        for name in names(layout.objects().join(&shard)) {
            let object = layout.objects().join(&shard).join(name);
            assert!(fs::symlink_metadata(&object).unwrap().nlink() > 1, "{object} is in a revision");
        }
    }
}

/// All that is below a directory: path, kind and mode, inode, size, time and links of each; the text of links.
///
/// A directory of objects or keys that is empty is as good as none.
pub fn listing(dir: &Utf8Path) -> Vec<String> {
    let walk = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(std::result::Result::unwrap);
    let is_shard = |entry: &walkdir::DirEntry| {
        let parent = entry.path().parent().and_then(|parent| parent.file_name()).unwrap_or_default();
        entry.file_type().is_dir() && (parent == "objects" || parent == "keys")
    };
    let walk = walk.filter(|entry| !is_shard(entry));
    let line = |entry: walkdir::DirEntry| {
        let (m, target) = (entry.metadata().unwrap(), fs::read_link(entry.path()).unwrap_or_default());
        // The directory's own times change when a draft comes and goes.
        let times = if m.is_dir() { (0, 0) } else { (m.mtime(), m.nlink()) };
        let size = if m.is_dir() { 0 } else { m.len() };
        format!("{} {:o} {} {size} {times:?} {}", entry.path().display(), m.mode(), m.ino(), target.display())
    };
    walk.map(line).collect()
}

/// Changes one byte in place, as a failing disk does; with its old modification time if `quietly`.
pub fn flip(path: &Utf8Path, at: u64, quietly: bool) {
    let before = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    if quietly {
        file.set_modified(before.modified().unwrap()).unwrap();
    }
    fs::set_permissions(path, before.permissions()).unwrap();
}

/// Waits for something that is about to happen.
///
/// # Panics
/// It did not happen in a minute: whatever was to make it happen is broken.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("{what}: it did not happen");
}

/// Does what is refused while somebody uses a revision, as soon as nobody does.
///
/// A program that another test starts just now has the descriptors of this process until it runs, and so has the
/// leases that this test has let go.
pub fn when_free<T>(mut act: impl FnMut() -> Result<T>) -> Result<T> {
    until("nobody uses it", || match act() {
        Err(Error::InUse { .. }) => None,
        done => Some(done),
    })
}

/// Waits until neither this process nor a child of it has a file open, or one below a directory; a program may that
/// another test starts just now: see [`when_free`].
pub fn until_closed(path: impl AsRef<Utf8Path>) {
    let file = fs::canonicalize(path.as_ref()).unwrap();
    until("everybody closed it", || {
        (!descriptors().iter().any(|one| fs::read_link(one).is_ok_and(|to| to.starts_with(&file)))).then_some(())
    });
}

/// `/proc/<pid>/fd/<n>` of this process and its children.
fn descriptors() -> Vec<std::path::PathBuf> {
    let below = |dir: &std::path::Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = std::process::id().to_string();
    let parent = |process: &std::path::Path| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        Some(stat.rsplit(") ").next()?.split(' ').nth(1)?.to_owned())
    };
    let any = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let childless = matches!(waitid(WaitId::All, any), Err(rustix::io::Errno::CHILD));
    let is_ours =
        |process: &std::path::PathBuf| process.ends_with(&own) || !childless && parent(process).as_ref() == Some(&own);
    let ours = below("/proc".as_ref()).filter(is_ours);
    ours.flat_map(|process| below(&process.join("fd")).collect::<Vec<_>>()).collect()
}

/// Whether a process is dead; it may still wait to be reaped.
pub fn is_dead(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}

/// A progress that keeps what it is told.
#[derive(Debug, Default)]
pub struct Heard {
    pub notes: Vec<Note>,
    pub waiting: Vec<Attempt>,
}

impl Progress for Heard {
    fn waiting(&mut self, on: &Attempt) {
        self.waiting.push(on.clone());
    }

    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
}

/// The id of a template.
pub fn template(text: &str) -> TemplateId {
    id(text)
}

/// Expects an error of this kind, with each of these words in its text.
#[track_caller]
pub fn assert_error<T: Debug>(result: Result<T>, kind: ErrorKind, words: &[&str]) {
    let error = result.expect_err("it is refused");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in {error}");
    }
}

/// A property test that keeps the cases on which it failed in this file, and tries them first at the next time.
pub fn remembered(file: &'static str) -> ProptestConfig {
    let persistence = FileFailurePersistence::Direct(file);
    ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() }
}

/// A place with a store in it.
pub fn fresh() -> (Place, Store) {
    let place = Place::new();
    let store = place.store();
    (place, store)
}

/// A place with a store that syncs nothing; see [`Place::quick_store`].
pub fn fresh_quick() -> (Place, Store) {
    let place = Place::new();
    let store = place.quick_store();
    (place, store)
}

/// The JSON document in a file.
#[track_caller]
pub fn read_json(path: impl AsRef<Utf8Path>) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path.as_ref()).unwrap()).unwrap()
}

/// Changes the JSON document in a file, in place.
#[track_caller]
pub fn edit_json(path: impl AsRef<Utf8Path>, change: impl FnOnce(&mut serde_json::Value)) {
    let mut document = read_json(&path);
    change(&mut document);
    fs::write(path.as_ref(), document.to_string()).unwrap();
}

/// The bytes of the blocks that a file has on the disk.
pub fn on_disk(path: impl AsRef<Utf8Path>) -> u64 {
    fs::metadata(path.as_ref()).unwrap().blocks() * 512
}

/// Looks again and again while something is done on another thread, and once more when that has ended.
pub fn meanwhile(act: impl FnOnce() + Send, mut look: impl FnMut()) {
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        loop {
            let has_ended = acting.is_finished();
            look();
            if has_ended {
                return;
            }
        }
    });
}
