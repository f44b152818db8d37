//! Arrays that are `.npy` already, and the weights of probes, which become it.

use super::{copy, write};
use lcf_store::{Artifact, Error, Result, npy};
use safetensors::{Dtype, SafeTensors};
use std::{fs, path::Path};

const WEIGHTS: &str = "weights.safetensors";
/// How the arrays of a probe are used.
const HOW: &str = "\
# Linear probes

For each timestep T = 1000 t, on the features that lcf-extract computed at it (`test-T0020.npy` of an exported `extract`):

```python
import numpy as np

x, labels = np.load(\"test-T0020.npy\"), np.load(\"test-labels.npy\")  # float32 [N, D], int64 [N]
raw_w, raw_b = np.load(\"T0020.raw.weight.npy\"), np.load(\"T0020.raw.bias.npy\")  # [C, D], [C]
std_w, std_b = np.load(\"T0020.std.weight.npy\"), np.load(\"T0020.std.bias.npy\")
mean, scale = np.load(\"T0020.std.mean.npy\"), np.load(\"T0020.std.scale.npy\")  # [D]
raw = (x @ raw_w.T + raw_b).argmax(1)  # predicted classes, features as they are
std = ((x - mean) * scale @ std_w.T + std_b).argmax(1)  # standardised
print((raw == labels).mean(), (std == labels).mean())  # probe.csv: test_acc_raw, test_acc_std
```
";

/// Every file as it is.
pub fn copy_all(artifact: &Artifact, to: &Path) -> Result<()> {
    artifact
        .manifest()
        .outputs
        .iter()
        .try_for_each(|output| copy(&artifact.dir().join(&output.path), &to.join(&output.path)))
}

/// Curve and summary as they are, one `.npy` a tensor: `T0020.raw.weight.npy`, float32 `[C, D]`, and so on, and how they are
/// used.
pub fn probe(artifact: &Artifact, to: &Path) -> Result<()> {
    for output in artifact.manifest().outputs.iter().filter(|output| output.path != WEIGHTS) {
        copy(&artifact.dir().join(&output.path), &to.join(&output.path))?;
    }
    each_tensor(&artifact.file(WEIGHTS)?, |name, shape, values| {
        npy::write(&to.join(format!("{name}.npy")), shape, values)
    })
    .map_err(|error| artifact.suspect(error))?;
    write(&to.join("README.md"), HOW.as_bytes())
}

/// Calls `take` with the name, shape and numbers of each tensor in the safetensors file at `path`.
///
/// # Errors
/// [`Error::Bad`] naming a tensor that is not fp32, or the number in it that is not finite; that of `take`.
pub fn each_tensor(path: &Path, mut take: impl FnMut(&str, &[usize], &[f32]) -> Result<()>) -> Result<()> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let bad = |message: String| Error::bad(path, message);
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(format!("not a safetensors file: {error}")))?;
    for (name, tensor) in tensors.iter() {
        if tensor.dtype() != Dtype::F32 {
            return Err(bad(format!("{name}: found {:?}, expected F32", tensor.dtype())));
        }
        let values: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(bad(format!("number {index} of tensor {name} is not finite")));
        }
        take(name, tensor.shape(), &values)?;
    }
    Ok(())
}
