//! Compares the store's documents, paths and cache keys with those of mvm-core; see `tests/oracle.rs`.
