//! Attaching: everything is made beside, durably, and becomes visible by one rename.

use camino::{Utf8Path, Utf8PathBuf};
use rayon::prelude::*;

use super::source::{self, Source};
use super::{Snapshot, SnapshotFiles, SnapshotOptions};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{
    CURRENT_SCHEMA_VERSION, Content, Extra, FcDrive, MEM, RevisionRecord, SnapshotDrive, SnapshotInfo, SnapshotRecord,
    VMSTATE, drive_path,
};
use crate::fs::atomic::Lasting;
use crate::fs::read::{self, FileId};
use crate::id::{DriveId, RevisionId, TemplateId};
use crate::layout::SNAPSHOT_JSON;
use crate::progress::{Progress, Stage};
use crate::revision::Revision;
use crate::seal::in_parallel;
use crate::template;
use crate::work::DraftDir;

/// Attaches a snapshot; see [`Revision::attach_snapshot`].
pub(super) fn attach(
    revision: &Revision,
    files: &SnapshotFiles,
    options: &SnapshotOptions,
    progress: &mut dyn Progress,
) -> Result<Snapshot> {
    let core = revision.core();
    let _change = core.begin_change()?;
    revision.check()?;
    refuse_newer(revision)?;
    let (sources, info) = plan(revision, files, options)?;
    let draft = DraftDir::new(core)?;
    check_space(core, &draft, &sources)?;
    // By its name, whoever finds what a crash left knows where the other one is.
    let made = draft.path().join(format!("{}@{}", revision.template(), revision.id()));
    let contents = fill(core, &made, &sources, progress)?;
    for source in &sources {
        source.check_unchanged()?;
    }
    let record = SnapshotRecord {
        schema_version: CURRENT_SCHEMA_VERSION,
        platform: options.platform.clone(),
        info,
        contents,
        drives: files.drives.iter().map(|(id, _)| drive(id, options)).collect(),
    };
    finish(core, &made, &record)?;
    // Publications of the template wait for the rename only, not for the copies.
    let _lock = template::lock(core, revision.template())?;
    if !revision.is_there()? {
        return Err(gone(revision));
    }
    refuse_newer(revision)?;
    let ours = FileId::of(&read::metadata(&made)?);
    if let Err(error) = show(core, revision, &made) {
        // Two names may have been exchanged, not durably: then the disk still needs the files of the old one.
        if !holds_only(draft.path(), &made, ours).unwrap_or(false) {
            draft.leave();
        }
        return Err(error);
    }
    // The new one lasts, and nobody finds the old one any more.
    if let Err(error) = draft.discard() {
        tracing::warn!(%error, "the snapshot that was there before could not be removed; a collection will");
    }
    derive(core, revision.template(), revision.id(), Some(&record), &core.layout.drafts())?;
    Revision::open(core, revision.template(), revision.id())?.snapshot()?.ok_or_else(|| gone(revision))
}

/// Refuses to replace a snapshot of a newer program: it may say what this one can't keep. One that is damaged is replaced.
fn refuse_newer(revision: &Revision) -> Result<()> {
    match revision.snapshot() {
        Err(newer @ Error::Format { .. }) => Err(newer),
        _ => Ok(()),
    }
}

/// Whether a draft has nothing but the directory that was made in it, or nothing any more.
fn holds_only(draft: &Utf8Path, made: &Utf8Path, ours: FileId) -> Result<bool> {
    let others = read::names(draft)?.iter().any(|name| Some(name.as_str()) != made.file_name());
    let there = read::metadata_if_there(made)?;
    Ok(!others && there.is_none_or(|found| FileId::of(&found) == ours))
}

fn gone(revision: &Revision) -> Error {
    Error::RevisionNotFound { template: revision.template().clone(), revision: revision.id().clone() }
}

/// Looks at all that is given, and refuses what can't be a snapshot of the revision; nothing is changed.
fn plan(revision: &Revision, files: &SnapshotFiles, options: &SnapshotOptions) -> Result<(Vec<Source>, SnapshotInfo)> {
    let given = |id: &DriveId| files.drives.iter().any(|(given, _)| given == id);
    let drives = revision.drives()?;
    if let Some(missing) = drives.iter().find(|drive| drive.needs_snapshot() && !given(&drive.id)) {
        let (template, revision) = (revision.template().clone(), revision.id().clone());
        return Err(Error::SnapshotLacksDrive { template, revision, drive: missing.id.clone() });
    }
    if let Some((id, path)) = options.drive_paths.iter().find(|(id, _)| !given(id)) {
        let problem = format!("is the path of drive {id}, which is not given; give its file as well");
        return Err(Error::BadSnapshot { path: path.into(), problem });
    }
    let mut sources = source::open(files)?;
    refuse_short(revision, &drives, &sources)?;
    let mem_mib = options.mem_mib.unwrap_or(revision.build().mem_mib);
    let size_of = |name| sources.iter().find(|source| source.is(name)).expect("both were opened");
    let (vmstate, mem) = (size_of(VMSTATE), size_of(MEM));
    if mem.size() != u64::from(mem_mib) << 20 {
        return Err(mem.refuse(format!(
            "has {} bytes, and the memory of a VM with {mem_mib} MiB has {}; name the file of its whole memory, or say how much it had",
            mem.size(),
            u64::from(mem_mib) << 20
        )));
    }
    let info = SnapshotInfo {
        created_at: options.created_at.clone().unwrap_or_else(|| revision.core().now().to_string()),
        vmstate_size_bytes: vmstate.size(),
        mem_size_bytes: mem.size(),
        boot_args: options.boot_args.clone().map_or_else(|| revision.boot_args(), Ok)?,
        vcpus: options.vcpus.unwrap_or(revision.build().vcpus),
        mem_mib,
        extra: Extra::new(),
    };
    for source in sources.iter_mut().filter(|source| !source.is(VMSTATE) && !source.is(MEM)) {
        source.find_twin(revision)?;
    }
    Ok((sources, info))
}

