//! From a sealed directory to a visible revision: one rename, then `current`.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::activation;
use crate::compare::first_difference;
use crate::core::Core;
use crate::damage;
use crate::error::{Error, Result};
use crate::format::{Action, Content, MadeFrom, RevisionRecord, TemplateSpec, derived_id, short_contents};
use crate::fs::atomic::Lasting;
use crate::fs::read::{self, FileId};
use crate::fs::seal::holds;
use crate::fs::walk::walk;
use crate::heal;
use crate::id::{RevisionId, TemplateId};
use crate::layout::REVISION_JSON;
use crate::options::{Activate, PublishOptions, Resources};
use crate::progress::{Note, Progress};
use crate::revision::Revision;
use crate::template::{self, TemplateLock};
use crate::work::DraftDir;

/// What publishing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// There is a new revision.
    New,
    /// A revision with this id and these contents was there; nothing was added.
    Unchanged,
}

/// What to do when the id is taken by other contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conflict {
    Refuse,
    /// Both stay: the new one gets `<id>+<12 hex digits of its contents>`.
    Rename,
}

/// A directory of sealed, durable files, and all that is known of it.
#[derive(Debug)]
pub(crate) struct Commit {
    pub template: TemplateId,
    /// The template's definition, if it is to be made.
    pub spec: TemplateSpec,
    pub dir: DraftDir,
    /// Where half-done work is put, if that is not the directory itself.
    pub staging: Option<DraftDir>,
    /// The directories in it and itself, each after those that it holds.
    pub dirs: Vec<Utf8PathBuf>,
    pub id: RevisionId,
    /// Without id and resources, which follow from the template.
    pub record: RevisionRecord,
    pub contents: Vec<Content>,
    /// The inodes of the files, if the directory is somebody else's.
    pub inodes: Vec<FileId>,
    pub conflict: Conflict,
    pub action: Action,
}

impl Commit {
    fn staging(&self) -> &Utf8Path {
        self.staging.as_ref().unwrap_or(&self.dir).path()
    }
}

/// Makes a revision visible and, if asked, current; both last when this returns.
///
/// A crash before the rename leaves a dead draft, one after it the revision; `current` is the old or the new.
pub(crate) fn commit(
    core: &Arc<Core>,
    mut commit: Commit,
    options: &PublishOptions,
    progress: &mut dyn Progress,
) -> Result<(Revision, Outcome)> {
    activation::check(core, &commit.template, &options.expect)?;
    let (lock, _) = template::create_and_lock(core, &commit.template, &commit.spec)?;
    activation::check(core, &lock.id, &options.expect)?;
    // A reused revision has the resources that its configuration was written with.
    if commit.action == Action::Publish {
        let spec = template::spec(core, &commit.template)?;
        let build = &mut commit.record.build;
        (build.vcpus, build.mem_mib, build.data_disk_mib) = (spec.vcpus, spec.mem_mib, spec.data_disk_mib);
    }
    let (action, (revision, outcome)) = (commit.action, place(core, commit, progress)?);
    if options.activate == Activate::Yes {
        activation::activate(core, &lock, revision.id(), action)?;
    }
    Ok((revision, outcome))
}

