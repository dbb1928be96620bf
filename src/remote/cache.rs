//! A remote as a cache of builds: what another host built is fetched, and what is built here is pushed.

use crate::activation;
use crate::core::Core;
use crate::draft::Draft;
use crate::error::{Error, Result};
use crate::format::{Content, Outcome as End};
use crate::id::{Digest, TemplateId};
use crate::inputs::{BuildInputs, Made};
use crate::options::{Activate, Known, Match, PublishOptions, Resources};
use crate::progress::Progress;
use crate::publish::Outcome;
use crate::reuse::{BuildRequest, Request};
use crate::revision::Revision;
use crate::sealed::{Published, Sealed, remember};
use crate::store::Store;
use crate::work::Work;

use super::backend::Backend;
use super::documents::{Lead, Listed, Manifest};
use super::error::RemoteError;
use super::pointers::{IfDamaged, Pointer, change_key, key_pointer, unique};
use super::pull::{Goods, check_publishable, fetch_manifest, publish};
use super::push::{PushOptions, SendFiles, ToSend, begin, listed, push, send};
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
    /// # use template_store::{BuildInputs, Match, PublishOptions, Remote, RemoteSettings};
    /// # let remote = Remote::open(&RemoteSettings::at(dir.path().to_str().unwrap()))?;
    /// let inputs = BuildInputs::new("lock".parse()?, "minimal".parse()?, "worker".parse()?);
    /// let found = store.lookup_remote(&remote, None, &inputs, Match::Sources, &PublishOptions::default(), &mut ())?;
    /// assert!(found.is_none());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn lookup_remote(
        &self,
        remote: &Remote,
        template: Option<&TemplateId>,
        inputs: &BuildInputs,
        matching: Match,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Option<Revision>> {
        let take = |lead: Lead, manifest: Manifest| {
            let spec = manifest.template_as(template.unwrap_or(&lead.template));
            Ok(publish(&self.core, &remote.backend, Goods::new(manifest, spec), options, progress)?.revision)
        };
        first_intact(&remote.backend, (inputs, matching), &mut Vec::new(), take)
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
        Ok(find(&self.backend, inputs, Match::Sources, &mut Vec::new())?.is_some())
    }
}

