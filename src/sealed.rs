//! A draft whose files nobody can change any more, one step before it is visible.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::compare::{Difference, differences};
use crate::core::Core;
#[cfg(doc)]
use crate::draft::Draft;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::format::Outcome as End;
use crate::format::{
    Action, ArtifactPaths, ArtifactSizes, CURRENT_SCHEMA_VERSION, Content, Extra, KeyHint, RevisionRecord,
    TemplateRevision, derived_id,
};
use crate::id::{ArtifactPath, RevisionId, TemplateId};
use crate::inputs::BuildInputs;
use crate::keys;
use crate::options::{ArtifactNames, Known, PublishOptions, SealOptions};
use crate::progress::{Note, Progress, Stage};
use crate::publish::{Commit, Conflict, Outcome, commit};
use crate::revision::Revision;
use crate::seal::{SealedFiles, intern};
use crate::work::{DraftDir, Purpose, Work};

/// A draft that is hashed, deduplicated and durable, and that nobody sees yet.
///
/// Finish it with [`publish`](Sealed::publish), or drop it: dropping removes it, as dropping a [`Draft`] does.
#[must_use = "publish it; dropping it throws away what was built"]
#[derive(Debug)]
pub struct Sealed {
    pub(crate) work: Work,
    files: SealedFiles,
    names: ArtifactNames,
    id: RevisionId,
    took: Duration,
    /// When the build ended.
    sealed_at: Timestamp,
}

/// What came of publishing.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Published {
    /// The revision, with its lease.
    pub revision: Revision,
    /// Whether it is new.
    pub outcome: Outcome,
    /// Bytes of its files whose blocks the store had before.
    pub shared_bytes: u64,
    /// If it was built again on purpose and came out otherwise: the earlier revision with the same key, and
    /// what differs.
    pub differs: Option<(RevisionId, Vec<Difference>)>,
}

impl Sealed {
    pub(crate) fn new(work: Work, options: &SealOptions, files: SealedFiles) -> Sealed {
        let id = options.revision.clone().unwrap_or_else(|| derived_id(&files.contents));
        let took = work.started.elapsed();
        let sealed_at = work.core.now();
        Sealed { work, files, names: options.names.clone(), id, took, sealed_at }
    }

    /// The id that it is to have.
    #[cfg(feature = "remote")]
    pub(crate) fn id(&self) -> &RevisionId {
        &self.id
    }

    /// The files, in the order of their paths.
    pub fn contents(&self) -> &[Content] {
        &self.files.contents
    }

    /// The record that it will have, but for when it was published.
    #[cfg(feature = "remote")]
    pub(crate) fn record(&self) -> RevisionRecord {
        let now = self.sealed_at.to_string();
        let mut record = record(&self.work.purpose, &self.files.contents, &self.names, self.took, now);
        record.build.revision_hash = self.id.to_string();
        record.contents = Some(self.files.contents.clone());
        record
    }

    /// Makes the revision visible and current.
    ///
    /// When this returns, the revision and `current` survive a power cut. A crash before leaves the old
    /// `current`, and at most a dead draft or a revision that is not current.
    ///
    /// # Errors
    /// [`Error::RevisionDiffers`] if the id is taken by other contents, or an error of the disk. The sealed
    /// files are gone then, and those who wait for the same build get the same error.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Build, BuildInputs};
    /// # let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// # fn run_build(out: &camino::Utf8Path) {
    /// #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
    /// # }
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     run_build(draft.path());
    ///     let sealed = draft.seal()?;
    ///     assert_eq!(sealed.contents().len(), 3);
    ///     let revision = sealed.publish()?;
    ///     assert_eq!(store.current(&web)?.id(), revision.id());
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn publish(self) -> Result<Revision> {
        Ok(self.publish_with(&PublishOptions::default(), &mut ())?.revision)
    }

