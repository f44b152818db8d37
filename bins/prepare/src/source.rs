//! What every reader hands over: labels at once, pixels on demand.

use std::path::PathBuf;

/// A dataset before its pixels are read.
pub struct Source {
    /// What it was read from, for messages.
    pub path: PathBuf,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// C, H, W of every image.
    pub shape: [usize; 3],
    /// Training images.
    pub train: Split,
    /// Held-out images.
    pub test: Split,
}

/// One split of a [`Source`].
pub struct Split {
    /// Class of each image.
    pub labels: Vec<i64>,
    /// Gives the pixels.
    pub pixels: Pixels,
}

/// Writes image `index` to a slice, uint8 `[C, H, W]`. Called from many threads, in any order.
pub type Pixels = Box<dyn Fn(usize, &mut [u8]) -> Result<(), BadImage> + Send + Sync>;

/// An image that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BadImage {
    /// Its file.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}
