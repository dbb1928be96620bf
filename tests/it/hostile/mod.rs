//! Input that somebody made to hurt, and other users of the machine who swap names while the store works.

mod documents;
mod mutate;
mod others;
mod race;
mod rights;
mod swaps;
mod trap;
