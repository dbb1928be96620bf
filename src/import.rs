//! Files that were built elsewhere.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::core::Core;
use crate::draft::Draft;
use crate::error::{At, Error, Result};
use crate::format::{Content, RevisionRecord, TemplateSpec, derived_id};
use crate::fs::lock::{Flock, Mode, Patience};
use crate::fs::reach;
use crate::fs::read::{self, FileId};
use crate::fs::seal::holds;
use crate::fs::walk::Entry;
use crate::id::ArtifactPath;
use crate::inputs::BuildInputs;
use crate::layout::REVISION_JSON;
use crate::objects;
use crate::open::resolved;
use crate::options::{Import, PublishOptions, SealOptions, setters};
use crate::progress::{Progress, Stage};
use crate::seal::{Survey, in_parallel};
use crate::sealed::Published;
use crate::work::{DraftDir, Imported, Purpose, Work};

/// How files that were built elsewhere are published.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ImportOptions {
    pub(crate) how: Import,
    pub(crate) inputs: Option<BuildInputs>,
    pub(crate) new_template: Option<TemplateSpec>,
    pub(crate) seal: SealOptions,
    pub(crate) publish: PublishOptions,
}

impl ImportOptions {
    setters! {
        /// Whether the files are copied or moved.
        how: Import,
        /// What they were made from; without it, no look-up will find them.
        inputs: Option<BuildInputs>,
        /// The template's definition, if it is new.
        new_template: Option<TemplateSpec>,
        /// The names of the artifacts, and the revision's id.
        seal: SealOptions,
        /// Whether it becomes current.
        publish: PublishOptions,
    }
}

pub(crate) fn publish_dir(
    core: &Arc<Core>,
    purpose: Box<Purpose>,
    dir: &Utf8Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
) -> Result<Published> {
    let dir = outside(core, dir, options.how)?;
    let work = match options.how {
        Import::Copy => copied(core, purpose, &dir, options, progress)?,
        Import::Move => moved(core, purpose, &dir)?,
    };
    Draft { work }.seal_with(&options.seal, progress)?.publish_with(&options.publish, progress)
}

/// The directory, which must not be a part of the store, nor the store a part of it.
fn outside(core: &Core, dir: &Utf8Path, how: Import) -> Result<Utf8PathBuf> {
    let found = match (how, dir.parent(), dir.file_name()) {
        // What is moved is what has the name, so that is not followed.
        (Import::Move, Some(parent), Some(name)) if parent != "" => reach::trusted(parent)?.join(name),
        (Import::Move, _, Some(name)) => reach::trusted(Utf8Path::new("."))?.join(name),
        _ => reach::trusted(dir)?,
    };
    let refuse = |problem: &str| Err(Error::BadDraft { path: dir.to_owned(), problem: problem.to_owned() });
    let metadata = read::metadata(&found)?;
    if metadata.is_symlink() {
        return refuse("is a symbolic link; name the directory that is to be moved, or publish it without moving it");
    }
    if !metadata.is_dir() {
        return refuse("is not a directory; name the directory that holds the artifacts");
    }
    let store = resolved(core.layout.root());
    if found.starts_with(&store) || store.starts_with(&found) {
        return refuse("overlaps with the store; name a directory outside it");
    }
    Ok(found)
}

/// Copies all files to a draft, several at a time; what is an object already is linked to.
fn copied(
    core: &Arc<Core>,
    purpose: Box<Purpose>,
    dir: &Utf8Path,
    options: &ImportOptions,
    progress: &mut dyn Progress,
) -> Result<Work> {
    let survey = Survey::read_only(dir, &options.seal)?;
    let mut work = Work::in_dir(core, DraftDir::new(core)?, purpose);
    check_space(core, &work, &survey)?;
    for inner in survey.dirs.iter().rev().skip(1) {
        let relative = inner.strip_prefix(dir).expect("a walk stays below its root");
        core.disk.mkdir(&work.path().join(relative), 0o700)?;
    }
    let target = work.path().to_owned();
    let contents = in_parallel(Stage::Copying, survey.bytes(), progress, |advance| {
        let import = |(path, entry): &(ArtifactPath, Entry)| -> Result<(ArtifactPath, Imported)> {
            let file = read::open(&entry.path)?;
            let (source, to) = ((&file, entry.path.as_path()), target.join(path.as_path()));
            let linked = objects::link_known(core, source, &to, advance)?;
            let is_object = linked.is_some();
            let (blake3, size) = linked.map_or_else(|| core.disk.copy_sealed(source, &to, advance), Ok)?;
            Ok((path.clone(), Imported { content: Content { path: path.clone(), size, blake3 }, is_object }))
        };
        survey.each_file(survey.is_worth_threads(&core.disk), import)
    })?;
    work.imported = contents;
    heal_what_is_there(&mut work, dir, options)?;
    Ok(work)
}

