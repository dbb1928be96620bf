//! How a file is kept in a remote: zstd frames that each stand for a part of it, and a table of them at the end.
//!
//! The whole is a file of the [zstd seekable format](https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md):
//! `zstd -d` gives the file, and any part of it can be fetched by itself. Bytes in, bytes out; nothing here is trusted.

use zstd::bulk::{Compressor, Decompressor};

/// Bytes of the file in each frame but the last.
pub(super) const FRAME: usize = 4 * 1024 * 1024;

/// Frames of other writers may be larger, but not so large that a few of them fill the memory.
const LARGEST_FRAME: u32 = 16 * 1024 * 1024;

/// Quick enough to keep pace with a fast network, on data that are mostly programs and empty blocks.
const LEVEL: i32 = 1;

const SKIPPABLE: u32 = 0x184D_2A5E;
const SEEKABLE: u32 = 0x8F92_EAB1;

/// The number of frames, a byte of flags, and the magic number.
pub(super) const FOOTER: u64 = 9;
const HEADER: u64 = 8;

/// `ZSTD_FRAMEHEADERSIZE_MAX`.
const LARGEST_FRAME_HEADER: usize = 18;
const ENTRY: u64 = 8;

/// A table of more would take too much of the memory; of frames of 4 MiB, they are 32 TiB.
const MOST_FRAMES: u64 = 8 * 1024 * 1024;

/// The largest file that such a table has all of.
pub(super) const LARGEST_FILE: u64 = MOST_FRAMES * FRAME as u64;

/// Says why bytes of a remote are not what they should be.
type Result<T> = std::result::Result<T, String>;

