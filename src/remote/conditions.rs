//! Whether a server honours conditions, found out by racing ourselves.

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode, UpdateVersion};

use super::backend::{Backend, Conditions, Version};
use super::error::RemoteError;
use super::pointers::unique;
use super::preamble::{LARGEST_DOCUMENT, RemoteFormat};
use super::swap::{Pauses, Swap};
use super::text::may_pass;
use crate::error::{Error, Result};

/// What a check of a remote found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteCheck {
    /// What was tried, and what was found, a sentence each; the first is that the remote can be read.
    pub passed: Vec<String>,
    /// Why two who push at once are not kept apart, if they are not.
    pub problem: Option<String>,
}

/// Rounds of the race, and those who take part in each.
const ROUNDS: usize = 4;
const RACERS: usize = 8;

/// The two ways in which a server that does not know conditions gives itself away, before each push; two small requests.
///
/// What is written if it does is what is there already.
pub(super) async fn prove(backend: &Backend) -> Result<()> {
    let (path, bytes) = (backend.names.format(), RemoteFormat::ours());
    let modes = [
        (PutMode::Create, "it replaces an object that was to be made only if it is missing"),
        (PutMode::Update(nobody()), "it replaces an object that was to be replaced only if it is another"),
    ];
    for (mode, problem) in modes {
        if replaces(backend, &path, &bytes, mode).await? {
            return Err(backend.unconditional(problem));
        }
    }
    // And it must know an object again by what it said of it: a proxy may have changed that.
    let mut was_lost = false;
    for _ in 0..3 {
        let Some((now, version)) = backend.get(&path, LARGEST_DOCUMENT).await? else { continue };
        // Only what is known to be there is written again: an answer may be cut short.
        if now == bytes {
            was_lost = backend.swap(&path, &version, &bytes).await? == Swap::Lost;
            if !was_lost {
                return Ok(());
            }
        }
    }
    match was_lost {
        true => Err(backend.unconditional("it does not know an object again by the tag that it gave it")),
        false => Ok(()),
    }
}

/// What no object is.
fn nobody() -> UpdateVersion {
    UpdateVersion { e_tag: Some("\"00000000000000000000000000000000\"".into()), version: Some("0".into()) }
}

/// Whether a write happens whose condition does not hold. One whose answer was lost may be tried again: it writes what is
/// there already.
async fn replaces(backend: &Backend, path: &Path, bytes: &[u8], mode: PutMode) -> Result<bool> {
    let mut pauses = Pauses::default();
    loop {
        match backend.put_if(path, bytes, mode.clone()).await {
            Ok(()) => return Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => return Ok(false),
            Err(error) if may_pass(&error) && pauses.pause().await => {}
            Err(error) => return Err(backend.refused(path, &error).await),
        }
    }
}

/// Races for an object of its own, which is gone afterwards.
pub(super) async fn check(backend: &Backend) -> Result<RemoteCheck> {
    let mut passed = vec!["it can be read".to_owned()];
    backend.check_format().await?;
    let path = backend.names.check(&unique());
    let problem = match &backend.conditions {
        Conditions::ReadOnly => {
            return Ok(RemoteCheck { passed, problem: None });
        }
        Conditions::SingleWriter => {
            backend.put(&path, Bytes::from_static(b"check")).await?;
            let _ = backend.objects.delete(&path).await;
            passed.push("it can be written".to_owned());
            passed.push(
                "nobody keeps two writers apart, and there is one, as the settings say (single_writer)".to_owned(),
            );
            return Ok(RemoteCheck { passed, problem: None });
        }
        _ => {
            let raced = race(backend, &path).await;
            // A server that said no may have written all the same.
            let _ = backend.objects.delete(&path).await;
            match raced {
                Err(Error::Remote(RemoteError::Unconditional { problem, .. })) => Some(problem),
                raced => raced?,
            }
        }
    };
    if problem.is_none() {
        passed.push("it can be written".to_owned());
        passed.push(format!("of {RACERS} who make an object at once, one does, {ROUNDS} times"));
        passed.push(format!("of {RACERS} who replace an object at once, one does, {ROUNDS} times"));
        passed.push("who replaces an object that was replaced since is refused".to_owned());
        if matches!(backend.conditions, Conditions::Lock(_)) {
            passed.push("a lock keeps the processes of this host apart; those of other hosts it may not".to_owned());
        }
    }
    Ok(RemoteCheck { passed, problem })
}

/// What the server did that it must not.
async fn race(backend: &Backend, path: &Path) -> Result<Option<String>> {
    for _ in 0..ROUNDS {
        let _ = backend.objects.delete(path).await;
        let made = winners(backend, path, &Version::Absent).await?;
        if made != 1 {
            return Ok(Some(format!("of {RACERS} who make an object only if it is missing, {made} did")));
        }
        let Some((_, version)) = backend.get(path, 1024).await? else {
            return Ok(Some("what was written is not there when it is read".into()));
        };
        let replaced = winners(backend, path, &version).await?;
        if replaced != 1 {
            return Ok(Some(format!("of {RACERS} who replace an object only if nobody did, {replaced} did")));
        }
        if backend.swap(path, &version, unique().as_bytes()).await? == Swap::Done {
            return Ok(Some("it replaces an object that was replaced since it was read".into()));
        }
    }
    Ok(None)
}

async fn winners(backend: &Backend, path: &Path, version: &Version) -> Result<usize> {
    let racers = (0..RACERS).map(|_| async { backend.swap(path, version, unique().as_bytes()).await });
    let ended = match backend.conditions {
        // They would wait for each other on one thread.
        Conditions::Lock(_) => stream::iter(racers).then(|racer| racer).collect::<Vec<_>>().await,
        _ => join_all(racers).await,
    };
    let ended = ended.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(ended.into_iter().filter(|swap| *swap == Swap::Done).count())
}
