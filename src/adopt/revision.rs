//! One revision of mvm.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rayon::prelude::*;

use super::{Report, refusal};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Content, Holder, OBJECT_MIN_SIZE, RevisionRecord};
use crate::fs::Disk;
use crate::fs::atomic::Lasting;
use crate::fs::copy::{Advance, hash};
use crate::fs::fixed::check_changeable;
use crate::fs::lock::FORK_TIME;
use crate::fs::read::{self, FileId, Metadata};
use crate::fs::seal::{SealedFile, looks_sealed};
use crate::fs::walk::{Entry, walk};
use crate::fs::writer::{Writer, writer};
use crate::id::{ArtifactPath, RevisionId, TemplateId};
use crate::layout::{REVISION_JSON, SNAPSHOT};
use crate::leases;
use crate::progress::{Note, Progress, Stage};
use crate::seal::{check, in_parallel, intern};
use crate::work::DraftDir;

/// What a revision of mvm holds, apart from its record and its snapshot.
#[derive(Debug)]
struct Survey {
    files: Vec<(ArtifactPath, Entry)>,
    /// Each after those that it holds, as it was found; the revision's own is the last.
    dirs: Vec<(Utf8PathBuf, Metadata)>,
}

impl Survey {
    fn check_changeable(&self, dir: &Utf8Path) -> Result<()> {
        let record = dir.join(REVISION_JSON);
        check_changeable(&record, &read::metadata(&record)?)?;
        let files = self.files.iter().map(|(_, entry)| (&entry.path, &entry.metadata));
        let dirs = self.dirs.iter().map(|(path, metadata)| (path, metadata));
        for (path, metadata) in files.chain(dirs) {
            check_changeable(path, metadata)?;
        }
        Ok(())
    }

    /// Gives everything the mode that it had, as far as that can be done.
    fn give_back(&self, disk: &Disk) {
        for (_, entry) in &self.files {
            disk.unseal(&entry.path, &entry.metadata);
        }
        for (dir, metadata) in &self.dirs {
            disk.restore_mode(dir, metadata);
        }
    }
}

/// What a look at a revision says.
#[derive(Debug)]
enum Look {
    /// The store knows its files.
    Known(Box<RevisionRecord>),
    ToAdopt(Survey),
    /// It stays as it is, for this reason.
    Leave(String),
}

/// Why a revision stays as it is, or that it was adopted.
type Ended = std::result::Result<RevisionRecord, String>;

/// How long to wait for a process that holds a revision for itself alone: removing one takes no longer.
const LOCK_TIME: Duration = Duration::from_secs(10);

/// Adopts a revision: its files are sealed and shared, and its record gets the list of them, durably and last.
///
/// A crash leaves every file with its bytes, and a record with the list or without it.
pub(super) fn adopt(
    core: &Arc<Core>,
    template: &TemplateId,
    id: &RevisionId,
    report: &mut Report,
    progress: &mut dyn Progress,
) -> Result<()> {
    let dir = core.layout.revision(template, id);
    let limit = if report.waited_in_vain { FORK_TIME } else { LOCK_TIME };
    let _lease = match core.lease_within(&dir, limit) {
        Err(Error::Io(error)) if error.is_not_found() => return Ok(()),
        Err(error) => return report.leave_refused(&dir, error),
        Ok(None) => {
            report.waited_in_vain = true;
            report.leave(dir, locked_by(core, template, id));
            return Ok(());
        }
        Ok(lease) => lease,
    };
    // Looking changes nothing, so whatever can't be looked at can be left.
    let ended = match look(&dir, id).unwrap_or_else(|error| Look::Leave(why(&error, &dir))) {
        Look::Leave(reason) => Err(reason),
        Look::Known(record) => {
            if record.adopted_at.is_some() {
                // Who wrote the list may have died before it was durable.
                core.disk.fsync_dir(&dir)?;
                report.remember(template, id, &record);
            }
            return Ok(());
        }
        Look::ToAdopt(survey) => take_over(core, &dir, &survey, progress)?,
    };
    match ended {
        Ok(record) => {
            report.remember(template, id, &record);
            report.revisions.push((template.clone(), id.clone()));
        }
        Err(reason) => report.leave(dir, reason),
    }
    Ok(())
}

