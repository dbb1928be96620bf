//! Calls for which no safe wrapper exists: the only unsafe code of the crate.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::c_int;

/// Whether somebody has the file open for writing, or mapped so.
///
/// `file` must be open for reading only. A read lease can be had only while no writer is there (fcntl(2),
/// `F_SETLEASE`); it is given back at once. Needs the file's owner, or `CAP_LEASE`.
pub(super) fn has_writer(file: &File) -> io::Result<bool> {
    // A writer that opens the file while we hold the lease makes the kernel send a signal. The default, SIGIO,
    // would end the process; SIGURG is ignored unless somebody asked for it.
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_RDLCK) {
        Ok(()) => fcntl(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Keeps everybody else from opening a file until [`let_in`]; `false` when somebody has it open.
///
/// `file` must be open for writing, and is the only descriptor that may be left (fcntl(2), `F_SETLEASE`, `F_WRLCK`). Who
/// opens the file meanwhile waits, at most for `/proc/sys/fs/lease-break-time` seconds.
pub(super) fn hold_alone(file: &File) -> io::Result<bool> {
    fcntl(file, F_SETSIG, libc::SIGURG)?;
    match fcntl(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends [`hold_alone`]. Closing the file is not enough: a process that was started meanwhile has a copy of the descriptor
/// until it runs its program.
pub(super) fn let_in(file: &File) -> io::Result<()> {
    fcntl(file, libc::F_SETLEASE, libc::F_UNLCK)
}

/// `F_SETSIG` of `linux/fcntl.h`; libc does not name it for every target.
const F_SETSIG: c_int = 10;

/// Whether a file has an extent that another file has as well (`FS_IOC_FIEMAP`, the kernel's
/// `Documentation/filesystems/fiemap.rst`).
pub(super) fn has_shared_extents(file: &File) -> io::Result<bool> {
    let mut start = 0;
    loop {
        let mut map = Fiemap { start, length: u64::MAX - start, count: EXTENTS as u32, ..Fiemap::default() };
        // SAFETY: the descriptor is open as long as `file` is borrowed; `map` is a `struct fiemap` with room for
        // `count` extents behind its header, and lives until the call has returned.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut map) } == -1 {
            return Err(io::Error::last_os_error());
        }
        let extents = &map.extents[..(map.mapped as usize).min(EXTENTS)];
        if extents.iter().any(|extent| extent.flags & FIEMAP_EXTENT_SHARED != 0) {
            return Ok(true);
        }
        match extents.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => start = last.logical + last.length,
            _ => return Ok(false),
        }
    }
}

/// `linux/fs.h`: `_IOWR('f', 11, struct fiemap)`, whose header has 32 bytes.
const FS_IOC_FIEMAP: u32 = 0xC020_660B;
const FIEMAP_EXTENT_LAST: u32 = 0x1;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
const EXTENTS: usize = 64;

/// `struct fiemap` of `linux/fiemap.h`, with its extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

impl Default for Fiemap {
    fn default() -> Self {
        let extents = [FiemapExtent::default(); EXTENTS];
        Fiemap { start: 0, length: 0, flags: 0, mapped: 0, count: 0, reserved: 0, extents }
    }
}

/// `struct fiemap_extent` of `linux/fiemap.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// fcntl(2) with an int as its argument.
fn fcntl(file: &File, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the commands that are used take
    // an int by value and touch no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
