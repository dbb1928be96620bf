//! What was written down: definitions, records, logs. Each is written again from what others say.

use camino::Utf8Path;

use super::Repair;
use crate::activation;
use crate::error::Result;
use crate::format::{
    Action, Activation, ActivationLog, ArtifactPaths, Content, Extra, Origin, RevisionRecord, TemplateRevision,
    TemplateSpec, derived_id,
};
use crate::fs::atomic::Lasting;
use crate::fs::copy::hash;
use crate::fs::read;
use crate::fs::walk::files_below;
use crate::id::{RevisionId, TemplateId};
use crate::inventory;
use crate::layout::REVISION_JSON;
use crate::options::ArtifactNames;
use crate::sealed::artifact_paths;
use crate::template;

impl Repair<'_> {
    /// Writes `template.json` again, from the record of what is current, or else of the newest revision.
    pub(super) fn definition(&mut self, id: &TemplateId) -> Result<()> {
        let path = self.core.layout.template_json(id);
        let current = activation::current(self.core, id).ok();
        let current = current.as_ref().and_then(|current| current.revision());
        let mut records = self.records(id)?;
        records.sort_by_key(|(revision, record)| (Some(revision) == current, record.published_at));
        let Some((revision, record)) = records.pop() else {
            self.failed.insert(path, "no revision says what it was".into());
            return Ok(());
        };
        let build = &record.build;
        let now = self.core.now().to_string();
        let mut spec = TemplateSpec::new(id, &build.flake_ref, &build.profile.parse()?, &build.role.parse()?, &now);
        (spec.vcpus, spec.mem_mib, spec.data_disk_mib) = (build.vcpus, build.mem_mib, build.data_disk_mib);
        self.rewrite(&path, &spec.to_json(), id, None)?;
        self.done(path, format!("written again from the record of {revision}"));
        Ok(())
    }

    /// The records of a template that can be read.
    fn records(&self, id: &TemplateId) -> Result<Vec<(RevisionId, RevisionRecord)>> {
        let revisions = inventory::revisions_of(self.core, id)?.into_iter();
        Ok(revisions
            .filter_map(|revision| Some((self.read_record(id, &revision)?, revision)))
            .map(|(r, id)| (id, r))
            .collect())
    }

    fn read_record(&self, template: &TemplateId, id: &RevisionId) -> Option<RevisionRecord> {
        let bytes = read::bytes(&self.core.layout.revision_json(template, id)).ok()?;
        RevisionRecord::from_json(&bytes).ok()
    }

    /// Puts new bytes in the place of a document; the old one is kept.
    fn rewrite(&mut self, path: &Utf8Path, bytes: &[u8], template: &TemplateId, id: Option<&RevisionId>) -> Result<()> {
        self.keep(path, Some(template), id)?;
        let staging = self.staging()?;
        Ok(self.core.disk.write_file(&staging, path, bytes, Lasting::Durable)?)
    }

    /// Writes `revision.json` again, where the id of the revision proves what it held.
    pub(super) fn record(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        let path = self.core.layout.revision_json(template, id);
        let Some((mut record, from)) = self.proven_record(template, id)? else {
            self.failed.insert(path, "nothing says what the revision held".into());
            return Ok(());
        };
        record.build.revision_hash = id.to_string();
        self.rewrite(&path, &record.to_json(), template, Some(id))?;
        self.done(path, format!("written again from {from}"));
        Ok(())
    }

    /// Writes `revision.json` again if it is the record that is wrong, not the files: their digests make the id.
    pub(super) fn prove(&mut self, template: &TemplateId, id: &RevisionId) -> Result<()> {
        let listing = self.listing(&self.core.layout.revision(template, id));
        match listing.is_some_and(|contents| derived_id(&contents) == *id) {
            true => self.record(template, id),
            false => Ok(()),
        }
    }

    /// A record that the id of the revision proves, and where it comes from.
    pub(super) fn proven_record(
        &self,
        template: &TemplateId,
        id: &RevisionId,
    ) -> Result<Option<(RevisionRecord, String)>> {
        let proves =
            |record: &RevisionRecord| record.contents.as_deref().is_some_and(|contents| derived_id(contents) == *id);
        // What is left of the old record is worth more than what others say.
        let old = self.read_record(template, id);
        for other in inventory::templates(self.core)?.into_iter().filter(|other| other != template) {
            if old.is_none()
                && let Some(mut record) = self.read_record(&other, id).filter(proves)
            {
                let from = format!("that of {other}@{id}, which has the same contents");
                record.build.snapshot = None; // that of the other revision
                record.reused_from = Some(Origin { template: other, revision: id.clone() });
                return Ok(Some((record, from)));
            }
        }
        let dir = self.core.layout.revision(template, id);
        let Some(contents) = self.listing(&dir).filter(|contents| derived_id(contents) == *id) else { return Ok(None) };
        let from = "the files, which are those that the id of the revision proves";
        let Some(record) = old.or(self.new_record(template, id, &contents)?) else { return Ok(None) };
        Ok(Some((RevisionRecord { contents: Some(contents), ..record }, from.to_owned())))
    }

    /// What is in the directory of a revision; `None` if that is no revision.
    fn listing(&self, dir: &Utf8Path) -> Option<Vec<Content>> {
        let files = files_below(dir).ok()?;
        let artifacts = files.iter().filter(|path| *path != REVISION_JSON && !path.starts_with("snapshot"));
        let mut contents: Vec<Content> = artifacts
            .map(|relative| {
                let path = dir.join(relative);
                let (blake3, size) = hash(&read::open(&path).ok()?, &path, &|_| ()).ok()?;
                Some(Content { path: relative.as_str().parse().ok()?, size, blake3 })
            })
            .collect::<Option<_>>()?;
        contents.sort_by(|a, b| a.path.cmp(&b.path));
        (!contents.is_empty()).then_some(contents)
    }

    /// A record from what the template says; what it was made from is not known any more.
    fn new_record(
        &self,
        template: &TemplateId,
        id: &RevisionId,
        contents: &[Content],
    ) -> Result<Option<RevisionRecord>> {
        let Ok(spec) = template::spec(self.core, template) else { return Ok(None) };
        let Some(artifact_paths) = self.names(template, contents)? else { return Ok(None) };
        let (_, lines) = activation::lines(self.core, template)?;
        let log = ActivationLog::parse(&lines, Some(""));
        let first = log.entries.iter().find(|entry| entry.revision == *id);
        let published_at = first.map_or_else(|| self.core.now(), |entry| entry.at);
        let build = TemplateRevision {
            schema_version: spec.schema_version,
            revision_hash: id.to_string(),
            flake_ref: spec.flake_ref,
            flake_lock_hash: String::new(),
            artifact_paths,
            built_at: published_at.to_string(),
            profile: spec.profile,
            role: spec.role,
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            data_disk_mib: spec.data_disk_mib,
            snapshot: None,
            extra: Extra::new(),
        };
        Ok(Some(RevisionRecord {
            build,
            contents: None,
            published_at: Some(published_at),
            adopted_at: None,
            build_seconds: None,
            source_hash: None,
            also_made_from: Vec::new(),
            reused_from: None,
        }))
    }

    /// What the artifacts are called: as usual, or as in another revision of the template.
    fn names(&self, template: &TemplateId, contents: &[Content]) -> Result<Option<ArtifactPaths>> {
        let usual = artifact_paths(contents, &ArtifactNames::default());
        let has = |name: &str| contents.iter().any(|content| content.path.as_str() == name);
        let fits = |paths: &ArtifactPaths| {
            has(&paths.vmlinux)
                && has(&paths.rootfs)
                && has(&paths.fc_base_config)
                && paths.initrd.as_deref().is_none_or(has)
        };
        if fits(&usual) {
            return Ok(Some(usual));
        }
        let others = self.records(template)?.into_iter().map(|(_, record)| record.build.artifact_paths);
        Ok(others.map(|paths| ArtifactPaths { sizes: None, ..paths }).find(fits))
    }

    /// Writes the log again with the lines that can be read.
    pub(super) fn log(&mut self, id: &TemplateId) -> Result<()> {
        let path = self.core.layout.activations(id);
        let (_, old) = activation::lines(self.core, id).unwrap_or_default();
        let mut entries = ActivationLog::parse(&old, Some("")).entries;
        if entries.is_empty()
            && let Ok(current) = activation::current(self.core, id)
            && let Some(revision) = current.revision()
        {
            entries.push(Activation::new(revision.clone(), self.core.now(), Action::Other));
        }
        let lines: Vec<u8> = entries.iter().flat_map(Activation::to_line).collect();
        self.rewrite(&path, &lines, id, None)?;
        self.done(path, "written again with the lines that can be read");
        Ok(())
    }
}
