//! A remote as a cache of builds: what another host built is fetched, and what is built here is pushed.

use crate::draft::Draft;
use crate::error::{Error, Result};
use crate::format::{Outcome as End, with_machine};
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};
use crate::inputs::{BuildInputs, Made};
use crate::options::{Known, PublishOptions, Resources};
use crate::progress::Progress;
use crate::publish::Outcome;
use crate::revision::Revision;
use crate::sealed::{Published, Sealed, remember};
use crate::store::Store;

use super::backend::{Backend, Swap};
use super::documents::{Lead, Listed, Manifest};
use super::error::RemoteError;
use super::pull::{fetch_manifest, fill, names, publish, seal_and_publish};
use super::push::{Goods, begin, key_pointer, listed, move_pointer, send, template_pointer, unique};
use super::{Move, Remote};

/// What a remote had for a draft.
#[derive(Debug)]
#[must_use = "a draft is to be filled and sealed"]
pub enum FromRemote {
    /// Another host built it; it is published here.
    Published(Box<Published>),
    /// Nobody built it yet.
    Nothing(Draft),
    /// The remote could not be asked, or what it has could not be fetched; the draft is as empty as it was.
    Failed(Draft, Error),
}

/// What became of a build that was to be shared.
#[derive(Debug)]
#[non_exhaustive]
pub struct Shared {
    /// What is published here.
    pub published: Published,
    /// Another host had built the same by then: what is published is its revision, on every host.
    pub theirs: bool,
    /// Bytes that were sent, as they are packed.
    pub bytes_sent: u64,
    /// Why the remote does not have it, if it does not; here it is published all the same.
    pub failed: Option<Error>,
}

impl Store {
    /// What a remote has for these inputs, fetched and published in `template`, or else in the template that it was built
    /// for. What is here already is not looked for: ask [`lookup`](Store::lookup) first.
    ///
    /// # Errors
    /// [`RemoteError`](super::RemoteError), or what [`pull`](Store::pull) gives.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// # use template_store::{BuildInputs, PublishOptions, Remote, RemoteSettings};
    /// # let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// assert!(store.lookup_remote(&remote, None, &inputs, &PublishOptions::default(), &mut ())?.is_none());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn lookup_remote(
        &self,
        remote: &Remote,
        template: Option<&TemplateId>,
        inputs: &BuildInputs,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Option<Revision>> {
        let Some((lead, manifest)) = find(&remote.backend, inputs)? else { return Ok(None) };
        let template = template.unwrap_or(&lead.template);
        Ok(Some(publish(&self.core, &remote.backend, manifest, template, options, progress)?.revision))
    }
}