/// Reads the objects that were linked to, if this very revision is there already: whoever publishes it again may do so
/// because it is damaged, and only the source has the good bytes.
fn heal_what_is_there(work: &mut Work, dir: &Utf8Path, options: &ImportOptions) -> Result<()> {
    if !work.imported.values().any(|imported| imported.is_object) {
        return Ok(());
    }
    let mut contents: Vec<Content> = work.imported.values().map(|imported| imported.content.clone()).collect();
    contents.sort_by(|a, b| a.path.cmp(&b.path));
    let id = options.seal.revision.clone().unwrap_or_else(|| derived_id(&contents));
    if !read::exists(&work.core.layout.revision(&work.purpose.template, &id))? {
        return Ok(());
    }
    let target = work.path().to_owned();
    for imported in work.imported.values_mut().filter(|imported| imported.is_object) {
        let (from, to) = (dir.join(imported.content.path.as_path()), target.join(imported.content.path.as_path()));
        if !holds(&to, &imported.content.blake3)? {
            work.core.disk.unlink(&to)?;
            let (blake3, size) = work.core.disk.copy_sealed((&read::open(&from)?, &from), &to, &|_| ())?;
            *imported = Imported { content: Content { blake3, size, ..imported.content.clone() }, is_object: false };
        }
    }
    Ok(())
}

/// Refuses before the first byte what can't fit. Clones need no space, so nothing is foreseen where they work.
fn check_space(core: &Core, work: &Work, survey: &Survey) -> Result<()> {
    let blocks = |entry: &Entry| read::bytes_on_disk(&entry.metadata);
    let needed: u64 = survey.files.iter().map(|(_, entry)| blocks(entry)).sum();
    let available = read::available_space(work.path())?;
    let largest = survey.files.iter().map(|(_, entry)| entry).max_by_key(|entry| blocks(entry));
    let Some(largest) = largest.filter(|_| needed > available) else { return Ok(()) };
    match core.disk.can_clone(&read::open(&largest.path)?, work.path())? {
        true => Ok(()),
        false => Err(Error::NoSpace { path: core.layout.root().to_owned(), needed, available }),
    }
}

/// Takes the directory itself as the draft. It stays where it is until the one rename that publishes it, and no
/// file in it is shared before, so that an error or a crash leaves it whole; its files are read-only then.
fn moved(core: &Arc<Core>, purpose: Box<Purpose>, dir: &Utf8Path) -> Result<Work> {
    let (ours, theirs) = (read::metadata(&core.layout.templates())?, read::metadata(dir)?);
    if theirs.uid() != read::user() {
        let problem = "belongs to another user, who could change it later; publish it without moving it".to_owned();
        return Err(Error::BadDraft { path: dir.to_owned(), problem });
    }
    if !FileId::of(&ours).same_file_system(FileId::of(&theirs)) {
        return Err(std::io::Error::from(std::io::ErrorKind::CrossesDevices)).at("move", dir).map_err(Error::from);
    }
    core.disk.open_up(dir, &theirs)?;
    match Flock::take(dir, Mode::Shared, Patience::None)? {
        Some(lock) => {
            remove_our_record(core, dir)?;
            let staging = Some(DraftDir::new(core)?);
            Ok(Work { staging, ..Work::in_dir(core, DraftDir::adopt(core, lock), purpose) })
        }
        None => Err(Error::BadDraft {
            path: dir.to_owned(),
            problem: "is locked by another process; try again later".into(),
        }),
    }
}

/// Removes the record that an earlier attempt put there before it died.
fn remove_our_record(core: &Core, dir: &Utf8Path) -> Result<()> {
    let path = dir.join(REVISION_JSON);
    let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(()) };
    match RevisionRecord::from_json(&bytes) {
        Ok(record) if record.contents.is_some() => Ok(core.disk.unlink(&path)?),
        _ => Ok(()),
    }
}
