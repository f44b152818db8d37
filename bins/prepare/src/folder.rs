//! What the two readers of encoded images share: labelled files of a [`Tree`].

use crate::{
    planes,
    source::{BadImage, Pixels, Source, Split},
    tree::Tree,
};
use lcf_store::{Result, decode};
use std::sync::Arc;

/// The files of a set with their labels, found but not read.
#[derive(Debug)]
pub struct Listing {
    /// All files.
    pub tree: Tree,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Training images.
    pub train: Images,
    /// Test images.
    pub test: Images,
    /// Files that say which images belong to which class, by their numbers in the tree.
    pub texts: Vec<usize>,
}

impl Listing {
    /// Digest of the raw data.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn raw_digest(&self) -> Result<String> {
        let images = self.train.files.iter().chain(&self.test.files);
        let used: Vec<usize> = images.chain(&self.texts).copied().collect();
        self.tree.digest(&used)
    }

    /// The dataset whose images are decoded to `shape`, after cropping and resizing them to `side` where it is given.
    pub fn source(self, shape: [usize; 3], side: Option<usize>) -> Source {
        let path = self.tree.path().to_owned();
        let tree = Arc::new(self.tree);
        let train = self.train.split(Arc::clone(&tree), shape, side);
        Source { path, classes: self.classes, shape, train, test: self.test.split(tree, shape, side) }
    }
}

/// The images of one split.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// Class of each image.
    pub labels: Vec<i64>,
    /// Its number in the tree.
    pub files: Vec<usize>,
}

impl Images {
    /// Images in the order of class, then file name, bytewise.
    pub fn sorted(tree: &Tree, mut images: Vec<(i64, usize)>) -> Self {
        // The tree is sorted, but directory names that contain one another sort differently as parts of a path.
        let key = |&(label, file): &(i64, usize)| (label, tree.files()[file].rsplit('/').next().map(str::to_owned));
        images.sort_by_cached_key(key);
        let (labels, files) = images.into_iter().unzip();
        Self { labels, files }
    }

    /// Which of `classes` classes have no image.
    pub fn missing(&self, classes: usize) -> Vec<usize> {
        let mut seen = vec![false; classes];
        self.labels.iter().for_each(|&label| seen[label as usize] = true);
        (0..classes).filter(|&class| !seen[class]).collect()
    }

    fn split(self, tree: Arc<Tree>, shape: [usize; 3], side: Option<usize>) -> Split {
        let files = self.files;
        let pixels: Pixels = Box::new(move |index, out| {
            let file = files[index];
            let result = tree.read(file).and_then(|bytes| {
                let mut image = decode::rgb(&bytes)?;
                if let Some(side) = side {
                    image = planes::centre_square(&image, side as u32);
                }
                planes::planes(&image, shape, out)
            });
            result.map_err(|reason| BadImage { name: tree.files()[file].clone(), reason })
        });
        Split { labels: self.labels, pixels }
    }
}
