//! A file on its way to a remote: read, hashed and packed by some threads while others send what is packed.

use std::ops::Range;

use bytes::Bytes;
use camino::Utf8Path;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt};
use rayon::prelude::*;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinSet;

use super::backend::{Backend, WRITES};
use super::error::RemoteError;
use super::frames::{Encoder, FRAME, TableWriter, most_object_bytes};
use super::text::was_changed;
use crate::error::{At, Error, Result};
use crate::format::Content;
use crate::fs::copy::Advance;
use crate::fs::read::{self, File};

/// Servers want parts of at least 5 MiB, all of one size but the last, and at most 10,000 of them.
const PART: usize = 8 * 1024 * 1024;
const MOST_PARTS: u64 = 9000;

/// Parts that are on their way at once, and parts that wait for it.
const IN_FLIGHT: usize = 4;
const WAITING: usize = 1;

/// Frames that are made at once.
const BATCH: usize = 4;

/// A part of what is sent.
enum Packed {
    Part(Bytes),
    /// The last: only now is it known that the file is what it was to be.
    Last(Bytes),
}

/// A file of a revision.
pub(super) struct Outgoing<'a> {
    pub file: &'a File,
    pub path: &'a Utf8Path,
    pub content: &'a Content,
    pub holes: &'a [Range<u64>],
}

/// Sends a file; gives the bytes that were sent. The remote has all of it afterwards, or nothing.
///
/// What was changed on the way, the server refuses; it is sent again.
pub(super) fn upload(backend: &Backend, outgoing: &Outgoing, advance: Advance) -> Result<u64> {
    for _ in 1..WRITES {
        match send_once(backend, outgoing, advance) {
            Err(Error::Remote(RemoteError::Failed { problem, .. })) if was_changed(&problem) => {}
            sent => return sent,
        }
    }
    send_once(backend, outgoing, advance)
}

fn send_once(backend: &Backend, outgoing: &Outgoing, advance: Advance) -> Result<u64> {
    backend.check_writable()?;
    let name = backend.names.blob(&outgoing.content.blake3);
    let (send, receive) = channel(WAITING);
    // Neither on the caller's thread: that one may belong to a runtime, which does not let it wait.
    let (packed, sent) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| pack(backend, outgoing, send, advance));
        let sent = backend.wait(send_parts(backend, &name, receive));
        (packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), sent)
    });
    // A server that refuses stops the packing, and a file that is damaged the sending.
    match (packed?, sent?) {
        (true, Some(bytes)) => Ok(bytes),
        _ => {
            let problem = "it is not what was published; `template-store verify --repair` may mend it".to_owned();
            Err(Error::Damaged { path: outgoing.path.to_owned(), problem })
        }
    }
}

/// Packs the file. `false`: it is not the file that it was to be, or nobody takes what is packed any more.
fn pack(backend: &Backend, outgoing: &Outgoing, send: Sender<Packed>, advance: Advance) -> Result<bool> {
    let size = outgoing.content.size;
    let part = part_size(size);
    let room = part.min(most_object_bytes(size) as usize);
    let mut parts = Parts { send, size: part, room, part: Vec::new() };
    let (mut hasher, mut table) = (blake3::Hasher::new(), TableWriter::default());
    for start in (0..size).step_by(FRAME * BATCH) {
        for (bytes, frame) in backend.pool.install(|| make_frames(outgoing, start))? {
            hasher.update(&bytes);
            table.add(frame.len(), bytes.len());
            advance(bytes.len() as u64);
            drop(bytes);
            if !parts.add(&frame) {
                return Ok(false);
            }
        }
    }
    let is_right = hasher.finalize().as_bytes() == outgoing.content.blake3.as_bytes();
    Ok(is_right && parts.add(&table.finish()) && parts.end())
}

/// Packed bytes, cut into parts of one size.
struct Parts {
    send: Sender<Packed>,
    size: usize,
    /// What a part takes at most: a small file does not fill one.
    room: usize,
    part: Vec<u8>,
}

impl Parts {
    /// Whether somebody still takes them.
    fn add(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.part.len() == self.size {
                let full = std::mem::take(&mut self.part);
                if self.send.blocking_send(Packed::Part(full.into())).is_err() {
                    return false;
                }
            }
            if self.part.capacity() == 0 {
                self.part.reserve_exact(self.room);
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.size - self.part.len()));
            self.part.extend_from_slice(now);
            bytes = later;
        }
        true
    }

    fn end(self) -> bool {
        self.send.blocking_send(Packed::Last(self.part.into())).is_ok()
    }
}

/// The next frames, and the bytes that each stands for.
fn make_frames(outgoing: &Outgoing, start: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let Outgoing { file, path, content, holes } = outgoing;
    let end = content.size.min(start + (FRAME * BATCH) as u64);
    let starts: Vec<u64> = (start..end).step_by(FRAME).collect();
    let frame = |at: u64| -> Result<(Vec<u8>, Vec<u8>)> {
        let len = FRAME.min((end - at) as usize);
        let is_hole = holes.iter().any(|hole| hole.start <= at && at + len as u64 <= hole.end);
        let bytes = if is_hole { vec![0; len] } else { read::piece(file, path, at, len)? };
        let packed = Encoder::new().and_then(|mut encoder| encoder.frame(&bytes)).at("compress", path)?;
        Ok((bytes, packed))
    };
    starts.into_par_iter().map(frame).collect()
}

fn part_size(size: u64) -> usize {
    PART.max((size / MOST_PARTS) as usize)
}

/// Sends what is packed; `None` when that ends before the last part.
async fn send_parts(backend: &Backend, name: &Path, mut parts: Receiver<Packed>) -> Result<Option<u64>> {
    let first = match parts.recv().await {
        None => return Ok(None),
        Some(Packed::Last(bytes)) => {
            let len = bytes.len() as u64;
            return backend.put(name, bytes).await.map(|()| Some(len));
        }
        Some(Packed::Part(bytes)) => bytes,
    };
    let failed = |error| backend.failed("write", name, &error);
    let mut upload = backend.objects.put_multipart(name).await.map_err(failed)?;
    match send_all(&mut *upload, first, &mut parts).await {
        Ok(Some(bytes)) => match upload.complete().await {
            Ok(_) => Ok(Some(bytes)),
            Err(error) => {
                let _ = upload.abort().await;
                Err(failed(error))
            }
        },
        ended => {
            // Else the server keeps, and bills, the parts that came.
            let _ = upload.abort().await;
            ended.map_err(failed)
        }
    }
}

async fn send_all(
    upload: &mut dyn MultipartUpload,
    first: Bytes,
    parts: &mut Receiver<Packed>,
) -> object_store::Result<Option<u64>> {
    let (mut in_flight, mut sent, mut next) = (JoinSet::new(), 0, Some(Packed::Part(first)));
    let mut is_whole = false;
    while let Some(part) = next {
        is_whole = matches!(part, Packed::Last(_));
        let (Packed::Part(bytes) | Packed::Last(bytes)) = part;
        sent += bytes.len() as u64;
        in_flight.spawn(upload.put_part(bytes.into()));
        while in_flight.len() >= IN_FLIGHT {
            in_flight.join_next().await.expect("there are some")??;
        }
        next = if is_whole { None } else { parts.recv().await };
    }
    while let Some(done) = in_flight.join_next().await {
        done??;
    }
    Ok(is_whole.then_some(sent))
}
