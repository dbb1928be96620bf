//! The list of a revision's files, and the id that follows from it.

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::FormatError;
use crate::id::{ArtifactPath, Digest, RevisionId};

/// One file of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Its path below the revision's directory.
    pub path: ArtifactPath,
    /// Its size in bytes.
    pub size: u64,
    /// The BLAKE3 digest of its bytes.
    pub blake3: Digest,
}

/// Refuses a list in which a path stands twice, or stands for a file and a directory.
pub(crate) fn check_listing(contents: &[Content]) -> Result<(), FormatError> {
    let mut paths: Vec<&Utf8Path> = contents.iter().map(|content| content.path.as_path()).collect();
    // By their parts: as texts, `a-b` stands between `a` and `a/b`.
    paths.sort_unstable();
    for pair in paths.windows(2) {
        if pair[1].starts_with(pair[0]) {
            return Err(FormatError::invalid("revision.json", format!("{:?} stands twice in contents", pair[0])));
        }
    }
    Ok(())
}

/// The BLAKE3 of a canonical list of path, size and digest; `docs/format.md` gives the bytes.
fn digest(contents: &[Content]) -> Digest {
    let mut sorted: Vec<&Content> = contents.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"template-store revision 1\n");
    hasher.update(&(sorted.len() as u64).to_le_bytes());
    for content in sorted {
        hasher.update(&(content.path.as_str().len() as u64).to_le_bytes());
        hasher.update(content.path.as_str().as_bytes());
        hasher.update(&content.size.to_le_bytes());
        hasher.update(content.blake3.as_bytes());
    }
    Digest::from(*hasher.finalize().as_bytes())
}

/// The id of a revision whose builder gave none: the first 32 hex digits of its contents' digest.
pub(crate) fn derived_id(contents: &[Content]) -> RevisionId {
    digest(contents).to_hex()[..32].parse().expect("hex digits are a revision id")
}

/// Twelve hex digits that tell two revisions with one builder's id apart: the first of their contents' digest.
pub(crate) fn short_contents(contents: &[Content]) -> String {
    digest(contents).to_hex()[..12].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &str, size: u64, bytes: &[u8]) -> Content {
        Content { path: path.parse().unwrap(), size, blake3: Digest::of(bytes) }
    }

    #[test]
    fn the_id_does_not_depend_on_the_order_of_the_list() {
        let (a, b) = (content("a", 1, b"x"), content("b", 1, b"y"));
        assert_eq!(derived_id(&[a.clone(), b.clone()]), derived_id(&[b, a]));
    }

    #[test]
    fn the_id_depends_on_each_path_size_and_digest() {
        let base = derived_id(&[content("ab", 1, b"x"), content("c", 1, b"y")]);
        for other in [
            [content("a", 1, b"x"), content("bc", 1, b"y")],
            [content("ab", 2, b"x"), content("c", 1, b"y")],
            [content("ab", 1, b"y"), content("c", 1, b"x")],
        ] {
            assert_ne!(base, derived_id(&other));
        }
    }

    #[test]
    fn a_path_is_a_file_once() {
        assert!(check_listing(&[content("a", 1, b"x"), content("a", 1, b"x")]).is_err());
        assert!(check_listing(&[content("a", 1, b"x"), content("a/b", 1, b"x")]).is_err());
        assert!(check_listing(&["a", "a-b", "a.b", "a/b"].map(|path| content(path, 1, b"x"))).is_err());
        assert!(check_listing(&[content("a", 1, b"x"), content("ab", 1, b"x")]).is_ok());
    }
}
