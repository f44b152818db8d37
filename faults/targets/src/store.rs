//! Readers of the store: arrays, manifests, datasets, configs.

use crate::{SCRATCH, parts};
use lcf_store::{
    Artifact,
    artifact::{MANIFEST, Manifest, content_digest, key},
    cli::StageArgs,
    config::{self, Section},
    dataset::{self, Dataset},
    npy::{self, Npy},
    stage::{Begin, Plan},
};
use std::fs;

/// The header of a `.npy` file, and the whole of it as each type of number.
pub fn npy(data: &[u8]) {
    if let Ok(header) = npy::parse(data) {
        assert!(header.offset <= data.len());
    }
    SCRATCH.with(|scratch| {
        let path = scratch.write("x.npy", data);
        if let Ok(array) = Npy::<f32>::open(&path) {
            assert_eq!(array.values().len(), array.shape().iter().product::<usize>());
        }
        if let Ok(array) = Npy::<u8>::open(&path) {
            assert!(array.shape().is_empty() || array.rows(0, array.len()) == array.values());
        }
    });
}

/// A manifest, as it is and with its key and digest made right, beside one file.
pub fn manifest(data: &[u8]) {
    SCRATCH.with(|scratch| {
        scratch.write("artifact/a.txt", b"alpha");
        let path = scratch.write(&format!("artifact/{MANIFEST}"), data);
        let dir = scratch.path("artifact");
        let _ = Artifact::open_any(&dir);
        let Ok(mut manifest) = serde_json::from_slice::<Manifest>(data) else { return };
        manifest.schema = lcf_store::artifact::SCHEMA;
        manifest.key = key(&manifest.stage, manifest.version, &manifest.config, &manifest.inputs);
        manifest.digest = content_digest(&manifest.outputs);
        fs::write(path, serde_json::to_vec(&manifest).expect("it was JSON")).expect("a file");
        if let Ok(artifact) = Artifact::open_any(&dir) {
            // There is one file that it can speak of.
            assert!(artifact.manifest().outputs.iter().all(|output| output.path.ends_with("a.txt")));
        }
    });
}

thread_local! {
    /// An artifact whose files are replaced from case to case, as if each had been published.
    static DATASET: Artifact = {
        let store = SCRATCH.with(|scratch| scratch.path("store"));
        let begun = Plan::new(dataset::STAGE, 1, &()).begin(&StageArgs { store, ..StageArgs::default() });
        let Ok(Begin::Build(work)) = begun else { panic!("an empty store") };
        for name in [dataset::META, "shard.npy"] {
            fs::write(work.path(name), []).expect("a file");
        }
        npy::write(&work.path("one.npy"), &[1, 3, 2, 2], &[7u8; 12]).expect("a file");
        npy::write(&work.path("labels.npy"), &[1], &[0i64]).expect("a file");
        work.publish().expect("a store")
    };
}

/// `dataset.json`, and after it a shard of images, in an artifact that has been verified.
pub fn dataset(data: &[u8]) {
    let [meta, shard] = parts(data);
    DATASET.with(|artifact| {
        fs::write(artifact.dir().join(dataset::META), meta).expect("a file");
        fs::write(artifact.dir().join("shard.npy"), shard).expect("a file");
        let Ok(dataset) = Dataset::of(artifact.clone()) else { return };
        let image = dataset.meta.channels * dataset.meta.height * dataset.meta.width;
        for split in [&dataset.train, &dataset.test] {
            assert_eq!(split.labels().len(), split.count);
            split.copy(0, split.count, &mut vec![0; split.count * image]);
        }
    });
}

/// A config of every stage: the first part is the file, the second its base, the third a value given by `--set`.
pub fn config(data: &[u8]) {
    let [own, base, set] = parts(data);
    SCRATCH.with(|scratch| {
        scratch.write("base.json", base);
        let path = scratch.write("run.json", own);
        let set: Vec<String> = std::str::from_utf8(set).into_iter().filter(|s| !s.is_empty()).map(Into::into).collect();
        let load = |name: &str| -> Result<(), lcf_store::Error> {
            match name {
                lcf_prepare::config::Config::NAME => {
                    config::load::<lcf_prepare::config::Config>(&path, &set).map(|c| drop(c.resolved()))
                }
                lcf_train::TrainConfig::NAME => {
                    config::load::<lcf_train::TrainConfig>(&path, &set).map(|c| drop(c.resolved()))
                }
                lcf_extract::Config::NAME => config::load::<lcf_extract::Config>(&path, &set).map(drop),
                lcf_probe::Config::NAME => config::load::<lcf_probe::Config>(&path, &set).map(drop),
                lcf_sample::Config::NAME => config::load::<lcf_sample::Config>(&path, &set).map(drop),
                _ => config::load::<lcf_fid::config::Config>(&path, &set).map(drop),
            }
        };
        for name in ["prepare", "train", "extract", "probe", "sample", "fid"] {
            if let Err(error) = load(name) {
                assert_eq!(error.exit_code(), 2, "{error}");
            }
        }
    });
}
