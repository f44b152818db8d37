//! What the stages that compute share: the device, the DiT, the interpolation path, weights on disk and seeded noise.
//!
//! Shape letters: B batch, C channels, H W pixels, N tokens, D width. t = 0 is data, t = 1 is noise.

pub mod device;
