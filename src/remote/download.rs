//! A file on its way from a remote: parts are fetched ahead, unpacked by some threads, hashed and written in order.

use bytes::Bytes;
use camino::Utf8Path;
use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use rayon::prelude::*;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::backend::Backend;
use super::error::RemoteError;
use super::frames::{self, Decoder, FOOTER, Frame};
use crate::error::{Error, Result};
use crate::format::Content;
use crate::fs::Disk;
use crate::fs::copy::Advance;

/// Files up to this size are fetched in one piece.
const SMALL: u64 = 1024 * 1024;

/// Bytes of an object that are asked for at once.
const PART: u64 = 8 * 1024 * 1024;

/// Parts that are on their way at once.
const IN_FLIGHT: usize = 4;

/// Frames that are unpacked at once.
const BATCH: usize = 4;

/// A file is fetched so often before it is given up: what was changed on the way comes right the next time.
const ATTEMPTS: usize = 3;

/// Some frames, and the bytes of the object that hold them.
type Part = (Vec<Frame>, Bytes);

/// Fetches a file to a new, sealed and durable one that has the bytes of its digest.
///
/// A crash leaves a part of it; after an error it is not there.
pub(super) fn download(
    backend: &Backend,
    disk: &Disk,
    content: &Content,
    to: &Utf8Path,
    advance: Advance,
) -> Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match fetch_once(backend, disk, content, to, advance) {
            Err(error @ Error::Remote(RemoteError::Damaged { .. })) => last = Some(error),
            ended => return ended,
        }
    }
    Err(last.expect("there was an attempt"))
}

/// Fetches a file and looks whether it has the bytes of its digest; nothing is kept of it.
pub(super) fn read_through(backend: &Backend, content: &Content, advance: Advance) -> Result<()> {
    let mut hasher = blake3::Hasher::new();
    let hash = |bytes: &[u8]| {
        hasher.update(bytes);
        Ok(())
    };
    let name = backend.names.blob(&content.blake3);
    match stream_through(backend, content, hash, advance)? {
        Some(problem) => Err(backend.damaged(&name, problem)),
        None if hasher.finalize().as_bytes() == content.blake3.as_bytes() => Ok(()),
        None => Err(backend.damaged(&name, OTHER_BYTES.to_owned())),
    }
}

const OTHER_BYTES: &str = "its bytes are not those of its digest";

fn fetch_once(backend: &Backend, disk: &Disk, content: &Content, to: &Utf8Path, advance: Advance) -> Result<()> {
    let mut incoming = disk.receive(to, content.size)?;
    let streamed = stream_through(backend, content, |bytes| Ok(incoming.add(disk, bytes)?), advance);
    let name = backend.names.blob(&content.blake3);
    let problem = match streamed {
        Ok(None) if incoming.finish(disk, &content.blake3)? => return Ok(()),
        Ok(None) => OTHER_BYTES.to_owned(),
        Ok(Some(problem)) => problem,
        Err(error) => {
            disk.unlink_if_there(to)?;
            return Err(error);
        }
    };
    disk.unlink_if_there(to)?;
    Err(backend.damaged(&name, problem))
}

/// Gives all bytes of a file to `take`, in order; what is wrong with them, if anything is.
fn stream_through(
    backend: &Backend,
    content: &Content,
    take: impl FnMut(&[u8]) -> Result<()> + Send,
    advance: Advance,
) -> Result<Option<String>> {
    let name = backend.names.blob(&content.blake3);
    let (send, receive) = channel(1);
    // On a thread of its own: the caller's may belong to a runtime, which does not let it wait.
    let (taken, fetched) = std::thread::scope(|scope| {
        let taking = scope.spawn(|| unpack(receive, take, advance));
        let fetched = backend.wait(fetch(backend, &name, content.size, send));
        (taking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), fetched)
    });
    let problem = taken?;
    fetched.map(|()| problem)
}

/// Fetches all parts of an object, in order.
async fn fetch(backend: &Backend, name: &Path, size: u64, send: Sender<Part>) -> Result<()> {
    let most = frames::most_object_bytes(size);
    let missing = || backend.damaged(name, "it is missing".into());
    if size <= SMALL {
        let (bytes, _) = backend.get(name, most).await?.ok_or_else(missing)?;
        let len = bytes.len() as u64;
        let damaged = |problem| backend.damaged(name, problem);
        let table = frames::table_len(&bytes[len.saturating_sub(FOOTER) as usize..], size).map_err(damaged)?;
        let start = len.checked_sub(table).ok_or_else(|| damaged("it is too short".into()))?;
        let frames = frames::read_table(&bytes[start as usize..], len, size).map_err(damaged)?;
        // Nobody takes it any more when the disk fails, which is said by whoever writes.
        let _ = send.send((frames, bytes)).await;
        return Ok(());
    }
    let len = backend.len(name).await?.ok_or_else(missing)?;
    if len > most || len < FOOTER {
        return Err(backend.damaged(name, format!("it has {len} bytes for a file of {size}")));
    }
    let parts = stream::iter(parts(table(backend, name, len, size).await?));
    let mut parts = parts.map(|frames| fetch_part(backend, name, frames)).buffered(IN_FLIGHT);
    while let Some(part) = parts.next().await {
        if send.send(part?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The table of an object: most are in its last few bytes.
async fn table(backend: &Backend, name: &Path, len: u64, size: u64) -> Result<Vec<Frame>> {
    let damaged = |problem| backend.damaged(name, problem);
    let tail_start = len.saturating_sub(16 * 1024);
    let tail = backend.range(name, tail_start, len).await?;
    let footer = (tail.len() as u64).checked_sub(FOOTER).ok_or_else(|| damaged("it is too short".into()))?;
    let table = frames::table_len(&tail[footer as usize..], size).map_err(damaged)?;
    let start = len.checked_sub(table).ok_or_else(|| damaged("it is too short".into()))?;
    let bytes = match start.checked_sub(tail_start) {
        Some(at) => tail.slice(at as usize..),
        None => backend.range(name, start, len).await?,
    };
    frames::read_table(&bytes, len, size).map_err(damaged)
}

/// Frames that are fetched together.
fn parts(frames: Vec<Frame>) -> Vec<Vec<Frame>> {
    let mut parts: Vec<Vec<Frame>> = Vec::new();
    let mut bytes = PART;
    for frame in frames {
        if bytes >= PART {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += u64::from(frame.len);
        parts.last_mut().expect("there is one").push(frame);
    }
    parts
}

async fn fetch_part(backend: &Backend, name: &Path, frames: Vec<Frame>) -> Result<Part> {
    let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok((frames, Bytes::new())) };
    let bytes = backend.range(name, first.at, last.at + u64::from(last.len)).await?;
    Ok((frames, bytes))
}

/// Unpacks all that comes; what is wrong with it, if anything is.
fn unpack(
    mut parts: Receiver<Part>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
    advance: Advance,
) -> Result<Option<String>> {
    while let Some((frames, bytes)) = parts.blocking_recv() {
        let start = frames.first().map_or(0, |frame| frame.at);
        for batch in frames.chunks(BATCH) {
            let unpack = |frame: &Frame| {
                let at = (frame.at - start) as usize;
                let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
                decoder.part(&bytes[at..at + frame.len as usize], frame.part_len as usize)
            };
            let unpacked: Vec<_> = batch.par_iter().map(unpack).collect();
            for part in unpacked {
                match part {
                    Ok(part) => take(&part)?,
                    Err(problem) => return Ok(Some(problem)),
                }
            }
            advance(batch.iter().map(|frame| u64::from(frame.part_len)).sum());
        }
    }
    Ok(None)
}
