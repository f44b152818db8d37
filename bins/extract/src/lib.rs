//! lcf-extract: token-mean features of one layer of a frozen model, at a grid of timesteps.

pub mod bench;
pub mod config;
pub mod forward;
pub mod run;

pub use config::Config;

/// Bumped when the meaning of the artifact changes.
pub const VERSION: u32 = 1;
