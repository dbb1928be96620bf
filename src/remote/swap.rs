//! Changes of pointers: each happens only while the pointer is what it was.

use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode, PutOptions};

use super::backend::{Backend, Conditions, Version};
use super::error::RemoteError;
use super::pointers::unique;
use super::text::{chain, may_pass, status, was_changed};
use crate::error::{At, Error, Result};
use crate::fs::lock::{BackOff, Flock, Mode};

/// What became of a change of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swap {
    Done,
    /// It was not what it was to be.
    Lost,
}

/// What a pointer is after a change of it of which it is not known whether it happened.
enum Now {
    Ours,
    AsItWas,
    Another,
}

impl Backend {
    /// Changes a pointer if it is what it was. The bytes tell one write from every other: so a writer whose answer was lost
    /// finds out that it had won, and may try again if it did not.
    pub async fn swap(&self, path: &Path, was: &Version, bytes: &[u8]) -> Result<Swap> {
        self.check_writable()?;
        let _alone = match &self.conditions {
            Conditions::Lock(lock) => Some(lock_file(lock)?),
            _ => None,
        };
        let mode = match (&self.conditions, was) {
            (Conditions::Server, Version::Is(version)) => PutMode::Update(version.clone()),
            (Conditions::Server, Version::Absent) => PutMode::Create,
            _ if self.version(path).await? == *was => PutMode::Overwrite,
            _ => return Ok(Swap::Lost),
        };
        let mut pauses = Pauses::default();
        // What a disk refuses once it refuses again.
        let may_pass = |error: &StoreError| !matches!(self.conditions, Conditions::Lock(_)) && may_pass(error);
        loop {
            let error = match self.put_if(path, bytes, mode.clone()).await {
                Ok(()) => return Ok(Swap::Done),
                Err(error) => error,
            };
            let is_refused = matches!(error, StoreError::AlreadyExists { .. } | StoreError::Precondition { .. });
            // What was to be changed has gone.
            if matches!(error, StoreError::NotFound { .. }) && *was != Version::Absent {
                return Ok(Swap::Lost);
            }
            match self.now(path, was, bytes).await {
                Ok(Now::Ours) => return Ok(Swap::Done),
                _ if is_refused => return Ok(Swap::Lost),
                Ok(Now::Another) if may_pass(&error) => return Ok(Swap::Lost),
                Ok(Now::AsItWas) if may_pass(&error) && pauses.pause().await => {}
                _ => return Err(self.refused(path, &error).await),
            }
        }
    }

    pub async fn put_if(&self, path: &Path, bytes: &[u8], mode: PutMode) -> object_store::Result<()> {
        let options = PutOptions::from(mode);
        self.objects.put_opts(path, Bytes::copy_from_slice(bytes).into(), options).await.map(drop)
    }

    async fn version(&self, path: &Path) -> Result<Version> {
        Ok(self.meta(path).await?.map_or(Version::Absent, |meta| Version::of(&meta)))
    }

    async fn now(&self, path: &Path, was: &Version, bytes: &[u8]) -> Result<Now> {
        Ok(match self.get(path, bytes.len() as u64 + 1024 * 1024).await? {
            Some((now, _)) if now == bytes => Now::Ours,
            Some((_, version)) if version == *was => Now::AsItWas,
            None if *was == Version::Absent => Now::AsItWas,
            _ => Now::Another,
        })
    }

    /// Why a write with a condition failed. A server may say in many ways that it knows none; then it takes the same
    /// without one.
    pub async fn refused(&self, path: &Path, error: &StoreError) -> Error {
        let text = chain(error);
        let may_be_unknown = matches!(error, StoreError::NotImplemented { .. } | StoreError::NotSupported { .. })
            || matches!(status(&text), Some(400 | 501)) && !was_changed(&text);
        if self.conditions == Conditions::Server && may_be_unknown && self.takes_writes().await {
            return self.unconditional("it knows no conditions");
        }
        self.failed("write", path, error)
    }

    async fn takes_writes(&self) -> bool {
        let path = self.names.check(&unique());
        let is_taken = self.objects.put(&path, Bytes::from_static(b"check").into()).await.is_ok();
        let _ = self.objects.delete(&path).await;
        is_taken
    }

    pub fn unconditional(&self, problem: &str) -> Error {
        RemoteError::Unconditional { remote: self.url.clone(), problem: problem.to_owned() }.into()
    }
}

/// Pauses between attempts, which grow; some seconds in all.
#[derive(Default)]
pub(super) struct Pauses {
    made: u32,
}

impl Pauses {
    const MOST: u32 = 5;

    /// `false` when it was tried often enough.
    pub async fn pause(&mut self) -> bool {
        if self.made == Pauses::MOST {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(50 << self.made)).await;
        self.made += 1;
        true
    }
}

/// A change of a pointer takes moments. Who holds the lock longer is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

fn lock_file(path: &Utf8PathBuf) -> Result<Flock> {
    let lock = Flock::open_or_create(path)?;
    let mut pauses = BackOff::new(Some(PATIENCE));
    while !lock.try_lock(Mode::Exclusive)? {
        if !pauses.pause() {
            return Err(std::io::Error::from(std::io::ErrorKind::TimedOut)).at("lock", path).map_err(Into::into);
        }
    }
    Ok(lock)
}
