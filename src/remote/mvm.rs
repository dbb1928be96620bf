//! mvm's registry: a revision as files of their own, with a list of SHA-256 sums.
//!
//! `<prefix>/templates/<id>/current` holds the revision's id, `<prefix>/templates/<id>/revisions/<rev>/` has `checksums.json` (a name
//! and a sum for each file), `template.json`, `revision.json` and the artifacts, as mvm 0.11 to 0.13 write them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use camino::Utf8Path;
use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::{Sender, channel};

use super::Remote;
use super::backend::{Backend, Conditions};
use super::documents::check_record;
use super::error::RemoteError;
use super::preamble::check_cost;
use super::pull::{PullOptions, Pulled, check_space, names, room_for_keys, seal_and_publish};
use crate::activation;
use crate::core::Core;
use crate::draft::Draft;
use crate::error::{Error, Result};
use crate::format::{CURRENT_SCHEMA_VERSION, FormatError, RevisionRecord, TemplateSpec};
use crate::fs::copy::Advance;
use crate::id::{ArtifactPath, RevisionId, TemplateId};
use crate::options::Known;
use crate::progress::{Note, Progress, Stage};
use crate::seal::in_parallel;
use crate::work::{DraftDir, Purpose, Work};

/// Documents of mvm are far smaller.
const LARGEST_DOCUMENT: u64 = 4 * 1024 * 1024;

/// Bytes of a file that are asked for at once, and how many requests are on their way.
const PART: u64 = 8 * 1024 * 1024;
const IN_FLIGHT: usize = 4;

const TEMPLATE: &str = "template.json";
const REVISION: &str = "revision.json";
const SUMS: &str = "checksums.json";

/// `checksums.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Sums {
    #[serde(default)]
    schema_version: u32,
    template_id: String,
    revision_hash: String,
    files: BTreeMap<String, String>,
}

impl Sums {
    pub fn from_json(bytes: &[u8], template: &TemplateId, revision: &RevisionId) -> Result<Sums, FormatError> {
        check_cost(SUMS, bytes)?;
        let sums: Sums = serde_json::from_slice(bytes).map_err(|error| FormatError::invalid(SUMS, error))?;
        if sums.schema_version > CURRENT_SCHEMA_VERSION {
            let (found, supported) = (sums.schema_version.into(), CURRENT_SCHEMA_VERSION);
            return Err(FormatError::Newer { what: SUMS, found, supported });
        }
        if (sums.template_id.as_str(), sums.revision_hash.as_str()) != (template.as_str(), revision.as_str()) {
            let reason = format!("it is of {}@{}", sums.template_id, sums.revision_hash);
            return Err(FormatError::invalid(SUMS, reason));
        }
        Ok(sums)
    }
}

/// A revision in a registry.
struct Shelf<'a> {
    backend: &'a Backend,
    template: &'a TemplateId,
    revision: RevisionId,
    sums: BTreeMap<String, String>,
}

/// Pulls a revision; without an id, the one that is current in the registry.
pub(super) fn pull(
    core: &Arc<Core>,
    remote: &Remote,
    template: &TemplateId,
    revision: Option<&RevisionId>,
    options: &PullOptions,
    progress: &mut dyn Progress,
) -> Result<Pulled> {
    drop(core.begin_change()?);
    activation::check(core, template, &options.publish.expect)?;
    let shelf = Shelf::find(&remote.backend, template, revision)?;
    let record = shelf.record()?;
    let spec = shelf.spec(&record, progress)?;
    check_record(&spec, &record).map_err(|source| shelf.bad(REVISION, source))?;
    let files = shelf.artifacts(&record)?;
    let sizes = shelf.sizes(&files)?;
    let needed = sizes.iter().fold(0, |sum: u64, size| sum.saturating_add(*size));
    check_space(core, needed.saturating_add(room_for_keys(&record)))?;
    let command = format!("pull from the mvm registry {}", remote.url());
    let purpose = Purpose { template: template.clone(), spec, inputs: None, known: Known::Reuse, command };
    let work = Work::in_dir(core, DraftDir::new(core)?, Box::new(purpose));
    in_parallel(Stage::Fetching, needed, progress, |advance| {
        let fetched = files.iter().zip(&sizes).map(|(file, size)| shelf.fetch(core, file, *size, work.path(), advance));
        fetched.collect::<Result<()>>()
    })?;
    let published = seal_and_publish(Draft { work }, record, &options.publish, progress)?;
    Ok(Pulled {
        revision: published.revision,
        outcome: published.outcome,
        files_fetched: files.len(),
        bytes_fetched: needed,
        files_known: 0,
    })
}

