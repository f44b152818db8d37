//! lcf-sample.