    /// [`publish`](Sealed::publish), with choices and a report.
    ///
    /// # Errors
    /// As [`publish`](Sealed::publish); [`Error::CurrentMoved`] if `current` is not what was expected.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// # use template_store::{Build, BuildInputs};
    /// # let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// # fn run_build(out: &camino::Utf8Path) {
    /// #     for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(out.join(name), "{}").unwrap(); }
    /// # }
    /// use template_store::{Activate, PublishOptions};
    ///
    /// if let Build::Draft(draft) = store.build(&web, &inputs)? {
    ///     run_build(draft.path());
    ///     let options = PublishOptions::default().activate(Activate::No);
    ///     let published = draft.seal()?.publish_with(&options, &mut ())?;
    ///     assert_eq!(store.current_id(&web)?, None);
    /// }
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn publish_with(mut self, options: &PublishOptions, progress: &mut dyn Progress) -> Result<Published> {
        let claim = self.work.claim.take();
        let published = publish(self, options, progress);
        if let Some(claim) = claim {
            let told = claim.end(match &published {
                Ok(published) => End::Published(published.revision.id().clone()),
                Err(error) => End::Failed(error.to_string()),
            });
            // What happened does not change because the others could not be told.
            if let Err(error) = told {
                tracing::warn!(%error, "those who wait for this build were not told how it ended");
            }
        }
        published
    }
}

fn publish(sealed: Sealed, options: &PublishOptions, progress: &mut dyn Progress) -> Result<Published> {
    let Sealed { work, files, names, id, took, sealed_at } = sealed;
    let Work { core, dir, purpose, staging, objects, pulled, .. } = work;
    let _change = core.begin_change()?;
    let earlier = match (&purpose.inputs, purpose.known) {
        (Some(inputs), Known::BuildAgain) => earlier_build(&core, &purpose.template, inputs),
        _ => None,
    };
    let action = if pulled.is_some() { Action::Pull } else { Action::Publish };
    let record =
        pulled.map_or_else(|| record(&purpose, &files.contents, &names, took, sealed_at.to_string()), |it| *it);
    let conflict = match purpose.known {
        Known::BuildAgain => Conflict::Rename,
        Known::Reuse => Conflict::Refuse,
    };
    let sealed = Commit {
        template: purpose.template.clone(),
        spec: purpose.spec,
        dir,
        staging,
        dirs: files.dirs,
        id,
        record,
        contents: files.contents,
        inodes: files.inodes,
        conflict,
        action,
    };
    let moved = sealed.staging.is_some();
    let (revision, outcome) = commit(&core, sealed, options, progress)?;
    let shared_bytes = match moved {
        true => share(&core, &revision, progress)?,
        false => files.shared_bytes,
    };
    // Where nothing was added, the draft may have made an object that the revision does not have.
    if outcome == Outcome::New {
        objects.keep();
    }
    if let Some(inputs) = &purpose.inputs {
        remember(&core, &revision, inputs)?;
    }
    let differs = match earlier {
        Some(earlier) => compare(&earlier, &revision, progress),
        None => None,
    };
    Ok(Published { revision, outcome, shared_bytes, differs })
}

/// Shares the files of a directory that was moved in, now that it is ours.
fn share(core: &Arc<Core>, revision: &Revision, progress: &mut dyn Progress) -> Result<u64> {
    let staging = DraftDir::new(core)?;
    let dir = revision.path();
    revision.contents().iter().map(|content| intern(core, content, &dir, staging.path(), progress)).sum()
}

/// Puts the revision into the index of keys. A hint: an error of the disk is not worth failing for.
pub(crate) fn remember(core: &Core, revision: &Revision, inputs: &BuildInputs) -> Result<()> {
    let (template, id) = (revision.template().clone(), revision.id().clone());
    let hint = KeyHint { template, revision: id, source_hash: inputs.source_hash() };
    if let Err(error) = keys::record(core, &inputs.key(), hint) {
        tracing::warn!(%error, "the index of keys could not be written; the revision will be found more slowly");
    }
    Ok(())
}

