//! Plans that were saved.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::plan::GcPlan;
use crate::format::{FormatError, check_parts};

const WHAT: &str = "plan";

/// A plan of 100,000 revisions has two million.
const MOST_PARTS: usize = 4_000_000;

impl GcPlan {
    /// Reads what `gc --dry-run --json` printed.
    ///
    /// It may come from anywhere: what it says is asked about again when it is applied, and it names nothing outside the
    /// store.
    ///
    /// # Errors
    /// It is not such a document.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = template_store::Store::open_or_init(dir.path().join("store"))?;
    /// use template_store::gc::{GcPlan, Policy};
    ///
    /// let plan = store.plan_gc(&Policy::default())?;
    /// let saved = format!(r#"{{"dry_run":true,"plan":{}}}"#, serde_json::to_string(&plan).unwrap());
    /// assert_eq!(GcPlan::from_json(saved.as_bytes()).unwrap(), plan);
    /// # Ok::<(), template_store::Error>(())
    /// ```
    pub fn from_json(bytes: &[u8]) -> Result<GcPlan, FormatError> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(rename = "dry_run")]
            _dry_run: bool,
            plan: GcPlan,
            #[serde(rename = "report", default)]
            _report: Option<IgnoredAny>,
        }
        check_parts(WHAT, bytes, MOST_PARTS)?;
        let document: Document = serde_json::from_slice(bytes).map_err(|error| FormatError::invalid(WHAT, error))?;
        Ok(document.plan)
    }
}