impl<'a> Shelf<'a> {
    fn find(backend: &'a Backend, template: &'a TemplateId, revision: Option<&RevisionId>) -> Result<Shelf<'a>> {
        let revision = match revision {
            Some(revision) => revision.clone(),
            None => current(backend, template)?,
        };
        let mut shelf = Shelf { backend, template, revision, sums: BTreeMap::new() };
        let bytes = shelf.document(SUMS)?;
        let sums = Sums::from_json(&bytes, template, &shelf.revision).map_err(|source| shelf.bad(SUMS, source))?;
        shelf.sums = sums.files;
        Ok(shelf)
    }

    fn path(&self, name: &str) -> Path {
        let parts = ["templates", self.template.as_str(), "revisions", self.revision.as_str(), name];
        self.backend.names.plain(&parts)
    }

    fn bad(&self, name: &str, source: FormatError) -> Error {
        self.backend.unreadable(&self.path(name), source)
    }

    fn document(&self, name: &'static str) -> Result<Bytes> {
        let path = self.path(name);
        match self.backend.wait(self.backend.get(&path, LARGEST_DOCUMENT))? {
            Some((bytes, _)) => match check_cost(name, &bytes) {
                Ok(()) => Ok(bytes),
                Err(source) => Err(self.bad(name, source)),
            },
            None => Err(RemoteError::NotFound { remote: self.backend.url.clone(), what: path.to_string() }.into()),
        }
    }

    /// A document that the sums name, which must have its sum.
    fn summed(&self, name: &'static str) -> Result<Option<Bytes>> {
        let Some(sum) = self.sums.get(name) else { return Ok(None) };
        let bytes = self.document(name)?;
        match is_sum(&Sha256::digest(&bytes), sum) {
            true => Ok(Some(bytes)),
            false => Err(self.other_bytes(name)),
        }
    }

    fn other_bytes(&self, name: &str) -> Error {
        self.backend.damaged(&self.path(name), "its SHA-256 is not that of checksums.json".to_owned())
    }

    fn missing(&self, name: &str, why: &str) -> Error {
        self.backend.damaged(&self.path(SUMS), format!("it lacks {name}{why}"))
    }

    fn record(&self) -> Result<RevisionRecord> {
        let bytes =
            self.summed(REVISION)?.ok_or_else(|| self.missing(REVISION, ", without which nothing is known of it"))?;
        let mut record = RevisionRecord::from_json(&bytes).map_err(|source| self.bad(REVISION, source))?;
        if record.build.revision_hash != self.revision.as_str() {
            let reason = format!("it is of revision {}", record.build.revision_hash);
            return Err(self.bad(REVISION, FormatError::invalid("revision.json", reason)));
        }
        // What is only true of the host that pushed, or of the files that it had.
        (record.contents, record.published_at, record.adopted_at, record.reused_from) = (None, None, None, None);
        record.build.snapshot = None;
        Ok(record)
    }

    /// The template's definition; without one, what the revision says of it.
    fn spec(&self, record: &RevisionRecord, progress: &mut dyn Progress) -> Result<TemplateSpec> {
        if let Some(bytes) = self.summed(TEMPLATE)? {
            let spec = TemplateSpec::from_json(&bytes).map_err(|source| self.bad(TEMPLATE, source))?;
            return Ok(TemplateSpec { template_id: self.template.to_string(), ..spec });
        }
        progress.note(Note::DefinitionMissing { template: self.template.clone() });
        let build = &record.build;
        let (profile, role) = (build.profile.parse()?, build.role.parse()?);
        let mut spec = TemplateSpec::new(self.template, &build.flake_ref, &profile, &role, &build.built_at);
        (spec.vcpus, spec.mem_mib, spec.data_disk_mib) = (build.vcpus, build.mem_mib, build.data_disk_mib);
        Ok(spec)
    }

    /// The files that are fetched: all that the sums name, and all that the record names among them.
    fn artifacts(&self, record: &RevisionRecord) -> Result<Vec<ArtifactPath>> {
        let mut files = Vec::new();
        for name in self.sums.keys().filter(|name| ![TEMPLATE, REVISION, SUMS].contains(&name.as_str())) {
            let file: ArtifactPath = name.parse().map_err(|error: crate::id::InvalidName| {
                self.bad(SUMS, FormatError::invalid("checksums.json", error))
            })?;
            if file.as_path().components().count() != 1 {
                return Err(
                    self.bad(SUMS, FormatError::invalid("checksums.json", format!("{name:?} is in a directory")))
                );
            }
            files.push(file);
        }
        names(record)?;
        for (role, name) in record.artifacts().map_err(|source| self.bad(REVISION, source))? {
            if !files.contains(&name) {
                let why = if role == "initrd" {
                    " (the initrd, without which the kernel does not find its root)"
                } else {
                    ""
                };
                return Err(self.missing(name.as_str(), why));
            }
        }
        Ok(files)
    }

    fn sizes(&self, files: &[ArtifactPath]) -> Result<Vec<u64>> {
        let size = |file: &ArtifactPath| {
            let path = self.path(file.as_str());
            let found = self.backend.wait(self.backend.len(&path))?;
            found.ok_or_else(|| {
                RemoteError::NotFound { remote: self.backend.url.clone(), what: path.to_string() }.into()
            })
        };
        files.iter().map(size).collect()
    }

    /// Fetches a file into a draft; sealing hashes it once more.
    fn fetch(&self, core: &Core, file: &ArtifactPath, size: u64, dir: &Utf8Path, advance: Advance) -> Result<()> {
        let (path, to) = (self.path(file.as_str()), dir.join(file.as_path()));
        let incoming = core.disk.receive(&to, size)?;
        let (send, mut parts) = channel::<(u64, Bytes)>(1);
        let fetch = async {
            if self.sends_whole_files(&path, size).await? {
                return self.fetch_whole(&path, size, send).await;
            }
            let starts = stream::iter((0..size).step_by(PART as usize));
            let (backend, path) = (self.backend, &path);
            let part = |at: u64| async move {
                let bytes = backend.range(path, at, size.min(at + PART)).await?;
                Ok::<_, Error>((at, bytes))
            };
            let mut fetched = starts.map(part).buffered(IN_FLIGHT);
            while let Some(part) = fetched.next().await {
                if send.send(part?).await.is_err() {
                    break;
                }
            }
            drop(send);
            Ok::<_, Error>(())
        };
        let (written, fetched) = std::thread::scope(|scope| {
            let incoming = &incoming;
            // It has the receiver: when it ends early, nothing more is sent to it.
            let writing = scope.spawn(move || -> Result<_> {
                let mut hasher = Sha256::new();
                while let Some((at, bytes)) = parts.blocking_recv() {
                    hasher.update(&bytes);
                    incoming.target().write(&core.disk, &bytes, at)?;
                    advance(bytes.len() as u64);
                }
                Ok(hasher.finalize())
            });
            let fetched = self.backend.wait(fetch);
            (writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), fetched)
        });
        let sum = written?;
        fetched?;
        match is_sum(&sum, &self.sums[file.as_str()]) {
            true => Ok(()),
            false => Err(self.other_bytes(file.as_str())),
        }
    }
}

