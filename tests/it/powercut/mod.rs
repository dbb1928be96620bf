//! What a power cut may leave, and what must still hold then.
//!
//! A [`recorder`] watches the store at work and logs every step. The [`medium`] says which of them a cut
//! may take away; [`states`] lists what is left, for a cut after each step. Every such tree is made real,
//! opened and checked. The [`mutants`] are logs of stores that lack one fsync, or do two things in
//! the wrong order: each must break a promise in some state, else the checks see too little.

pub mod acts;
pub mod builds;
mod choose;
mod classes;
mod content;
mod import;
mod instances;
mod interleaved;
mod killed;
pub mod litter;
pub mod medium;
pub mod mending;
mod model_tests;
mod mutants;
mod mutants_of_mending;
mod pairs;
pub mod parallel;
pub mod promises;
mod pulled;
pub mod recorder;
mod reorder;
mod scenarios;
pub mod snapshots;
pub mod states;
pub mod view;
pub mod world;

/// A hash of two. Good enough to tell some million trees apart, and quick without optimisation.
fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_add(0x6a09_e667_f3bc_c909);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
