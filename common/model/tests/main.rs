//! The model against PyTorch: stored results of a PyTorch DiT (`golden`).

mod golden;
