//! lcf-artifact.
