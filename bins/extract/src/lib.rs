//! lcf-extract.
