//! The built binary on inputs that need no network weights, and the network itself where its weights are.

mod cli;
mod fixtures;
mod golden;
mod metrics;
mod network;
mod stage;