/// Makes frames.
pub(super) struct Encoder(Compressor<'static>);

impl Encoder {
    pub fn new() -> std::io::Result<Encoder> {
        let mut compressor = Compressor::new(LEVEL)?;
        // What the network or the server changed is found in the frame, and only that part is fetched again.
        compressor.include_checksum(true)?;
        Ok(Encoder(compressor))
    }

    /// A frame of a part of the file.
    pub fn frame(&mut self, part: &[u8]) -> std::io::Result<Vec<u8>> {
        self.0.compress(part)
    }
}

/// Reads frames.
pub(super) struct Decoder(Decompressor<'static>);

impl Decoder {
    pub fn new() -> std::io::Result<Decoder> {
        Ok(Decoder(Decompressor::new()?))
    }

    /// Unpacks the part of the file that a frame stands for, into as much room as the table says that it takes.
    pub fn part(&mut self, frame: &[u8], room: &mut [u8]) -> Result<()> {
        let unpacked = self.0.decompress_to_buffer(frame, room);
        match unpacked.map_err(|error| format!("a frame can't be unpacked: {error}"))? {
            len if len == room.len() => Ok(()),
            len => Err(format!("a frame has {len} bytes, not {}", room.len())),
        }
    }
}

/// A frame: where it is, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Where it begins in the remote's object.
    pub at: u64,
    pub len: u32,
    /// Where its part begins in the file.
    pub part_at: u64,
    pub part_len: u32,
}

/// The first frame of what is left of an object, of which `bytes` has the beginning, where the table was not read: a
/// frame says itself how long it is. `None` if more of it must come; [`is_table`] tells whether it is the table.
pub(super) fn first_frame(bytes: &[u8], at: u64, part_at: u64) -> Result<Option<Frame>> {
    let part_len = match zstd::zstd_safe::get_frame_content_size(bytes) {
        Ok(Some(len)) if len > 0 && len <= LARGEST_FRAME.into() => len as u32,
        Ok(_) => return Err("a frame does not say how long it is, or is too long".into()),
        Err(_) if bytes.len() < LARGEST_FRAME_HEADER => return Ok(None),
        Err(_) => return Err("what comes is no frame".into()),
    };
    match zstd::zstd_safe::find_frame_compressed_size(bytes) {
        Ok(len) if len as u64 > most_compressed(part_len) => Err("a frame is too long".into()),
        Ok(len) => Ok(Some(Frame { at, len: len as u32, part_at, part_len })),
        Err(_) if bytes.len() as u64 > most_compressed(part_len) => Err("a frame is too long, or is none".into()),
        Err(_) => Ok(None),
    }
}

/// Whether the table begins here.
pub(super) fn is_table(bytes: &[u8]) -> bool {
    bytes.starts_with(&SKIPPABLE.to_le_bytes())
}

/// The table at the end, as it is written.
#[derive(Debug, Default)]
pub(super) struct TableWriter {
    entries: Vec<u8>,
    count: u32,
}

impl TableWriter {
    pub fn add(&mut self, frame_len: usize, part_len: usize) {
        self.entries.extend((frame_len as u32).to_le_bytes());
        self.entries.extend((part_len as u32).to_le_bytes());
        self.count += 1;
    }

    pub fn finish(self) -> Vec<u8> {
        let mut table = Vec::with_capacity(self.entries.len() + (HEADER + FOOTER) as usize);
        table.extend(SKIPPABLE.to_le_bytes());
        table.extend((self.entries.len() as u32 + FOOTER as u32).to_le_bytes());
        table.extend(self.entries);
        table.extend(self.count.to_le_bytes());
        table.push(0);
        table.extend(SEEKABLE.to_le_bytes());
        table
    }
}

/// The length of the table of an object, by its last [`FOOTER`] bytes.
pub(super) fn table_len(footer: &[u8], file_size: u64) -> Result<u64> {
    let number = |at: usize| u32::from_le_bytes(footer[at..at + 4].try_into().expect("four bytes"));
    if footer.len() as u64 != FOOTER || number(5) != SEEKABLE {
        return Err("it has no table of frames at its end".into());
    }
    if footer[4] != 0 {
        return Err("its table of frames is of a kind that this program does not know".into());
    }
    let count = u64::from(number(0));
    if count > most_frames(file_size).min(MOST_FRAMES) {
        return Err(format!("it has {count} frames for a file of {file_size} bytes"));
    }
    Ok(HEADER + count * ENTRY + FOOTER)
}

/// No writer makes frames of less than 64 KiB, but for the last.
pub(super) fn most_frames(file_size: u64) -> u64 {
    file_size / (64 * 1024) + 1
}

/// The frames of an object of `object_size` bytes, by its whole table.
pub(super) fn read_table(table: &[u8], object_size: u64, file_size: u64) -> Result<Vec<Frame>> {
    let bad = || "its table of frames does not fit it".to_owned();
    let end = table.len().checked_sub(FOOTER as usize).ok_or_else(bad)?;
    if table_len(&table[end..], file_size)? != table.len() as u64 {
        return Err(bad());
    }
    let number = |at: usize| u32::from_le_bytes(table[at..at + 4].try_into().expect("four bytes"));
    if number(0) != SKIPPABLE || u64::from(number(4)) != table.len() as u64 - HEADER {
        return Err(bad());
    }
    let (mut at, mut part_at) = (0_u64, 0_u64);
    let mut frames = Vec::new();
    for entry in (HEADER as usize..end).step_by(ENTRY as usize) {
        let (len, part_len) = (number(entry), number(entry + 4));
        if part_len == 0 || part_len > LARGEST_FRAME || u64::from(len) > most_compressed(part_len) {
            return Err(bad());
        }
        frames.push(Frame { at, len, part_at, part_len });
        (at, part_at) = (at + u64::from(len), part_at + u64::from(part_len));
    }
    if at + table.len() as u64 != object_size || part_at != file_size {
        return Err(bad());
    }
    Ok(frames)
}

/// Bytes that can't be made smaller take a little more (`ZSTD_compressBound`), with a header and a checksum.
fn most_compressed(part_len: u32) -> u64 {
    zstd::zstd_safe::compress_bound(part_len as usize) as u64 + 64
}

/// The most bytes that an object for a file of this size can have.
pub(super) fn most_object_bytes(file_size: u64) -> u64 {
    let frames = most_frames(file_size);
    let around = frames.saturating_mul(ENTRY + 1024).saturating_add(HEADER + FOOTER);
    file_size.saturating_add(file_size / 128).saturating_add(around)
}

/// Whether an object of this length can hold a file of this size; one that is cut short to nothing can't.
pub(super) fn can_be_of(object_len: u64, file_size: u64) -> bool {
    (HEADER + FOOTER..=most_object_bytes(file_size)).contains(&object_len)
}

#[cfg(test)]
mod tests {
    use super::super::parsers::{packed, unpack};
    use super::*;

    fn object(bytes: &[u8]) -> Vec<u8> {
        packed(bytes, FRAME)
    }

    #[test]
    fn a_file_comes_back_and_any_zstd_can_read_it() {
        for size in [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 17] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 5 % 251) as u8).collect();
            let object = object(&bytes);
            assert!(unpack(&object, size as u64).unwrap() == bytes);
            assert!(zstd::stream::decode_all(&object[..]).unwrap() == bytes);
            assert!(object.len() as u64 <= most_object_bytes(size as u64));
        }
    }

    #[test]
    fn zeros_cost_nothing() {
        let len = object(&vec![0; 64 * FRAME]).len();
        assert!(len < 64 * 256, "{len}");
    }

    #[test]
    fn what_was_changed_is_found_and_nothing_large_is_made_of_it() {
        let bytes: Vec<u8> = (0..FRAME + 5000).map(|at| (at * at / 7 % 251) as u8).collect();
        let good = object(&bytes);
        let size = bytes.len() as u64;
        for at in (0..good.len()).step_by(97).chain(good.len() - 40..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let found = unpack(&bad, size);
            assert!(found.is_err() || found.is_ok_and(|found| found == bytes), "{at}");
        }
        for len in [0, 5, 9, 30, good.len() - 1] {
            assert!(unpack(&good[..len], size).is_err());
        }
        assert!(unpack(&good, size - 1).is_err());
        assert!(unpack(&good, size + 1).is_err());
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = Encoder::new().unwrap().frame(&vec![0; 64 << 20]).unwrap();
        assert!(Decoder::new().unwrap().part(&bomb, &mut [0; 4096]).is_err());
        let mut table = TableWriter::default();
        table.add(bomb.len(), 64 << 20);
        let mut object = bomb;
        object.extend(table.finish());
        assert!(unpack(&object, 64 << 20).is_err(), "a frame is larger than any that we would hold in memory");
        let mut footer = u32::MAX.to_le_bytes().to_vec();
        footer.push(0);
        footer.extend(SEEKABLE.to_le_bytes());
        assert!(table_len(&footer, 1 << 20).is_err(), "a table of four billion frames");
    }
}