impl Shelf<'_> {
    /// Whether this is a web server that sends no parts of files.
    async fn sends_whole_files(&self, path: &Path, size: u64) -> Result<bool> {
        let may = self.backend.conditions == Conditions::ReadOnly && size > 0;
        Ok(may && self.backend.range_if_served(path, 0, 1).await?.is_none())
    }

    async fn fetch_whole(&self, path: &Path, size: u64, send: Sender<(u64, Bytes)>) -> Result<()> {
        let (mut pieces, mut at) = (std::pin::pin!(self.backend.pieces(path).await?), 0);
        while let Some(piece) = pieces.next().await.transpose()? {
            let len = piece.len() as u64;
            if at + len > size {
                return Err(self.backend.damaged(path, format!("more than {size} bytes of it came")));
            }
            if send.send((at, piece)).await.is_err() {
                break;
            }
            at += len;
        }
        Ok(())
    }
}

fn current(backend: &Backend, template: &TemplateId) -> Result<RevisionId> {
    let path = backend.names.plain(&["templates", template.as_str(), "current"]);
    let found = backend.wait(backend.get(&path, 4096))?;
    let missing =
        || RemoteError::NotFound { remote: backend.url.clone(), what: format!("current revision of {template}") };
    let (bytes, _) = found.ok_or_else(missing)?;
    let text = String::from_utf8_lossy(&bytes);
    text.trim().parse().map_err(|error: crate::id::InvalidName| backend.damaged(&path, error.to_string()))
}

fn is_sum(digest: &[u8], text: &str) -> bool {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.eq_ignore_ascii_case(text)
}
