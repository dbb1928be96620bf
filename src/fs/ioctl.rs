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

/// `F_SETSIG` of `linux/fcntl.h`; libc does not name it for every target.
const F_SETSIG: c_int = 10;

/// fcntl(2) with an int as its argument.
fn fcntl(file: &File, command: c_int, argument: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the three commands that are used take
    // an int by value and touch no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
