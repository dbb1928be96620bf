//! Other hosts: an object store that many share. A host asks for a cache key: its own store, else the remote, else it
//! builds, and pushes.
//!
//! Nothing that a remote says is believed: names become validated types, sizes are held against the free space, and
//! every file is hashed before its revision is published. `docs/remote-format.md` says what lies where.

mod backend;
mod cache;
mod conditions;
mod credentials;
mod documents;
mod download;
mod error;
mod frames;
mod mvm;
mod names;
mod open;
#[cfg(any(test, fuzzing))]
pub(crate) mod parsers;
mod pointers;
mod preamble;
mod pull;
mod push;
mod settings;
mod snapshots;
mod survey;
mod swap;
mod text;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8PathBuf;
use object_store::ObjectStore;
use object_store::path::Path;

use crate::error::{Error, Result};
use crate::format::FormatError;
use crate::fs::atomic::Lasting;
use crate::fs::read;
use crate::id::{RemoteName, RevisionId, TemplateId};
use crate::progress::Progress;
use crate::repair;
use crate::revision::Revision;
use crate::store::Store;
use crate::verify::{Repaired, VerifyOptions};

use backend::{Backend, Conditions};
use documents::FileEntry;
use names::Names;
use open::Patience;

pub use cache::{FromRemote, Shared};
pub use conditions::RemoteCheck;
pub use error::RemoteError;
pub use preamble::REMOTE_FORMAT_VERSION;
pub use pull::{PullOptions, Pulled};
pub use push::{PushOptions, Pushed, SendFiles};
pub use settings::RemoteSettings;
pub use survey::{RemoteFinding, RemoteReport, RemoteRevision, RemoteTemplate};

/// Whether a push moves the remote's `current`, and what that must be for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Move {
    /// Where nothing is current, or a revision that this store has: it was pulled or pushed by this host.
    #[default]
    Forward,
    /// As `Forward`; where another one is current, that stays, and the revision is listed beside it.
    ForwardOrStay,
    /// Where this revision is current.
    From(RevisionId),
    /// Where nothing is.
    FromAbsent,
    /// `current` stays.
    No,
}

/// Whether the snapshot of a revision goes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WithSnapshot {
    /// It stays where it is.
    #[default]
    No,
    /// It goes with the revision.
    Yes,
}

/// A remote that was opened. Its calls wait for the server; they may be made from any thread, also from one of an
/// asynchronous runtime that may wait (`spawn_blocking`).
#[derive(Debug)]
pub struct Remote {
    backend: Backend,
}

impl Remote {
    /// Opens a remote; nothing is asked of the server yet.
    ///
    /// # Errors
    /// [`RemoteError::BadUrl`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use template_store::{Remote, RemoteSettings};
    ///
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// assert!(remote.templates()?.is_empty());
    /// assert!(Remote::open(&RemoteSettings::at("ftp://somewhere")).is_err());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn open(settings: &RemoteSettings) -> Result<Remote> {
        Ok(Remote { backend: open::open(settings, Patience::Long)? })
    }

    /// As [`open`](Remote::open), for work that can be done without the remote: a server that does not answer is given up
    /// after seconds.
    ///
    /// # Errors
    /// As [`open`](Remote::open).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use template_store::{Remote, RemoteSettings};
    ///
    /// let remote = Remote::open_briefly(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn open_briefly(settings: &RemoteSettings) -> Result<Remote> {
        Ok(Remote { backend: open::open(settings, Patience::Short)? })
    }

    /// A remote in an object store that the caller opened, below `prefix`; `name` is what messages call it.
    ///
    /// # Errors
    /// When no threads can be started.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use template_store::Remote;
    ///
    /// let memory = object_store::memory::InMemory::new();
    /// let remote = Remote::of("memory", Arc::new(memory), "images")?;
    /// assert!(remote.templates()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn of(name: &str, objects: Arc<dyn ObjectStore>, prefix: &str) -> Result<Remote> {
        let names = Names::below(Path::from(prefix));
        Ok(Remote { backend: Backend::new(name.to_owned(), names, objects, Conditions::Server)? })
    }

    /// Where it is, as it was given.
    pub fn url(&self) -> &str {
        &self.backend.url
    }

    /// Finds out whether the server honours conditions, by racing itself for objects of its own.
    ///
    /// # Errors
    /// [`RemoteError`]: there is no answer, or no right to write.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use template_store::{Remote, RemoteSettings};
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// assert_eq!(remote.check()?.problem, None);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn check(&self) -> Result<RemoteCheck> {
        self.backend.wait(conditions::check(&self.backend))
    }

    /// All templates of the remote, and their revisions.
    ///
    /// # Errors
    /// [`RemoteError`]; a server that lists nothing, as a plain web server does.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use template_store::{Remote, RemoteSettings};
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// assert!(remote.templates()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn templates(&self) -> Result<Vec<RemoteTemplate>> {
        self.backend.wait(survey::templates(&self.backend))
    }

    /// Looks whether all that the remote's pointers lead to is there; with `data`, every file is fetched and hashed.
    ///
    /// # Errors
    /// [`RemoteError`]: what can't be looked at. What is found to be wrong is in the report.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use template_store::{Remote, RemoteSettings};
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// assert!(remote.verify(true, &mut ())?.findings.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn verify(&self, data: bool, progress: &mut dyn Progress) -> Result<RemoteReport> {
        survey::verify(&self.backend, data, progress)
    }
}

