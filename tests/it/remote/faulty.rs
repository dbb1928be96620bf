//! An object store between us and another, which does what networks and servers do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives.
    Lost,
    /// It is done, and the answer never arrives.
    AnswerLost,
    /// Of an answer, the second half is missing.
    Truncated,
    /// Of an answer, a byte is another one.
    Flipped,
    /// From then on, nothing arrives.
    Down,
}

pub const FAULTS: [Fault; 5] = [Fault::Lost, Fault::AnswerLost, Fault::Truncated, Fault::Flipped, Fault::Down];

/// What happens before an object is read.
struct Meanwhile(Box<dyn Fn(&Path) + Send + Sync>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meanwhile")
    }
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectStore>,
    meanwhile: Option<Meanwhile>,
    /// The fault, and the request that it befalls.
    fault: Option<(Fault, usize)>,
    requests: AtomicUsize,
    ignores_conditions: bool,
    saying: Option<Saying>,
}

/// What is said to the next writes that are meant.
#[derive(Debug)]
struct Saying {
    to: Writes,
    /// Whether they happen.
    done: bool,
    text: &'static str,
    left: AtomicUsize,
}

/// Which writes are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    All,
    WithConditions,
}

impl Faulty {
    fn of(inner: Arc<dyn ObjectStore>) -> Faulty {
        let requests = AtomicUsize::new(0);
        Faulty { inner, meanwhile: None, fault: None, requests, ignores_conditions: false, saying: None }
    }

    /// Counts requests only.
    pub fn counting(inner: Arc<dyn ObjectStore>) -> Arc<Faulty> {
        Arc::new(Faulty::of(inner))
    }

    pub fn at(inner: Arc<dyn ObjectStore>, fault: Fault, request: usize) -> Arc<Faulty> {
        Arc::new(Faulty { fault: Some((fault, request)), ..Faulty::of(inner) })
    }

    /// A server that knows no conditions: each write succeeds.
    pub fn without_conditions(inner: Arc<dyn ObjectStore>) -> Arc<Faulty> {
        Arc::new(Faulty { ignores_conditions: true, ..Faulty::of(inner) })
    }

    /// Says the same to so many writes, which happen if they are to be done.
    pub fn saying(
        inner: Arc<dyn ObjectStore>,
        to: Writes,
        (text, times, done): (&'static str, usize, bool),
    ) -> Arc<Faulty> {
        let saying = Some(Saying { to, done, text, left: AtomicUsize::new(times) });
        Arc::new(Faulty { saying, ..Faulty::of(inner) })
    }

    /// A server that takes its time: something happens before an object is read.
    pub fn while_reading(inner: Arc<dyn ObjectStore>, happens: impl Fn(&Path) + Send + Sync + 'static) -> Arc<Faulty> {
        Arc::new(Faulty { meanwhile: Some(Meanwhile(Box::new(happens))), ..Faulty::of(inner) })
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// What befalls this request.
    fn next(&self) -> Option<Fault> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        match self.fault? {
            (Fault::Down, from) => (number >= from).then_some(Fault::Down),
            (fault, at) => (number == at).then_some(fault),
        }
    }
}

fn reset() -> Error {
    Error::Generic { store: "faulty", source: "connection reset by peer".into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        if self.ignores_conditions {
            options.mode = PutMode::Overwrite;
        }
        let is_meant = |saying: &&Saying| {
            let counts = |left: usize| left.checked_sub(1);
            (saying.to == Writes::All || !matches!(options.mode, PutMode::Overwrite))
                && saying.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counts).is_ok()
        };
        if let Some(saying) = self.saying.as_ref().filter(is_meant) {
            if saying.done {
                self.inner.put_opts(path, payload, options).await?;
            }
            return Err(Error::Generic { store: "faulty", source: saying.text.into() });
        }
        match self.next() {
            Some(Fault::Lost | Fault::Down) => Err(reset()),
            Some(_) => {
                self.inner.put_opts(path, payload, options).await?;
                Err(reset())
            }
            None => self.inner.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        match self.next() {
            Some(_) => Err(reset()),
            None => self.inner.put_multipart_opts(path, options).await,
        }
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.meanwhile.iter().for_each(|meanwhile| meanwhile.0(path));
        let fault = self.next();
        if matches!(fault, Some(Fault::Lost | Fault::AnswerLost | Fault::Down)) {
            return Err(reset());
        }
        let is_head = options.head;
        let mut found = self.inner.get_opts(path, options).await?;
        if let (Some(fault), false) = (fault, is_head) {
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let mut bytes = found.bytes().await?.to_vec();
            let middle = bytes.len() / 2;
            match fault {
                Fault::Truncated => bytes.truncate(middle),
                _ if bytes.is_empty() => {}
                _ => bytes[middle] ^= 1,
            }
            let payload = GetResultPayload::Stream(stream::iter([Ok(Bytes::from(bytes))]).boxed());
            found = GetResult { payload, meta, range, attributes, extensions: Default::default() };
        }
        Ok(found)
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
