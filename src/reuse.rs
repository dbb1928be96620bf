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
use crate::sealed::{remember, remember_others};
use crate::template;
use crate::work::{DraftDir, Purpose};

/// What is asked for, and where.
pub(crate) struct Request<'a> {
    pub core: &'a Arc<Core>,
    pub inputs: &'a BuildInputs,
    pub matching: Match,
}

/// A build that is asked for; what has been built may serve in its place.
pub(crate) struct BuildRequest<'a> {
    pub of: Request<'a>,
    pub purpose: &'a Purpose,
    pub publish: &'a PublishOptions,
}

impl Request<'_> {
    /// A revision that was made from these inputs, by the index of keys alone.
    ///
    /// Those of `only` count if it is given, else those of all templates.
    pub fn lookup(&self, only: Option<&TemplateId>, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        for key in self.inputs.keys() {
            for hint in keys::hints(self.core, &key)? {
                if only.is_some_and(|only| *only != hint.template) {
                    continue;
                }
                let found = self.usable(&hint.template, &hint.revision, progress)?;
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The revision, if it is there, intact as far as a look at its metadata tells, and made from these inputs.
    fn usable(&self, template: &TemplateId, id: &RevisionId, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        let revision = match Revision::open(self.core, template, id) {
            Ok(revision) => revision,
            Err(Error::RevisionNotFound { .. } | Error::TemplateNotFound { .. }) => return Ok(None),
            Err(Error::Damaged { path, problem }) => {
                progress.note(Note::SourceDamaged { path, problem });
                return Ok(None);
            }
            // One revision that can't be read must not keep anybody from building.
            Err(error) => {
                let path = self.core.layout.revision(template, id);
                progress.note(Note::SourceDamaged { path, problem: error.to_string() });
                return Ok(None);
            }
        };
        if !matches(&revision, self.inputs, self.matching, progress) {
            return Ok(None);
        }
        if let Some((path, problem)) = revision.first_damage()? {
            // Removed by force.
            if !revision.is_there()? {
                return Ok(None);
            }
            progress.note(Note::SourceDamaged { path, problem: problem.to_owned() });
            return Ok(None);
        }
        Ok(Some(revision))
    }
}

impl BuildRequest<'_> {
    /// What the index of keys has, given to the template.
    pub fn known(&self, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        match self.best(progress)? {
            Some(found) => self.take(found, progress),
            None => Ok(None),
        }
    }

    /// What another process has just built.
    pub fn built(
        &self,
        template: &TemplateId,
        id: &RevisionId,
        progress: &mut dyn Progress,
    ) -> Result<Option<Revision>> {
        match self.of.usable(template, id, progress)? {
            Some(found) => self.take(found, progress),
            None => Ok(None),
        }
    }

    /// What the index has, or what the template's own revisions say: the index may have been lost.
    pub fn known_or_own(&self, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        if let Some(revision) = self.known(progress)? {
            return Ok(Some(revision));
        }
        match self.own(progress)? {
            Some(found) => self.take(found, progress),
            None => Ok(None),
        }
    }

    /// The best that the index has: the template's own with its resources, its own, anybody's.
    fn best(&self, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        let mut best: Option<Revision> = None;
        for key in self.of.inputs.keys() {
            for hint in keys::hints(self.of.core, &key)? {
                let own = hint.template == self.purpose.template;
                if !own && best.is_some() {
                    continue;
                }
                let Some(found) = self.of.usable(&hint.template, &hint.revision, progress)? else { continue };
                if own && has_resources(&found, &self.purpose.spec) {
                    return Ok(Some(found));
                }
                if own || best.is_none() {
                    best = Some(found);
                }
            }
        }
        Ok(best)
    }

    /// Looks through the template's own revisions. Slow, but a build is slower.
    fn own(&self, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        let (core, template) = (self.of.core, &self.purpose.template);
        let mut best: Option<Revision> = None;
        for id in inventory::revisions_of(core, template)? {
            let Some(found) = self.of.usable(template, &id, progress)? else { continue };
            let rank =
                |revision: &Revision| (has_resources(revision, &self.purpose.spec), revision.record().published_at);
            if best.as_ref().is_none_or(|best| rank(best) < rank(&found)) {
                best = Some(found);
            }
        }
        if let Some(found) = &best {
            // Its publisher may have died before its name was durable.
            core.disk.fsync_dir(&core.layout.artifacts(template))?;
            remember(core, found, self.of.inputs)?;
        }
        Ok(best)
    }

    /// Gives a template a revision that was found for it, and makes it current if asked; `None` if the found one
    /// is gone or damaged meanwhile.
    fn take(&self, found: Revision, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        let (core, purpose, options) = (self.of.core, self.purpose, self.publish);
        if *found.template() != purpose.template || !has_resources(&found, &purpose.spec) {
            return self.link(&found, progress);
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

    /// Publishes a revision whose files are links to those of another; their data are neither read nor copied.
    fn link(&self, source: &Revision, progress: &mut dyn Progress) -> Result<Option<Revision>> {
        let (core, purpose, inputs) = (self.of.core, self.purpose, self.of.inputs);
        let Some(old) = &source.record().contents else { return Ok(None) };
        let _change = core.begin_change()?;
        let dir = DraftDir::new(core)?;
        let Some(contents) = fill(core, &dir, source, old, &purpose.spec, progress)? else { return Ok(None) };
        let dirs = open_to_others(core, dir.path(), &contents)?;
        let linked = Commit {
            template: purpose.template.clone(),
            spec: purpose.spec.clone(),
            dir,
            staging: None,
            dirs,
            id: new_id(source, old, &contents),
            record: record_of(source, inputs, &purpose.spec),
            contents,
            inodes: Vec::new(),
            conflict: Conflict::Rename,
            action: Action::Reuse,
        };
        let (revision, _) = commit(core, linked, self.publish, progress)?;
        remember(core, &revision, inputs)?;
        remember_others(core, &revision);
        Ok(Some(revision))
    }
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

/// Whether nothing is left to do, neither to change nor to sync.
fn is_done(core: &Core, found: &Revision, options: &PublishOptions) -> Result<bool> {
    let template = found.template();
    Ok(options.expect == Expect::Any
        && (options.activate == Activate::No
            || activation::current(core, template)?.revision() == Some(found.id())
                && activation::is_settled(core, template)?))
}

/// The same contents have the same id in every template.
fn new_id(source: &Revision, old: &[Content], new: &[Content]) -> RevisionId {
    let derived = *source.id() == derived_id(old);
    if derived && first_difference(old, new).is_some() { derived_id(new) } else { source.id().clone() }
}

/// Made from these inputs; what else was known to give the same bytes still does.
fn record_of(source: &Revision, inputs: &BuildInputs, spec: &TemplateSpec) -> RevisionRecord {
    let mut record = source.record().clone();
    let (same, others): (Vec<_>, Vec<_>) = source.record().made_from().partition(|made| inputs.fit(made));
    record.source_hash = inputs.source_hash().or(same.into_iter().find_map(|made| made.source_hash));
    record.also_made_from = others;
    let build = &mut record.build;
    build.flake_ref = inputs.flake_ref().unwrap_or(&spec.flake_ref).to_owned();
    build.flake_lock_hash = inputs.flake_lock_hash().to_string();
    (build.profile, build.role) = (inputs.profile().to_string(), inputs.role().to_string());
    build.snapshot = None;
    (build.vcpus, build.mem_mib, build.data_disk_mib) = (spec.vcpus, spec.mem_mib, spec.data_disk_mib);
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
