//! The tests of the store as its users see it, in one program.

mod counts;
