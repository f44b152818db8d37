//! Weights on disk: safetensors, fp32, named as in DiT, with the fixed `pos_embed` that DiT's state dict also holds.

use crate::{
    config::{Input, ModelConfig},
    embed,
    params::{Layout, Params},
};
use lcf_store::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
};
use tch::{Device, Kind, Tensor};

/// DiT's name of the position embedding.
const POSITIONS: &str = "pos_embed";

/// Writes `flat`, laid out by `layout`, and the position embedding.
///
/// # Errors
/// [`Error::Bad`] naming a number that is not finite; [`Error::Io`] when the file cannot be written.
pub fn save(path: &Path, model: &ModelConfig, input: &Input, layout: &Layout, flat: &Tensor) -> Result<()> {
    all_finite(path, layout, flat)?;
    let flat = flat.to_device(Device::Cpu);
    let mut tensors: BTreeMap<&str, Tensor> = BTreeMap::new();
    tensors.extend(layout.specs.iter().map(|spec| spec.name.as_str()).zip(layout.views(&flat)));
    tensors.insert(POSITIONS, embed::positions(input.grid(model), model.width));
    write(path, tensors.into_iter())
}

/// That every number of `flat` is one. `path` is what the error is about.
///
/// # Errors
/// [`Error::Bad`] naming the first that is not finite.
pub fn all_finite(path: &Path, layout: &Layout, flat: &Tensor) -> Result<()> {
    match layout.first_not_finite(flat) {
        None => Ok(()),
        Some((name, index)) => Err(Error::bad(path, format!("number {index} of tensor {name} is not finite"))),
    }
}

/// Writes named fp32 or int64 tensors as they are, without metadata, whose order would be random. The bytes are those of
/// `safetensors::serialize_to_file`, which is not used: its files can be read by their owner alone, and it leaves a
/// nameless one behind when it is killed.
///
/// # Errors
/// [`Error::Io`] when the file cannot be written.
pub fn write<'a>(path: &Path, tensors: impl Iterator<Item = (&'a str, Tensor)>) -> Result<()> {
    let mut tensors: Vec<(&str, Dtype, Tensor)> = tensors.map(|(name, tensor)| typed(name, &tensor)).collect();
    // The widest types first, so that all numbers are aligned.
    tensors.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let header = header(&tensors).map_err(|error| Error::bad(path, error.to_string()))?;
    let write = || -> io::Result<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors.iter().try_for_each(|(_, _, tensor)| file.write_all(&bytes_of(tensor)))?;
        file.flush()
    };
    write().map_err(Error::io(path, "write"))
}

/// Names, types, shapes and places, as JSON padded to a multiple of 8.
fn header(tensors: &[(&str, Dtype, Tensor)]) -> std::result::Result<Vec<u8>, serde_json::Error> {
    let mut end = 0;
    let mut fields = serde_json::Map::new();
    for (name, dtype, tensor) in tensors {
        let start = end;
        end += tensor.numel() * dtype.bitsize() / 8;
        let info = serde_json::json!({"dtype": dtype, "shape": tensor.size(), "data_offsets": [start, end]});
        fields.insert((*name).to_owned(), info);
    }
    let mut text = serde_json::to_vec(&fields)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// On the CPU, int64 or else fp32.
fn typed<'a>(name: &'a str, tensor: &Tensor) -> (&'a str, Dtype, Tensor) {
    let (kind, dtype) =
        if tensor.kind() == Kind::Int64 { (Kind::Int64, Dtype::I64) } else { (Kind::Float, Dtype::F32) };
    (name, dtype, tensor.to_device(Device::Cpu).to_kind(kind).contiguous())
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.view([-1]);
    match tensor.kind() {
        Kind::Int64 => Vec::<i64>::try_from(flat).expect("int64").iter().flat_map(|v| v.to_le_bytes()).collect(),
        _ => Vec::<f32>::try_from(flat).expect("fp32").iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// Reads every tensor of a file to the CPU, by name.
///
/// # Errors
/// [`Error::Bad`] when it is not a safetensors file of fp32 and int64 tensors.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(Error::io(path, "read"))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|e| Error::bad(path, format!("not a safetensors file: {e}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let kind = match view.dtype() {
            Dtype::F32 => Kind::Float,
            Dtype::I64 => Kind::Int64,
            other => return Err(Error::bad(path, format!("{name} is {other:?}, expected F32"))),
        };
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        // A size that is beyond libtorch comes with no data, and passes the checks of the format.
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)
            .map_err(|_| Error::bad(path, format!("tensor {name} has the shape {:?}", view.shape())))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// Reads parameters; strict both ways: every name of the layout must be there, with its shape, and nothing else.
