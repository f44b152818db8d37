//! The built binary on inputs made here: every layout, every way an input can be wrong.

mod cifar10;
mod folders;
mod odd;
mod support;
