//! lcf-train.
