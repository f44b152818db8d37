//! Downloads named in `data/SOURCES.json`.
