//! lcf-prepare.
