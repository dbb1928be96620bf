//! What a file holds, and what a power cut may make of it.

use std::fmt;
use std::sync::Arc;

/// The bytes of a file, shared, with their hash worked out once.
///
/// Zeros at the end are only counted: a reserved file of some MiB costs nothing.
#[derive(Clone)]
pub struct Blob(Arc<Bytes>);

struct Bytes {
    head: Vec<u8>,
    len: u64,
    hash: u64,
}

impl Blob {
    pub fn new(bytes: Vec<u8>) -> Self {
        let len = bytes.len() as u64;
        Self::padded(bytes, len)
    }

    /// `head`, and zeros up to `len`.
    fn padded(mut head: Vec<u8>, len: u64) -> Self {
        head.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        head.truncate(used(&head));
        let digest = blake3::hash(&head);
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        let hash = super::mix(u64::from_le_bytes(first), len);
        Self(Arc::new(Bytes { head, len, hash }))
    }

    pub fn empty() -> Self {
        Self::padded(Vec::new(), 0)
    }

    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// The bytes before the zeros at the end.
    pub fn head(&self) -> &[u8] {
        &self.0.head
    }

    pub fn hash(&self) -> u64 {
        self.0.hash
    }

    fn at(&self, index: usize) -> u8 {
        self.0.head.get(index).copied().unwrap_or(0)
    }

    /// How many first bytes both have in common.
    pub fn common_prefix(&self, other: &Self) -> u64 {
        let shorter = self.len().min(other.len());
        let longest = self.head().len().max(other.head().len());
        // Whole blocks first: tests run unoptimised, and most files differ late or not at all.
        let blocks = self.head().chunks_exact(1024).zip(other.head().chunks_exact(1024));
        let start = 1024 * blocks.take_while(|(mine, theirs)| mine == theirs).count();
        let differs = (start..longest).find(|&i| self.at(i) != other.at(i));
        differs.map_or(shorter, |i| shorter.min(i as u64))
    }

    fn cut(&self, len: u64) -> Self {
        Self::padded(self.head().to_vec(), len)
    }

    fn zeros_from(&self, start: u64) -> Self {
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let mut head = self.head().to_vec();
        head.truncate(start);
        Self::padded(head, self.len())
    }

    /// Every byte from `start` on is wrong; in a long tail of zeros, one block of them.
    fn noise_from(&self, start: u64) -> Self {
        const BLOCK: u64 = 4096;
        let end = self.len().min((self.head().len() as u64).max(start + BLOCK));
        let [start, end] = [start, end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        let mut bytes = self.head().to_vec();
        bytes.resize(end, 0);
        for byte in bytes.iter_mut().skip(start) {
            *byte = !*byte;
        }
        Self::padded(bytes, self.len())
    }
}

/// The length without the zeros at the end. Whole blocks first: tests run unoptimised.
fn used(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let blocks = bytes.rchunks_exact(ZEROS.len()).take_while(|block| **block == ZEROS).count();
    let rest = &bytes[..bytes.len() - blocks * ZEROS.len()];
    rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self.hash() == other.hash() && self.len() == other.len() && self.head() == other.head()
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:016x}", self.len(), self.hash())
    }
}

/// A file as `stat` and `read` show it.
#[derive(Debug, Clone, PartialEq)]
pub struct FileState {
    pub blob: Blob,
    pub mode: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
}

impl FileState {
    /// A file of which only the name and the first metadata ever reached the disk.
    pub fn emptied(&self) -> Self {
        Self { blob: Blob::empty(), ..self.clone() }
    }

    /// Of the times only "sealed or not" counts: the clock must not make two states of one.
    pub fn hash(&self) -> u64 {
        let sealed = u64::from(self.mtime == (1, 0));
        super::mix(self.blob.hash(), u64::from(self.mode) << 1 | sealed)
    }
}

/// What a power cut made of a file that was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// All that was written is there.
    Current,
    /// Nothing since the last fsync is there.
    Durable,
    /// The new metadata, but none of the new bytes.
    Bare,
    /// Half of the new bytes.
    Half,
    /// All but the last byte: a line without its end.
    AlmostAll,
    /// The new length and metadata, but zeros for the new bytes.
    Zeros,
    /// The new length and metadata, but something else for the new bytes.
    Noise,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Current => "is whole",
            Self::Durable => "is as of its last fsync",
            Self::Bare => "has no new bytes",
            Self::Half => "has half of the new bytes",
            Self::AlmostAll => "lacks its last byte",
            Self::Zeros => "has zeros for the new bytes",
            Self::Noise => "has garbage for the new bytes",
        })
    }
}

/// All that an unsynced file may be after a cut, each once, the whole one first.
///
/// The bytes that the durable and the current content have in common at the start are safe.
pub fn outcomes(durable: &FileState, current: &FileState) -> Vec<(Choice, FileState)> {
    let safe = durable.blob.common_prefix(&current.blob);
    let new = current.blob.len() - safe;
    let with = |blob| FileState { blob, ..current.clone() };
    let mut all = vec![(Choice::Current, current.clone()), (Choice::Durable, durable.clone())];
    if new > 0 {
        let blob = &current.blob;
        all.push((Choice::Zeros, with(blob.zeros_from(safe))));
        all.push((Choice::Noise, with(blob.noise_from(safe))));
        all.push((Choice::Bare, with(blob.cut(safe))));
        all.push((Choice::Half, with(blob.cut(safe + new / 2))));
        all.push((Choice::AlmostAll, with(blob.cut(safe + new - 1))));
    }
    let mut seen = Vec::new();
    all.retain(|(_, state)| {
        let hash = state.hash();
        !seen.contains(&hash) && {
            seen.push(hash);
            true
        }
    });
    all
}
