//! What there is, as a collection sees it: read once, then planned on; pure.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::format::{Holder, Pin};
use crate::id::{CacheKey, RevisionId, TemplateId};

/// All that a plan depends on, beside the policy and the time.
///
/// ```
/// use template_store::gc::{Inventory, RevisionState, TemplateState};
///
/// let mut web = TemplateState::new("web".parse()?);
/// web.revisions.push(RevisionState::new("r1".parse()?, "2026-11-01T00:00:00Z".parse().unwrap()));
/// let inventory = Inventory { templates: vec![web], ..Inventory::default() };
/// assert_eq!(inventory.templates[0].revisions[0].published_at.unwrap().to_string(), "2026-11-01T00:00:00Z");
/// # Ok::<(), template_store::InvalidName>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    /// All templates, in the order of their ids.
    pub templates: Vec<TemplateState>,
    /// All pins, also those that expired.
    pub pins: Vec<Pin>,
    /// What several revisions hold together: files that are one inode, entries of keys.
    pub shared: Vec<Shared>,
    /// Directories that go with the last of their entries.
    pub shards: Vec<Shard>,
    /// What processes that died left behind; it goes in any case.
    pub leftovers: Vec<Leftover>,
    /// The file system, and what the store takes of it.
    pub disk: DiskSpace,
    /// What the bytes are worth.
    pub bound: Bound,
    /// The bytes of an inode, beside its blocks, that the file system is taken to keep when it goes.
    pub kept_of_inode: u64,
}

impl Inventory {
    /// Where each revision is: the place of its template, and its own place in it.
    pub(crate) fn places(&self) -> impl Iterator<Item = (usize, usize)> {
        let revisions = self.templates.iter().map(|template| template.revisions.len());
        revisions.enumerate().flat_map(|(t, count)| (0..count).map(move |r| (t, r)))
    }
}

/// Whether freeing something gives just as many bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// What `df` shows more afterwards, as far as the file system tells.
    #[default]
    Exact,
    /// Extents are shared with files that stay: it may be less.
    AtMost,
}

/// The file system of the store, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    /// The size of the file system.
    pub total: u64,
    /// What this user can still write.
    pub available: u64,
    /// What the store takes; 0 unless the policy limits it.
    pub store: u64,
}

/// One template.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TemplateState {
    /// Its id.
    pub id: TemplateId,
    /// What its `current` says.
    pub current: CurrentState,
    /// What rollbacks would go back to, the nearest first; only what exists, each once.
    pub rollback: Vec<RevisionId>,
    /// Its revisions.
    pub revisions: Vec<RevisionState>,
}

impl TemplateState {
    /// A template without revisions.
    pub fn new(id: TemplateId) -> TemplateState {
        TemplateState { id, current: CurrentState::Unset, rollback: Vec::new(), revisions: Vec::new() }
    }
}

/// What a `current` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CurrentState {
    /// There is none yet.
    #[default]
    Unset,
    /// This one, which exists.
    Revision(RevisionId),
    /// Something that does not exist: which revision was meant is to be found out before any is removed.
    Dangling,
    /// It, its log, or the revisions can't be read, which is to be mended before any is removed.
    Unreadable,
}

/// One revision.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RevisionState {
    /// Its id.
    pub id: RevisionId,
    /// Where it comes from.
    pub standing: Standing,
    /// When this store published or adopted it.
    pub published_at: Option<Timestamp>,
    /// When it was last published, made current, or stopped being so.
    pub last_used: Option<Timestamp>,
    /// How long its build took; `None` for files that were built elsewhere.
    pub build_seconds: Option<f64>,
    /// Who uses it. `Some` of nobody: somebody whom this user can't see.
    pub holders: Option<Vec<Holder>>,
    /// It is marked as damaged, and offered to nobody.
    pub damaged: bool,
    /// What it takes, as far as that was measured.
    pub footprint: Footprint,
    /// The number of its directory's inode: another one is another revision.
    pub inode: u64,
    pub(crate) keys: Vec<CacheKey>,
    pub(crate) line: Option<Line>,
}

/// What is shown of a revision among others.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub built_at: String,
    pub bytes: u64,
    /// Whether the record itself was not read.
    pub from_catalog: bool,
}

impl RevisionState {
    /// A published revision that nobody uses and that takes nothing.
    pub fn new(id: RevisionId, published_at: Timestamp) -> RevisionState {
        RevisionState {
            id,
            standing: Standing::Published,
            published_at: Some(published_at),
            last_used: Some(published_at),
            build_seconds: None,
            holders: None,
            damaged: false,
            footprint: Footprint::default(),
            inode: 0,
            keys: Vec::new(),
            line: None,
        }
    }
}

/// Where a revision comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// This store published it.
    Published,
    /// It was adopted from mvm.
    Adopted,
    /// Somebody else put it there: it lists no contents.
    NotOurs,
    /// Its `revision.json` can't be read.
    Unreadable,
}

/// What something takes on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes that nothing else holds: its directories, and files with one name.
    pub own: u64,
    /// How many these are.
    pub inodes: u64,
    /// What it holds together with others: the place in [`Inventory::shared`], and how many names it has there.
    pub shared: Vec<(usize, u32)>,
}

/// What kind of thing several revisions hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedKind {
    /// An inode.
    File,
    /// The entry of a cache key.
    Key,
}

/// Something that is freed when the last of its holders goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    /// What it is.
    pub kind: SharedKind,
    /// What it takes.
    pub bytes: u64,
    /// How many names it has in all, whoever has them; its name in `objects/` is not counted.
    pub holders: u32,
    /// How many of these names are in instances.
    pub instances: u32,
    /// The place in [`Inventory::shards`] of the directory that has its object.
    pub shard: Option<usize>,
}

/// A directory that goes with the last of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// What it takes.
    pub bytes: u64,
    /// How many entries it has.
    pub entries: u32,
}

/// Something that a process left behind when it died.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where it is, below the store's directory.
    pub path: String,
    /// What it takes.
    pub footprint: Footprint,
    /// The shard that loses an entry with it.
    pub shard: Option<usize>,
}

impl Leftover {
    /// Something that takes nothing.
    pub fn new(kind: LeftoverKind, path: impl Into<String>) -> Leftover {
        Leftover { kind, path: path.into(), footprint: Footprint::default(), shard: None }
    }
}

/// What a process left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeftoverKind {
    /// A deletion that was cut short.
    Trash,
    /// A draft whose builder is dead.
    Draft,
    /// An object that no revision has.
    Object,
    /// A key that no revision has.
    Key,
    /// The lock of a builder that is dead.
    Lock,
    /// A note of a process that is dead.
    Lease,
    /// A pin that has expired.
    Pin,
    /// A mark on a revision that is gone.
    Mark,
    /// The note of an instance that is gone.
    Instance,
}
