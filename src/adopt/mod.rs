//! An mvm directory becomes a store, where it is.
//!
//! The order makes it safe to die at any moment: `.store/adopting` is there first, each revision gets its list of
//! files last, `format.json` follows when all are done, and the mark goes. Before `format.json` is there, it is an
//! mvm directory to everybody; each step leaves one that mvm can read, and that the next call completes.

mod revision;
mod template;

use std::path::Path;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Durability, KeyHint, RevisionRecord};
use crate::fs::lock::{Flock, Mode};
use crate::fs::{read, utf8};
use crate::id::{CacheKey, RevisionId, TemplateId};
use crate::keys;
use crate::layout::Layout;
use crate::open::{self, ToAdopt};
use crate::options::StoreOptions;
use crate::progress::Progress;
use crate::reserve;
use crate::store::Store;

/// What came of an adoption.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Adopted {
    /// The store that the directory is now.
    pub store: Store,
    /// The revisions that were adopted by this call.
    pub revisions: Vec<(TemplateId, RevisionId)>,
    /// What was left as it is; a later call may adopt it.
    pub left: Vec<Left>,
}

/// Something in an mvm directory that was not adopted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Left {
    /// The template, revision, link or file.
    pub path: Utf8PathBuf,
    /// Why, and what can be done.
    pub reason: String,
}

impl Store {
    /// Makes a data directory of mvm a store in place, and adopts what a store does not have adopted yet.
    ///
    /// Each revision whose files nobody writes to gets its files sealed, shared where the store has the same bytes,
    /// and listed with their digests; each `current` resolves on disk. mvm 0.11 reads all of it as before. What is
    /// not a template or a revision stays as it is, and so does a revision with a file that a process has open for
    /// writing, and whatever this user may not read or change: [`Adopted::left`] says why. Snapshots are not touched.
    ///
    /// A crash or an error leaves an mvm directory (or the store, if it was one) with all its files and bytes;
    /// the next call goes on from there. Of two calls at once, the second waits and finds what is left.
    ///
    /// # Errors
    /// [`Error::NotMvm`] for a directory that mvm did not make: nothing is changed. [`Error::DurabilityFixed`],
    /// [`Error::NetworkFileSystem`], or an error of the disk.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let made_by_mvm = dir.join("templates/web/artifacts/3c7f1e");
    /// # std::fs::create_dir_all(&made_by_mvm).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(made_by_mvm.join(name), "{}").unwrap(); }
    /// # std::fs::write(dir.join("templates/web/template.json"), r#"{"template_id":"web","flake_ref":".","profile":"minimal",
    /// #     "role":"worker","vcpus":1,"mem_mib":128,"data_disk_mib":0,"created_at":"","updated_at":""}"#).unwrap();
    /// # std::fs::write(made_by_mvm.join("revision.json"), r#"{"revision_hash":"3c7f1e","flake_ref":".",
    /// #     "flake_lock_hash":"l","artifact_paths":{"vmlinux":"vmlinux","rootfs":"rootfs.ext4",
    /// #     "fc_base_config":"fc-base.json"},"built_at":"","profile":"minimal","role":"worker","vcpus":1,"mem_mib":128,
    /// #     "data_disk_mib":0}"#).unwrap();
    /// # std::os::unix::fs::symlink("revisions/3c7f1e", dir.join("templates/web/current")).unwrap();
    /// use template_store::{Store, StoreOptions};
    ///
    /// let adopted = Store::adopt(dir, &StoreOptions::default(), &mut ())?;
    /// assert_eq!(adopted.revisions, [("web".parse()?, "3c7f1e".parse()?)]);
    /// assert_eq!(adopted.left, []);
    /// assert!(adopted.store.current(&"web".parse()?)?.record().adopted_at.is_some());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn adopt(root: impl AsRef<Path>, options: &StoreOptions, progress: &mut dyn Progress) -> Result<Adopted> {
        let root = utf8(root.as_ref())?;
        loop {
            match open::to_adopt(root, options)? {
                ToAdopt::Store(core) => return what_is_left(Arc::new(core), progress),
                ToAdopt::Mvm(core, durability) => {
                    if let Some(adopted) = whole(&Arc::new(core), durability, progress)? {
                        return Ok(adopted);
                    }
                }
            }
        }
    }
}

/// What an adoption has found so far.
#[derive(Debug, Default)]
struct Report {
    revisions: Vec<(TemplateId, RevisionId)>,
    left: Vec<Left>,
    /// Somebody was waited for in vain: for the next one the time is short.
    waited_in_vain: bool,
    keys: Vec<(Option<Timestamp>, CacheKey, KeyHint)>,
}

impl Report {
    fn leave(&mut self, path: impl Into<Utf8PathBuf>, reason: impl ToString) {
        self.left.push(Left { path: path.into(), reason: reason.to_string() });
    }

    /// Leaves a template or revision for which the system has refused something; other errors are the store's.
    fn leave_refused(&mut self, dir: &Utf8Path, error: Error) -> Result<()> {
        match refusal(&error, dir) {
            Some(reason) => {
                self.leave(dir, reason);
                Ok(())
            }
            None => Err(error),
        }
    }

    /// Notes what an adopted revision was made from.
    fn remember(&mut self, template: &TemplateId, revision: &RevisionId, record: &RevisionRecord) {
        let built_at = record.build.built_at.parse().ok();
        self.keys.extend(record.made_from().map(|made| {
            let (template, revision) = (template.clone(), revision.clone());
            (built_at, made.key(), KeyHint { template, revision, source_hash: made.source_hash })
        }));
    }