/// Looks at all that the revision holds, without changing anything.
fn look(dir: &Utf8Path, id: &RevisionId) -> Result<Look> {
    let Some(bytes) = read::bytes_if_there(&dir.join(REVISION_JSON))? else {
        return Ok(Look::Leave(format!("no revision: it has no {REVISION_JSON}")));
    };
    let record = match RevisionRecord::from_json(&bytes) {
        Ok(record) if record.contents.is_some() => return Ok(Look::Known(Box::new(record))),
        Ok(record) => record,
        Err(error) => return Ok(Look::Leave(error.to_string())),
    };
    if record.build.revision_hash != id.as_str() {
        return Ok(Look::Leave(format!(
            "its {REVISION_JSON} is the record of {:?}; give the directory that name, or write its own name there, and adopt it again",
            record.build.revision_hash
        )));
    }
    // What can't take the list in the end is not begun.
    if let Err(error) = RevisionRecord::adopted(&bytes, &[], Timestamp::UNIX_EPOCH) {
        return Ok(Look::Leave(error.to_string()));
    }
    let survey = survey(dir)?;
    let named = record.artifacts().unwrap_or_default();
    let missing = named.iter().find(|(_, name)| !survey.files.iter().any(|(path, _)| path == name));
    if let Some((_, name)) = missing {
        return Ok(Look::Leave(format!("it has no {name}, which its {REVISION_JSON} names")));
    }
    // Before the first file changes, so that a revision that is in use, or can't be changed, stays as it is.
    survey.check_changeable(dir)?;
    for (path, entry) in &survey.files {
        if let Some(reason) = in_use(path, writer(&entry.path)?) {
            return Ok(Look::Leave(reason));
        }
    }
    Ok(Look::ToAdopt(survey))
}

fn survey(dir: &Utf8Path) -> Result<Survey> {
    let (mut files, mut dirs) = (Vec::new(), vec![(dir.to_owned(), read::metadata(dir)?)]);
    for entry in walk(dir)? {
        let below_snapshot = entry.relative.starts_with(SNAPSHOT) && entry.relative != SNAPSHOT;
        let own = entry.relative == SNAPSHOT && entry.kind.is_dir() || entry.relative == REVISION_JSON;
        if own || below_snapshot {
            continue;
        }
        let path = check(&entry)?;
        if entry.kind.is_dir() {
            dirs.push((entry.path, entry.metadata));
        } else {
            files.push((path, entry));
        }
    }
    files.sort_by(|(a, _), (b, _)| a.cmp(b));
    dirs.reverse();
    Ok(Survey { files, dirs })
}

/// Why a file can't be adopted now.
fn in_use(path: &ArtifactPath, writer: Writer) -> Option<String> {
    match writer {
        Writer::None => None,
        Writer::Some => {
            Some(format!("a process has {path} open for writing; stop its VM and run `template-store adopt` again"))
        }
        Writer::Unknown => Some(format!(
            "the system does not tell whether a process has {path} open for writing; adopt it as its owner, or as root"
        )),
    }
}

/// Who keeps a revision from being looked at.
fn locked_by(core: &Core, template: &TemplateId, id: &RevisionId) -> String {
    let holders = leases::holders(core, &[(template.clone(), id.clone())]).unwrap_or_default();
    let holder = |holder: &Holder| match holder.command.is_empty() {
        true => format!("process {}", holder.pid),
        false => format!("process {} ({})", holder.pid, holder.command),
    };
    let names: Vec<_> = holders.iter().flatten().map(holder).collect();
    let names =
        if names.is_empty() { "a process that can't be seen from here".to_owned() } else { names.join(" and ") };
    format!("in use by {names}, which holds its lock; adopt it again when that is over")
}

/// What is said of a revision that an error was about.
fn why(error: &Error, dir: &Utf8Path) -> String {
    refusal(error, dir).unwrap_or_else(|| error.to_string())
}

fn take_over(core: &Arc<Core>, dir: &Utf8Path, survey: &Survey, progress: &mut dyn Progress) -> Result<Ended> {
    let staging = DraftDir::new(core)?;
    let ended = match seal_and_list(core, dir, survey, staging.path(), progress) {
        Err(error) if refusal(&error, dir).is_some() && !may_be_listed(dir) => Err(why(&error, dir)),
        ended => ended?,
    };
    if ended.is_err() {
        survey.give_back(&core.disk);
    }
    staging.give_up()?;
    Ok(ended)
}

/// Files that are listed stay sealed.
fn may_be_listed(dir: &Utf8Path) -> bool {
    let record = read::bytes(&dir.join(REVISION_JSON)).ok().and_then(|bytes| RevisionRecord::from_json(&bytes).ok());
    record.is_none_or(|record| record.contents.is_some())
}

