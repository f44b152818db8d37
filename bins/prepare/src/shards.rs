//! Writing a dataset: images in shards, labels, and the description with its statistics.

use crate::{
    config::Config,
    failures::Failures,
    random::{Purpose, Stream},
    source::{BadImage, Pixels, Source, Split},
    statistics::Moments,
};
use lcf_store::{
    Error, Result,
    config::Section,
    dataset::{META, Meta, SplitMeta},
    npy::{self, Writer},
    progress::{self, ProgressBar},
    stage::{Work, pretty, write_atomic},
    subset,
};
use rayon::prelude::*;

/// Most images in a shard.
const SHARD: usize = 10_000;
/// Most bytes of pixels that are decoded before they are written.
const CHUNK_BYTES: usize = 32 << 20;
const HINT: &str = "repair or remove these files; nothing was published";

/// Writes the images of `source` that `config` asks for to `work`.
///
/// # Errors
/// [`Error::Usage`] for a limit that the dataset cannot meet; [`Error::Bad`] with the first five unreadable images and
/// their number; [`Error::Io`].
pub fn write(work: &Work, source: &Source, config: &Config) -> Result<()> {
    let classes = source.classes.len();
    let pick = |name: &str, split: &Split, limit, purpose| match limit {
        None => Ok((0..split.labels.len()).collect()),
        Some(limit) => {
            check_limit(name, limit, classes, split.labels.len())?;
            Ok(subset::balanced(&split.labels, limit, own_draw(config.seed, purpose)))
        }
    };
    let train: Vec<usize> = pick("limit", &source.train, config.limit, Purpose::TrainSubset)?;
    let test: Vec<usize> = pick("limit_test", &source.test, config.limit_test, Purpose::TestSubset)?;
    let mut sink = Sink::new(work, source, train.len() + test.len());
    let train_meta = sink.split("train", &source.train, &train)?;
    let moments = std::mem::take(&mut sink.moments);
    let test_meta = sink.split("test", &source.test, &test)?;
    sink.bar.finish_and_clear();
    sink.failures.check(&source.path, "images", HINT)?;
    let [channels, height, width] = source.shape;
    let (mean, std) = moments.mean_and_std(train.len() * height * width);
    let name = config.dataset.name().to_owned();
    let classes = source.classes.clone();
    let meta = Meta { name, channels, height, width, classes, mean, std, train: train_meta, test: test_meta };
    write_atomic(&work.path(META), &pretty(&meta))
}

/// The random number of each image, which decides whether a subset takes it.
fn own_draw(seed: u64, purpose: Purpose) -> impl Fn(u64) -> u64 {
    move |index| Stream::new(seed, purpose, index).draw(0)
}

/// Every class needs an image, and the dataset has only so many.
fn check_limit(name: &str, limit: usize, classes: usize, images: usize) -> Result<()> {
    match (classes..=images).contains(&limit) {
        true => Ok(()),
        false => {
            let message = format!("{}.{name}: {limit} is not in {classes}..={images}", Config::NAME);
            Err(Error::usage(message).with_hint(format!("the dataset has {images} images of {classes} classes there")))
        }
    }
}

/// Where the images of both splits go.
struct Sink<'a> {
    work: &'a Work,
    shape: [usize; 3],
    failures: Failures,
    /// Of the images written since it was last taken.
    moments: Moments,
    bar: ProgressBar,
}

impl<'a> Sink<'a> {
    fn new(work: &'a Work, source: &Source, images: usize) -> Self {
        let bar = progress::bar(images as u64, Config::NAME, "images");
        Self { work, shape: source.shape, failures: Failures::default(), moments: Moments::default(), bar }
    }

    /// Writes the images `chosen` of a split, in that order.
    fn split(&mut self, name: &str, split: &Split, chosen: &[usize]) -> Result<SplitMeta> {
        let mut shards = Vec::new();
        for images in chosen.chunks(SHARD) {
            let shard = format!("{name}-{:03}.npy", shards.len());
            self.shard(&shard, &split.pixels, images)?;
            shards.push(shard);
        }
        let labels: Vec<i64> = chosen.iter().map(|&index| split.labels[index]).collect();
        let file = format!("{name}-labels.npy");
        npy::write(&self.work.path(&file), &[labels.len()], &labels)?;
        Ok(SplitMeta { count: chosen.len(), shards, labels: file })
    }