impl Store {
    /// The remotes that `.store/config.toml` names.
    ///
    /// # Errors
    /// [`Error::Format`] for a file that can't be understood.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// assert!(store.remotes()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn remotes(&self) -> Result<BTreeMap<RemoteName, RemoteSettings>> {
        let (path, text) = self.config_text()?;
        settings::all(&text).map_err(|source| Error::Format { path, source })
    }

    /// Adds a remote to `.store/config.toml`; whatever else stands there stays. Of a directory, the whole path is kept.
    ///
    /// A crash leaves the old file, or the new one.
    ///
    /// # Errors
    /// [`RemoteError::Exists`], [`RemoteError::BadUrl`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// use template_store::RemoteSettings;
    ///
    /// store.add_remote(&"hub".parse()?, &RemoteSettings::at("s3://bucket/images"))?;
    /// assert_eq!(store.remotes()?[&"hub".parse()?].url, "s3://bucket/images");
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn add_remote(&self, name: &RemoteName, settings: &RemoteSettings) -> Result<()> {
        if let Some(known) = self.remotes()?.remove(name) {
            return Err(RemoteError::Exists { name: name.to_string(), url: known.shown().url }.into());
        }
        open::open(settings, Patience::Long)?;
        let mut settings = settings.clone();
        // It is to mean the same wherever it is used.
        if let Some(dir) = open::local_dir(&settings.url).filter(|dir| dir.is_relative()) {
            settings.url = read::canonical(&dir)?.into_string();
        }
        self.change_config(|text| settings::with(text, name, &settings))
    }

    /// Takes a remote out of `.store/config.toml`; what it holds stays.
    ///
    /// A crash leaves the old file, or the new one.
    ///
    /// # Errors
    /// [`RemoteError::Unknown`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// # use template_store::RemoteSettings;
    /// store.add_remote(&"hub".parse()?, &RemoteSettings::at("s3://bucket/images"))?;
    /// store.remove_remote(&"hub".parse()?)?;
    /// assert!(store.remotes()?.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn remove_remote(&self, name: &RemoteName) -> Result<()> {
        if !self.remotes()?.contains_key(name) {
            return Err(RemoteError::Unknown { name: name.to_string() }.into());
        }
        self.change_config(|text| settings::without(text, name))
    }

    /// Sends a revision to a remote: the files that it lacks, then a manifest, then the template's pointer.
    ///
    /// Without an id, the one that is current here. A crash leaves the remote as it was, or with all of it; what was sent is
    /// not sent again the next time.
    ///
    /// # Errors
    /// [`RemoteError::Moved`] if the remote is not at what was expected; [`Error::Damaged`]; [`RemoteError`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let (files, hub) = (dir.join("files"), dir.join("hub"));
    /// # std::fs::create_dir(&files).unwrap();
    /// # std::fs::create_dir(&hub).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # store.publish_dir(&web, &files)?;
    /// # let elsewhere = template_store::Store::open_or_init(dir.join("elsewhere"))?;
    /// use template_store::{PullOptions, PushOptions, Remote, RemoteSettings};
    ///
    /// let remote = Remote::open(&RemoteSettings::at(hub))?;
    /// let pushed = store.push(&remote, &web, None, &PushOptions::default(), &mut ())?;
    /// let pulled = elsewhere.pull(&remote, &web, None, &PullOptions::default(), &mut ())?;
    /// assert_eq!(pulled.revision.id(), &pushed.revision);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn push(
        &self,
        remote: &Remote,
        template: &TemplateId,
        revision: Option<&RevisionId>,
        options: &PushOptions,
        progress: &mut dyn Progress,
    ) -> Result<Pushed> {
        let revision = match revision {
            Some(revision) => Revision::open(&self.core, template, revision)?,
            None => Revision::current(&self.core, template)?,
        };
        push::push(&self.core, remote, &revision, options, progress)
    }

    /// Fetches a revision of a remote, and publishes it here under the same id. Without an id, the one that is current there.
    ///
    /// What some revision of this store has is linked, not fetched. A crash leaves nothing that is seen; what had come
    /// whole need not come again, until a collection takes it.
    ///
    /// # Errors
    /// [`RemoteError::NotFound`], [`RemoteError::Damaged`], [`Error::NoSpace`] before anything is written,
    /// [`Error::RevisionDiffers`] if the id has other contents here.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::{Error, PullOptions, Remote, RemoteError, RemoteSettings};
    ///
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// let pulled = store.pull(&remote, &web, None, &PullOptions::default(), &mut ());
    /// assert!(matches!(pulled, Err(Error::Remote(RemoteError::NotFound { .. }))));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn pull(
        &self,
        remote: &Remote,
        template: &TemplateId,
        revision: Option<&RevisionId>,
        options: &PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<Pulled> {
        pull::pull(&self.core, remote, template, revision, options, progress)
    }

    /// Fetches a revision from a registry of mvm, and publishes it here under the same id. Without an id, the one that is
    /// current there.
    ///
    /// Each file must have the SHA-256 that the registry's `checksums.json` gives. A crash leaves nothing that is seen.
    ///
    /// # Errors
    /// As [`pull`](Store::pull); [`RemoteError::Damaged`] names what the registry lacks, such as an initrd.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Error, PullOptions, Remote, RemoteError, RemoteSettings};
    /// let registry = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// let pulled = store.pull_mvm(&registry, &web, None, &PullOptions::default(), &mut ());
    /// assert!(matches!(pulled, Err(Error::Remote(RemoteError::NotFound { .. }))));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn pull_mvm(
        &self,
        registry: &Remote,
        template: &TemplateId,
        revision: Option<&RevisionId>,
        options: &PullOptions,
        progress: &mut dyn Progress,
    ) -> Result<Pulled> {
        mvm::pull(&self.core, registry, template, revision, options, progress)
    }

    /// Verifies and repairs as [`repair`](Store::repair) does; what has no intact copy here is fetched from a remote.
    ///
    /// # Errors
    /// As [`repair`](Store::repair). What the remote lacks, or does not give, remains in the report.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// # use template_store::{Remote, RemoteSettings, VerifyOptions};
    /// let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// assert!(store.repair_from(&remote, &VerifyOptions::default(), &mut ())?.remaining.is_empty());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn repair_from(
        &self,
        remote: &Remote,
        options: &VerifyOptions,
        progress: &mut dyn Progress,
    ) -> Result<Repaired> {
        repair::repair(&self.core, options, Some(&remote.backend), progress)
    }

    fn config_text(&self) -> Result<(Utf8PathBuf, String)> {
        let path = self.core.layout.config();
        let bytes = read::bytes_if_there(&path)?.unwrap_or_default();
        match String::from_utf8(bytes) {
            Ok(text) => Ok((path, text)),
            Err(_) => {
                let source = FormatError::invalid("config.toml", "it is not UTF-8");
                Err(Error::Format { path, source })
            }
        }
    }

    fn change_config(&self, change: impl FnOnce(&str) -> Result<String, FormatError>) -> Result<()> {
        let _change = self.core.begin_change()?;
        let (path, text) = self.config_text()?;
        let text = change(&text).map_err(|source| Error::Format { path: path.clone(), source })?;
        let drafts = self.core.layout.drafts();
        Ok(self.core.disk.write_file(&drafts, &path, text.as_bytes(), Lasting::Durable)?)
    }
}

/// The directories that files need, each before those in it.
fn file_parents(files: &[FileEntry]) -> Vec<Utf8PathBuf> {
    let parents = files.iter().flat_map(|file| file.content.path.as_path().ancestors().skip(1));
    let mut parents: Vec<Utf8PathBuf> =
        parents.filter(|parent| !parent.as_str().is_empty()).map(ToOwned::to_owned).collect();
    parents.sort_unstable();
    parents.dedup();
    parents
}

/// Files up to this size are sent and fetched several at a time.
const SMALL: u64 = 1024 * 1024;

/// Files that are on their way at once, where each is small.
const AT_ONCE: usize = 8;

/// Does several things at once, each of which waits; with threads of their own, as those of a pool must not wait.
fn several<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let run = || -> Result<Vec<R>> {
        let mine = std::iter::from_fn(|| things.get(next.fetch_add(1, Ordering::Relaxed)));
        mine.map(&work).collect()
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (1..things.len().min(AT_ONCE)).map(|_| scope.spawn(run)).collect();
        let mut done = run()?;
        for other in running {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(done)
    })
}
