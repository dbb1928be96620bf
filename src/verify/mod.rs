//! Checking everything that a store holds against what was published.

mod content;
mod finding;
mod heads;
mod index;
mod private;
mod revisions;
mod rights;
mod scan;
mod snapshots;

use jiff::Timestamp;

pub(crate) use content::Hashed;
pub(crate) use finding::Subject;
pub use finding::{Finding, FindingKind, Mended, Repaired, Report, Severity};
pub(crate) use revisions::can_link;
pub(crate) use scan::{Scanned, Scope, Suspects, scan};
pub(crate) use snapshots::snapshot_record;

use crate::error::Result;
use crate::options::setters;
use crate::progress::Progress;
use crate::store::Store;

/// How closely a verification looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Depth {
    /// Every inode is read and hashed once.
    #[default]
    Full,
    /// Names, sizes, modes, times and documents; no artifact is read.
    Quick,
}

/// What a verification looks at.
///
/// ```
/// use template_store::VerifyOptions;
///
/// // A scrub of five percent of all files, as a timer would do it each night.
/// let options = VerifyOptions::default().sample(5.0);
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct VerifyOptions {
    pub(crate) depth: Depth,
    pub(crate) since: Option<Timestamp>,
    pub(crate) sample: Option<f64>,
}

impl VerifyOptions {
    setters! {
        /// How closely it looks.
        depth: Depth,
        /// Only files of revisions that were published then or later are hashed; the rest is always looked at.
        since: Option<Timestamp>,
        /// Each inode is hashed with this probability, in percent.
        sample: Option<f64>,
    }

    /// Whether everything is hashed: only then is it known that something is intact.
    pub(crate) fn is_complete(&self) -> bool {
        self.depth == Depth::Full && self.since.is_none() && self.sample.is_none_or(|percent| percent >= 100.0)
    }
}

impl Store {
    /// Checks everything that the store holds: each inode is hashed once, in parallel, and each document is parsed.
    ///
    /// It changes nothing, and runs beside everything else; what others publish or remove meanwhile is no finding.
    /// An inode that can't be read is a finding, not an error. It holds the lease of the revision that it looks at.
    ///
    /// # Errors
    /// The store's own directories can't be read.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), "{}").unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::{FindingKind, VerifyOptions};
    ///
    /// let revision = store.publish_dir(&web, &files)?;
    /// assert!(store.verify(&VerifyOptions::default(), &mut ())?.is_clean());
    ///
    /// std::fs::remove_file(revision.kernel()).unwrap();
    /// let report = store.verify(&VerifyOptions::default(), &mut ())?;
    /// assert_eq!((report.findings[0].kind, &report.findings[0].path), (FindingKind::Missing, &revision.kernel()));
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn verify(&self, options: &VerifyOptions, progress: &mut dyn Progress) -> Result<Report> {
        Ok(scan(&self.core, options, Scope::Everything, Hashed::default(), progress)?.report)
    }

    /// Verifies, and sets right what it can.
    ///
    /// A damaged file is replaced by an intact copy with its digest, wherever the store has one. `objects/` and
    /// `keys/` are built again from the revisions, `current` goes back to the last intact revision that was current,
    /// documents are written again from what others say. A revision that can't be mended is marked, so that it is
    /// never offered again, and moved to `.store/damaged/` if it is neither current nor leased nor pinned. A snapshot that
    /// can't be mended is moved there too, and its revision stays what it is.
    /// What is replaced gets a name below `.store/damaged/`: nothing is deleted.
    ///
    /// Others who change the store wait while it mends, not while it verifies. What it reports as mended is durable. A
    /// crash leaves what was mended so far, and a second repair completes it.
    ///
    /// # Errors
    /// [`NotAdopted`](crate::Error::NotAdopted), or the store's own directories can't be read or locked. What can't be
    /// mended is no error: it is in [`Repaired::remaining`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let dir = camino::Utf8Path::from_path(dir.path()).unwrap();
    /// # let store = template_store::Store::open_or_init(dir.join("store"))?;
    /// # let files = dir.join("files");
    /// # std::fs::create_dir(&files).unwrap();
    /// # for name in ["vmlinux", "rootfs.ext4", "fc-base.json"] { std::fs::write(files.join(name), [0; 65536]).unwrap(); }
    /// # let web: template_store::TemplateId = "web".parse()?;
    /// use template_store::VerifyOptions;
    ///
    /// let revision = store.publish_dir(&web, &files)?;
    /// std::fs::remove_file(revision.kernel()).unwrap();
    ///
    /// let repaired = store.repair(&VerifyOptions::default(), &mut ())?;
    /// assert!(repaired.remaining.is_empty());
    /// assert_eq!(repaired.mended[0].path, revision.kernel());
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn repair(&self, options: &VerifyOptions, progress: &mut dyn Progress) -> Result<Repaired> {
        crate::repair::repair(&self.core, options, None, progress)
    }
}
