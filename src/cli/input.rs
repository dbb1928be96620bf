//! Files that the user names.

use std::fs::File;
use std::io::Read;

use camino::Utf8Path;

use super::{Failure, Result};

/// None of the files that commands read has more bytes; a device may have no end.
const LARGEST: u64 = 64 * 1024 * 1024;

/// The bytes of a file.
pub(crate) fn read(file: &Utf8Path) -> Result<Vec<u8>> {
    let opened = File::open(file).map_err(|error| failure(file.as_str(), &error.to_string()))?;
    all_of(opened, file.as_str())
}

/// The bytes of standard input.
pub(crate) fn standard() -> Result<Vec<u8>> {
    all_of(std::io::stdin().lock(), "standard input")
}

fn all_of(opened: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    opened.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| failure(name, &error.to_string()))?;
    match bytes.len() as u64 > LARGEST {
        true => Err(failure(name, "it has more than 64 MiB")),
        false => Ok(bytes),
    }
}

fn failure(name: &str, reason: &str) -> Failure {
    Failure::Other(format!("cannot read {name}: {reason}"), 1)
}
