//! Whether the newest revisions of a template are the newest.
//!
//! A revision goes because others are newer. Where a catalog says how new those are, their records are asked before
//! anything goes. That costs as many reads as revisions are kept so, in the templates that lose some.

use std::collections::HashMap;

use jiff::Timestamp;
use rayon::prelude::*;

use super::inventory::{Inventory, RevisionState, Standing};
use super::plan::{GcPlan, Planned, Reason};
use super::scan::standing;
use crate::core::Core;
use crate::format::{ObjectOf, RevisionSummary};
use crate::fs::read;
use crate::id::{RevisionId, TemplateId};

/// What a plan counts among the newest of each template, and what there is.
pub(super) struct Newest<'a> {
    core: &'a Core,
    inventory: &'a Inventory,
    counted: HashMap<&'a TemplateId, Vec<&'a Planned>>,
}

impl<'a> Newest<'a> {
    pub fn of(core: &'a Core, plan: &'a GcPlan, inventory: &'a Inventory) -> Newest<'a> {
        let mut counted: HashMap<_, Vec<_>> = HashMap::new();
        for planned in plan.revisions.iter().filter(|planned| is_counted(planned)) {
            counted.entry(&planned.template).or_default().push(planned);
        }
        Newest { core, inventory, counted }
    }

    /// Whether one of them was published at another time than the plan says, so that others were counted out. One that
    /// is gone, or was made anew since, counted when the plan was made.
    pub fn are_misjudged(&self, template: &TemplateId, victims: &[&Planned]) -> bool {
        let (Some(counted), Ok(at)) =
            (self.counted.get(template), self.inventory.templates.binary_search_by(|found| found.id.cmp(template)))
        else {
            return false;
        };
        if !victims.iter().any(|planned| is_counted_out(planned)) {
            return false;
        }
        let revisions = &self.inventory.templates[at].revisions;
        let states: HashMap<&RevisionId, &RevisionState> = revisions.iter().map(|state| (&state.id, state)).collect();
        counted.par_iter().any(|planned| {
            let state = states.get(&planned.revision).filter(|state| state.inode == planned.inode);
            state.is_some_and(|state| self.published_at(template, state) != planned.published_at)
        })
    }

    /// When a revision of the store's own was published, by its record; `None` for others.
    fn published_at(&self, template: &TemplateId, state: &RevisionState) -> Option<Timestamp> {
        let by_state = || state.published_at.filter(|_| is_ours(state.standing));
        if !state.line.as_ref().is_some_and(|line| line.from_catalog) {
            return by_state();
        }
        match read::bytes_if_there(&self.core.layout.revision_json(template, &state.id)) {
            Ok(Some(bytes)) => {
                let record = RevisionSummary::<Vec<ObjectOf>>::from_json(&bytes).ok()?;
                record.published_at.or(record.adopted_at).filter(|_| is_ours(standing(&record)))
            }
            // It has gone since.
            Ok(None) => by_state(),
            Err(_) => None,
        }
    }
}

/// Those that are taken for space were among the newest, or young.
fn is_counted(planned: &Planned) -> bool {
    planned.reasons.iter().any(|why| matches!(why, Reason::AmongLast { .. } | Reason::ForSpace { .. }))
}

fn is_counted_out(planned: &Planned) -> bool {
    planned.reasons.iter().any(|why| matches!(why, Reason::BeyondLast { .. }))
}

fn is_ours(standing: Standing) -> bool {
    matches!(standing, Standing::Published | Standing::Adopted)
}
