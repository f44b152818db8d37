//! lcf-sample: images from noise by integrating the learnt velocity.

pub mod bench;
pub mod config;
pub mod output;
pub mod run;

pub use config::Config;

/// Bumped when the meaning of the artifact changes.
pub const VERSION: u32 = 1;
