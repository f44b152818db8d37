//! Arrays that are `.npy` already, and the weights of probes, which become it.

use super::copy;
use lcf_store::{Artifact, Error, Result, npy};
use safetensors::{Dtype, SafeTensors};
use std::{fs, path::Path};

const WEIGHTS: &str = "weights.safetensors";

/// Every file as it is.
pub fn copy_all(artifact: &Artifact, to: &Path) -> Result<()> {
    artifact
        .manifest()
        .outputs
        .iter()
        .try_for_each(|output| copy(&artifact.dir().join(&output.path), &to.join(&output.path)))
}

/// Curve and summary as they are, and one `.npy` a tensor: `T0020.raw.weight.npy`, float32 `[C, D]`, and so on.
pub fn probe(artifact: &Artifact, to: &Path) -> Result<()> {
    for output in artifact.manifest().outputs.iter().filter(|output| output.path != WEIGHTS) {
        copy(&artifact.dir().join(&output.path), &to.join(&output.path))?;
    }
    let path = artifact.file(WEIGHTS)?;
    let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
    let bad = |message: String| Error::bad(&path, message);
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| bad(format!("not a safetensors file: {error}")))?;
    for (name, tensor) in tensors.iter() {
        if tensor.dtype() != Dtype::F32 {
            return Err(bad(format!("{name}: found {:?}, expected F32", tensor.dtype())));
        }
        let values: Vec<f32> =
            tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        npy::write(&to.join(format!("{name}.npy")), tensor.shape(), &values)?;
    }
    Ok(())
}
