//! Mean and standard deviation a channel, from exact integer sums, so that no order of adding can change them.

/// Sums of pixel values and of their squares, by channel. Room for 2^48 pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    sums: Vec<(u64, u64)>,
}

impl Moments {
    /// Those of one image, uint8 `[channels, H, W]`.
    pub fn of(image: &[u8], channels: usize) -> Self {
        // An image is far too small to overflow; wrapping sums are what the compiler vectorises.
        let plane = |pixels: &[u8]| {
            pixels.iter().fold((0u64, 0u64), |(sum, squares), &pixel| {
                let value = u64::from(pixel);
                (sum.wrapping_add(value), squares.wrapping_add(value * value))
            })
        };
        Self { sums: image.chunks_exact(image.len() / channels).map(plane).collect() }
    }

    /// Adds those of more images.
    pub fn add(&mut self, other: &Self) {
        self.sums.resize(other.sums.len(), (0, 0));
        for ((sum, squares), (more, more_squares)) in self.sums.iter_mut().zip(&other.sums) {
            *sum += more;
            *squares += more_squares;
        }
    }

    /// Mean and standard deviation a channel, of values scaled to `[-1, 1]` (`x / 127.5 - 1`), where each channel has
    /// `pixels` pixels in all.
    pub fn mean_and_std(&self, pixels: usize) -> (Vec<f64>, Vec<f64>) {
        let n = pixels as f64;
        let channel = |&(sum, squares): &(u64, u64)| {
            // n * squares - sum^2 in integers: the subtraction in floating point would cancel.
            let spread = pixels as u128 * u128::from(squares) - u128::from(sum) * u128::from(sum);
            (sum as f64 / n / 127.5 - 1.0, (spread as f64).sqrt() / n / 127.5)
        };
        self.sums.iter().map(channel).unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        let mut all = Moments::default();
        all.add(&Moments::of(&[0, 255, 10, 10], 2));
        all.add(&Moments::of(&[255, 0, 10, 10], 2));
        let (mean, std) = all.mean_and_std(4);
        assert_eq!((mean[0], std[0]), (0.0, 1.0));
        assert_eq!((mean[1], std[1]), (10.0 / 127.5 - 1.0, 0.0));
    }
}
