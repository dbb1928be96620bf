//! `catalog`: what is known of many revisions, in one file.
//!
//! Lines of JSON: the version; for each template its id and how many lines follow for it; at the end the digest of all
//! before.

use jiff::Timestamp;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::FormatError;
use crate::id::{CacheKey, Digest, RevisionId, TemplateId};

const WHAT: &str = "catalog";
const VERSION: u32 = 1;

/// The line of a revision is longer, whatever it says. Lines of nothing would take more memory than the file has bytes.
const SHORTEST_LINE: usize = 100;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    catalog: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Group {
    template: TemplateId,
    revisions: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Footer {
    blake3: Digest,
}

/// What a pass over all revisions needs of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CatalogLine {
    pub revision: RevisionId,
    /// The state of its directory; in another state, nothing here is known to be true.
    pub inode: u64,
    /// Seconds and nanoseconds of the directory's last change (`st_ctime`).
    pub changed: (i64, i64),
    pub published_at: Option<Timestamp>,
    pub adopted_at: Option<Timestamp>,
    pub build_seconds: Option<f64>,
    pub keys: Vec<CacheKey>,
    pub built_at: String,
    pub bytes: u64,
}

/// A catalog that is being written.
#[derive(Debug)]
pub(crate) struct CatalogWriter {
    bytes: Vec<u8>,
}

impl CatalogWriter {
    pub fn new() -> CatalogWriter {
        let mut writer = CatalogWriter { bytes: Vec::new() };
        writer.line(&Header { catalog: VERSION });
        writer
    }

    /// Adds what is known of a template's revisions.
    pub fn add(&mut self, template: &TemplateId, lines: &[CatalogLine]) {
        self.line(&Group { template: template.clone(), revisions: lines.len() });
        lines.iter().for_each(|line| self.line(line));
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.line(&Footer { blake3: digest(&self.bytes) });
        self.bytes
    }

    fn line<T: Serialize>(&mut self, value: &T) {
        serde_json::to_writer(&mut self.bytes, value).expect("plain values are JSON, and memory takes them");
        self.bytes.push(b'\n');
    }
}

/// Reads what a writer wrote: of each template its revisions, sorted by their ids.
///
/// # Errors
/// Anything that is not as it was written.
pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Vec<(TemplateId, Vec<CatalogLine>)>, FormatError> {
    let mut lines = whole(bytes)?.split(|&byte| byte == b'\n');
    let header: Header = parse(lines.next().unwrap_or_default())?;
    if header.catalog != VERSION {
        return Err(FormatError::Newer { what: WHAT, found: header.catalog.into(), supported: VERSION });
    }
    let mut groups = Vec::new();
    while let Some(line) = lines.next().filter(|line| !line.is_empty()) {
        let group: Group = parse(line)?;
        let lines = lines.by_ref().take(group.revisions).map(long_enough).collect::<Result<Vec<_>, _>>()?;
        if lines.len() < group.revisions {
            return Err(FormatError::invalid(WHAT, "lines are missing"));
        }
        groups.push((group.template, lines));
    }
    let parse_group = |(template, lines): (TemplateId, Vec<&[u8]>)| {
        let mut lines = lines.into_par_iter().map(revision).collect::<Result<Vec<CatalogLine>, _>>()?;
        lines.sort_by(|a, b| a.revision.cmp(&b.revision));
        Ok((template, lines))
    };
    groups.into_par_iter().map(parse_group).collect()
}

fn long_enough(line: &[u8]) -> Result<&[u8], FormatError> {
    match line.len() {
        0..SHORTEST_LINE => Err(FormatError::invalid(WHAT, "a line is too short for a revision")),
        _ => Ok(line),
    }
}

fn revision(line: &[u8]) -> Result<CatalogLine, FormatError> {
    let line: CatalogLine = parse(line)?;
    match line.published_at.or(line.adopted_at) {
        None => Err(FormatError::invalid(WHAT, "it has a revision that is not the store's")),
        Some(_) => Ok(line),
    }
}

/// All lines but the last one, which says what their bytes are.
fn whole(bytes: &[u8]) -> Result<&[u8], FormatError> {
    let before = bytes.strip_suffix(b"\n").ok_or_else(|| FormatError::invalid(WHAT, "its end is missing"))?;
    let end = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let footer: Footer = parse(&before[end..])?;
    match footer.blake3 == digest(&bytes[..end]) {
        true => Ok(&bytes[..end]),
        false => Err(FormatError::invalid(WHAT, "it is not what was written")),
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, FormatError> {
    serde_json::from_slice(line).map_err(|error| FormatError::invalid(WHAT, error))
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from(*blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"revision":"r","inode":7,"changed":[1,2],"published_at":"2026-01-01T00:00:00Z","adopted_at":null,"build_seconds":null,"keys":[],"built_at":"","bytes":1}"#;

    /// A catalog with these lines of so many revisions, and the last one that fits them.
    fn catalog(revisions: usize, lines: &str) -> Vec<u8> {
        let text = format!("{{\"catalog\":1}}\n{{\"template\":\"web\",\"revisions\":{revisions}}}\n{lines}\n");
        format!("{text}{{\"blake3\":\"{}\"}}\n", Digest::of(text.as_bytes())).into_bytes()
    }

    #[test]
    fn it_has_the_line_of_a_revision_and_nothing_else() {
        assert_eq!(from_bytes(&catalog(2, &format!("{LINE}\n{LINE}"))).unwrap()[0].1.len(), 2);
        for revisions in [0, 1, 3, usize::MAX] {
            assert!(from_bytes(&catalog(revisions, &format!("{LINE}\n{LINE}"))).is_err(), "{revisions}");
        }
        let of_nobody = LINE.replace("\"2026-01-01T00:00:00Z\"", "null");
        let longer = format!("{}{of_nobody}", " ".repeat(100));
        for line in ["", "{}", &LINE[1..], &of_nobody, &longer, &"\n".repeat(1000)] {
            assert!(from_bytes(&catalog(2, &format!("{LINE}\n{line}"))).is_err(), "{line}");
        }
    }

    #[test]
    fn the_shortest_line_that_is_written_is_long_enough() {
        let line: CatalogLine = parse(LINE.as_bytes()).unwrap();
        let mut writer = CatalogWriter::new();
        writer.add(&"web".parse().unwrap(), &[CatalogLine { inode: 0, changed: (0, 0), bytes: 0, ..line }]);
        assert_eq!(from_bytes(&writer.finish()).unwrap()[0].1.len(), 1);
    }
}
