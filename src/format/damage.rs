//! `damaged/<template>@<revision>.json`: a revision that must not be offered.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, plain, pretty};

/// What is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file, below the store's directory.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Why a revision is not offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamageMark {
    pub found_at: Timestamp,
    pub problems: Vec<Problem>,
}

impl DamageMark {
    pub fn from_json(bytes: &[u8]) -> Result<DamageMark, FormatError> {
        plain("damage mark", bytes)
    }

    pub fn to_json(&self) -> Vec<u8> {
        pretty(self)
    }
}
