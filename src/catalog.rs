//! `catalog`: what a pass over many revisions needs to know of each, in one file.
//!
//! After a reboot, reading a hundred thousand small records takes many seconds, and one file a moment. The catalog
//! follows from the records, and is never the truth: a line counts only while the revision's directory is in the state
//! in which it was when its record was read, and a collection reads the records that decide once more. Only a
//! collection that finds nothing to remove writes it, and only in a store with many revisions.
//!
//! Whoever changes a record gives its name to a new file, and whoever removes a revision moves its directory. Both
//! change the directory in the same transaction of the file system: no writer has to know of catalogs, and after a
//! power cut directory and record are of one time. The catalog itself need not last.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rayon::prelude::*;

use crate::core::Core;
use crate::damage;
use crate::error::{Error, Result};
use crate::format::{CatalogLine, CatalogWriter, FormatError, catalog_from_bytes};
use crate::fs::atomic::Lasting;
use crate::fs::read::{self, DirState, Directory};
use crate::gc::{Inventory, RevisionState, Standing};
use crate::id::{RevisionId, TemplateId};

/// A store with fewer revisions has none unless its opener says so: reading them is quick enough, and a collection that
/// finds nothing then changes nothing.
pub(crate) const FROM_REVISIONS: usize = 20_000;

/// It is written again when this part of it can't be used any more.
const STALE_PART: usize = 64;

/// Two changes may get the same time when they are closer than a tick of the system's clock.
const TICK: Duration = Duration::from_millis(100);

/// What is known of a revision without reading it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Overview {
    /// When it was built, in the words of its record (RFC 3339).
    pub built_at: String,
    /// When this store published it.
    pub published_at: Option<Timestamp>,
    /// The sizes of its files, holes included, in bytes.
    pub bytes: u64,
}

/// What the store's catalog says; empty where there is none that can be used.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// Of each template its revisions, sorted by their ids.
    templates: HashMap<TemplateId, Vec<CatalogLine>>,
}

impl Catalog {
    pub fn read(core: &Core) -> Catalog {
        let templates = templates(core).unwrap_or_else(|problem| {
            tracing::debug!(%problem, "the catalog is not used");
            Vec::new()
        });
        Catalog { templates: templates.into_iter().collect() }
    }

    /// The line of a revision in this directory, if it still counts.
    pub fn find(&self, artifacts: &Directory, template: &TemplateId, revision: &RevisionId) -> Option<&CatalogLine> {
        let lines = self.templates.get(template)?;
        let at = lines.binary_search_by(|line| line.revision.cmp(revision)).ok()?;
        counts(artifacts, &lines[at]).then_some(&lines[at])
    }
}

