//! From a sealed directory to a visible revision: one rename, then `current`.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};

use crate::activation;
use crate::compare::first_difference;
use crate::core::Core;
use crate::draft::DraftDir;
use crate::error::{Error, Result};
use crate::format::{Action, Content, RevisionRecord, TemplateSpec, derived_id, short_contents};
use crate::fs::atomic::Lasting;
use crate::fs::read;
use crate::fs::seal::holds;
use crate::heal;
use crate::id::{RevisionId, TemplateId};
use crate::layout::REVISION_JSON;
use crate::options::{Activate, PublishOptions, Resources};
use crate::progress::{Note, Progress};
use crate::revision::Revision;
use crate::template::{self, TemplateLock};

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
    /// The directories in it and itself, each after those that it holds.
    pub dirs: Vec<Utf8PathBuf>,
    pub id: RevisionId,
    /// Without id and resources, which follow from the template.
    pub record: RevisionRecord,
    pub contents: Vec<Content>,
    pub conflict: Conflict,
    pub action: Action,
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
    commit.dir.check()?;
    template::create(core, &commit.template, &commit.spec)?;
    let lock = template::lock(core, &commit.template)?;
    activation::check(core, &lock, &options.expect)?;
    let spec = template::spec(core, &commit.template)?;
    (commit.record.build.vcpus, commit.record.build.mem_mib) = (spec.vcpus, spec.mem_mib);
    commit.record.build.data_disk_mib = spec.data_disk_mib;

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
            Err(Error::Damaged { .. } | Error::Format { .. }) if id == derived_id(&commit.contents) => {
                return Ok((restore(core, commit, id, progress)?, Outcome::Unchanged));
            }
            Err(error) => return Err(error),
        };
        match difference(&existing, &commit)? {
            None => return Ok((keep(core, existing, commit, progress)?, Outcome::Unchanged)),
            Some(path) => last = Some((id, path)),
        }
    }
    let (revision, path) = last.expect("there is at least one id");
    Err(Error::RevisionDiffers { template: commit.template, revision, path })
}

/// The ids under which it may be published, in the order in which they are tried.
fn ids(commit: &Commit) -> Vec<RevisionId> {
    let mut ids = vec![commit.id.clone()];
    if commit.conflict == Conflict::Rename {
        let base = commit.id.as_str().split('+').next().unwrap_or_default();
        let spare = format!("{}+{}", &base[..base.len().min(80)], short_contents(&commit.contents));
        let (vcpus, mem_mib, data_disk_mib) = commit.record.resources();
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
    }
    commit.dir.discard()?;
    // Whoever published it may have died before its name was durable.
    core.disk.fsync_dir(&core.layout.artifacts(&commit.template))?;
    Ok(existing)
}

/// Gives a revision whose record can't be read its files and its record again.
fn restore(core: &Arc<Core>, commit: Commit, id: RevisionId, progress: &mut dyn Progress) -> Result<Revision> {
    let dir = core.layout.revision(&commit.template, &id);
    let lease = core.lease(&dir)?;
    heal_files(core, &commit, &id, progress)?;
    let path = dir.join(REVISION_JSON);
    let record = finish(core, commit.record, &id, commit.contents);
    core.disk.write_file(commit.dir.path(), &path, &record.to_json(), Lasting::Durable)?;
    progress.note(Note::Healed { path });
    commit.dir.discard()?;
    Revision::held(core, &commit.template, &id, lease)
}

fn heal_files(core: &Core, commit: &Commit, id: &RevisionId, progress: &mut dyn Progress) -> Result<()> {
    let staging = commit.dir.path();
    for content in &commit.contents {
        let published = core.layout.artifact(&commit.template, id, &content.path);
        heal::one(core, content, &staging.join(content.path.as_path()), &published, staging, progress)?;
    }
    Ok(())
}

fn add(core: &Arc<Core>, commit: Commit, id: RevisionId) -> Result<Revision> {
    let Commit { template, dir, dirs, record, contents, .. } = commit;
    let record = finish(core, record, &id, contents);
    dir.write_record(&record)?;
    for dir in &dirs {
        core.disk.fsync_dir(dir)?;
    }
    let lease = dir.publish(&core.layout.revision(&template, &id))?;
    Revision::held(core, &template, &id, lease)
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
    activation::check(core, lock, &options.expect)?;
    match options.activate {
        Activate::Yes => activation::activate(core, lock, revision.id(), action),
        Activate::No => Ok(()),
    }
}

/// Whether a revision gives a VM what the template says.
pub(crate) fn has_resources(revision: &Revision, spec: &TemplateSpec) -> bool {
    let Resources { vcpus, mem_mib, data_disk_mib } = Resources::of(spec);
    revision.record().resources() == (vcpus, mem_mib, data_disk_mib)
}