///
/// # Errors
/// [`Error::Bad`] naming the first tensor that is missing, unexpected, of another shape or not finite.
pub fn load(path: &Path, model: &ModelConfig, input: &Input, device: Device) -> Result<Params> {
    let mut tensors = read(path)?;
    let layout = Layout::new(model, input);
    let mut take = |name: &str, shape: &[i64]| match tensors.remove(name) {
        None => Err(Error::bad(path, format!("tensor {name} is missing"))),
        Some(tensor) if tensor.size() != shape || tensor.kind() != Kind::Float => {
            let found = (tensor.kind(), tensor.size());
            Err(Error::bad(path, format!("tensor {name} is {found:?}, expected (Float, {shape:?})")))
        }
        Some(tensor) => Ok(tensor),
    };
    let values: Result<Vec<Tensor>> = layout.specs.iter().map(|spec| take(&spec.name, &spec.shape)).collect();
    let positions = take(POSITIONS, &[1, input.tokens(model), model.width])?;
    if !positions.allclose(&embed::positions(input.grid(model), model.width), 1e-5, 1e-5, false) {
        return Err(Error::bad(path, format!("{POSITIONS} is not DiT's fixed sine-cosine embedding")));
    }
    let flat = layout.flatten(&values?).to_device(device);
    if let Some(name) = tensors.keys().next() {
        return Err(Error::bad(path, format!("tensor {name} is unexpected")));
    }
    all_finite(path, &layout, &flat)?;
    Ok(Params { layout, flat })
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    const MODEL: ModelConfig = ModelConfig { depth: 1, width: 8, heads: 2, mlp: 12, patch: 2 };
    const INPUT: Input = Input { channels: 1, side: 4 };

    fn saved(dir: &Path) -> (std::path::PathBuf, Params) {
        let params = Params::init(&MODEL, &INPUT, 5, Device::Cpu);
        let path = dir.join("w.safetensors");
        save(&path, &MODEL, &INPUT, &params.layout, &params.flat).unwrap();
        (path, params)
    }

    #[test]
    fn round_trip_and_equal_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, params) = saved(dir.path());
        assert_eq!(load(&path, &MODEL, &INPUT, Device::Cpu).unwrap().flat, params.flat);
        let first = fs::read(&path).unwrap();
        saved(dir.path());
        assert_eq!(fs::read(&path).unwrap(), first);
    }

    #[test]
    fn the_bytes_are_those_of_the_reference_writer() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let floats = Tensor::from_slice(&[1.0f32, -2.5, 3.0, 4.0, 5.0, 6.0]).view([2, 3]);
        let numbers = Tensor::from_slice(&[7i64, -8]);
        write(&ours, [("b", floats.copy()), ("a\"", floats.tr()), ("z", numbers.copy())].into_iter()).unwrap();
        let turned = floats.tr().contiguous();
        let (plain, tall, long) = (bytes_of(&floats), bytes_of(&turned), bytes_of(&numbers));
        let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let views = [
            ("b", view(Dtype::F32, &[2, 3], &plain)),
            ("a\"", view(Dtype::F32, &[3, 2], &tall)),
            ("z", view(Dtype::I64, &[2], &long)),
        ];
        safetensors::serialize_to_file(views, None, &theirs).unwrap();
        assert_eq!(fs::read(&ours).unwrap(), fs::read(&theirs).unwrap());
    }

    #[test]
    fn every_way_a_file_can_be_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = saved(dir.path());
        let message = || load(&path, &MODEL, &INPUT, Device::Cpu).unwrap_err().to_string();
        let good = read(&path).unwrap();
        let rewrite = |edit: &dyn Fn(&mut BTreeMap<String, Tensor>)| {
            let mut tensors: BTreeMap<String, Tensor> = good.iter().map(|(k, v)| (k.clone(), v.copy())).collect();
            edit(&mut tensors);
            write(&path, tensors.iter().map(|(k, v)| (k.as_str(), v.copy()))).unwrap();
        };
        rewrite(&|t| drop(t.remove("blocks.0.mlp.fc1.bias")));
        assert!(message().ends_with("tensor blocks.0.mlp.fc1.bias is missing"));
        rewrite(&|t| drop(t.insert("extra".into(), Tensor::from_slice(&[1.0f32]))));
        assert!(message().ends_with("tensor extra is unexpected"));
        rewrite(&|t| drop(t.insert("final_layer.linear.bias".into(), Tensor::from_slice(&[1.0f32]))));
        assert!(message().contains("final_layer.linear.bias is (Float, [1]), expected (Float, [4])"));
        rewrite(&|t| drop(t.insert(POSITIONS.into(), Tensor::zeros([1, 4, 8], (Kind::Float, Device::Cpu)))));
        assert!(message().contains("pos_embed is not"));
        rewrite(&|t| drop(t.get_mut("blocks.0.mlp.fc2.bias").unwrap().get(5).fill_(f64::NAN)));
        assert!(message().ends_with("number 5 of tensor blocks.0.mlp.fc2.bias is not finite"), "{}", message());
        let params = Params::init(&MODEL, &INPUT, 5, Device::Cpu);
        let bias = params.layout.specs.iter().find(|spec| spec.name == "final_layer.linear.bias").unwrap();
        let _ = params.flat.get(bias.offset + 3).fill_(f64::INFINITY);
        let error = save(&path, &MODEL, &INPUT, &params.layout, &params.flat).unwrap_err().to_string();
        assert!(error.ends_with("number 3 of tensor final_layer.linear.bias is not finite"), "{error}");
        fs::write(&path, b"not it").unwrap();
        assert!(message().contains("not a safetensors file"));
    }
}