    /// Bad images leave holes in the shard and are counted; it will not be published.
    fn shard(&mut self, name: &str, pixels: &Pixels, images: &[usize]) -> Result<()> {
        let [channels, height, width] = self.shape;
        let bytes = channels * height * width;
        let mut writer = Writer::<u8>::create(&self.work.path(name), &[images.len(), channels, height, width])?;
        let mut buffer = Vec::new();
        for chunk in images.chunks((CHUNK_BYTES / bytes).max(1)) {
            buffer.try_reserve_exact((chunk.len() * bytes).saturating_sub(buffer.len())).map_err(|_| {
                let message = format!("out of memory: cannot hold {} bytes of pixels", chunk.len() * bytes);
                Error::bad(self.work.path(name), message).with_hint("free memory, or raise its limit (ulimit -v)")
            })?;
            buffer.resize(chunk.len() * bytes, 0);
            let decode = |(out, &index): (&mut [u8], &usize)| {
                pixels(index, out)?;
                Ok(Moments::of(out, channels))
            };
            let results: Vec<Result<Moments, BadImage>> =
                buffer.par_chunks_exact_mut(bytes).zip(chunk).map(decode).collect();
            for result in results {
                match result {
                    Ok(moments) => self.moments.add(&moments),
                    Err(bad) => self.failures.add(&bad.name, &bad.reason),
                }
            }
            writer.write(&buffer)?;
            self.bar.inc(chunk.len() as u64);
        }
        writer.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kind;
    use lcf_store::{
        cli::StageArgs,
        dataset::Dataset,
        stage::{Begin, Plan},
    };
    use std::path::PathBuf;

    fn config(limit: Option<usize>) -> Config {
        Config { dataset: Kind::ImageFolder, limit, limit_test: None, seed: 0, side: None, synthetic: None }
    }

    /// Image i is filled with i mod 251; those in `bad` are unreadable.
    fn source(train: usize, test: usize, bad: &'static [usize]) -> Source {
        let split = |count: usize| {
            let pixels: Pixels = Box::new(move |index, out| {
                if bad.contains(&index) {
                    return Err(BadImage { name: format!("{index}.png"), reason: "bad".into() });
                }
                out.fill((index % 251) as u8);
                Ok(())
            });
            Split { labels: (0..count).map(|i| (i % 2) as i64).collect(), pixels }
        };
        let classes = vec!["a".into(), "b".into()];
        Source { path: PathBuf::from("raw"), classes, shape: [3, 2, 2], train: split(train), test: split(test) }
    }

    fn build(source: &Source, config: &Config) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let args = StageArgs { store: dir.path().to_owned(), ..StageArgs::default() };
        let Begin::Build(work) = Plan::of(1, config).begin(&args)? else { panic!("expected a build") };
        write(&work, source, config)?;
        Dataset::of(work.publish()?)
    }

    #[test]
    fn shards_hold_all_images_in_order() {
        let dataset = build(&source(SHARD + 5, 3, &[]), &config(None)).unwrap();
        assert_eq!(dataset.meta.train.shards, ["train-000.npy", "train-001.npy"]);
        assert_eq!(dataset.meta.test.shards, ["test-000.npy"]);
        assert_eq!((dataset.train.shards[0].len(), dataset.train.shards[1].len()), (SHARD, 5));
        let mut out = [0; 24];
        dataset.train.copy(SHARD - 1, 2, &mut out);
        assert_eq!((out[0], out[12]), (((SHARD - 1) % 251) as u8, (SHARD % 251) as u8));
        assert_eq!(dataset.train.labels()[..4], [0, 1, 0, 1]);
    }

    /// Training images 0 and 1: half the pixels 0, half 1.
    #[test]
    fn statistics_are_of_the_training_images() {
        let meta = build(&source(2, 9, &[]), &config(None)).unwrap().meta;
        meta.mean.iter().for_each(|mean| assert!((mean - (0.5 / 127.5 - 1.0)).abs() < 1e-15));
        meta.std.iter().for_each(|std| assert!((std - 0.5 / 127.5).abs() < 1e-15));
    }

    #[test]
    fn bad_images_of_both_splits_are_counted() {
        let error = build(&source(8, 4, &[0, 1, 2, 3]), &config(None)).unwrap_err().to_string();
        assert!(error.starts_with("raw: found 8 bad images, the first 5: 0.png (bad); 1.png (bad); 2.png"), "{error}");
    }

    #[test]
    fn limits_outside_the_dataset_are_usage_errors() {
        for limit in [1, 9] {
            let error = build(&source(8, 4, &[]), &config(Some(limit))).unwrap_err();
            assert_eq!(error.to_string(), format!("prepare.limit: {limit} is not in 2..=8"));
            assert_eq!(error.exit_code(), 2);
        }
        let dataset = build(&source(8, 4, &[]), &config(Some(4))).unwrap();
        assert_eq!((dataset.train.count, dataset.test.count), (4, 4));
        assert_eq!(dataset.train.labels().iter().sum::<i64>(), 2);
    }

    /// Pinned: other images would be another dataset under the same key.
    #[test]
    fn the_chosen_images_stay_the_same() {
        let labels: Vec<i64> = (0..100).map(|i| if i < 2 { 0 } else { 1 + i % 2 }).collect();
        let chosen = subset::balanced(&labels, 9, own_draw(5, Purpose::TestSubset));
        assert_eq!(chosen, [0, 1, 25, 39, 46, 48, 56, 63, 95]);
    }
}
