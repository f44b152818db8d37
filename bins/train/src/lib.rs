//! lcf-train: trains a DiT with flow matching or Local Contrastive Flow.
//!
//! [`batch`] draws what a step needs ([`times`] is the law of t), [`objective`] turns it into losses ([`flow`]: Equation 12, [`contrast`]:
//! Equation 14 and Algorithm 1), [`step`] makes one update with [`optim`], [`run`] repeats it with checkpoints. [`ranks`]
//! are several processes that do so together, [`launch`] starts them. [`bench`]
//! measures the step.

pub mod batch;
pub mod bench;
pub mod captured;
pub mod checkpoint;
pub mod config;
pub mod contrast;
pub mod flow;
pub mod gathered;
pub mod launch;
pub mod metrics;
pub mod objective;
pub mod optim;
pub mod origin;
pub mod preview;
pub mod progress;
pub mod ranks;
pub mod run;
pub mod step;
pub mod tensorboard;
pub mod text;
pub mod times;

pub use config::TrainConfig;
