//! FID, KID, precision and recall against torch-fidelity's own functions, by features and numbers stored here
//! (`golden/gen.py`).

use lcf_fid::{
    kid::Subsets,
    memorisation::authenticity,
    metrics::{self, Metrics, Set, Settings},
};
use safetensors::SafeTensors;
use std::{collections::HashMap, fs, path::Path};
use tch::Device;

const DIM: usize = 16;
/// Both sides compute in fp64; what is left is the order of sums and, for FID, an eigenvalue solver of another kind.
const TOLERANCE: f64 = 1e-6;

/// What gen.py stored.
struct Golden {
    real: Vec<f32>,
    fake: Vec<f32>,
    numbers: HashMap<String, Vec<f64>>,
}

impl Golden {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metrics.safetensors");
        let bytes = fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let features = |name: &str| bytemuck::pod_collect_to_vec(file.tensor(name).unwrap().data());
        let numbers = file.iter().filter(|(name, _)| !["real", "fake"].contains(name));
        let numbers = numbers.map(|(name, view)| (name.to_owned(), bytemuck::pod_collect_to_vec(view.data())));
        Self { real: features("real"), fake: features("fake"), numbers: numbers.collect() }
    }

    /// Largest relative difference of `found` from the numbers called `name`.
    fn off(&self, name: &str, found: &[f64]) -> f64 {
        let expected = &self.numbers[name];
        assert_eq!(found.len(), expected.len(), "{name}");
        found.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs()).fold(0.0, f64::max)
    }
}

fn ours(golden: &Golden) -> (Metrics, f64) {
    let kid = Subsets { subsets: 10, subset_size: 40, seed: 2020 };
    let settings = Settings { kid, k: 3, device: Device::Cpu };
    let set = |values| Set::of(values, DIM, &settings, "golden").unwrap();
    let (fake, real) = (set(&golden.fake), set(&golden.real));
    let (metrics, nearest) = metrics::compare(&fake, &real, &settings, 1, "golden").unwrap();
    (metrics, authenticity(&nearest, &real.own))
}

#[test]
fn metrics_are_torch_fidelitys() {
    let golden = Golden::read();
    let (metrics, authenticity) = ours(&golden);
    let prc = [metrics.precision.unwrap(), metrics.recall.unwrap()];
    let checks = [
        ("fid", vec![metrics.fid]),
        ("kid", vec![metrics.kid.mean, metrics.kid.std]),
        ("prc", prc.to_vec()),
        ("authenticity", vec![authenticity]),
    ];
    for (name, found) in checks {
        let off = golden.off(name, &found);
        assert!(off < TOLERANCE, "{name}: {found:?}, expected {:?}, off by {off:.1e}", golden.numbers[name]);
    }
}

/// The test has power: each mistake is told apart by far more than the tolerance.
#[test]
fn twin_mistakes_are_told_apart() {
    let golden = Golden::read();
    let (metrics, authenticity) = ours(&golden);
    let mut wrong: Vec<&str> = golden.numbers.keys().map(String::as_str).filter(|n| n.starts_with("wrong.")).collect();
    wrong.sort_unstable();
    assert_eq!(wrong.len(), 8, "{wrong:?}");
    for name in wrong {
        let found = match name.split('.').nth(1).unwrap() {
            "fid" => vec![metrics.fid],
            "kid" => vec![metrics.kid.mean, metrics.kid.std],
            "prc" => vec![metrics.precision.unwrap(), metrics.recall.unwrap()],
            _ => vec![authenticity],
        };
        assert!(golden.off(name, &found) > 1000.0 * TOLERANCE, "{name}");
    }
}
