//! `pins/<name>.json`: what is to be kept, and until when.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FormatError, plain, pretty};
use crate::id::{PinName, RevisionId, TemplateId};

/// A revision that somebody wants to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Pin {
    /// The name of the file, which the document does not repeat.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<PinName>,
    /// The template.
    pub template: TemplateId,
    /// The revision.
    pub revision: RevisionId,
    /// When it was made.
    pub created_at: Timestamp,
    /// It keeps nothing from this moment on; without one, it keeps for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Why, for people; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Pin {
    pub(crate) fn new(template: TemplateId, revision: RevisionId, created_at: Timestamp) -> Pin {
        Pin { name: None, template, revision, created_at, until: None, reason: String::new() }
    }

    /// Its name; empty for one that was not read from a store.
    pub fn name(&self) -> &str {
        self.name.as_ref().map_or("", PinName::as_str)
    }

    /// Whether it keeps its revision at this moment.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    pub(crate) fn from_json(name: &PinName, bytes: &[u8]) -> Result<Pin, FormatError> {
        let pin: Pin = plain("pin", bytes)?;
        Ok(Pin { name: Some(name.clone()), ..pin })
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        pretty(&Pin { name: None, ..self.clone() })
    }
}
