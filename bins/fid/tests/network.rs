//! The network made anew against TorchScript's.

use crate::fixtures::weights;
use lcf_fid::{config::Precision, network::Network};
use std::path::Path;
use tch::{CModule, Device, Kind, Tensor, no_grad};

/// Random input of the network, some of it outside of what images give.
fn input(n: i64) -> Tensor {
    tch::manual_seed(0);
    // Patches as large as a feature of an image, and noise.
    let patches = Tensor::randn([n, 3, 13, 13], (Kind::Float, Device::Cpu)).upsample_nearest2d([299, 299], None, None);
    (patches + Tensor::randn([n, 3, 299, 299], (Kind::Float, Device::Cpu)) * 0.1) * 0.5
}

fn rebuilt(weights: &Path, precision: Precision, device: Device, input: &Tensor) -> Tensor {
    let network = Network::of(&CModule::load(weights).unwrap(), precision, device).unwrap();
    no_grad(|| network.forward(&input.to_device(device)).unwrap()).to_device(Device::Cpu)
}

fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!((found.size(), found.kind()), (expected.size(), Kind::Float));
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    norm(&(found - expected)) / norm(expected)
}

#[test]
fn the_rebuilt_network_is_torchscripts() {
    let Some(weights) = weights("the rebuilt network") else { return };
    tch::jit::f_set_graph_executor_optimize(false).unwrap();
    let input = input(2);
    let expected = no_grad(|| CModule::load(&weights).unwrap().forward_ts(&[&input]).unwrap());
    let error = |precision| relative(&rebuilt(&weights, precision, Device::Cpu, &input), &expected);
    let (fp32, fp16) = (error(Precision::Fp32), error(Precision::Fp16));
    assert!(fp32 < 1e-5, "{fp32:e}");
    // 11 bits of a number remain, over about 20 layers.
    assert!((1e-4..1e-2).contains(&fp16), "{fp16:e}");
}

/// Run on a GPU machine with `--features cuda-tests` and the weights in data/downloads or `LCF_INCEPTION`.
#[cfg(feature = "cuda-tests")]
#[test]
fn a_gpu_computes_what_the_cpu_does() {
    let weights = weights("the network on a GPU").expect("the weights");
    lcf_model::device::DeviceArgs { device: "cuda".into(), threads: 2 }.open().unwrap();
    let input = input(4);
    let on = |precision, device| rebuilt(&weights, precision, device, &input);
    let expected = on(Precision::Fp32, Device::Cpu);
    let fp32 = relative(&on(Precision::Fp32, Device::Cuda(0)), &expected);
    let fp16 = relative(&on(Precision::Fp16, Device::Cuda(0)), &expected);
    let emulated = relative(&on(Precision::Fp16, Device::Cuda(0)), &on(Precision::Fp16, Device::Cpu));
    assert!(fp32 < 1e-5 && fp16 < 1e-2 && emulated < 1e-2, "{fp32:e} {fp16:e} {emulated:e}");
    assert!(fp16 > 1e-4, "{fp16:e}");
}
