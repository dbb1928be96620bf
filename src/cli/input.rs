//! Files that the user names.

use std::fs::File;
use std::io::Read;

use camino::Utf8Path;

use super::{Failure, Result};

/// None of the files that commands read has more bytes; a device may have no end.
const LARGEST: u64 = 64 * 1024 * 1024;

/// The bytes of a file.
pub(crate) fn read(file: &Utf8Path) -> Result<Vec<u8>> {
    let fail = |reason: String| Failure::Other(format!("cannot read {file}: {reason}"), 1);
    let opened = File::open(file).map_err(|error| fail(error.to_string()))?;
    let mut bytes = Vec::new();
    opened.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| fail(error.to_string()))?;
    match bytes.len() as u64 > LARGEST {
        true => Err(fail("it has more than 64 MiB".into())),
        false => Ok(bytes),
    }
}