impl Draft {
    /// Publishes what another host built from the same inputs, in place of the draft. Those who wait for the build get it too.
    ///
    /// Where the template has other resources than the other host's, it gets a revision of its own with them, as when it is
    /// built for another template here. A draft of a build that was asked for again ([`Known::BuildAgain`]) is to be built.
    /// Where files of what the other host built are damaged, what is built in the draft takes its place at the remote
    /// ([`publish_shared`](Sealed::publish_shared)).
    ///
    /// # Errors
    /// [`Error::CurrentMoved`]. All else that is wrong is in the answer, with the draft to build in.
    pub fn publish_from(
        mut self,
        remote: &Remote,
        matching: Match,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<FromRemote> {
        let purpose = &self.work.purpose;
        let inputs = match &purpose.inputs {
            Some(inputs) if purpose.known == Known::Reuse => inputs,
            _ => return Ok(FromRemote::Nothing(self)),
        };
        let (backend, mut damaged) = (&remote.backend, Vec::new());
        let take = |_, manifest| self.fetch(backend, manifest, inputs, matching, options, progress);
        let fetched = first_intact(backend, (inputs, matching), &mut damaged, take);
        self.work.damaged_there = damaged;
        match fetched.map(Option::flatten) {
            Ok(Some((revision, outcome))) => {
                let published = give_way(self.work, revision, outcome)?;
                Ok(FromRemote::Published(Box::new(published)))
            }
            Ok(None) => Ok(FromRemote::Nothing(self)),
            Err(error @ Error::CurrentMoved { .. }) => {
                self.fail(error.to_string())?;
                Err(error)
            }
            Err(error) => Ok(FromRemote::Failed(self, error)),
        }
    }

    /// The revision of the other host; `None` if it is no use here.
    fn fetch(
        &self,
        backend: &Backend,
        manifest: Manifest,
        inputs: &BuildInputs,
        matching: Match,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Option<(Revision, Outcome)>> {
        let (core, purpose) = (&self.work.core, &self.work.purpose);
        activation::check(core, &purpose.template, &options.expect)?;
        let spec = purpose.spec.clone();
        if manifest.revision.resources() == Resources::of(&spec) {
            let pulled = publish(core, backend, Goods::new(manifest, spec), options, progress)?;
            return Ok(Some((pulled.revision, pulled.outcome)));
        }
        let stay = PublishOptions::default().activate(Activate::No);
        let pulled = publish(core, backend, Goods::new(manifest, spec), &stay, progress)?;
        let of = Request { core, inputs, matching };
        let request = BuildRequest { of, purpose, publish: options };
        let built = request.built(&purpose.template, pulled.revision.id(), progress)?;
        Ok(built.map(|revision| (revision, Outcome::New)))
    }
}

/// Ends a build with a revision of another host; those who wait get that.
fn give_way(work: Work, revision: Revision, outcome: Outcome) -> Result<Published> {
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

impl Sealed {
    /// Publishes the revision here and at a remote. Of all hosts that build the same at once, the first to push wins: the
    /// others publish its revision in place of their own. What was built again on purpose is pushed beside what is there.
    ///
    /// The remote gets the files first, then the manifest, then the pointer of the cache key: a crash leaves it as it was, or
    /// with the revision; the template's pointer comes last, and is put right by the next push.
    ///
    /// # Errors
    /// As [`publish_with`](Sealed::publish_with). What is wrong with the remote is in the answer.
    pub fn publish_shared(
        mut self,
        remote: &Remote,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Shared> {
        let backend = &remote.backend;
        let core = self.work.core.clone();
        if self.work.purpose.known == Known::BuildAgain {
            return self.publish_and_push(remote, options, progress);
        }
        // What can't be published here must not be seen there.
        let template = &self.work.purpose.template;
        if let Err(error) = check_publishable(&core, template, self.id(), self.contents(), options) {
            return self.publish_alone(options, progress, error);
        }
        let contents = self.contents().to_vec();
        let mut damaged = std::mem::take(&mut self.work.damaged_there);
        let offered = self.offer(backend, &mut damaged, progress);
        self.work.damaged_there = damaged;
        match offered {
            Ok(Offer::Taken(listed, bytes_sent)) => {
                let published = self.publish_with(options, progress)?;
                let template = published.revision.template();
                let failed = note_in_template(&core, backend, template, (&listed, &contents)).err();
                Ok(Shared { published, theirs: false, bytes_sent, failed })
            }
            Ok(Offer::Theirs(theirs)) => {
                let ((lead, manifest), spec) = (*theirs, self.work.purpose.spec.clone());
                match publish(&core, backend, Goods::new(manifest, spec), options, progress) {
                    Ok(pulled) => {
                        let published = give_way(self.work, pulled.revision, pulled.outcome)?;
                        Ok(Shared { published, theirs: true, bytes_sent: 0, failed: None })
                    }
                    // Each time one less can take its place.
                    Err(error) if is_damaged(&error) => {
                        self.work.damaged_there.push(lead.manifest);
                        self.publish_shared(remote, options, progress)
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

    /// Only when it is published is it known which id it has.
    fn publish_and_push(
        self,
        remote: &Remote,
        options: &PublishOptions,
        progress: &mut dyn Progress,
    ) -> Result<Shared> {
        let core = self.work.core.clone();
        let published = self.publish_with(options, progress)?;
        let options = PushOptions::default().moves(Move::ForwardOrStay);
        let pushed = push(&core, remote, &published.revision, &options, progress);
        let (bytes_sent, failed) = match pushed {
            Ok(pushed) => (pushed.bytes_sent, None),
            Err(error) => (0, Some(error)),
        };
        Ok(Shared { published, theirs: false, bytes_sent, failed })
    }

    /// Sends the build, unless another host has pushed the same meanwhile, of which nothing is damaged.
    fn offer(&self, backend: &Backend, damaged: &mut Vec<Digest>, progress: &mut dyn Progress) -> Result<Offer> {
        let Some(inputs) = &self.work.purpose.inputs else {
            let what = self.work.purpose.template.to_string();
            let problem = "it is not known from which inputs it was built".to_owned();
            return Err(RemoteError::CannotPush { what, problem }.into());
        };
        begin(backend, SendFiles::Missing)?;
        if let Some(theirs) = self.built_elsewhere(backend, inputs, damaged)? {
            return Ok(Offer::Theirs(theirs));
        }
        let goods = ToSend {
            dir: self.work.path().to_owned(),
            contents: self.contents(),
            template: self.work.purpose.spec.clone(),
            record: self.record(),
        };
        let files = if damaged.is_empty() { SendFiles::Missing } else { SendFiles::All };
        let (lead, sent) = send(backend, &goods, files, progress)?;
        let lead = Lead { source_hash: inputs.source_hash(), ..lead };
        let mut theirs = None;
        change_key(backend, inputs.key(), |pointer| {
            theirs = self.built_elsewhere(backend, inputs, damaged)?;
            let ours = || pointer.instead_of(damaged, &lead, &unique());
            Ok(if theirs.is_none() { ours() } else { None })
        })?;
        match theirs {
            Some(theirs) => Ok(Offer::Theirs(theirs)),
            None => Ok(Offer::Taken(listed(&self.work.core, &goods, lead.manifest)?, sent.bytes)),
        }
    }

    /// What another host pushed for the same inputs, if it can take the place of this build.
    fn built_elsewhere(
        &self,
        backend: &Backend,
        inputs: &BuildInputs,
        damaged: &mut Vec<Digest>,
    ) -> Result<Option<Box<(Lead, Manifest)>>> {
        let found = find(backend, inputs, Match::Sources, damaged)?;
        let fits = |manifest: &Manifest| {
            manifest.revision.resources() == Resources::of(&self.work.purpose.spec)
                && manifest.revision.contents.as_deref() != Some(self.contents())
        };
        Ok(found.filter(|(_, manifest)| fits(manifest)).map(Box::new))
    }
}

/// What came of offering a build.
enum Offer {
    /// The key leads to it now.
    Taken(Listed, u64),
    /// Another host was first.
    Theirs(Box<(Lead, Manifest)>),
}

/// Whether something that a remote has is not what it should be.
fn is_damaged(error: &Error) -> bool {
    matches!(error, Error::Remote(RemoteError::Damaged { .. }))
}

/// What becomes of the first revision that a remote has for these inputs and of which nothing is damaged; notes what is.
fn first_intact<T>(
    backend: &Backend,
    (inputs, matching): (&BuildInputs, Match),
    damaged: &mut Vec<Digest>,
    mut take: impl FnMut(Lead, Manifest) -> Result<T>,
) -> Result<Option<T>> {
    let mut last = None;
    while let Some((lead, manifest)) = find(backend, inputs, matching, damaged)? {
        let digest = lead.manifest;
        match take(lead, manifest) {
            Err(error) if is_damaged(&error) => last = Some(error),
            taken => return taken.map(Some),
        }
        damaged.push(digest);
    }
    last.map_or(Ok(None), Err)
}

/// What a remote has for these inputs: the first that was made from them by its own record, and of which nothing is known to
/// be damaged. Manifests that are not what they should be are added to what is.
fn find(
    backend: &Backend,
    inputs: &BuildInputs,
    matching: Match,
    damaged: &mut Vec<Digest>,
) -> Result<Option<(Lead, Manifest)>> {
    let fits = |manifest: &Manifest| {
        let same_flake = || inputs.flake_ref().is_none_or(|ours| ours == manifest.revision.build.flake_ref);
        inputs.made(&manifest.revision) == Made::These && (matching == Match::Sources || same_flake())
    };
    for key in inputs.keys() {
        let (pointer, _) = backend.wait(key_pointer(backend, &key))?;
        for lead in pointer.same_sources(inputs.source_hash()) {
            if damaged.contains(&lead.manifest) {
                continue;
            }
            match fetch_manifest(backend, &lead.template, &lead.revision, &lead.manifest) {
                Ok(manifest) if fits(&manifest) => {
                    return Ok(Some((lead.clone(), manifest)));
                }
                Ok(_) => {}
                Err(error @ Error::Remote(RemoteError::Damaged { .. } | RemoteError::Format { .. })) => {
                    if is_damaged(&error) {
                        damaged.push(lead.manifest);
                    }
                    tracing::warn!(%error, "what a remote has for this key is passed over");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

/// Lists a build in its template at the remote, and makes it current there unless somebody else's is.
fn note_in_template(core: &Core, backend: &Backend, template: &TemplateId, built: (&Listed, &[Content])) -> Result<()> {
    let pointer = Pointer { core, backend, template, if_damaged: IfDamaged::Refuse };
    pointer.add(pointer.read()?, built, &Move::ForwardOrStay).map(drop)
}
