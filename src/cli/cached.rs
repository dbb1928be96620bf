//! A remote as a cache of builds: what it has is fetched, what is built is sent; without it, work goes on with a warning.

use template_store::{
    BuildInputs, Draft, Error, FromRemote, Move, PublishOptions, Published, PushOptions, Remote, RemoteError,
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
        options: &PublishOptions,
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<Found> {
        let Some(settings) = &self.settings else { return Ok(Found::Nothing(Box::new(draft))) };
        let remote = match Remote::open_briefly(settings) {
            Ok(remote) => remote,
            Err(error) => {
                draft.abandon()?;
                return Err(error.into());
            }
        };
        match draft.publish_from(&remote, options, terminal)? {
            FromRemote::Published(published) => Ok(Found::Published(published)),
            FromRemote::Nothing(draft) => Ok(Found::Nothing(Box::new(draft))),
            FromRemote::Failed(draft, error) => {
                if self.required {
                    draft.abandon()?;
                    return Err(error.into());
                }
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
        inputs: &BuildInputs,
        output: &Output,
        terminal: &mut Terminal,
    ) -> Result<Option<Revision>> {
        let Some(settings) = &self.settings else { return Ok(None) };
        let remote = Remote::open_briefly(settings)?;
        match store.lookup_remote(&remote, template, inputs, &PublishOptions::default(), terminal) {
            Err(error @ Error::Remote(_)) if !self.required => {
                self.do_without(&error, output);
                Ok(None)
            }
            found => Ok(found?),
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
        let shared = sealed.publish_shared(&Remote::open(settings)?, options, terminal)?;
        if let Some(error) = shared.failed {
            if self.required {
                let revision = &shared.published.revision;
                let text =
                    format!("{}@{} is published here, but was not pushed: {error}", revision.template(), revision.id());
                return Err(Failure::Other(text, 1));
            }
            output.note(&format!("it is published here, but was not pushed: {error}"));
        }
        Ok((if shared.theirs { "pulled" } else { "built" }, shared.published))
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
            false => push_at_last(store, &Remote::open(settings)?, revision, terminal),
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

/// Pushes a revision, and makes it current there unless somebody else's is.
fn push_at_last(
    store: &Store,
    remote: &Remote,
    revision: &Revision,
    terminal: &mut Terminal,
) -> template_store::Result<()> {
    let mut push = |moves: Move| {
        let options = PushOptions::default().moves(moves);
        store.push(remote, revision.template(), Some(revision.id()), &options, terminal)
    };
    match push(Move::Forward) {
        Err(Error::Remote(RemoteError::Moved { .. })) => push(Move::No).map(drop),
        pushed => pushed.map(drop),
    }
}
