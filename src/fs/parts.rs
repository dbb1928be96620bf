//! Large files in parts: threads read, hash and write several at a time, and what came of them is joined in the order
//! of the file.
//!
//! A part is a whole subtree of BLAKE3's tree, so that the digest of the file follows from those of its parts
//! (section 2.1 of the BLAKE3 paper; [`blake3::hazmat`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use camino::Utf8Path;

use super::Result;
use super::copy::{Advance, Extent, for_each_extent, read_full};
use super::holes::{PAGE, RUN};
use crate::error::At;
use crate::id::Digest;

/// Bytes of a part: a power of two of BLAKE3's chunks, and as much as a disk likes to be given at once.
pub(super) const PART: usize = 1024 * 1024;

/// Threads that work on one file, the caller's included: as many requests keep a disk busy.
const MOST_THREADS: usize = 8;

/// Threads that help in the whole process; each has a buffer of one part.
const MOST_HELPERS: usize = 16;

/// Bytes that are read and hashed at a time: what a core has just read is still in its cache then.
const PIECE: usize = 128 * 1024;

/// Bytes from which on it costs less to ask where the holes are than to read zeros.
const WORTH_A_QUESTION: u64 = RUN;

/// How many bytes are seen at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// Few: they stay in the core's cache, and more threads than cores would drive them out.
    Pieces,
    /// A whole part, by as many threads as keep a disk busy.
    Parts,
}

/// The question takes a look at several files of the system.
static CORES: OnceLock<usize> = OnceLock::new();

impl Seen {
    fn bytes(self) -> usize {
        match self {
            Seen::Pieces => PIECE,
            Seen::Parts => PART,
        }
    }

    fn threads(self) -> usize {
        match self {
            Seen::Pieces => *CORES.get_or_init(|| thread::available_parallelism().map_or(1, usize::from)),
            Seen::Parts => MOST_THREADS,
        }
    }
}

/// A file that is read, and what is told of it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub file: &'a File,
    pub path: &'a Utf8Path,
    pub advance: Advance<'a>,
}

/// Gives the digest and size of a file; holes are not read, but in small files.
///
/// `look` sees the bytes of each part, as far as they are no hole, from several threads; what it made of a part goes to
/// `take`, in the order of the file. A file that became shorter is an error: its digest would be a lie.
pub(super) fn read_in_parts<T: Default + Send>(
    source: Source,
    seen: Seen,
    look: impl Fn(&mut T, &[u8], u64) -> Result<()> + Sync,
    take: impl FnMut(T) + Send,
) -> Result<(Digest, u64)> {
    let size = source.file.metadata().at("read", source.path)?.len();
    Ok((share_out(source, seen, Hashed::Yes, size, look, take)?.finish(), size))
}

/// Lets `look` see the first `size` bytes of a file by whole parts, as far as they are no hole, from several threads.
pub(super) fn see_parts(source: Source, size: u64, look: impl Fn(&[u8], u64) -> Result<()> + Sync) -> Result<()> {
    let look = |(): &mut (), bytes: &[u8], at: u64| look(bytes, at);
    share_out(source, Seen::Parts, Hashed::No, size, look, |()| ()).map(drop)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashed {
    Yes,
    No,
}

fn share_out<T: Default + Send>(
    source: Source,
    seen: Seen,
    hashed: Hashed,
    size: u64,
    look: impl Fn(&mut T, &[u8], u64) -> Result<()> + Sync,
    take: impl FnMut(T) + Send,
) -> Result<Tree> {
    let joined = Mutex::new(Joined::new(take));
    let work = Work { source, seen, hashed, size, look, next: AtomicU64::new(0), joined };
    let helpers = Helpers::up_to(work.parts().min(seen.threads().min(MOST_THREADS) as u64) as usize - 1);
    thread::scope(|scope| {
        for _ in 0..helpers.0 {
            // Without a thread that can't be started, it takes longer.
            let _ = thread::Builder::new().spawn_scoped(scope, || work.run());
        }
        work.run();
    });
    let joined = work.joined.into_inner().unwrap_or_else(PoisonError::into_inner);
    match joined.failed {
        Some(error) => Err(error),
        None => Ok(joined.tree),
    }
}

/// A file, while threads share out its parts.
struct Work<'a, T, L, F> {
    source: Source<'a>,
    seen: Seen,
    hashed: Hashed,
    size: u64,
    look: L,
    next: AtomicU64,
    joined: Mutex<Joined<T, F>>,
}

/// What came of the parts so far.
struct Joined<T, F> {
    tree: Tree,
    take: F,
    /// Parts that came before an earlier one.
    early: BTreeMap<u64, (Node, T)>,
    failed: Option<crate::error::PathError>,
}

