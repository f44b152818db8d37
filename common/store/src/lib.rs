//! What every stage shares and that needs no libtorch: verified artifacts and their keys, configuration files, the
//! command line's common part, `.npy` arrays and the dataset built of them, the decoder and the sheet of images, and the hash
//! behind random numbers.
//!
//! A stage is a function from artifacts and one section of a config to one artifact:
//!
//! ```no_run
//! # use lcf_store::{cli::StageArgs, stage::{Begin, Plan}};
//! # fn main() -> anyhow::Result<()> {
//! # #[derive(serde::Serialize, serde::Deserialize)] struct Config { n: usize }
//! # impl lcf_store::config::Section for Config { const NAME: &'static str = "demo"; fn validate(&self) -> Result<(), String> { Ok(()) } }
//! # let args: StageArgs = unimplemented!();
//! let config: Config = args.section()?;
//! let plan = Plan::new("demo", 1, &config).input("data", "…digest…");
//! let artifact = match plan.begin(&args)? {
//!     Begin::UpToDate(artifact) => artifact,
//!     Begin::Build(work) => {
//!         std::fs::write(work.path("answer.txt"), "42\n")?;
//!         work.publish()?
//!     }
//! };
//! args.link(&artifact)?;
//! # Ok(()) }
//! ```

pub mod artifact;
pub mod bench;
pub mod cli;
pub mod config;
pub mod dataset;
pub mod decode;
pub mod digest;
pub mod error;
pub mod fetch;
pub mod grid;
pub mod machine;
pub mod npy;
pub mod prepare;
pub mod progress;
pub mod provenance;
pub mod random;
mod revision;
pub mod stage;
mod strict;
pub mod subset;
pub mod text;

pub use artifact::Artifact;
pub use error::{Error, Result};
