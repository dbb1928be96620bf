//! What has been built already: finding it, and giving it to another template.

use std::sync::Arc;

use crate::activation;
use crate::compare::first_difference;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::format::{Action, Content, Origin, RevisionRecord, TemplateSpec, derived_id, with_machine};
use crate::fs::atomic::needs_copy;
use crate::fs::read;
use crate::id::{Digest, RevisionId, TemplateId};
use crate::inputs::{BuildInputs, Made};
use crate::inventory;
use crate::keys;
use crate::options::{Activate, Expect, Match, PublishOptions};
use crate::progress::{Note, Progress};
use crate::publish::{Commit, Conflict, activate_existing, commit, has_resources, open_to_others};
use crate::revision::Revision;
use crate::sealed::remember;
use crate::template;
use crate::work::{DraftDir, Purpose};

/// A revision that was made from these inputs, by the index of keys alone.
///
/// Those of `only` count if it is given, else those of all templates.
pub(crate) fn lookup(
    core: &Arc<Core>,
    only: Option<&TemplateId>,
    inputs: &BuildInputs,
    matching: Match,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    for key in inputs.keys() {
        for hint in keys::hints(core, &key)? {
            if only.is_some_and(|only| *only != hint.template) {
                continue;
            }
            let found = usable(core, &hint.template, &hint.revision, inputs, matching, progress)?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
}

/// The best revision for a build of this template: its own with its resources, its own, anybody's.
pub(crate) fn for_build(
    core: &Arc<Core>,
    template: &TemplateId,
    spec: &TemplateSpec,
    inputs: &BuildInputs,
    matching: Match,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    let mut best: Option<Revision> = None;
    for key in inputs.keys() {
        for hint in keys::hints(core, &key)? {
            let own = hint.template == *template;
            if !own && best.is_some() {
                continue;
            }
            let Some(found) = usable(core, &hint.template, &hint.revision, inputs, matching, progress)? else {
                continue;
            };
            if own && has_resources(&found, spec) {
                return Ok(Some(found));
            }
            if own || best.is_none() {
                best = Some(found);
            }
        }
    }
    Ok(best)
}

/// Looks through the template's own revisions: the index may have been lost. Slow, but a build is slower.
pub(crate) fn own(
    core: &Arc<Core>,
    template: &TemplateId,
    spec: &TemplateSpec,
    inputs: &BuildInputs,
    matching: Match,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    let mut best: Option<Revision> = None;
    for id in inventory::revisions_of(core, template)? {
        let Some(found) = usable(core, template, &id, inputs, matching, progress)? else { continue };
        let rank = |revision: &Revision| (has_resources(revision, spec), revision.record().published_at);
        if best.as_ref().is_none_or(|best| rank(best) < rank(&found)) {
            best = Some(found);
        }
    }
    if let Some(found) = &best {
        // Its publisher may have died before its name was durable.
        core.disk.fsync_dir(&core.layout.artifacts(template))?;
        remember(core, found, inputs)?;
    }
    Ok(best)
}

/// A certain revision, if it can serve for these inputs.
pub(crate) fn certain(
    core: &Arc<Core>,
    template: &TemplateId,
    id: &RevisionId,
    inputs: &BuildInputs,
    matching: Match,
) -> Result<Option<Revision>> {
    usable(core, template, id, inputs, matching, &mut ())
}

/// The revision, if it is there, intact as far as a look at its metadata tells, and made from these inputs.
fn usable(
    core: &Arc<Core>,
    template: &TemplateId,
    id: &RevisionId,
    inputs: &BuildInputs,
    matching: Match,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    let revision = match Revision::open(core, template, id) {
        Ok(revision) => revision,
        Err(Error::RevisionNotFound { .. } | Error::TemplateNotFound { .. }) => return Ok(None),
        Err(Error::Damaged { path, problem }) => {
            progress.note(Note::SourceDamaged { path, problem });
            return Ok(None);
        }
        // One revision that can't be read must not keep anybody from building.
        Err(error) => {
            let path = core.layout.revision(template, id);
            progress.note(Note::SourceDamaged { path, problem: error.to_string() });
            return Ok(None);
        }
    };
    if !matches(&revision, inputs, matching, progress) {
        return Ok(None);
    }
    if let Some((path, problem)) = revision.first_damage()? {
        progress.note(Note::SourceDamaged { path, problem: problem.to_owned() });
        return Ok(None);
    }
    Ok(Some(revision))
}

fn matches(revision: &Revision, inputs: &BuildInputs, matching: Match, progress: &mut dyn Progress) -> bool {
    let (template, id) = (revision.template().clone(), revision.id().clone());
    match inputs.made(revision.record()) {
        Made::These => {}
        Made::Others => return false,
        Made::OtherSources => {
            progress.note(Note::SourcesDiffer { template, revision: id });
            return false;
        }
    }
    let flake_ref = &revision.build().flake_ref;
    if inputs.flake_ref().is_some_and(|ours| ours != flake_ref) {
        let used = matching == Match::Sources;
        let flake_ref = flake_ref.clone();
        progress.note(Note::FlakeRefDiffers { template, revision: id, flake_ref, used });
        return used;
    }
    true
}

/// Gives a template a revision that was found for it, and makes it current if asked; `None` if the found one
/// is gone or damaged meanwhile.
pub(crate) fn take(
    core: &Arc<Core>,
    found: Revision,
    purpose: &Purpose,
    options: &PublishOptions,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    if *found.template() != purpose.template || !has_resources(&found, &purpose.spec) {
        return link(core, &found, purpose, options, progress);
    }
    if !is_done(core, &found, options)? {
        let _change = core.begin_change()?;
        let lock = template::lock(core, &purpose.template)?;
        if !found.is_there()? {
            return Ok(None);
        }
        activate_existing(core, &lock, &found, options, Action::Reuse)?;
    }
    Ok(Some(found))
}

/// Whether nothing is left to do, neither to change nor to sync.
fn is_done(core: &Core, found: &Revision, options: &PublishOptions) -> Result<bool> {
    let template = found.template();
    Ok(options.expect == Expect::Any
        && (options.activate == Activate::No
            || activation::current(core, template)?.revision() == Some(found.id())
                && activation::is_settled(core, template)?))
}

/// Publishes a revision whose files are links to those of another; their data are neither read nor copied.
fn link(
    core: &Arc<Core>,
    source: &Revision,
    purpose: &Purpose,
    options: &PublishOptions,
    progress: &mut dyn Progress,
) -> Result<Option<Revision>> {
    let (Some(old), Some(inputs)) = (&source.record().contents, &purpose.inputs) else { return Ok(None) };
    let _change = core.begin_change()?;
    let dir = DraftDir::new(core)?;
    let Some(contents) = fill(core, &dir, source, old, &purpose.spec, progress)? else { return Ok(None) };
    let dirs = open_to_others(core, dir.path(), &contents)?;
    let commit_of = Commit {
        template: purpose.template.clone(),
        spec: purpose.spec.clone(),
        dir,
        staging: None,
        dirs,
        id: new_id(source, old, &contents),
        record: record_of(source, inputs, &purpose.spec),
        contents,
        conflict: Conflict::Rename,
        action: Action::Reuse,
    };
    let (revision, _) = commit(core, commit_of, options, progress)?;
    remember(core, &revision, inputs)?;
    Ok(Some(revision))
}

/// The same contents have the same id in every template.
fn new_id(source: &Revision, old: &[Content], new: &[Content]) -> RevisionId {
    let derived = *source.id() == derived_id(old);
    if derived && first_difference(old, new).is_some() { derived_id(new) } else { source.id().clone() }
}

fn record_of(source: &Revision, inputs: &BuildInputs, spec: &TemplateSpec) -> RevisionRecord {
    let mut record = source.record().clone();
    record.build.flake_ref = inputs.flake_ref().unwrap_or(&spec.flake_ref).to_owned();
    record.build.flake_lock_hash = inputs.flake_lock_hash().to_string();
    record.build.snapshot = None;
    record.source_hash = inputs.source_hash().or(record.source_hash);
    (record.build.vcpus, record.build.mem_mib, record.build.data_disk_mib) =
        (spec.vcpus, spec.mem_mib, spec.data_disk_mib);
    record.reused_from = Some(Origin { template: source.template().clone(), revision: source.id().clone() });
    record
}

/// Fills a draft with links; `None` when a file of the source is gone.
fn fill(
    core: &Core,
    dir: &DraftDir,
    source: &Revision,
    contents: &[Content],
    spec: &TemplateSpec,
    progress: &mut dyn Progress,
) -> Result<Option<Vec<Content>>> {
    let mut filled = Vec::new();
    let config = &source.build().artifact_paths.fc_base_config;
    for content in contents {
        let target = dir.path().join(content.path.as_path());
        make_parents(core, dir, content)?;
        let done = if content.path.as_str() == config && !has_resources(source, spec) {
            write_config(core, source, content, &target, spec, progress)?
        } else {
            link_file(core, source, content, &target, progress)?.then(|| content.clone())
        };
        match done {
            Some(content) => filled.push(content),
            None => return Ok(None),
        }
    }
    Ok(Some(filled))
}

fn make_parents(core: &Core, dir: &DraftDir, content: &Content) -> Result<()> {
    let parents: Vec<_> = content.path.as_path().ancestors().skip(1).collect();
    for parent in parents.into_iter().rev().filter(|parent| !parent.as_str().is_empty()) {
        core.disk.ensure_dir(&dir.path().join(parent))?;
    }
    Ok(())
}

/// The Firecracker configuration, with this template's machine.
fn write_config(
    core: &Core,
    source: &Revision,
    content: &Content,
    target: &camino::Utf8Path,
    spec: &TemplateSpec,
    progress: &mut dyn Progress,
) -> Result<Option<Content>> {
    let path = source.artifact(&content.path);
    let Some(bytes) = read::bytes_if_there(&path)? else { return Ok(None) };
    match with_machine(&bytes, spec.vcpus, spec.mem_mib) {
        Ok(bytes) => {
            core.disk.write_sealed(target, &bytes)?;
            Ok(Some(Content { path: content.path.clone(), size: bytes.len() as u64, blake3: Digest::of(&bytes) }))
        }
        Err(error) => {
            progress.note(Note::SourceDamaged { path, problem: error.to_string() });
            Ok(None)
        }
    }
}

/// Links a file, or copies it where no link can be; `false` when the source is gone or not what it was.
fn link_file(
    core: &Core,
    source: &Revision,
    content: &Content,
    target: &camino::Utf8Path,
    progress: &mut dyn Progress,
) -> Result<bool> {
    let path = source.artifact(&content.path);
    let Some(metadata) = read::metadata_if_there(&path)? else { return Ok(false) };
    let reason = match read::can_share(&metadata) {
        false => "the stored file belongs to another user, who could change it".to_owned(),
        true => match core.disk.link(&path, target) {
            Ok(()) => return Ok(true),
            Err(error) if needs_copy(error.kind()) => error.source.to_string(),
            Err(error) if error.is_not_found() && !read::exists(&path)? => return Ok(false),
            Err(error) => return Err(error.into()),
        },
    };
    progress.note(Note::NotShared { path: content.path.clone(), reason });
    let (digest, _) = core.disk.copy_sealed((&read::open(&path)?, &path), target, &|_| ())?;
    Ok(digest == content.blake3)
}
