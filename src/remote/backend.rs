//! The object store behind a remote: whole objects, and pointers that are changed only while they are what they were.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use camino::Utf8PathBuf;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    UpdateVersion,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::{Builder, Runtime};

use super::documents::LARGEST_DOCUMENT;
use super::error::RemoteError;
use super::names::Names;
use crate::error::{At, Result};
use crate::format::FormatError;
use crate::fs::lock::{BackOff, Flock, Mode};
use crate::id::Digest;

/// How the remote keeps two writers of one pointer apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Conditions {
    /// The server does (`If-None-Match`, `If-Match`).
    Server,
    /// A directory of this host: with a lock on this file.
    Lock(Utf8PathBuf),
    /// Nobody does, and somebody promised that there is one writer only.
    SingleWriter,
    /// Nothing can be written.
    ReadOnly,
}

/// What a pointer must be for a change of it to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Version {
    Absent,
    Is(UpdateVersion),
}

/// What became of a change of a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Swap {
    Done,
    /// It was not what it was to be.
    Lost,
}

pub(super) struct Backend {
    /// Where it is, as the user says it.
    pub url: String,
    pub names: Names,
    pub conditions: Conditions,
    pub objects: Arc<dyn ObjectStore>,
    /// Threads that pack and unpack. Not those of all rayon's work: a caller may be one of those, and waits for these.
    pub pool: ThreadPool,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("url", &self.url).field("conditions", &self.conditions).finish_non_exhaustive()
    }
}

impl Backend {
    pub fn new(url: String, names: Names, objects: Arc<dyn ObjectStore>, conditions: Conditions) -> Result<Backend> {
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("remote").enable_all().build();
        let runtime = runtime.at("start the threads of a remote", "tokio".into())?;
        let pool = ThreadPoolBuilder::new().thread_name(|_| "remote".to_owned()).build();
        let pool = pool.map_err(std::io::Error::other).at("start the threads of a remote", "rayon".into())?;
        Ok(Backend { url, names, conditions, objects, pool, runtime: Some(runtime) })
    }