fn seal_and_list(
    core: &Core,
    dir: &Utf8Path,
    survey: &Survey,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<Ended> {
    let sealed = match seal(core, dir, survey, staging, progress) {
        // A file that can't be read, or that mvm has removed, is no reason not to adopt the others.
        Err(Error::Io(error)) if error.is_not_found() || error.errno() == Some(libc::EIO) => Err(error.to_string()),
        sealed => sealed?,
    };
    match sealed {
        Ok(contents) => list(core, dir, survey, &contents, staging),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Seals all files, durably, and shares those of which the store has the same bytes.
fn seal(
    core: &Core,
    dir: &Utf8Path,
    survey: &Survey,
    staging: &Utf8Path,
    progress: &mut dyn Progress,
) -> Result<std::result::Result<Vec<Content>, String>> {
    core.disk.note_foreign(dir)?;
    for (dir, _) in survey.dirs.iter().rev() {
        core.disk.open_up(dir, &read::metadata(dir)?)?;
    }
    let bytes = survey.files.iter().map(|(_, entry)| entry.metadata.len()).fold(0, u64::saturating_add);
    let sealed: Vec<Option<SealedFile>> = in_parallel(Stage::Sealing, bytes, progress, |advance| {
        survey.files.par_iter().map(|(_, entry)| seal_file(core, entry, staging, advance)).collect()
    })?;
    let mut contents = Vec::new();
    for ((path, entry), sealed) in survey.files.iter().zip(sealed) {
        let Some(sealed) = sealed else { return Ok(Err(in_use(path, Writer::Some).unwrap_or_default())) };
        note(path, entry, &sealed, progress);
        contents.push(Content { path: path.clone(), size: sealed.size, blake3: sealed.digest });
    }
    for ((path, entry), content) in survey.files.iter().zip(&contents) {
        // What is shared is written to by nobody; hashing took its time, and a VM may have been started.
        if let Some(reason) = in_use(path, writer(&entry.path)?) {
            return Ok(Err(reason));
        }
        intern(core, content, dir, staging, progress)?;
    }
    Ok(Ok(contents))
}

/// Seals a file, or sees that an adoption that died has done so; `None` when somebody writes to it.
fn seal_file(core: &Core, entry: &Entry, staging: &Utf8Path, advance: Advance) -> Result<Option<SealedFile>> {
    match shared_before(core, entry)? {
        Some(sealed) => {
            advance(sealed.size);
            Ok(Some(sealed))
        }
        None => Ok(core.disk.seal_unless_written(&entry.path, staging, advance)?),
    }
}

/// A file that is an object already has more names than one; it needs no copy for that.
fn shared_before(core: &Core, entry: &Entry) -> Result<Option<SealedFile>> {
    let (found, path) = (&entry.metadata, &entry.path);
    let size = found.len();
    if found.nlink() == 1 || size < OBJECT_MIN_SIZE || !looks_sealed(found, size) || !read::can_share(found) {
        return Ok(None);
    }
    let file = read::open(path)?;
    let (digest, size) = hash(&file, path, &|_| ())?;
    let object = read::metadata_if_there(&core.layout.object(&digest))?;
    if object.as_ref().map(FileId::of) != Some(FileId::of(found)) {
        return Ok(None);
    }
    core.disk.fsync(&file, path)?;
    Ok(Some(SealedFile { digest, size, inode: FileId::of(found), dropped: Vec::new(), copied: None }))
}

fn note(path: &ArtifactPath, entry: &Entry, sealed: &SealedFile, progress: &mut dyn Progress) {
    if !sealed.dropped.is_empty() {
        progress.note(Note::AttributesDropped { path: path.clone(), names: sealed.dropped.clone() });
    }
    if let Some(reason) = sealed.copied {
        progress.note(Note::Detached { path: entry.path.clone(), reason });
    }
}

/// Lists the files in the record, when they and their names are durable.
fn list(core: &Core, dir: &Utf8Path, survey: &Survey, contents: &[Content], staging: &Utf8Path) -> Result<Ended> {
    for (dir, _) in &survey.dirs {
        core.disk.fsync_dir(dir)?;
    }
    let path = dir.join(REVISION_JSON);
    // Read again: mvm may have added something meanwhile.
    let (bytes, record) = match RevisionRecord::adopted(&read::bytes(&path)?, contents, core.now()) {
        Ok(adopted) => adopted,
        Err(error) => return Ok(Err(error.to_string())),
    };
    core.disk.write_file(staging, &path, &bytes, Lasting::Durable)?;
    Ok(Ok(record))
}