/// Puts the revision into the index for all else that it is known to be made from, where the template has nothing else.
pub(crate) fn remember_others(core: &Core, revision: &Revision) {
    for made in revision.record().made_from() {
        let (template, id) = (revision.template().clone(), revision.id().clone());
        let hint = KeyHint { template, revision: id, source_hash: made.source_hash };
        if let Err(error) = keys::offer(core, &made.key(), hint) {
            tracing::warn!(%error, "the index of keys could not be written; the revision will be found more slowly");
        }
    }
}

/// The template's newest revision with the same key, before it is built again.
///
/// One that can't be read is often the reason for building again.
fn earlier_build(core: &Arc<Core>, template: &TemplateId, inputs: &BuildInputs) -> Option<Revision> {
    let hints = keys::hints(core, &inputs.key()).unwrap_or_default();
    let hint = hints.into_iter().find(|hint| hint.template == *template)?;
    Revision::open(core, template, &hint.revision).ok()
}

/// What differs between two builds. The new one is published: that the old one can't be read is no failure.
fn compare(old: &Revision, new: &Revision, progress: &mut dyn Progress) -> Option<(RevisionId, Vec<Difference>)> {
    if old.id() == new.id() {
        return None;
    }
    progress.begin(Stage::Comparing, new.contents().iter().map(|content| content.size).fold(0, u64::saturating_add));
    let found = differences((&old.path(), old.contents()), (&new.path(), new.contents()));
    progress.end();
    match found {
        Ok(found) => Some((old.id().clone(), found)),
        Err(error) => {
            progress.note(Note::SourceDamaged { path: old.path(), problem: error.to_string() });
            None
        }
    }
}

fn record(
    purpose: &Purpose,
    contents: &[Content],
    names: &ArtifactNames,
    took: Duration,
    now: String,
) -> RevisionRecord {
    let (inputs, spec) = (purpose.inputs.as_ref(), &purpose.spec);
    let build = TemplateRevision {
        schema_version: CURRENT_SCHEMA_VERSION,
        revision_hash: String::new(),
        flake_ref: inputs.and_then(BuildInputs::flake_ref).unwrap_or(&spec.flake_ref).to_owned(),
        flake_lock_hash: inputs.map(|inputs| inputs.flake_lock_hash().to_string()).unwrap_or_default(),
        artifact_paths: artifact_paths(contents, names),
        built_at: now,
        profile: inputs.map_or(spec.profile.clone(), |inputs| inputs.profile().to_string()),
        role: inputs.map_or(spec.role.clone(), |inputs| inputs.role().to_string()),
        vcpus: spec.vcpus,
        mem_mib: spec.mem_mib,
        data_disk_mib: spec.data_disk_mib,
        snapshot: None,
        extra: Extra::new(),
    };
    RevisionRecord {
        build,
        contents: None,
        published_at: None,
        adopted_at: None,
        build_seconds: inputs.map(|_| (took.as_secs_f64() * 1000.0).round() / 1000.0),
        source_hash: inputs.and_then(BuildInputs::source_hash),
        also_made_from: Vec::new(),
        reused_from: None,
    }
}

pub(crate) fn artifact_paths(contents: &[Content], names: &ArtifactNames) -> ArtifactPaths {
    let size = |path: &ArtifactPath| contents.iter().find(|content| content.path == *path).map(|content| content.size);
    let initrd = size(&names.initrd);
    ArtifactPaths {
        vmlinux: names.vmlinux.to_string(),
        rootfs: names.rootfs.to_string(),
        fc_base_config: names.fc_base_config.to_string(),
        initrd: initrd.map(|_| names.initrd.to_string()),
        sizes: Some(ArtifactSizes {
            vmlinux_bytes: size(&names.vmlinux).unwrap_or_default(),
            rootfs_bytes: size(&names.rootfs).unwrap_or_default(),
            initrd_bytes: initrd,
            nix_closure_bytes: None,
            extra: Extra::new(),
        }),
        extra: Extra::new(),
    }
}
