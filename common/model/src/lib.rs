//! What the stages that compute share: the device, the DiT, the interpolation path, weights on disk and seeded noise.
//!
//! Shape letters: B batch, C channels, H W pixels, N tokens, D width. t = 0 is data, t = 1 is noise.

pub mod adamw;
pub mod bench;
pub mod config;
pub mod device;
pub mod dit;
pub mod embed;
pub mod features;
pub mod fused;
pub mod ode;
pub mod params;
pub mod path;
pub mod pixels;
pub mod rng;
pub mod trained;
pub mod weights;

pub use config::{ModelConfig, Precision};
pub use dit::Dit;
pub use fused::Fused;
pub use lcf_native::{Engine, has_kernels};
pub use params::Params;
