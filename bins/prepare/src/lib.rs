//! Stage `prepare`: raw images to a dataset artifact ([`lcf_store::dataset`]).
//!
//! A reader ([`cifar10`], [`tiny_imagenet`], [`image_folder`], [`synthetic`]) makes a [`source::Source`]: labels at
//! once, pixels on demand. [`shards`] decodes them in parallel, in bounded pieces, and writes them in order.

pub mod cifar10;
pub mod failures;
pub mod folder;
pub mod image_folder;
pub mod input;
pub mod planes;
pub mod random;
pub mod shards;
pub mod source;
pub mod statistics;
pub mod synthetic;
pub mod tiny_imagenet;
pub mod tree;

pub use lcf_store::prepare as config;

use config::Config;
use input::{Input, Places};
use lcf_store::{
    Artifact, Result,
    cli::StageArgs,
    stage::{Begin, Plan, Work},
};

/// Bumped by hand when the same input gives another dataset.
pub const VERSION: u32 = 1;

/// Finds the dataset in the store or builds it. Also says whether it was built.
///
/// # Errors
/// As [`Input::find`], the readers and [`shards::write`]; nothing is published then.
pub fn prepare(args: &StageArgs, places: &Places, config: &Config) -> Result<(Artifact, bool)> {
    let input = Input::find(config, places)?;
    let mut plan = Plan::of(VERSION, config);
    if let Some(digest) = input.raw_digest()? {
        plan = plan.input("raw", &digest);
    }
    match plan.begin(args)? {
        Begin::UpToDate(artifact) => Ok((artifact, false)),
        Begin::Build(work) => Ok((build(work, input, config)?, true)),
    }
}

fn build(work: Work, input: Input, config: &Config) -> Result<Artifact> {
    work.clear()?;
    let written = input.source(config).and_then(|source| shards::write(&work, &source, config));
    if written.is_err() {
        // Gigabytes of a build that failed are of no use to the next one.
        work.clear()?;
    }
    written.and_then(|()| work.publish())
}
