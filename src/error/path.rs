//! What the system refused, and what it was about.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

/// A call to the system that failed, and what it was about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {source}{}", advice(source))]
pub struct PathError {
    /// What was tried, as a verb: `open`, `rename`, …
    pub doing: &'static str,
    /// The file or directory.
    pub path: Utf8PathBuf,
    /// The system's answer.
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(libc::EIO) {
        return "; the disk may be failing: look into the kernel's log, and verify the store with `template-store verify`";
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; collect what nobody needs with `template-store gc`, or free space on its file system, and try again"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; the store can be read, but nothing can be changed until it is mounted writable"
        }
        io::ErrorKind::PermissionDenied => "; run as the owner of the store, or give this user access",
        io::ErrorKind::CrossesDevices => "; both must be on one file system",
        _ => "",
    }
}

/// Adds to an error of the system what it was about.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: &Utf8Path) -> Result<T, PathError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: &Utf8Path) -> Result<T, PathError> {
        self.map_err(|error| PathError { doing, path: path.to_owned(), source: error.into() })
    }
}

impl PathError {
    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }

    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}
