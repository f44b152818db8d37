//! The model against PyTorch: stored results of a PyTorch DiT (`golden`), and a PyTorch DiT that loads what is saved here
//! (`interop`).

mod golden;
mod interop;