impl<T, F: FnMut(T)> Joined<T, F> {
    fn new(take: F) -> Self {
        Joined { tree: Tree::default(), take, early: BTreeMap::new(), failed: None }
    }

    fn add(&mut self, number: u64, node: Node, made: T) {
        self.early.insert(number, (node, made));
        while let Some((node, made)) = self.early.remove(&self.tree.parts) {
            self.tree.push(node);
            (self.take)(made);
        }
    }
}

impl<T: Default, L: Fn(&mut T, &[u8], u64) -> Result<()>, F: FnMut(T)> Work<'_, T, L, F> {
    /// A file without bytes has one part, too.
    fn parts(&self) -> u64 {
        self.size.div_ceil(PART as u64).max(1)
    }

    fn run(&self) {
        let mut buffer = Buffer::new(self.size.min(self.seen.bytes() as u64) as usize + PAGE as usize);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.parts() || self.joined().failed.is_some() {
                return;
            }
            let done = self.part(number, buffer.bytes());
            let mut joined = self.joined();
            match done {
                Ok((node, made)) => joined.add(number, node, made),
                Err(error) => joined.failed = Some(error),
            }
        }
    }

    fn joined(&self) -> MutexGuard<'_, Joined<T, F>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, number: u64, buffer: &mut [u8]) -> Result<(Node, T)> {
        let start = number * PART as u64;
        let range = start..self.size.min(start + PART as u64);
        let (mut hasher, mut made) = (PartHasher::new(self.hashed, start), T::default());
        self.for_each_extent(range, |extent| match extent {
            Extent::Hole { len } => {
                hasher.zeros(len);
                Ok(())
            }
            Extent::Data { start: mut at, len } => {
                let end = at + len;
                while at < end {
                    // As far from the start of the buffer as from a page of the file, so that both are aligned.
                    let inside = (at % PAGE) as usize;
                    let want = (end - at).min((buffer.len() - inside) as u64) as usize;
                    let bytes = &mut buffer[inside..inside + want];
                    self.read(&mut hasher, bytes, at)?;
                    (self.look)(&mut made, bytes, at)?;
                    at += want as u64;
                }
                Ok(())
            }
        })?;
        (self.source.advance)(self.size.min(start + PART as u64) - start);
        Ok((hasher.finish(self.parts() == 1), made))
    }

    fn for_each_extent(&self, range: Range<u64>, mut each: impl FnMut(Extent) -> Result<()>) -> Result<()> {
        match self.size < WORTH_A_QUESTION {
            true => each(Extent::Data { start: range.start, len: range.end - range.start }),
            false => for_each_extent((self.source.file, self.source.path), range, each),
        }
    }

    fn read(&self, hasher: &mut PartHasher, bytes: &mut [u8], start: u64) -> Result<()> {
        let mut at = start;
        for piece in bytes.chunks_mut(PIECE) {
            if read_full((self.source.file, self.source.path), piece, at)? < piece.len() {
                let shorter = io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
                return Err(shorter).at("read", self.source.path);
            }
            hasher.update(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// Hashes one part, if it is to be hashed.
struct PartHasher(Option<Hasher>);

impl PartHasher {
    fn new(hashed: Hashed, start: u64) -> PartHasher {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(start);
        PartHasher((hashed == Hashed::Yes).then_some(hasher))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.as_mut().map(|hasher| hasher.update(bytes));
    }

    fn zeros(&mut self, mut len: u64) {
        static ZEROS: [u8; PIECE] = [0; PIECE];
        while len > 0 && self.0.is_some() {
            let piece = len.min(PIECE as u64);
            self.update(&ZEROS[..piece as usize]);
            len -= piece;
        }
    }

    fn finish(self, is_whole_file: bool) -> Node {
        match self.0 {
            None => Node::Unknown,
            Some(hasher) if is_whole_file => Node::Root(hasher.finalize()),
            Some(hasher) => Node::Inner(hasher.finalize_non_root()),
        }
    }
}

/// What the bytes of a part hash to.
enum Node {
    Unknown,
    /// They are the whole file.
    Root(blake3::Hash),
    Inner(ChainingValue),
}

/// BLAKE3's tree above the parts that were added: the roots of the whole subtrees on its left, each larger than the next.
#[derive(Default)]
struct Tree {
    left: Vec<ChainingValue>,
    /// The latest part: whether it is the last one decides what is above it.
    latest: Option<Node>,
    parts: u64,
}

impl Tree {
    fn push(&mut self, node: Node) {
        if let Some(Node::Inner(mut value)) = self.latest.replace(node) {
            // As many subtrees are whole now as the number of parts ends with zeros, in binary.
            for _ in 0..self.parts.trailing_zeros() {
                let left = self.left.pop().expect("a whole subtree has a left half");
                value = merge_subtrees_non_root(&left, &value, Mode::Hash);
            }
            self.left.push(value);
        }
        self.parts += 1;
    }

    fn finish(mut self) -> Digest {
        let mut value = match self.latest {
            Some(Node::Root(hash)) => return Digest::from(*hash.as_bytes()),
            Some(Node::Inner(value)) => value,
            Some(Node::Unknown) | None => unreachable!("every file has a part, and all were hashed"),
        };
        while self.left.len() > 1 {
            let left = self.left.pop().expect("there are two");
            value = merge_subtrees_non_root(&left, &value, Mode::Hash);
        }
        Digest::from(*merge_subtrees_root(&self.left[0], &value, Mode::Hash).as_bytes())
    }
}

/// Threads that this file may have, of those that the process may have.
struct Helpers(usize);

static IN_USE: AtomicUsize = AtomicUsize::new(0);

impl Helpers {
    fn up_to(wanted: usize) -> Helpers {
        let mut granted = 0;
        let grant = |in_use: usize| {
            granted = wanted.min(MOST_HELPERS.saturating_sub(in_use));
            Some(in_use + granted)
        };
        let _ = IN_USE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant);
        Helpers(granted)
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        IN_USE.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Memory that begins at a page, as writes that pass the page cache want it.
struct Buffer {
    memory: Vec<u8>,
    range: Range<usize>,
}

impl Buffer {
    fn new(len: usize) -> Buffer {
        let memory = vec![0; len + PAGE as usize];
        let start = memory.as_ptr().align_offset(PAGE as usize).min(PAGE as usize);
        Buffer { memory, range: start..start + len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn digest(bytes: &[u8], holes: &[Range<u64>]) -> (Digest, Vec<u64>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        let mut at = 0;
        for hole in holes.iter().cloned().chain(std::iter::once(bytes.len() as u64..0)) {
            file.write_all_at(&bytes[at..hole.start as usize], at as u64).unwrap();
            at = hole.end as usize;
        }
        let mut seen = Vec::new();
        let source = Source { file: &file, path: Utf8Path::new("file"), advance: &|_| () };
        let look = |firsts: &mut Vec<u64>, _: &[u8], at| {
            firsts.push(at);
            Ok(())
        };
        let (digest, size) = read_in_parts(source, Seen::Parts, look, |firsts| seen.extend(firsts)).unwrap();
        assert_eq!(size, bytes.len() as u64);
        (digest, seen)
    }

    #[test]
    fn the_digest_is_that_of_all_bytes_whatever_the_number_of_parts() {
        let bytes: Vec<u8> = (0..9 * PART + 5).map(|at| (at / 1000 % 251) as u8).collect();
        let lens = (0..=9).flat_map(|parts| [0, 1, 1023, 1025, PART / 2 + 1].map(|more| parts * PART + more));
        for len in lens.filter(|&len| len <= bytes.len()) {
            let (found, seen) = digest(&bytes[..len], &[]);
            assert_eq!(found, Digest::of(&bytes[..len]), "{len} bytes");
            assert!(seen.is_sorted(), "{len} bytes: {seen:?}");
        }
    }

    #[test]
    fn holes_are_zeros_that_nobody_sees() {
        let mut bytes = vec![7; 6 * PART];
        let holes = [PART as u64 / 2..3 * PART as u64, 4 * PART as u64 + 65536..4 * PART as u64 + 131_072];
        holes.iter().for_each(|hole| bytes[hole.start as usize..hole.end as usize].fill(0));
        let (found, seen) = digest(&bytes, &holes);
        assert_eq!(found, Digest::of(&bytes));
        assert!(!seen.contains(&(2 * PART as u64)), "{seen:?}");
    }

    #[test]
    fn the_first_error_ends_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PART as u64).unwrap();
        file.write_all_at(b"x", 5 * PART as u64).unwrap();
        let source = Source { file: &file, path: Utf8Path::new("file"), advance: &|_| () };
        let fails = |_: &mut (), _: &[u8], _| Err(io::Error::other("no")).at("write", Utf8Path::new("other"));
        let error = read_in_parts(source, Seen::Pieces, fails, |()| ()).unwrap_err();
        assert_eq!(error.path, "other");
    }

    #[test]
    fn helpers_are_given_back() {
        let first = Helpers::up_to(3);
        assert!(first.0 <= 3);
        drop(first);
        assert!(Helpers::up_to(1000).0 <= MOST_HELPERS);
    }
}
