//! When two tensors count as equal.

use lcf_model::weights;
use std::{collections::BTreeMap, path::Path};
use tch::{Kind, Tensor};

/// Largest difference that is rounding, as a fraction of the largest absolute value of the golden tensor.
///
/// - fp32: golden values are exact to fp32 (`gen.py` computes in double precision), so what is left is our own
///   rounding, 6e-8 an operation: measured at most 5e-7 through three blocks and back, 2e-6 in losses, where terms
///   cancel. One more source may show on another processor: the angle of the time embedding, up to 1000, follows the
///   last bit of an exponential, which is worth 6e-5 of an angle and 1e-5 of the gradient of `t_embedder.mlp.0.weight`.
///   The mildest mistake of `gen.py` is worth 8e-5.
/// - bf16: eight bits of precision, half a unit is 2e-3, at every operand of every matrix product: measured 8e-3.
const TOLERANCES: [(Kind, f64); 2] = [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)];

/// A mistake is seen clearly where it makes a difference of this many tolerances.
pub const CLEARLY: f64 = 5.0;

/// The tolerance of computations with matrix operands of `kind`.
pub fn tolerance(kind: Kind) -> f64 {
    TOLERANCES.iter().find(|(k, _)| *k == kind).expect("a kind of the table").1
}

/// Largest difference as a fraction of the largest absolute value of `golden`; infinite where NaN is involved, or where
/// `golden` is all zero and `found` is not.
pub fn difference(found: &Tensor, golden: &Tensor) -> f64 {
    assert_eq!(found.size(), golden.size(), "shapes differ");
    let largest = |x: Tensor| x.abs().max().double_value(&[]);
    let (difference, scale) = (largest(found.detach() - golden), largest(golden.shallow_clone()));
    match difference {
        0.0 => 0.0,
        _ if scale > 0.0 && difference.is_finite() => difference / scale,
        _ => f64::INFINITY,
    }
}

/// Whether `found` is so far from `golden` that rounding is no explanation: what a twin with a mistake must show.
pub fn clearly_differ(found: &Tensor, golden: &Tensor) -> bool {
    difference(found, golden) > CLEARLY * tolerance(Kind::Float)
}

/// Fails, naming the tensor, unless it is `golden` up to the rounding of fp32.
pub fn assert_same(name: &str, found: &Tensor, golden: &Tensor) {
    let (difference, tolerance) = (difference(found, golden), tolerance(Kind::Float));
    assert!(difference <= tolerance, "{name} is off by {difference:.2e} of its largest value, allowed {tolerance:.0e}");
}

/// A golden file.
pub struct Golden(BTreeMap<String, Tensor>);

impl Golden {
    /// Opens `NAME.safetensors` of this folder.
    pub fn open(name: &str) -> Self {
        // A test of any crate may open it, and crates lie two folders deep.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("a workspace");
        let path = root.join("common/model/tests/golden").join(name).with_extension("safetensors");
        Self(weights::read(&path).expect("a golden file"))
    }

    /// The tensor `name`.
    pub fn get(&self, name: &str) -> &Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("no golden tensor {name}"))
    }

    /// Tensors whose names start with `prefix`, without it.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        self.0.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }
}
