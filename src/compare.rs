//! Which files two builds do not share, and where they differ.

use std::collections::HashMap;

use camino::Utf8Path;

use crate::error::Result;
use crate::format::Content;
use crate::fs::copy::differing_ranges;
use crate::fs::read;
use crate::id::ArtifactPath;

/// How one file of two builds differs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// Only the earlier build has it.
    Removed {
        /// The file.
        path: ArtifactPath,
    },
    /// Only the later build has it.
    Added {
        /// The file.
        path: ArtifactPath,
    },
    /// Both have it, with other bytes.
    Changed {
        /// The file.
        path: ArtifactPath,
        /// Start and length in bytes of the parts that differ, in blocks of 4 KiB; the first 16.
        ranges: Vec<(u64, u64)>,
    },
}

impl Difference {
    /// The file.
    pub fn path(&self) -> &ArtifactPath {
        match self {
            Difference::Removed { path } | Difference::Added { path } | Difference::Changed { path, .. } => path,
        }
    }
}

/// More ranges than these are not listed.
const MOST_RANGES: usize = 16;

/// The first path that stands in one list only, or has other bytes in the other.
pub(crate) fn first_difference<'a>(a: &'a [Content], b: &'a [Content]) -> Option<&'a ArtifactPath> {
    let missing = |from: &'a [Content], to: &HashMap<&ArtifactPath, &Content>| {
        let missing = from.iter().filter(|content| to.get(&content.path) != Some(content));
        missing.map(|content| &content.path).min()
    };
    missing(a, &by_path(b)).into_iter().chain(missing(b, &by_path(a))).min()
}

/// A list may be long.
fn by_path(list: &[Content]) -> HashMap<&ArtifactPath, &Content> {
    list.iter().map(|content| (&content.path, content)).collect()
}

/// All differences between two builds that lie in these directories, in the order of their paths.
pub(crate) fn differences(old: (&Utf8Path, &[Content]), new: (&Utf8Path, &[Content])) -> Result<Vec<Difference>> {
    let (before, after) = (by_path(old.1), by_path(new.1));
    let mut found = Vec::new();
    for content in old.1 {
        let path = content.path.clone();
        match after.get(&path) {
            None => found.push(Difference::Removed { path }),
            Some(other) if *other == content => {}
            Some(_) => found.push(changed(path, old.0, new.0)?),
        }
    }
    let added = new.1.iter().filter(|content| !before.contains_key(&content.path));
    found.extend(added.map(|content| Difference::Added { path: content.path.clone() }));
    found.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(found)
}

fn changed(path: ArtifactPath, old: &Utf8Path, new: &Utf8Path) -> Result<Difference> {
    let (old, new) = (old.join(path.as_path()), new.join(path.as_path()));
    let (a, b) = (read::open(&old)?, read::open(&new)?);
    let ranges = differing_ranges((&a, &old), (&b, &new), MOST_RANGES)?;
    Ok(Difference::Changed { path, ranges })
}
