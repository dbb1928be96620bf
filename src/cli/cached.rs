//! A remote as a cache of builds: what it has is fetched, what is built is sent; without it, work goes on with a warning.

use template_store::{
    BuildInputs, Draft, Error, FromRemote, Match, Move, PublishOptions, Published, PushOptions, Remote, RemoteError,
    RemoteSettings, Revision, Sealed, Store, TemplateId,
};

use super::args::AsCache;
use super::output::Output;
use super::remote::settings;
use super::terminal::Terminal;
use super::{Failure, Result};

/// The remote that a call names, if it names one.
pub(crate) struct Cache {
    settings: Option<RemoteSettings>,
    required: bool,
    /// It did not answer: nothing more is asked of it.
    is_down: bool,
}

/// What became of a draft.
pub(crate) enum Found {
    Published(Box<Published>),
    Nothing(Box<Draft>),
}

impl Cache {
    pub fn of(store: Option<&Store>, args: &AsCache) -> Result<Cache> {
        let settings = args.remote.as_deref().map(|named| settings(store, Some(named))).transpose()?;
        Ok(Cache { settings, required: args.remote_required, is_down: false })
    }

    /// Fetches what another host built.
    pub fn fetch(
        &mut self,
        draft: Draft,
        matching: Match,
        options: &PublishOptions,
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<Found> {
        let Some(settings) = &self.settings else { return Ok(Found::Nothing(Box::new(draft))) };
        let asked = match Remote::open_briefly(settings) {
            Ok(remote) => draft.publish_from(&remote, matching, options, terminal)?,
            Err(error) => FromRemote::Failed(draft, error),
        };
        match asked {
            FromRemote::Published(published) => Ok(Found::Published(published)),
            FromRemote::Nothing(draft) => Ok(Found::Nothing(Box::new(draft))),
            FromRemote::Failed(draft, error) if self.required => {
                draft.abandon()?;
                Err(error.into())
            }
            FromRemote::Failed(draft, error @ Error::Remote(RemoteError::Damaged { .. })) => {
                output.note(&format!("it is built, because {error}"));
                Ok(Found::Nothing(Box::new(draft)))
            }
            FromRemote::Failed(draft, error) => {
                self.do_without(&error, output);
                Ok(Found::Nothing(Box::new(draft)))
            }
        }
    }

    /// What another host built, in this store now.
    pub fn lookup(
        &mut self,
        store: &Store,
        template: Option<&TemplateId>,
        (inputs, matching): (&BuildInputs, Match),
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<Option<Revision>> {
        let Some(settings) = &self.settings else { return Ok(None) };
        let options = PublishOptions::default();
        let found = match Remote::open_briefly(settings) {
            // Such as a directory or a file of credentials that this user may not read.
            Err(error) => Err((error, true)),
            Ok(remote) => {
                let found = store.lookup_remote(&remote, template, inputs, matching, &options, terminal);
                found.map_err(|error| {
                    let is_theirs = matches!(error, Error::Remote(_));
                    (error, is_theirs)
                })
            }
        };
        match found {
            Err((error, true)) if !self.required => {
                self.do_without(&error, output);
                Ok(None)
            }
            found => Ok(found.map_err(|(error, _)| error)?),
        }
    }

    /// Publishes a build here and at the remote; what it is called, and what is published.
    pub fn share(
        &mut self,
        sealed: Sealed,
        options: &PublishOptions,
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<(&'static str, Published)> {
        let Some(settings) = self.settings.as_ref().filter(|_| !self.is_down) else {
            return Ok(("built", sealed.publish_with(options, terminal)?));
        };
        let (published, theirs, failed) = match Remote::open(settings) {
            Ok(remote) => {
                let shared = sealed.publish_shared(&remote, options, terminal)?;
                (shared.published, shared.theirs, shared.failed)
            }
            // The build is there, and must not be lost for that.
            Err(error) => (sealed.publish_with(options, terminal)?, false, Some(error)),
        };
        if let Some(error) = failed {
            if self.required {
                let (template, revision) = (published.revision.template(), published.revision.id());
                let text = format!("{template}@{revision} is published here, but was not pushed: {error}");
                return Err(Failure::Other(text, 1));
            }
            output.note(&format!("it is published here, but was not pushed: {error}"));
        }
        Ok((if theirs { "pulled" } else { "built" }, published))
    }

    /// Pushes what is here already, if the remote has nothing for these inputs.
    pub fn push_known(
        &mut self,
        store: &Store,
        revision: &Revision,
        inputs: &BuildInputs,
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<()> {
        let Some(settings) = &self.settings else { return Ok(()) };
        let pushed = Remote::open_briefly(settings).and_then(|remote| match remote.knows(inputs)? {
            true => Ok(()),
            false => {
                let (remote, options) = (Remote::open(settings)?, PushOptions::default().moves(Move::ForwardOrStay));
                store.push(&remote, revision.template(), Some(revision.id()), &options, terminal).map(drop)
            }
        });
        match pushed {
            Err(error) if !self.required => {
                self.do_without(&error, output);
                Ok(())
            }
            pushed => Ok(pushed?),
        }
    }

    fn do_without(&mut self, error: &Error, output: &Output) {
        self.is_down = true;
        output.note(&format!("going on without the remote: {error}"));
    }
}