    fn done(self, core: Arc<Core>) -> Adopted {
        Adopted { store: Store { core }, revisions: self.revisions, left: self.left }
    }
}

/// Adopts in a store what is not adopted yet; others may use the store meanwhile.
fn what_is_left(core: Arc<Core>, progress: &mut dyn Progress) -> Result<Adopted> {
    let _change = core.begin_change()?;
    let report = templates(&core, progress)?;
    remove_mark(&core)?;
    reserve::restore(&core);
    Ok(report.done(core))
}

/// Makes an mvm directory a store; `None` when somebody else did so meanwhile.
fn whole(core: &Arc<Core>, durability: Durability, progress: &mut dyn Progress) -> Result<Option<Adopted>> {
    if !has_templates(&core.layout)? {
        return Err(Error::NotMvm { path: core.layout.root().to_owned() });
    }
    core.disk.ensure_dir(&core.layout.private())?;
    let _alone = Flock::wait_for(&core.layout.private(), Mode::Exclusive)?;
    if read::exists(&core.layout.format_json())? {
        return Ok(None);
    }
    set_mark(core)?;
    let report = templates(core, progress)?;
    open::make(core, durability)?;
    remove_mark(core)?;
    Ok(Some(report.done(core.clone())))
}

/// Whether a directory has the look of mvm's: what is in `templates/`, if anything, includes a template.
fn has_templates(layout: &Layout) -> Result<bool> {
    let dir = layout.templates();
    if !read::metadata_if_there(&dir)?.is_some_and(|found| found.is_dir()) {
        return Ok(false);
    }
    let found = read::list(&dir)?;
    let ids = found.iter().filter_map(|entry| entry.name.parse::<TemplateId>().ok());
    let mut specs = ids.map(|id| read::exists(&layout.template_json(&id)));
    Ok(found.is_empty() || specs.any(|exists| exists.unwrap_or(false)))
}

/// Says, durably and before anything else changes, that this is an mvm directory that is being adopted.
fn set_mark(core: &Core) -> Result<()> {
    let (layout, disk) = (&core.layout, &core.disk);
    if !read::exists(&layout.adopting())? {
        disk.create(&layout.adopting(), 0o666)?;
    }
    disk.fsync_dir(&layout.private())?;
    disk.fsync_dir(layout.root())?;
    // Nobody else works here yet, so these are of an adoption that died; on a full disk, their blocks are needed.
    for name in read::names(&layout.drafts())? {
        disk.remove_tree(layout.drafts().join(name))?;
    }
    Ok(())
}

fn remove_mark(core: &Core) -> Result<()> {
    let mark = core.layout.adopting();
    if read::exists(&mark)? { Ok(core.disk.unlink_if_there(&mark)?) } else { Ok(()) }
}

/// Adopts every template.
fn templates(core: &Arc<Core>, progress: &mut dyn Progress) -> Result<Report> {
    let mut report = Report::default();
    let dir = core.layout.templates();
    for entry in read::list(&dir)? {
        match entry.name.parse() {
            Ok(id) if entry.is_dir => template::adopt(core, &id, &mut report, progress)?,
            Err(error) if entry.is_dir => report.leave(dir.join(&entry.name), format!("no template: {error}")),
            _ => report.leave(dir.join(&entry.name), "no template: it is not a directory"),
        }
    }
    core.disk.fsync_dir(&dir)?;
    note_keys(core, std::mem::take(&mut report.keys));
    Ok(report)
}

/// Puts what was adopted into the index of keys, the newest of a template; what the index has is newer still.
fn note_keys(core: &Core, mut found: Vec<(Option<Timestamp>, CacheKey, KeyHint)>) {
    found.sort_by_key(|(built_at, ..)| std::cmp::Reverse(*built_at));
    for (_, key, hint) in found {
        if let Err(error) = note_key(core, &key, hint) {
            tracing::warn!(%error, "the index of keys could not be written; a build may not find what was adopted");
        }
    }
}

fn note_key(core: &Core, key: &CacheKey, hint: KeyHint) -> Result<()> {
    let same = |old: &KeyHint| (&old.template, &old.source_hash) == (&hint.template, &hint.source_hash);
    match keys::hints(core, key)?.iter().any(same) {
        true => Ok(()),
        false => keys::record(core, key, hint),
    }
}

/// Why a template or a revision can't be adopted, if the error is about what is in it and about nothing else.
///
/// What the disk fails to do is no such reason: it would fail for the next one as well.
fn refusal(error: &Error, dir: &Utf8Path) -> Option<String> {
    use std::io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem};
    let Error::Io(error) = error else { return None };
    let is_its_own = matches!(error.kind(), CrossesDevices | PermissionDenied | ReadOnlyFilesystem)
        || error.errno() == Some(libc::ELOOP);
    if !is_its_own || !error.path.starts_with(dir) {
        return None;
    }
    let next = match error.kind() {
        PermissionDenied if error.errno() == Some(libc::EACCES) => {
            "run as the owner of the store or as root, or give this user access, and adopt it again"
        }
        PermissionDenied if read::user() != 0 => "adopt it as its owner, or as root",
        PermissionDenied => "if `lsattr` shows that it is immutable, `chattr -i` changes that; then adopt it again",
        CrossesDevices => "it must be on the file system of the store",
        ReadOnlyFilesystem => "mount it writable, and adopt it again",
        _ => "put a directory in the place of the link, and adopt it again",
    };
    Some(format!("cannot {} {}: {}; {next}", error.doing, error.path, error.source))
}

/// Whether a path is a directory itself.
fn is_dir(path: &Utf8Path) -> Result<bool> {
    Ok(read::metadata_if_there(path)?.is_some_and(|found| found.is_dir()))
}
