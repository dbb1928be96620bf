//! The same work in plain system calls: the least that a correct program must do.
//!
//! The floor leaves the same tree on the disk, as durable, with the fewest waits that this takes. It takes the
//! locks without which two processes would harm each other. It does not parse, does not check what it
//! was given, and gives no reasons: what the store adds to it is what the store costs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::thread;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, RenameFlags, Timespec, Timestamps};

use template_store::Durability;

use crate::support::FILES;

/// Files of at least this size are objects.
const OBJECT_MIN_SIZE: u64 = 64 * 1024;

const CHUNK: usize = 1024 * 1024;

pub struct Floor {
    root: Utf8PathBuf,
    durability: Durability,
}

/// A file that was hashed and is durable.
pub struct Sealed {
    name: &'static str,
    size: u64,
    digest: String,
}

/// A private directory; the lock that it is built under, if there is one.
pub struct Draft {
    pub dir: Utf8PathBuf,
    lock: Option<(File, Utf8PathBuf)>,
}

impl Floor {
    pub fn new(root: Utf8PathBuf, durability: Durability) -> Floor {
        for dir in ["objects", "keys", "drafts", "locks", "templates"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        Floor { root, durability }
    }

    fn template(&self, name: &str) -> Utf8PathBuf {
        self.root.join("templates").join(name)
    }

    pub fn revision(&self, template: &str, id: &str) -> Utf8PathBuf {
        self.template(template).join("artifacts").join(id)
    }

    fn key(&self, key: &str) -> Utf8PathBuf {
        self.root.join("keys").join(&key[..2]).join(&key[2..])
    }

    pub fn create(&self, name: &str) {
        let dir = self.template(name);
        fs::create_dir_all(dir.join("artifacts")).unwrap();
        symlink("artifacts", dir.join("revisions")).unwrap();
        fs::write(dir.join("template.json"), [b' '; 250]).unwrap();
        fs::write(dir.join("activations.jsonl"), b"").unwrap();
    }

    pub fn remove(&self, name: &str) {
        for revision in fs::read_dir(self.template(name).join("artifacts")).unwrap() {
            let record = fs::read_to_string(revision.unwrap().path().join("revision.json")).unwrap();
            for digest in record.split('"').filter(|text| text.len() == 64) {
                let _ = fs::remove_file(self.object(digest));
            }
        }
        fs::remove_dir_all(self.template(name)).unwrap();
    }

    fn object(&self, digest: &str) -> Utf8PathBuf {
        self.root.join("objects").join(&digest[..2]).join(&digest[2..])
    }

    /// Asks for a key that nobody has built: the index before the lock and under it, then a place to build in.
    pub fn ask(&self, template: &str, key: &str) -> Draft {
        read(&self.template(template).join("template.json"));
        assert!(File::open(self.key(key)).is_err());
        let path = self.root.join("locks").join(key);
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        assert!(lock.metadata().unwrap().ino() == fs::symlink_metadata(&path).unwrap().ino());
        assert!(File::open(self.key(key)).is_err());
        Draft { lock: Some((lock, path)), ..self.draft(key) }
    }

    fn draft(&self, name: &str) -> Draft {
        let dir = self.root.join("drafts").join(name);
        fs::create_dir(&dir).unwrap();
        Draft { dir, lock: None }
    }

    /// Publishes what was built in a draft.
    pub fn publish(&self, draft: Draft, template: &str, id: &str, key: &str) {
        let files = in_threads(|name| self.seal(name, &File::open(draft.dir.join(name)).unwrap()));
        self.intern(&draft.dir, &files);
        self.commit(&draft.dir, template, id, &files);
        self.remember(key, template, id);
        if let Some((_lock, path)) = draft.lock {
            fs::remove_file(path).unwrap();
        }
    }

    /// Publishes clones of files, or copies where the file system can't clone.
    pub fn publish_copies(&self, from: &Utf8Path, template: &str, id: &str) {
        let draft = self.draft(id);
        let files = in_threads(|name| {
            let source = File::open(from.join(name)).unwrap();
            let copy = File::options().read(true).write(true).create_new(true).open(draft.dir.join(name)).unwrap();
            match rustix::fs::ioctl_ficlone(&copy, &source) {
                Ok(()) => self.seal(name, &copy),
                Err(_) => {
                    let digest = hash(&source, |bytes| (&copy).write_all(bytes).unwrap());
                    close(&copy);
                    self.sync(&copy);
                    Sealed { name, size: copy.metadata().unwrap().len(), digest }
                }
            }
        });
        self.intern(&draft.dir, &files);
        self.commit(&draft.dir, template, id, &files);
    }

    /// Finds a revision by its key and publishes links to its files in another template.
    pub fn reuse(&self, key: &str, from: &Utf8Path, template: &str, id: &str) {
        read(&self.template(template).join("template.json"));
        let _lease = find(&self.key(key), from);
        let draft = self.draft(id);
        for name in FILES {
            fs::hard_link(from.join(name), draft.dir.join(name)).unwrap();
        }
        self.commit(&draft.dir, template, id, &[]);
        self.remember(key, template, id);
    }

    /// Finds a revision by its key, which is current already.
    pub fn reuse_current(&self, key: &str, template: &str, id: &str) {
        read(&self.template(template).join("template.json"));
        let _lease = find(&self.key(key), &self.revision(template, id));
        fs::read_link(self.template(template).join("current")).unwrap();
    }

    pub fn activate(&self, template: &str, id: &str) {
        let lock = self.lock(template);
        fs::symlink_metadata(self.revision(template, id)).unwrap();
        self.swap(template, id, &lock);
    }

    fn lock(&self, template: &str) -> File {
        let lock = File::open(self.template(template)).unwrap();
        lock.lock().unwrap();
        lock
    }

    fn intern(&self, dir: &Utf8Path, files: &[Sealed]) {
        for file in files.iter().filter(|file| file.size >= OBJECT_MIN_SIZE) {
            let object = self.object(&file.digest);
            let _ = fs::create_dir(object.parent().unwrap());
            fs::hard_link(dir.join(file.name), object).unwrap();
        }
    }

    /// Record, directory, name, log, `current`: each durable before the next.
    fn commit(&self, dir: &Utf8Path, template: &str, id: &str, files: &[Sealed]) {
        let lock = self.lock(template);
        let mut record = File::create(dir.join("revision.json")).unwrap();
        record.write_all(record_of(files).as_bytes()).unwrap();
        self.sync(&record);
        fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
        self.sync(&File::open(dir).unwrap());
        let target = self.revision(template, id);
        rustix::fs::renameat_with(CWD, dir.as_std_path(), CWD, target.as_std_path(), RenameFlags::NOREPLACE).unwrap();
        self.sync(&File::open(target.parent().unwrap()).unwrap());
        self.swap(template, id, &lock);
    }

    fn swap(&self, template: &str, id: &str, lock: &File) {
        let dir = self.template(template);
        let mut log = OpenOptions::new().append(true).open(dir.join("activations.jsonl")).unwrap();
        writeln!(log, r#"{{"revision":"{id}","at":"2026-01-01T00:00:00.000000000Z","action":"publish"}}"#).unwrap();
        self.sync(&log);
        symlink(format!("revisions/{id}"), dir.join(".current.new")).unwrap();
        fs::rename(dir.join(".current.new"), dir.join("current")).unwrap();
        self.sync(lock); // the lock is the directory
    }

    /// Hashes a file and makes it durable; where it pays, the disk writes while the processor hashes.
    fn seal(&self, name: &'static str, file: &File) -> Sealed {
        close(file);
        let size = file.metadata().unwrap().len();
        let digest = if size < CHUNK as u64 || self.durability == Durability::None {
            let digest = hash(file, |_| ());
            self.sync(file);
            digest
        } else {
            thread::scope(|scope| {
                let durable = scope.spawn(|| self.sync(file));
                let digest = hash(file, |_| ());
                durable.join().unwrap();
                digest
            })
        };
        Sealed { name, size, digest }
    }

    fn sync(&self, file: &File) {
        if self.durability == Durability::Full {
            file.sync_all().unwrap();
        }
    }

    /// The entry of the key, which may be lost: nothing waits for it.
    fn remember(&self, key: &str, template: &str, id: &str) {
        let (staged, path) = (self.root.join("drafts/entry"), self.key(key));
        fs::write(&staged, format!(r#"{{"key":"{key}","template":"{template}","revision":"{id}"}}"#)).unwrap();
        let _ = fs::create_dir(path.parent().unwrap());
        fs::rename(staged, path).unwrap();
    }
}

/// Finds a revision by its key: the entry, the lease, the record, a look at each file.
pub fn find(entry: &Utf8Path, revision: &Utf8Path) -> File {
    read(entry);
    hold(revision)
}

fn hold(revision: &Utf8Path) -> File {
    let lease = File::open(revision).unwrap();
    lease.lock_shared().unwrap();
    assert!(lease.metadata().unwrap().ino() == fs::symlink_metadata(revision).unwrap().ino());
    read(&revision.join("revision.json"));
    for name in FILES {
        fs::symlink_metadata(revision.join(name)).unwrap();
    }
    lease
}

/// What is current in a template: its link, the lease, the record, a look at each file.
pub fn current(template: &Utf8Path) -> File {
    let target = fs::read_link(template.join("current")).unwrap();
    let revision = template.join("artifacts").join(target.file_name().unwrap().to_str().unwrap());
    hold(&revision)
}

/// One read is enough for what is this small.
fn read(path: &Utf8Path) {
    let mut buffer = [0; 16 * 1024];
    assert!(File::open(path).unwrap().read(&mut buffer).unwrap() > 0);
}

/// Does something with all files at once: syncs that wait together wait for one another's journal.
fn in_threads(work: impl Fn(&'static str) -> Sealed + Sync) -> Vec<Sealed> {
    let work = &work;
    thread::scope(|scope| {
        let files = FILES.map(|name| scope.spawn(move || work(name)));
        files.into_iter().map(|file| file.join().unwrap()).collect()
    })
}

/// Makes a file one that nobody changes any more: read-only, with the time of a sealed one.
fn close(file: &File) {
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    file.set_permissions(Permissions::from_mode(0o444)).unwrap();
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time }).unwrap();
}

fn hash(mut file: &File, mut each: impl FnMut(&[u8])) -> String {
    let size = file.metadata().unwrap().len() as usize;
    let (mut hasher, mut buffer, mut left) = (blake3::Hasher::new(), vec![0; CHUNK.min(size)], size);
    while left > 0 {
        let read = file.read(&mut buffer).unwrap();
        assert!(read > 0);
        hasher.update_rayon(&buffer[..read]);
        each(&buffer[..read]);
        left -= read;
    }
    hasher.finalize().to_hex().to_string()
}

/// About as long as the store's.
fn record_of(files: &[Sealed]) -> String {
    let contents: String =
        files.iter().map(|file| format!("{} {} \"{}\"\n", file.name, file.size, file.digest)).collect();
    format!("{contents}{:1000}\n", "")
}
