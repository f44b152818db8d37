//! Images between uint8 on disk and fp32 in [-1, 1] in the network.

use lcf_store::dataset::Split;
use tch::{Device, Kind, Tensor};

/// All images of a split on `device`, uint8 `[N, C, H, W]`.
pub fn load(split: &Split, device: Device) -> Tensor {
    let shards: Vec<Tensor> = split
        .shards
        .iter()
        .map(|shard| {
            let shape: Vec<i64> = shard.shape().iter().map(|&n| n as i64).collect();
            Tensor::from_slice(shard.values()).view(shape.as_slice()).to_device(device)
        })
        .collect();
    Tensor::cat(&shards, 0)
}

/// uint8 0..255 to fp32 -1..1.
pub fn normalise(images: &Tensor) -> Tensor {
    images.to_kind(Kind::Float) / 127.5 - 1.0
}

/// fp32 to the nearest uint8; what lies outside -1..1 is clipped.
pub fn quantise(images: &Tensor) -> Tensor {
    ((images + 1.0) * 127.5).round().clamp(0.0, 255.0).to_kind(Kind::Uint8)
}

/// uint8 in the order `[n, H, W, C]` of fp32 `[n, C, H, W]`, on the host.
///
/// # Panics
/// When the device is out of memory.
pub fn bytes(images: &Tensor) -> Vec<u8> {
    let images = quantise(images).permute([0, 2, 3, 1]).contiguous();
    Vec::try_from(images.to_device(Device::Cpu).view([-1])).expect("uint8 on the CPU")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_the_round_trip_and_the_rest_is_clipped() {
        let bytes = Tensor::arange(256, (Kind::Uint8, Device::Cpu));
        assert_eq!(quantise(&normalise(&bytes)), bytes);
        let beyond = Tensor::from_slice(&[-3.0f32, -1.0, 1.0, 7.0]);
        assert_eq!(quantise(&beyond), Tensor::from_slice(&[0u8, 0, 255, 255]));
    }

    #[test]
    fn bytes_are_rows_of_pixels() {
        let image = Tensor::from_slice(&[-1.0f32, 1.0, 0.0, -1.0, 1.0, 1.0]).view([1, 3, 1, 2]);
        assert_eq!(bytes(&image), [0, 128, 255, 255, 0, 255]);
    }
}