/// Refuses a file that is shorter than the artifact with which the VM booted: a disk does not shrink.
fn refuse_short(revision: &Revision, drives: &[FcDrive], sources: &[Source]) -> Result<()> {
    for drive in drives {
        let rootfs = &revision.build().artifact_paths.rootfs;
        let name = if drive.is_root { Some(rootfs) } else { drive.path_on_host.as_ref() };
        let to = drive_path(&drive.id);
        let source = sources.iter().find(|source| source.is(to.as_str()));
        let (Some(name), Some(source)) = (name.filter(|name| Utf8Path::new(name).is_relative()), source) else {
            continue;
        };
        let Some(artifact) = read::metadata_if_there(&revision.path().join(name))? else { continue };
        if source.size() < artifact.len() {
            return Err(source.refuse(format!(
                "has {} bytes, and {name}, with which drive {} begins, has {}; give the whole file as of the pause",
                source.size(),
                drive.id,
                artifact.len()
            )));
        }
    }
    Ok(())
}

fn drive(id: &DriveId, options: &SnapshotOptions) -> SnapshotDrive {
    let path = options.drive_paths.iter().find(|(named, _)| named == id).map(|(_, path)| path.clone());
    SnapshotDrive { id: id.clone(), path_on_host: path, extra: Extra::new() }
}

/// Refuses before the first byte what can't fit.
fn check_space(core: &Core, draft: &DraftDir, sources: &[Source]) -> Result<()> {
    let available = read::available_space(draft.path())?;
    let needed = sources.iter().map(Source::needs).fold(0, u64::saturating_add);
    if needed <= available {
        return Ok(());
    }
    let mut copied: u64 = 0;
    for source in sources.iter().filter(|source| source.needs() > 0) {
        if !source.can_be_cloned(core, draft.path())? {
            copied = copied.saturating_add(source.needs());
        }
    }
    match copied <= available {
        true => Ok(()),
        false => Err(Error::NoSpace { path: core.layout.root().to_owned(), needed: copied, available }),
    }
}

/// Puts all files into a new directory, several at a time; each is durable.
fn fill(core: &Core, dir: &Utf8Path, sources: &[Source], progress: &mut dyn Progress) -> Result<Vec<Content>> {
    core.disk.mkdir(dir, 0o700)?;
    if has_drives(sources.len()) {
        core.disk.mkdir(&dir.join("drives"), 0o700)?;
    }
    let bytes = sources.iter().map(Source::size).fold(0, u64::saturating_add);
    in_parallel(Stage::Copying, bytes, progress, |advance| {
        sources.par_iter().map(|source| source.put(core, dir, advance)).collect()
    })
}

/// Of so many files, two are the state and the memory.
fn has_drives(files: usize) -> bool {
    files > 2
}

/// Writes what the directory holds; all of it, and each name in it, is durable then.
fn finish(core: &Core, dir: &Utf8Path, record: &SnapshotRecord) -> Result<()> {
    let (disk, mode) = (&core.disk, core.public_mode()?);
    disk.write_new(&dir.join(SNAPSHOT_JSON), &record.to_json())?;
    let drives = dir.join("drives");
    let inner = has_drives(record.contents.len()).then_some(drives);
    for dir in inner.iter().map(Utf8PathBuf::as_path).chain([dir]) {
        disk.chmod(dir, mode)?;
        disk.fsync_dir(dir)?;
    }
    Ok(())
}

/// Gives the directory its name; what had it before has the one that this had.
///
/// A crash leaves one or the other; when this returns, the new one lasts.
fn show(core: &Core, revision: &Revision, made: &Utf8Path) -> Result<()> {
    let (disk, dir) = (&core.disk, revision.path());
    let target = core.layout.snapshot(revision.template(), revision.id());
    // A build tool may have made an adopted revision read-only.
    let metadata = read::metadata(&dir)?;
    let old = read::metadata_if_there(&target)?;
    if old.as_ref().is_some_and(|old| !old.is_dir()) {
        return Err(Error::Misplaced { path: target });
    }
    disk.open_up(&dir, &metadata)?;
    let shown = match old {
        None => disk.publish_dir(made, &target),
        Some(old) => disk.open_up(&target, &old).and_then(|()| disk.exchange_dir(made, &target)),
    };
    disk.restore_mode(&dir, &metadata);
    Ok(shown?)
}

/// Rewrites what `revision.json` says of the snapshot, durably; what else it says stays. The template's lock is held.
pub(crate) fn derive(
    core: &Core,
    template: &TemplateId,
    id: &RevisionId,
    record: Option<&SnapshotRecord>,
    staging: &Utf8Path,
) -> Result<()> {
    let path = core.layout.revision_json(template, id);
    let derived = record.map(SnapshotRecord::derived);
    let bytes = RevisionRecord::with_snapshot(&read::bytes(&path)?, derived.as_ref())
        .map_err(|source| Error::Format { path: path.clone(), source })?;
    Ok(core.disk.write_file(staging, &path, &bytes, Lasting::Durable)?)
}
