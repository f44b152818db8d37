//! lcf-model.
