//! lcf-probe.
