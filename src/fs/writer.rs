//! Whether somebody can write to a file, and whether somebody did.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use camino::Utf8Path;

use super::ioctl::has_writer;
use super::lock::{BackOff, FORK_TIME};
use super::{Result, read};
use crate::error::At;

/// Whether a process can write to a file through what it has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    None,
    Some,
    /// The system does not tell this user.
    Unknown,
}

/// Whether somebody has the file open for writing, for longer than a fork takes; nothing is changed.
pub(crate) fn writer(path: &Utf8Path) -> Result<Writer> {
    Ok(lasting_writer(&read::open(path)?))
}

pub(super) fn lasting_writer(file: &File) -> Writer {
    let mut pauses = BackOff::new(Some(FORK_TIME));
    loop {
        match writer_of(file) {
            Writer::Some if pauses.pause() => {}
            writer => return writer,
        }
    }
}

/// Waits for processes that are being started: until they run their programs, they have copies of all descriptors. For
/// questions whose answer costs a copy or holes, and nothing else.
///
/// Who has a file open for longer is waited for in vain. After that nobody is waited for for a while: what such files
/// cost stays a small part of the time, however many there are.
#[derive(Debug, Clone, Default)]
pub(super) struct Starting(Arc<Mutex<Option<Instant>>>);

impl Starting {
    const REST: Duration = FORK_TIME.saturating_mul(20);

    /// Whether somebody has the file open for writing, for longer than a start takes.
    pub fn writer(&self, file: &File) -> Writer {
        let mut writer = Writer::None;
        self.wait_while(|| {
            writer = writer_of(file);
            writer == Writer::Some
        });
        writer
    }

    /// Asks until it is not so any more, or the time is over; says whether it is.
    pub fn wait_while(&self, mut is_so: impl FnMut() -> bool) -> bool {
        let in_vain = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_so() {
            return false;
        }
        if in_vain().is_some_and(|since| since.elapsed() < Starting::REST) {
            return true;
        }
        let mut pauses = BackOff::new(Some(FORK_TIME));
        while pauses.pause() {
            if !is_so() {
                return false;
            }
        }
        *in_vain() = Some(Instant::now());
        true
    }
}

pub(super) fn writer_of(file: &File) -> Writer {
    match has_writer(file) {
        Ok(false) => Writer::None,
        Ok(true) => Writer::Some,
        Err(_) => Writer::Unknown,
    }
}

/// A file to which nobody writes, as it is at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Still {
    size: u64,
    /// Every write sets it, and no call sets it back (inode(7), `st_ctime`).
    changed: (i64, i64),
}

/// How long ago a file must have been changed: two changes may get the same time when they are closer than a tick.
const TICK: Duration = Duration::from_millis(100);

impl Still {
    /// `None` when somebody has the file open for writing, when this user can't know, or when it was changed just now.
    ///
    /// Two that are equal say that nobody wrote to the file between the two.
    pub fn of(file: &File, path: &Utf8Path) -> Result<Option<Still>> {
        let metadata = file.metadata().at("read", path)?;
        let still = Still { size: metadata.len(), changed: (metadata.ctime(), metadata.ctime_nsec()) };
        let since = Duration::new(metadata.ctime().max(0) as u64, metadata.ctime_nsec() as u32);
        let is_old = (SystemTime::UNIX_EPOCH + since).elapsed().is_ok_and(|age| age >= TICK);
        Ok((is_old && writer_of(file) == Writer::None).then_some(still))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_waited_for_in_vain_is_not_waited_for_again_at_once() {
        let starting = Starting::default();
        let asked = std::cell::Cell::new(0);
        let is_so_until = |end: u32| {
            move |asked: &std::cell::Cell<u32>| {
                asked.set(asked.get() + 1);
                asked.get() < end
            }
        };
        let wait = |end| {
            asked.set(0);
            let is_so = is_so_until(end);
            (starting.wait_while(|| is_so(&asked)), asked.get())
        };
        assert_eq!(wait(1), (false, 1));
        assert_eq!(wait(3), (false, 3));
        assert!(wait(u32::MAX).0 && asked.get() > 3, "it was waited for");
        assert_eq!(wait(3), (true, 1), "and is not now");
        assert_eq!(wait(1), (false, 1));
    }

    #[test]
    fn a_file_is_still_when_nobody_wrote_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap().join("file");
        std::fs::write(&path, "old").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(Still::of(&file, &path).unwrap(), None, "it was changed just now");
        std::thread::sleep(Duration::from_millis(200));
        let before = Still::of(&file, &path).unwrap();
        assert!(before.is_some());
        assert_eq!(Still::of(&file, &path).unwrap(), before);
        let writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(Still::of(&file, &path).unwrap(), None, "somebody has it open");
        drop(writer);
        std::fs::write(&path, "new").unwrap();
        assert_ne!(Still::of(&file, &path).unwrap(), before);
    }
}
