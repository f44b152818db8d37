//! From a config and a path to a dataset: which reader, which raw data, and their digest.

use crate::{
    cifar10,
    config::{Config, Kind},
    folder::Listing,
    image_folder,
    source::Source,
    synthetic, tiny_imagenet,
};
use lcf_store::{Error, Result, fetch::fetch};
use std::path::PathBuf;

/// Where raw data may come from.
#[derive(Clone, Debug)]
pub struct Places {
    /// A local archive or folder.
    pub data: Option<PathBuf>,
    /// `SOURCES.json`.
    pub sources: PathBuf,
    /// Where downloads are kept.
    pub downloads: PathBuf,
}

/// Raw data that has been found and listed, but not read.
#[derive(Debug)]
pub enum Input {
    /// See [`cifar10`].
    Cifar10(PathBuf),
    /// See [`tiny_imagenet`].
    TinyImagenet(Listing),
    /// See [`image_folder`].
    ImageFolder(Listing),
    /// See [`synthetic`]; nothing is read.
    Synthetic,
}

impl Input {
    /// Finds what `config` asks for; downloads it where no local path is given and there is a source.
    ///
    /// # Errors
    /// As [`fetch`] and the readers; [`Error::Usage`] when a path is needed, or given for nothing.
    pub fn find(config: &Config, places: &Places) -> Result<Self> {
        if let Some(path) = places.data.as_ref().filter(|path| path.to_string_lossy().contains("://")) {
            let message = format!("--data {}: found an address, expected a folder or an archive", path.display());
            return Err(Error::usage(message).with_hint("download it, and name the file"));
        }
        let archive = || match &places.data {
            Some(path) => Ok(path.clone()),
            None => fetch(&places.sources, config.dataset.name(), &places.downloads),
        };
        match (config.dataset, &places.data) {
            (Kind::Cifar10, _) => Ok(Self::Cifar10(archive()?)),
            (Kind::TinyImagenet, _) => Ok(Self::TinyImagenet(tiny_imagenet::list(&archive()?)?)),
            (Kind::ImageFolder, Some(path)) => Ok(Self::ImageFolder(image_folder::list(path)?)),
            (Kind::ImageFolder, None) => Err(Error::usage("--data: missing, expected a folder of train/CLASS/IMAGE")),
            (Kind::Synthetic, None) => Ok(Self::Synthetic),
            (Kind::Synthetic, Some(path)) => {
                Err(Error::usage(format!("--data {}: the synthetic dataset reads nothing", path.display())))
            }
        }
    }

    /// Digest of the raw data, where there is any: changed data are another build.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn raw_digest(&self) -> Result<Option<String>> {
        match self {
            Self::Cifar10(path) => cifar10::raw_digest(path).map(Some),
            Self::TinyImagenet(listing) | Self::ImageFolder(listing) => listing.raw_digest().map(Some),
            Self::Synthetic => Ok(None),
        }
    }

    /// The dataset.
    ///
    /// # Errors
    /// As the readers.
    pub fn source(self, config: &Config) -> Result<Source> {
        match self {
            Self::Cifar10(path) => cifar10::read(&path, cifar10::RECORDS),
            Self::TinyImagenet(listing) => Ok(listing.source(tiny_imagenet::SHAPE, None)),
            Self::ImageFolder(listing) => image_folder::source(listing, config.side),
            Self::Synthetic => Ok(synthetic::source(&config.synthetic.clone().unwrap_or_default(), config.seed)),
        }
    }
}