/// What the file says; nothing if there is none.
fn templates(core: &Core) -> Result<Vec<(TemplateId, Vec<CatalogLine>)>> {
    let path = core.layout.catalog();
    match read::bytes_up_to(&path, read::LARGEST_CATALOG) {
        Ok(bytes) => catalog_from_bytes(&bytes).map_err(|source| Error::Format { path, source }),
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Why the catalog is not used, if it is there and damaged. One of a newer program is for that program to read.
pub(crate) fn problem(core: &Core) -> Option<String> {
    match templates(core) {
        Ok(_) | Err(Error::Format { source: FormatError::Newer { .. }, .. }) => None,
        Err(Error::Format { source, .. }) => Some(source.to_string()),
        Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => None,
        Err(Error::Io(error)) => Some(error.source.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn counts(artifacts: &Directory, line: &CatalogLine) -> bool {
    let now = artifacts.state_of(line.revision.as_str()).ok().flatten();
    now == Some(DirState { inode: line.inode, changed: line.changed })
}

/// What the catalog says of every revision of which it knows something; a revision with a mark is left out.
pub(crate) fn overviews(core: &Core) -> Result<HashMap<(TemplateId, RevisionId), Overview>> {
    let catalog = Catalog::read(core);
    let mut overviews = HashMap::new();
    if catalog.templates.is_empty() {
        return Ok(overviews);
    }
    let marked: HashSet<(TemplateId, RevisionId)> = damage::marked(core)?.into_iter().collect();
    for (template, lines) in catalog.templates {
        let Some(artifacts) = Directory::open(&core.layout.artifacts(&template))? else { continue };
        let known = lines.into_par_iter().filter(|line| counts(&artifacts, line)).map(|line| {
            let overview = Overview { built_at: line.built_at, published_at: line.published_at, bytes: line.bytes };
            ((template.clone(), line.revision), overview)
        });
        overviews.par_extend(known.filter(|(name, _)| !marked.contains(name)));
    }
    Ok(overviews)
}

/// Writes the catalog of what a collection has read since `begun`, if that pays. A hint: an error of the disk is not worth
/// failing for.
pub(crate) fn write_if_it_pays(core: &Core, inventory: &Inventory, begun: SystemTime) {
    let revisions = || inventory.templates.iter().flat_map(|template| &template.revisions).filter(|one| is_known(one));
    let read = revisions().filter(|one| one.line.as_ref().is_some_and(|line| !line.from_catalog)).count();
    let all = revisions().count();
    if all < core.catalog_from || read * STALE_PART < all {
        return;
    }
    if let Err(error) = write(core, inventory, begun) {
        tracing::warn!(%error, "the catalog could not be written; the next look at all revisions takes longer");
    }
}

/// Removes a catalog that has led a plan astray, whoever wrote it: the next look at all revisions reads each.
pub(crate) fn forget(core: &Core) {
    if let Err(error) = core.disk.unlink_if_there(&core.layout.catalog()) {
        tracing::warn!(%error, "a catalog that is wrong could not be removed");
    }
}

fn is_known(state: &RevisionState) -> bool {
    matches!(state.standing, Standing::Published | Standing::Adopted)
}

fn write(core: &Core, inventory: &Inventory, begun: SystemTime) -> Result<()> {
    let mut catalog = CatalogWriter::new();
    for template in &inventory.templates {
        let Some(artifacts) = Directory::open(&core.layout.artifacts(&template.id))? else { continue };
        let lines = template.revisions.par_iter().filter_map(|state| line(&artifacts, state, begun));
        catalog.add(&template.id, &lines.collect::<Vec<_>>());
    }
    let bytes = catalog.finish();
    if bytes.len() as u64 > read::LARGEST_CATALOG {
        tracing::debug!("there are too many revisions for a catalog");
        return Ok(());
    }
    Ok(core.disk.write_file(&core.layout.drafts(), &core.layout.catalog(), &bytes, Lasting::Hint)?)
}

/// The line of a revision that nobody has changed since it was read.
fn line(artifacts: &Directory, state: &RevisionState, begun: SystemTime) -> Option<CatalogLine> {
    let read = state.line.as_ref().filter(|_| is_known(state))?;
    let now = artifacts.state_of(state.id.as_str()).ok()??;
    let is_same = now.inode == state.inode && now.is_before(begun - TICK);
    is_same.then(|| CatalogLine {
        revision: state.id.clone(),
        inode: now.inode,
        changed: now.changed,
        published_at: state.published_at.filter(|_| state.standing == Standing::Published),
        adopted_at: state.published_at.filter(|_| state.standing == Standing::Adopted),
        build_seconds: state.build_seconds,
        keys: state.keys.clone(),
        built_at: read.built_at.clone(),
        bytes: read.bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_in_a_tick_before_is_not_trusted() {
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1000, 500_000_000);
        let is_before = |changed| DirState { inode: 1, changed }.is_before(moment);
        for changed in [(999, 999_999_999), (1000, 499_999_999), (999, 0), (-1, 5)] {
            assert!(is_before(changed), "{changed:?}");
        }
        // In whole seconds, the last one may have begun before and ended after.
        for changed in [(1000, 500_000_000), (1000, 0), (1001, 7), (i64::MAX, 0), (i64::MAX, 999_999_999)] {
            assert!(!is_before(changed), "{changed:?}");
        }
    }
}
