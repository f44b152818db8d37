//! lcf-probe: linear probes (Table 3 of the paper), all timesteps at once.

pub mod bench;
pub mod config;
pub mod data;
pub mod linear;
pub mod output;
pub mod run;

pub use config::Config;

/// Bumped when the meaning of the artifact changes.
pub const VERSION: u32 = 1;