impl Draft {
    /// Fills the draft with what another host built from the same inputs, and publishes it. Those who wait for the build get
    /// it too.
    ///
    /// # Errors
    /// An error of the disk. What is wrong with the remote is in the answer, with the draft to build in.
    pub fn publish_from(
        mut self,
        remote: &Remote,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<FromRemote> {
        let Some(inputs) = &self.work.purpose.inputs else { return Ok(FromRemote::Nothing(self)) };
        let manifest = match find(&remote.backend, inputs) {
            Ok(Some((_, manifest))) => manifest,
            Ok(None) => return Ok(FromRemote::Nothing(self)),
            Err(error) => return Ok(FromRemote::Failed(self, error)),
        };
        if let Err(error) = fill(&mut self.work, &remote.backend, &manifest, progress) {
            self.empty()?;
            return Ok(FromRemote::Failed(self, error));
        }
        let mut record = manifest.revision;
        self.fit_machine(&mut record)?;
        Ok(FromRemote::Published(Box::new(seal_and_publish(self, record, options, progress)?)))
    }

    fn empty(&mut self) -> Result<()> {
        let (core, dir) = (&self.work.core, self.work.path());
        for entry in read::list(dir)? {
            core.disk.remove_tree(dir.join(entry.name))?;
        }
        self.work.imported.clear();
        Ok(())
    }

    /// Gives the configuration the resources of the template that it is for.
    fn fit_machine(&mut self, record: &mut crate::format::RevisionRecord) -> Result<()> {
        let Resources { vcpus, mem_mib, data_disk_mib } = Resources::of(&self.work.purpose.spec);
        let theirs = record.resources();
        if (vcpus, mem_mib, data_disk_mib) == (theirs.vcpus, theirs.mem_mib, theirs.data_disk_mib) {
            return Ok(());
        }
        let name = names(record)?.fc_base_config;
        let path = self.work.path().join(name.as_path());
        let Ok(bytes) = with_machine(&read::bytes(&path)?, vcpus, mem_mib) else { return Ok(()) };
        self.work.core.disk.unlink(&path)?;
        self.work.core.disk.write_new(&path, &bytes)?;
        self.work.imported.remove(&name);
        let build = &mut record.build;
        (build.vcpus, build.mem_mib, build.data_disk_mib) = (vcpus, mem_mib, data_disk_mib);
        // Other contents have another id.
        build.revision_hash = String::new();
        Ok(())
    }
}

impl Sealed {
    /// Publishes the revision here and at a remote. Of all hosts that build the same at once, the first to push wins: the
    /// others publish its revision in place of their own.
    ///
    /// The remote gets the files first, then the manifest, then the pointer of the cache key: a crash leaves it as it was, or
    /// with the revision; the template's pointer comes last, and is put right by the next push.
    ///
    /// # Errors
    /// As [`publish_with`](Sealed::publish_with). What is wrong with the remote is in the answer.
    pub fn publish_shared(
        self,
        remote: &Remote,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Shared> {
        let backend = &remote.backend;
        let core = self.work.core.clone();
        match self.offer(backend, progress) {
            Ok(Offer::Taken(listed, bytes_sent)) => {
                let published = self.publish_with(options, progress)?;
                let failed = note_in_template(&core, backend, published.revision.template(), &listed).err();
                Ok(Shared { published, theirs: false, bytes_sent, failed })
            }
            Ok(Offer::Theirs(manifest)) => {
                let template = self.work.purpose.template.clone();
                match publish(&core, backend, *manifest, &template, options, progress) {
                    Ok(pulled) => {
                        let published = self.give_way_to(pulled.revision, pulled.outcome)?;
                        Ok(Shared { published, theirs: true, bytes_sent: 0, failed: None })
                    }
                    Err(error) => self.publish_alone(options, progress, error),
                }
            }
            Err(error) => self.publish_alone(options, progress, error),
        }
    }

    fn publish_alone(self, options: &PublishOptions, progress: &mut dyn Progress, error: Error) -> Result<Shared> {
        let published = self.publish_with(options, progress)?;
        Ok(Shared { published, theirs: false, bytes_sent: 0, failed: Some(error) })
    }

    /// Sends the build, unless another host has pushed the same meanwhile.
    fn offer(&self, backend: &Backend, progress: &mut dyn Progress) -> Result<Offer> {
        let Some(inputs) = &self.work.purpose.inputs else {
            let what = self.work.purpose.template.to_string();
            return Err(RemoteError::CannotPush {
                what,
                problem: "it is not known from which inputs it was built".into(),
            }
            .into());
        };
        begin(backend)?;
        if let Some(theirs) = self.built_elsewhere(backend, inputs)? {
            return Ok(Offer::Theirs(theirs));
        }
        let goods = Goods {
            dir: self.work.path().to_owned(),
            contents: self.contents(),
            template: self.work.purpose.spec.clone(),
            record: self.record(),
        };
        let (lead, sent) = send(backend, &goods, progress)?;
        let lead = Lead { source_hash: inputs.source_hash(), ..lead };
        loop {
            let (pointer, version) = backend.wait(key_pointer(backend, &inputs.key()))?;
            if let Some(theirs) = self.built_elsewhere(backend, inputs)? {
                return Ok(Offer::Theirs(theirs));
            }
            let taken = || Ok(Offer::Taken(listed(&self.work.core, &goods, lead.manifest)?, sent.bytes));
            let Some(new) = pointer.with(&lead, &unique()) else { return taken() };
            let path = backend.names.key(&inputs.key());
            if backend.wait(backend.swap(&path, &version, &new.to_json()))? == Swap::Done {
                return taken();
            }
        }
    }

    /// What another host pushed for the same inputs, if it can take the place of this build.
    fn built_elsewhere(&self, backend: &Backend, inputs: &BuildInputs) -> Result<Option<Box<Manifest>>> {
        if self.work.purpose.known == Known::BuildAgain {
            return Ok(None);
        }
        let fits = |manifest: &Manifest| {
            manifest.revision.resources() == Resources::of(&self.work.purpose.spec)
                && manifest.revision.contents.as_deref() != Some(self.contents())
        };
        Ok(find(backend, inputs)?.map(|(_, manifest)| Box::new(manifest)).filter(|manifest| fits(manifest)))
    }

    /// Ends the build with the revision of another host; those who wait get that.
    fn give_way_to(self, revision: Revision, outcome: Outcome) -> Result<Published> {
        let work = self.work;
        if let Some(inputs) = &work.purpose.inputs {
            remember(&work.core, &revision, inputs)?;
        }
        if let Some(claim) = work.claim {
            claim.end(End::Published(revision.id().clone()))?;
        }
        work.dir.give_up()?;
        drop(work.objects);
        Ok(Published { revision, outcome, shared_bytes: 0, differs: None })
    }
}

/// What came of offering a build.
enum Offer {
    /// The key leads to it now.
    Taken(Listed, u64),
    /// Another host was first.
    Theirs(Box<Manifest>),
}

/// What a remote has for these inputs: the first that is intact, and was made from them by its own record.
fn find(backend: &Backend, inputs: &BuildInputs) -> Result<Option<(Lead, Manifest)>> {
    for key in inputs.keys() {
        let (pointer, _) = backend.wait(key_pointer(backend, &key))?;
        for lead in pointer.same_sources(inputs.source_hash()) {
            match fetch_manifest(backend, &lead.template, &lead.revision, &lead.manifest) {
                Ok(manifest) if inputs.made(&manifest.revision) == Made::These => {
                    return Ok(Some((lead.clone(), manifest)));
                }
                Ok(_) => {}
                Err(error @ Error::Remote(RemoteError::Damaged { .. } | RemoteError::Format { .. })) => {
                    tracing::warn!(%error, "what a remote has for this key is passed over");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Lists a build in its template at the remote, and makes it current there unless somebody else's is.
fn note_in_template(core: &crate::core::Core, backend: &Backend, template: &TemplateId, listed: &Listed) -> Result<()> {
    let was = backend.wait(template_pointer(backend, template))?;
    let is_here = |theirs: &RevisionId| read::exists(&core.layout.revision(template, theirs));
    let may_move = was.0.current.as_ref().map_or(Ok(true), is_here)?;
    let moves = if may_move { Move::Forward } else { Move::No };
    match move_pointer(core, backend, was, listed, &moves) {
        Err(Error::Remote(RemoteError::Moved { .. })) => {
            let now = backend.wait(template_pointer(backend, template))?;
            move_pointer(core, backend, now, listed, &Move::No).map(drop)
        }
        moved => moved.map(drop),
    }
}

impl Remote {
    /// Whether the remote has something for these inputs; a server that does not answer is an error.
    ///
    /// # Errors
    /// [`RemoteError`](super::RemoteError).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use template_store::{BuildInputs, Remote, RemoteSettings};
    /// # let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// assert!(!remote.knows(&inputs)?);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn knows(&self, inputs: &BuildInputs) -> Result<bool> {
        Ok(find(&self.backend, inputs)?.is_some())
    }
}
