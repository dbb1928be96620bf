//! A file on its way from a remote: parts are fetched ahead, unpacked by some threads, hashed and written in order.

use bytes::{Bytes, BytesMut};
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
use crate::fs::receive::Buffer;
use crate::id::Digest;
use crate::repair::Supply;

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
    (content, holes): (&Content, &[(u64, u64)]),
    to: &Utf8Path,
    advance: Advance,
) -> Result<()> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match fetch_once(backend, disk, (content, holes), to, advance) {
            Err(error @ Error::Remote(RemoteError::Damaged { .. })) => last = Some(error),
            ended => return ended,
        }
    }
    Err(last.expect("there was an attempt"))
}

impl Supply for Backend {
    fn name(&self) -> &str {
        &self.url
    }

    fn fetch(&self, disk: &Disk, content: &Content, to: &Utf8Path, advance: Advance) -> Result<bool> {
        self.wait(self.check_format())?;
        match download(self, disk, (content, &[]), to, advance) {
            Ok(()) => Ok(true),
            Err(Error::Remote(RemoteError::Damaged { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Fetches a file and looks whether it has the bytes of its digest; nothing is kept of it.
pub(super) fn read_through(backend: &Backend, content: &Content, advance: Advance) -> Result<()> {
    match stream_through(backend, content, |_, _| Ok(()), advance)? {
        Ok(digest) if digest == content.blake3 => Ok(()),
        unpacked => Err(damaged(backend, content, unpacked)),
    }
}

fn fetch_once(
    backend: &Backend,
    disk: &Disk,
    (content, holes): (&Content, &[(u64, u64)]),
    to: &Utf8Path,
    advance: Advance,
) -> Result<()> {
    let incoming = disk.receive(to, content.size)?;
    let target = incoming.target();
    let place = |bytes: &[u8], at| match is_empty_in(holes, bytes, at) {
        true => Ok(target.write(disk, bytes, at)?),
        // The free space was looked at for less.
        false => Err(damaged(backend, content, Err("there are data where its manifest has a hole".to_owned()))),
    };
    let streamed = stream_through(backend, content, place, advance);
    drop(target);
    let failed = match streamed {
        Ok(Ok(digest)) if digest == content.blake3 => return Ok(incoming.seal(disk)?),
        Ok(unpacked) => damaged(backend, content, unpacked),
        Err(error) => error,
    };
    disk.unlink_if_there(to)?;
    Err(failed)
}

/// Whether a part of a file that begins at this place is zero wherever it is in one of the holes.
fn is_empty_in(holes: &[(u64, u64)], part: &[u8], at: u64) -> bool {
    let end = at + part.len() as u64;
    holes.iter().all(|&(start, len)| {
        let (from, to) = (start.max(at), (start + len).min(end));
        from >= to || part[(from - at) as usize..(to - at) as usize].iter().all(|byte| *byte == 0)
    })
}

/// The digest of what came, or what is wrong with it.
type Unpacked = std::result::Result<Digest, String>;

fn damaged(backend: &Backend, content: &Content, unpacked: Unpacked) -> Error {
    let problem = unpacked.err().unwrap_or_else(|| "its bytes are not those of its digest".to_owned());
    backend.damaged(&backend.names.blob(&content.blake3), problem)
}

/// Gives all parts of a file to `place`, each with its place, from several threads.
fn stream_through(
    backend: &Backend,
    content: &Content,
    place: impl Fn(&[u8], u64) -> Result<()> + Sync,
    advance: Advance,
) -> Result<Unpacked> {
    let name = backend.names.blob(&content.blake3);
    let (send, receive) = channel(1);
    // On a thread of its own: the caller's may belong to a runtime, which does not let it wait.
    let (unpacked, fetched) = std::thread::scope(|scope| {
        let unpacking = scope.spawn(|| unpack(backend, receive, &place, advance));
        let fetched = backend.wait(fetch(backend, &name, content.size, send));
        (unpacking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), fetched)
    });
    let unpacked = unpacked?;
    fetched.map(|()| unpacked)
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
    let Some(table) = table(backend, name, len, size).await? else {
        return fetch_whole(backend, name, size, send).await;
    };
    let parts = stream::iter(parts(table));
    let mut parts = parts.map(|frames| fetch_part(backend, name, frames)).buffered(IN_FLIGHT);
    while let Some(part) = parts.next().await {
        if send.send(part?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Fetches an object from a server that sends whole files only: each frame says itself how long it is.
async fn fetch_whole(backend: &Backend, name: &Path, size: u64, send: Sender<Part>) -> Result<()> {
    let damaged = |problem: &str| backend.damaged(name, problem.to_owned());
    let mut pieces = std::pin::pin!(backend.pieces(name).await?.fuse());
    let (mut waiting, mut at, mut part_at) = (BytesMut::new(), 0, 0);
    // A frame is looked through from its start: so not for each piece, but when twice as much of it is there.
    let (mut enough, mut frames_left, mut is_over) = (0, frames::most_frames(size), false);
    while part_at < size {
        match pieces.next().await.transpose()? {
            Some(piece) => waiting.extend_from_slice(&piece),
            None if is_over => return Err(damaged("it ends too early")),
            None => (enough, is_over) = (0, true),
        }
        if at + waiting.len() as u64 > frames::most_object_bytes(size) {
            return Err(damaged("it is too long for the file"));
        }
        if waiting.len() < enough {
            continue;
        }
        while !frames::is_table(&waiting) {
            let first = frames::first_frame(&waiting, at, part_at).map_err(|problem| damaged(&problem))?;
            let Some(frame) = first else { break };
            (at, part_at) = (at + u64::from(frame.len), part_at + u64::from(frame.part_len));
            if part_at > size || frames_left == 0 {
                return Err(damaged("it has more than the file"));
            }
            frames_left -= 1;
            let bytes = waiting.split_to(frame.len as usize).freeze();
            if send.send((vec![frame], bytes)).await.is_err() {
                return Ok(());
            }
        }
        if frames::is_table(&waiting) && part_at < size {
            return Err(damaged("it has less than the file"));
        }
        enough = waiting.len() * 2;
    }
    Ok(())
}

/// The table of an object: most are in its last few bytes. `None` if the server sends whole files only.
async fn table(backend: &Backend, name: &Path, len: u64, size: u64) -> Result<Option<Vec<Frame>>> {
    let damaged = |problem| backend.damaged(name, problem);
    let tail_start = len.saturating_sub(16 * 1024);
    let Some(tail) = backend.range_if_served(name, tail_start, len).await? else { return Ok(None) };
    let footer = (tail.len() as u64).checked_sub(FOOTER).ok_or_else(|| damaged("it is too short".into()))?;
    let table = frames::table_len(&tail[footer as usize..], size).map_err(damaged)?;
    let start = len.checked_sub(table).ok_or_else(|| damaged("it is too short".into()))?;
    let bytes = match start.checked_sub(tail_start) {
        Some(at) => tail.slice(at as usize..),
        None => backend.range(name, start, len).await?,
    };
    frames::read_table(&bytes, len, size).map(Some).map_err(damaged)
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

/// Unpacks all that comes, a part of it while the part before it is hashed; gives the digest of all, or says what is wrong.
///
/// `place` gets each part and where it begins in the file, from several threads.
fn unpack(
    backend: &Backend,
    mut parts: Receiver<Part>,
    place: impl Fn(&[u8], u64) -> Result<()> + Sync,
    advance: Advance,
) -> Result<Unpacked> {
    let (mut now, mut before) = (Batch::default(), Batch::default());
    let mut hasher = blake3::Hasher::new();
    while let Some((frames, bytes)) = parts.blocking_recv() {
        let start = frames.first().map_or(0, |frame| frame.at);
        let one = |(frame, buffer): (&Frame, &mut Buffer)| -> Result<Option<String>> {
            let at = (frame.at - start) as usize;
            let (packed, room) = (&bytes[at..at + frame.len as usize], buffer.room(frame.part_len as usize));
            let unpacked = Decoder::new().map_err(|error| error.to_string()).and_then(|mut it| it.part(packed, room));
            match unpacked {
                Err(problem) => Ok(Some(problem)),
                Ok(()) => place(buffer.bytes(), frame.part_at).map(|()| None),
            }
        };
        for batch in frames.chunks(BATCH) {
            let unpack = || batch.par_iter().zip(&mut now.buffers[..batch.len()]).map(one).collect::<Result<Vec<_>>>();
            let (unpacked, ()) = backend.pool.join(unpack, || before.hash(&mut hasher));
            if let Some(problem) = unpacked?.into_iter().flatten().next() {
                return Ok(Err(problem));
            }
            now.filled = batch.len();
            std::mem::swap(&mut now, &mut before);
            advance(batch.iter().map(|frame| u64::from(frame.part_len)).sum());
        }
    }
    before.hash(&mut hasher);
    Ok(Ok(Digest::from(*hasher.finalize().as_bytes())))
}

/// Parts that are unpacked at once.
#[derive(Default)]
struct Batch {
    buffers: [Buffer; BATCH],
    filled: usize,
}

impl Batch {
    fn hash(&self, hasher: &mut blake3::Hasher) {
        for buffer in &self.buffers[..self.filled] {
            hasher.update(buffer.bytes());
        }
    }
}
