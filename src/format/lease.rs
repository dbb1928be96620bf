//! `leases/<template>@<revision>/<pid>-<start>.json`: who uses a revision.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, plain, pretty};

/// A process that uses a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// What it runs, as people would write it; empty when that is not known.
    pub command: String,
    /// What for, in its own words; empty when it did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub purpose: String,
}

/// What a process notes about itself. The revision stays while its lock is held, or while this process lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseNote {
    #[serde(flatten)]
    pub holder: Holder,
    /// When the process began, in clock ticks since the boot: a process id alone is used again.
    pub start_time: u64,
    pub boot_id: String,
    /// In which the process id counts.
    pub pid_namespace: String,
    pub since: Timestamp,
}

impl LeaseNote {
    pub fn from_json(bytes: &[u8]) -> Result<LeaseNote, FormatError> {
        plain("lease", bytes)
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}
