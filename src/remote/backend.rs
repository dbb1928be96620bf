//! The object store behind a remote: whole objects, and pointers that are changed only while they are what they were.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use camino::Utf8PathBuf;
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    UpdateVersion,
};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::{Builder, Runtime};

use super::error::RemoteError;
use super::names::Names;
use super::preamble::{LARGEST_DOCUMENT, RemoteFormat};
use super::text::{chain, plain, was_changed};
use crate::error::{At, ErrorKind, Result};
use crate::format::FormatError;
use crate::fs::read;
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

impl Version {
    pub fn of(meta: &ObjectMeta) -> Version {
        Version::Is(UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() })
    }
}

/// A document that was looked for.
pub(super) enum Found<T> {
    Absent,
    Sound(T, Version),
    /// It is not what it should be where it lies, and not only when it came.
    Damaged(crate::Error, Version),
}

pub(super) struct Backend {
    /// Where it is, as the user says it.
    pub url: String,
    pub names: Names,
    pub conditions: Conditions,
    pub objects: Arc<dyn ObjectStore>,
    /// `format.json` was read, and is one that this program knows.
    is_known: AtomicBool,
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
        let is_known = AtomicBool::new(false);
        Ok(Backend { url, names, conditions, objects, is_known, pool, runtime: Some(runtime) })
    }

    /// Waits for what happens at the server. On a thread of its own: the caller may itself be one that must not wait so.
    pub fn wait<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let runtime = self.runtime.as_ref().expect("it is there until it is dropped");
        let done = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(work)).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Asks for an object. In a directory, what is no file would be waited for.
    async fn ask(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if let Conditions::Lock(lock) = &self.conditions {
            let file = lock.with_file_name(path.as_ref());
            if read::metadata_behind_links(&file).is_ok_and(|found| !found.is_file()) {
                let source = "it is not a regular file".into();
                return Err(StoreError::Generic { store: "directory", source });
            }
        }
        self.objects.get_opts(path, options).await
    }

    /// The bytes of an object that may have so many, and what it is now; `None` if there is none.
    pub async fn get(&self, path: &Path, most: u64) -> Result<Option<(Bytes, Version)>> {
        let Some((bytes, version)) = self.get_any(path, most).await? else { return Ok(None) };
        Ok(Some((bytes?, version)))
    }

    /// The same, where what it is now is known also of one that is too large.
    async fn get_any(&self, path: &Path, most: u64) -> Result<Option<(Result<Bytes>, Version)>> {
        let found = match self.ask(path, GetOptions::default()).await {
            Err(StoreError::NotFound { source, .. }) => return self.absent(path, &*source).map(|()| None),
            found => found.map_err(|error| self.failed("read", path, &error))?,
        };
        let version = Version::of(&found.meta);
        if found.meta.size > most {
            let problem = format!("it has {} bytes, and may have {most}", found.meta.size);
            return Ok(Some((Err(self.damaged(path, problem)), version)));
        }
        Ok(Some((self.body(path, found, most).await, version)))
    }

    /// A document and what its object is now; `None` if there is none.
    pub async fn document<T>(
        &self,
        path: &Path,
        parse: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) -> Result<Option<(T, Version)>> {
        match self.look(path, parse).await? {
            Found::Absent => Ok(None),
            Found::Sound(document, version) => Ok(Some((document, version))),
            Found::Damaged(error, _) => Err(error),
        }
    }

    /// A document, in a remote that this program knows.
    pub async fn look<T>(&self, path: &Path, parse: impl Fn(&[u8]) -> Result<T, FormatError>) -> Result<Found<T>> {
        self.check_format().await?;
        self.read_again(path, |bytes| parse(bytes).map_err(|source| self.unreadable(path, source))).await
    }

    /// A document that has the digest of its bytes for a name.
    pub async fn manifest<T>(&self, digest: &Digest, parse: impl Fn(&[u8]) -> Result<T, FormatError>) -> Result<T> {
        self.check_format().await?;
        let path = self.names.manifest(digest);
        let parse = |bytes: &[u8]| match Digest::of(bytes) == *digest {
            true => parse(bytes).map_err(|source| self.unreadable(&path, source)),
            false => Err(self.damaged(&path, "its bytes are not those of its digest".into())),
        };
        match self.read_again(&path, parse).await? {
            Found::Absent => Err(self.damaged(&path, "it is missing".into())),
            Found::Sound(manifest, _) => Ok(manifest),
            Found::Damaged(error, _) => Err(error),
        }
    }

    /// Refuses a remote of a newer program: what lies there means nothing to us. One without `format.json` is empty.
    pub async fn check_format(&self) -> Result<()> {
        if self.is_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.format().await? {
            Found::Absent => {}
            Found::Sound((), _) => self.is_known.store(true, Ordering::Relaxed),
            Found::Damaged(error, _) => return Err(error),
        }
        Ok(())
    }

    pub async fn format(&self) -> Result<Found<()>> {
        let path = self.names.format();
        self.read_again(&path, |bytes| RemoteFormat::check(bytes).map_err(|source| self.unreadable(&path, source)))
            .await
    }

    /// Reads what is not as it should be again: it may have been changed on the way. What comes with the same bytes twice
    /// is so where it lies.
    async fn read_again<T>(&self, path: &Path, parse: impl Fn(&[u8]) -> Result<T>) -> Result<Found<T>> {
        let mut seen: Option<(Digest, Version, crate::Error)> = None;
        for _ in 0..READS {
            let Some((bytes, version)) = self.get_any(path, LARGEST_DOCUMENT).await? else { return Ok(Found::Absent) };
            let digest = Digest::of(bytes.as_deref().unwrap_or_default());
            let error = match bytes.and_then(|bytes| parse(&bytes)) {
                Ok(document) => return Ok(Found::Sound(document, version)),
                Err(error) => error,
            };
            let is_same = seen.as_ref().is_some_and(|seen| (seen.0, &seen.1) == (digest, &version));
            match error.kind() {
                ErrorKind::Damaged if is_same => return Ok(Found::Damaged(error, version)),
                _ if is_same => return Err(error),
                _ => seen = Some((digest, version, error)),
            }
        }
        Err(seen.expect("it was read").2)
    }

    /// The length of an object; `None` if there is none.
    pub async fn len(&self, path: &Path) -> Result<Option<u64>> {
        Ok(self.meta(path).await?.map(|meta| meta.size))
    }

    pub async fn meta(&self, path: &Path) -> Result<Option<ObjectMeta>> {
        match self.ask(path, GetOptions { head: true, ..GetOptions::default() }).await {
            Ok(found) => Ok(Some(found.meta)),
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
        let found = match self.ask(path, options).await {
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
        let found = self.ask(path, GetOptions::default()).await.map_err(|error| self.failed("read", path, &error))?;
        Ok(found.into_stream().map(move |piece| piece.map_err(|error| self.failed("read", path, &error))))
    }

    /// The objects below a place.
    pub async fn list(&self, place: &Path) -> Result<Vec<Path>> {
        self.check_format().await?;
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
        let bytes = bytes.into();
        let mut last = None;
        for _ in 0..WRITES {
            match self.objects.put(path, bytes.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if was_changed(&chain(&error)) => last = Some(error),
                Err(error) => return Err(self.failed("write", path, &error)),
            }
        }
        Err(self.failed("write", path, &last.expect("it was tried")))
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
        let (remote, object) = (self.url.clone(), plain(path.as_ref()));
        let text = chain(error);
        if text.contains("NoSuchBucket") {
            let problem = "there is no such bucket; make it, or correct the URL".to_owned();
            return RemoteError::Failed { remote, doing, object, problem }.into();
        }
        if ["169.254.169.254", "169.254.170.2", "metadata.google.internal"].iter().any(|host| text.contains(host)) {
            let problem =
                "no credentials are given, and this is no machine of that cloud, which would have some".to_owned();
            return RemoteError::Denied { remote, doing, object, problem }.into();
        }
        let problem = plain(&text);
        match error {
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => {
                RemoteError::Denied { remote, doing, object, problem }.into()
            }
            StoreError::NotFound { .. } => RemoteError::NotFound { remote, what: object }.into(),
            _ => RemoteError::Failed { remote, doing, object, problem }.into(),
        }
    }

    pub fn unreadable(&self, path: &Path, source: FormatError) -> crate::Error {
        let source = match source {
            FormatError::Invalid { what, reason } => FormatError::Invalid { what, reason: plain(&reason) },
            FormatError::UnknownFeatures { features } => FormatError::UnknownFeatures { features: plain(&features) },
            known => known,
        };
        RemoteError::Format { remote: self.url.clone(), object: plain(path.as_ref()), source }.into()
    }

    pub fn damaged(&self, path: &Path, problem: String) -> crate::Error {
        let (remote, object, problem) = (self.url.clone(), plain(path.as_ref()), plain(&problem));
        RemoteError::Damaged { remote, object, problem }.into()
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

/// What is read is read so often before it is given up, and what the server gets is sent so often: bytes that were changed on
/// the way come right the next time.
const READS: usize = 4;
pub(super) const WRITES: usize = 3;