/// Puts the directory under its name, or finds that what it holds is there.
fn place(core: &Arc<Core>, commit: Commit, progress: &mut dyn Progress) -> Result<(Revision, Outcome)> {
    let mut last = None;
    for id in ids(&commit) {
        let existing = match existing(core, &commit.template, &id) {
            Ok(None) => return Ok((add(core, commit, id)?, Outcome::New)),
            Ok(Some(existing)) => existing,
            // The id says what the revision held, so its record can be written anew.
            Err(Error::Damaged { .. }) if id == derived_id(&commit.contents) => {
                return Ok((restore(core, commit, id, progress)?, Outcome::Unchanged));
            }
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        let Some(path) = difference(&existing, &commit)? else {
            return Ok((keep(core, existing, commit, progress)?, Outcome::Unchanged));
        };
        last = Some(Error::RevisionDiffers { template: commit.template.clone(), revision: id, path });
    }
    Err(last.expect("there is at least one id, and it was refused"))
}

/// The ids under which it may be published, in the order in which they are tried.
fn ids(commit: &Commit) -> Vec<RevisionId> {
    let mut ids = vec![commit.id.clone()];
    if commit.conflict == Conflict::Rename {
        let base = commit.id.as_str().split('+').next().unwrap_or_default();
        let spare = format!("{}+{}", &base[..base.len().min(80)], short_contents(&commit.contents));
        let Resources { vcpus, mem_mib, data_disk_mib } = commit.record.resources();
        let with_resources = format!("{spare}-{vcpus}-{mem_mib}-{data_disk_mib}");
        ids.extend([spare, with_resources].iter().filter_map(|text| text.parse().ok()));
    }
    ids
}

fn existing(core: &Arc<Core>, template: &TemplateId, id: &RevisionId) -> Result<Option<Revision>> {
    match Revision::open(core, template, id) {
        Ok(revision) => Ok(Some(revision)),
        Err(Error::RevisionNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The first thing in which a revision is not what is to be published.
fn difference(existing: &Revision, commit: &Commit) -> Result<Option<String>> {
    if let Some(contents) = &existing.record().contents {
        if let Some(path) = first_difference(contents, &commit.contents) {
            return Ok(Some(path.to_string()));
        }
    } else {
        // mvm made it and noted no digests; what it has can be read.
        for content in &commit.contents {
            let path = existing.artifact(&content.path);
            if !read::exists(&path)? || !holds(&path, &content.blake3)? {
                return Ok(Some(content.path.to_string()));
            }
        }
    }
    let same = existing.record().resources() == commit.record.resources();
    Ok((!same && commit.action == Action::Reuse).then(|| format!("{REVISION_JSON} (the resources)")))
}

/// Throws the directory away for the revision that has the same contents, after healing that one.
fn keep(core: &Arc<Core>, existing: Revision, commit: Commit, progress: &mut dyn Progress) -> Result<Revision> {
    if existing.record().contents.is_some() {
        heal_files(core, &commit, existing.id(), progress)?;
        damage::clear(core, &commit.template, existing.id())?;
    }
    let existing = note_inputs(core, existing, &commit)?;
    // Whoever published it may have died before its name was durable.
    core.disk.fsync_dir(&core.layout.artifacts(&commit.template))?;
    discard(commit.dir, commit.staging)?;
    Ok(existing)
}

/// Adds to the record that these inputs give the same bytes, so that they are found the next time.
fn note_inputs(core: &Arc<Core>, existing: Revision, commit: &Commit) -> Result<Revision> {
    let known: Vec<MadeFrom> = existing.record().made_from().collect();
    let Some(new) = commit.record.made_from().find(|made| !known.contains(made)) else { return Ok(existing) };
    let path = core.layout.revision_json(&commit.template, existing.id());
    let invalid = |source| Error::Format { path: path.clone(), source };
    let bytes = RevisionRecord::add_made_from(&read::bytes(&path)?, &new).map_err(invalid)?;
    core.disk.write_file(commit.staging(), &path, &bytes, Lasting::Durable)?;
    Revision::open(core, &commit.template, existing.id())
}

/// Gives a revision whose record can't be read its files and its record again.
fn restore(core: &Arc<Core>, commit: Commit, id: RevisionId, progress: &mut dyn Progress) -> Result<Revision> {
    let dir = core.layout.revision(&commit.template, &id);
    let lease = core.lease(&dir)?;
    heal_files(core, &commit, &id, progress)?;
    let path = dir.join(REVISION_JSON);
    let record = finish(core, commit.record, &id, commit.contents);
    let staging = commit.staging.as_ref().unwrap_or(&commit.dir).path();
    core.disk.write_file(staging, &path, &record.to_json(), Lasting::Durable)?;
    progress.note(Note::Healed { path });
    damage::clear(core, &commit.template, &id)?;
    core.disk.fsync_dir(&core.layout.artifacts(&commit.template))?;
    discard(commit.dir, commit.staging)?;
    Revision::held(core, &commit.template, &id, lease)
}

/// Removes the directory, whoever's it was: what it held is in the store.
fn discard(dir: DraftDir, staging: Option<DraftDir>) -> Result<()> {
    match staging {
        Some(staging) => staging.discard_other(dir),
        None => dir.discard(),
    }
}

fn heal_files(core: &Core, commit: &Commit, id: &RevisionId, progress: &mut dyn Progress) -> Result<()> {
    for content in &commit.contents {
        let good = commit.dir.path().join(content.path.as_path());
        let published = core.layout.artifact(&commit.template, id, &content.path);
        heal::one(core, content, &good, &published, commit.staging(), progress)?;
    }
    Ok(())
}

fn add(core: &Arc<Core>, commit: Commit, id: RevisionId) -> Result<Revision> {
    let staging = commit.staging().to_owned();
    let Commit { template, mut dir, staging: _staging, dirs, record, contents, inodes, .. } = commit;
    let sealed = contents.iter().map(|content| content.path.as_path().to_owned()).zip(inodes).collect::<Vec<_>>();
    let record = finish(core, record, &id, contents);
    let is_whole =
        |dir: &Utf8Path| Ok(files_of(dir)? == sealed && read::bytes(&dir.join(REVISION_JSON))? == record.to_json());
    dir.write_record(&record, &staging)?;
    for dir in &dirs {
        core.disk.fsync_dir(dir)?;
    }
    // A mark that is left speaks of a revision that is gone.
    damage::clear(core, &template, &id)?;
    let lease = dir.publish(&core.layout.revision(&template, &id), is_whole)?;
    Revision::held(core, &template, &id, lease)
}

/// The files of a directory that is published, and what they are.
fn files_of(dir: &Utf8Path) -> Result<Vec<(Utf8PathBuf, FileId)>> {
    let files = walk(dir)?.into_iter().filter(|entry| !entry.kind.is_dir() && entry.relative != REVISION_JSON);
    Ok(files.map(|entry| (entry.relative, FileId::of(&entry.metadata))).collect())
}

fn finish(core: &Core, mut record: RevisionRecord, id: &RevisionId, contents: Vec<Content>) -> RevisionRecord {
    record.build.revision_hash = id.to_string();
    record.contents = Some(contents);
    record.published_at = Some(core.now());
    record
}

/// Gives directories that were made for a draft the mode that others may read; each comes after those it holds.
pub(crate) fn open_to_others(core: &Core, dir: &Utf8Path, contents: &[Content]) -> Result<Vec<Utf8PathBuf>> {
    let mut dirs: Vec<Utf8PathBuf> = Vec::new();
    for content in contents {
        let parents = content.path.as_path().ancestors().skip(1).map(|parent| dir.join(parent));
        dirs.extend(parents);
    }
    dirs.sort_unstable_by(|a, b| b.cmp(a));
    dirs.dedup();
    let public = core.public_mode()?;
    for dir in &dirs {
        core.disk.chmod(dir, public)?;
    }
    Ok(dirs)
}

/// The lock that publishing holds, for those who only move `current`.
pub(crate) fn activate_existing(
    core: &Arc<Core>,
    lock: &TemplateLock,
    revision: &Revision,
    options: &PublishOptions,
    action: Action,
) -> Result<()> {
    activation::check(core, &lock.id, &options.expect)?;
    match options.activate {
        Activate::Yes => activation::activate(core, lock, revision.id(), action),
        Activate::No => Ok(()),
    }
}

/// Whether a revision gives a VM what the template says.
pub(crate) fn has_resources(revision: &Revision, spec: &TemplateSpec) -> bool {
    revision.record().resources() == Resources::of(spec)
}