    /// Waits for what happens at the server. On a thread of its own: the caller may itself be one that must not wait so.
    pub fn wait<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        let done = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(work)).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The bytes of an object that may have so many, and what it is now; `None` if there is none.
    pub async fn get(&self, path: &Path, most: u64) -> Result<Option<(Bytes, Version)>> {
        let found = match self.objects.get(path).await {
            Err(StoreError::NotFound { source, .. }) => return self.absent(path, &*source).map(|()| None),
            found => found.map_err(|error| self.failed("read", path, &error))?,
        };
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        if found.meta.size > most {
            return Err(self.damaged(path, format!("it has {} bytes, and may have {most}", found.meta.size)));
        }
        Ok(Some((self.body(path, found, most).await?, Version::Is(version))))
    }

    /// A document and what its object is now; `None` if there is none.
    pub async fn document<T>(
        &self,
        path: &Path,
        parse: impl FnOnce(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Option<(T, Version)>> {
        let Some((bytes, version)) = self.get(path, LARGEST_DOCUMENT).await? else { return Ok(None) };
        Ok(Some((parse(&bytes).map_err(|source| self.unreadable(path, source))?, version)))
    }

    /// A document that has the digest of its bytes for a name.
    pub async fn manifest<T>(&self, digest: &Digest, parse: impl FnOnce(&[u8]) -> Result<T, FormatError>) -> Result<T> {
        let path = self.names.manifest(digest);
        let damaged = |problem: &str| self.damaged(&path, problem.to_owned());
        let (bytes, _) = self.get(&path, LARGEST_DOCUMENT).await?.ok_or_else(|| damaged("it is missing"))?;
        match Digest::of(&bytes) == *digest {
            true => parse(&bytes).map_err(|source| self.unreadable(&path, source)),
            false => Err(damaged("its bytes are not those of its digest")),
        }
    }

    /// The length of an object; `None` if there is none.
    pub async fn len(&self, path: &Path) -> Result<Option<u64>> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(StoreError::NotFound { source, .. }) => self.absent(path, &*source).map(|()| None),
            Err(error) => Err(self.failed("look for", path, &error)),
        }
    }

    /// A part of an object.
    pub async fn range(&self, path: &Path, start: u64, end: u64) -> Result<Bytes> {
        let part = self.range_if_served(path, start, end).await?;
        let not_served = || StoreError::NotSupported { source: "the server sends whole files only".into() };
        part.ok_or_else(|| self.failed("read a part of", path, &not_served()))
    }

    /// A part of an object; `None` from a web server that sends whole files only.
    pub async fn range_if_served(&self, path: &Path, start: u64, end: u64) -> Result<Option<Bytes>> {
        let options = GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
        let found = match self.objects.get_opts(path, options).await {
            Err(StoreError::NotSupported { .. }) => return Ok(None),
            found => found.map_err(|error| self.failed("read", path, &error))?,
        };
        let bytes = self.body(path, found, end - start).await?;
        match bytes.len() as u64 == end - start {
            true => Ok(Some(bytes)),
            false => Err(self.damaged(path, "the server sent another part of it than it was asked for".into())),
        }
    }

    /// A whole object, as it comes.
    pub async fn pieces<'a>(&'a self, path: &'a Path) -> Result<impl Stream<Item = Result<Bytes>> + Send + 'a> {
        let found = self.objects.get(path).await.map_err(|error| self.failed("read", path, &error))?;
        Ok(found.into_stream().map(move |piece| piece.map_err(|error| self.failed("read", path, &error))))
    }

    /// The objects below a place.
    pub async fn list(&self, place: &Path) -> Result<Vec<Path>> {
        let listed = self.objects.list(Some(place)).map_ok(|meta| meta.location);
        let listed: std::result::Result<Vec<Path>, _> = listed.try_collect().await;
        let is_web_server = self.conditions == Conditions::ReadOnly;
        // Lists of web servers are those of WebDAV (RFC 4918), which most do not speak.
        let is_unknown = match &listed {
            Ok(listed) => listed.is_empty(),
            Err(error) => ["status code: 405", "status code: 501"].iter().any(|code| chain(error).contains(code)),
        };
        match listed {
            _ if is_web_server && is_unknown => Err(RemoteError::Unlisted { remote: self.url.clone() }.into()),
            listed => listed.map_err(|error| self.failed("list", place, &error)),
        }
    }

    /// The bytes of an answer, up to so many: a server may say one size and send another.
    async fn body(&self, path: &Path, found: GetResult, most: u64) -> Result<Bytes> {
        // What it promises is taken for no more than a hint.
        let promised = found.range.end.saturating_sub(found.range.start).min(most).min(LARGEST_PART);
        let (mut stream, mut bytes) = (found.into_stream(), Vec::with_capacity(promised as usize));
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| self.failed("read", path, &error))?;
            if bytes.len() as u64 + piece.len() as u64 > most {
                return Err(self.damaged(path, format!("more than {most} bytes of it came")));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    /// Writes an object that never changes: whoever writes it writes the same.
    pub async fn put(&self, path: &Path, bytes: impl Into<PutPayload>) -> Result<()> {
        self.check_writable()?;
        match self.objects.put(path, bytes.into()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("write", path, &error)),
        }
    }

    /// Changes a pointer if it is what it was. The bytes tell one write from every other: so a writer whose answer was lost
    /// finds out that it had won.
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
        let options = PutOptions::from(mode);
        match self.objects.put_opts(path, Bytes::copy_from_slice(bytes).into(), options).await {
            Ok(_) => Ok(Swap::Done),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => self.is_ours(path, bytes).await,
            // What was to be changed has gone.
            Err(StoreError::NotFound { .. }) if *was != Version::Absent => Ok(Swap::Lost),
            // The answer may be lost, and not the write.
            Err(error) => match self.is_ours(path, bytes).await? {
                Swap::Done => Ok(Swap::Done),
                Swap::Lost => Err(self.failed("write", path, &error)),
            },
        }
    }

    async fn version(&self, path: &Path) -> Result<Version> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(Version::Is(UpdateVersion { e_tag: meta.e_tag, version: meta.version })),
            Err(StoreError::NotFound { .. }) => Ok(Version::Absent),
            Err(error) => Err(self.failed("look for", path, &error)),
        }
    }

    async fn is_ours(&self, path: &Path, bytes: &[u8]) -> Result<Swap> {
        let now = self.get(path, bytes.len() as u64 + 1024 * 1024).await;
        Ok(if now.is_ok_and(|now| now.is_some_and(|(now, _)| now == bytes)) { Swap::Done } else { Swap::Lost })
    }

    pub fn check_writable(&self) -> Result<()> {
        match self.conditions {
            Conditions::ReadOnly => Err(RemoteError::ReadOnly { remote: self.url.clone() }.into()),
            _ => Ok(()),
        }
    }

    /// That nothing is there may also mean that there is no bucket at all.
    fn absent(&self, path: &Path, source: &dyn std::error::Error) -> Result<()> {
        let text = chain(source);
        if !text.contains("NoSuchBucket") && !text.contains("ContainerNotFound") {
            return Ok(());
        }
        let problem = "there is no such bucket; make it, or correct the URL".to_owned();
        Err(RemoteError::Failed { remote: self.url.clone(), doing: "read", object: path.to_string(), problem }.into())
    }

    pub fn failed(&self, doing: &'static str, path: &Path, error: &StoreError) -> crate::Error {
        let (remote, object) = (self.url.clone(), path.to_string());
        let text = chain(error);
        if text.contains("NoSuchBucket") {
            let problem = "there is no such bucket; make it, or correct the URL".to_owned();
            return RemoteError::Failed { remote, doing, object, problem }.into();
        }
        let problem = shorten(&text);
        match error {
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                RemoteError::Denied { remote, doing, object, problem }.into()
            }
            StoreError::NotFound { .. } => RemoteError::NotFound { remote, what: object }.into(),
            _ => RemoteError::Failed { remote, doing, object, problem }.into(),
        }
    }

    pub fn unreadable(&self, path: &Path, source: FormatError) -> crate::Error {
        RemoteError::Format { remote: self.url.clone(), object: path.to_string(), source }.into()
    }

    pub fn damaged(&self, path: &Path, problem: String) -> crate::Error {
        RemoteError::Damaged { remote: self.url.clone(), object: path.to_string(), problem }.into()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // A runtime that is dropped waits, which a thread of another runtime must not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Parts of files that are asked for are smaller.
const LARGEST_PART: u64 = 16 * 1024 * 1024;

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

/// An error with what caused it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// One line of what may be a page of a server.
fn shorten(text: &str) -> String {
    const MOST: usize = 400;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
