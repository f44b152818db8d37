//! lcf-fid.
