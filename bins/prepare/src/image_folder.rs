//! Any folder, or zip archive, of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, where images are PNG, JPEG or WebP.

use crate::{
    decode,
    failures::Failures,
    folder::{Images, Listing},
    source::Source,
    tree::Tree,
};
use lcf_store::{Error, Result};
use std::{collections::BTreeSet, path::Path};

const EXTENSIONS: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
const HINT: &str = "repair or remove these files, or add what is missing";

/// Lists the folder or zip archive at `path`. Classes are the sorted directories of both splits.
///
/// # Errors
/// [`Error::Bad`] naming the classes without images in a split.
pub fn list(path: &Path) -> Result<Listing> {
    let inner = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let tree = Tree::open(path, inner, &["train", "test"])?;
    let classes: BTreeSet<&str> = tree.files().iter().filter_map(|name| Some(parts(name)?.1)).collect();
    let classes: Vec<String> = classes.into_iter().map(str::to_owned).collect();
    let (train, test) = (images(&tree, &classes, "train"), images(&tree, &classes, "test"));
    let mut failures = Failures::default();
    for (images, split) in [(&train, "train"), (&test, "test")] {
        for class in images.missing(classes.len()) {
            failures.add(&classes[class], &format!("no {} in {split}", EXTENSIONS.join(", ")));
        }
    }
    failures.check(path, "classes", HINT)?;
    match classes.is_empty() {
        true => Err(Error::bad(path, "found no train/CLASS/IMAGE in it").with_hint("see the README for the layout")),
        false => Ok(Listing { tree, classes, train, test, texts: Vec::new() }),
    }
}

/// Split, class and name of a file two directories deep.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let mut parts = name.split('/');
    let found = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(found)
}

fn images(tree: &Tree, classes: &[String], split: &str) -> Images {
    let labelled = tree.files().iter().enumerate().filter_map(|(index, name)| {
        let (top, class, file) = parts(name)?;
        let (_, extension) = file.rsplit_once('.')?;
        let is_image = EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
        let label = classes.binary_search_by(|known| known.as_str().cmp(class)).ok()?;
        (top == split && is_image).then_some((label as i64, index))
    });
    Images::sorted(tree, labelled.collect())
}

/// The dataset, its images cropped and resized to `side` where that is given.
///
/// # Errors
/// [`Error::Bad`] when `side` is not given and the first image is not a square.
pub fn source(listing: Listing, side: Option<usize>) -> Result<Source> {
    let edge = match side {
        Some(side) => side,
        None => common_side(&listing)?,
    };
    Ok(listing.source([3, edge, edge], side))
}

/// Side of the first image that has a readable header; the others are held against it when they are decoded.
fn common_side(listing: &Listing) -> Result<usize> {
    let headers = listing.train.files.iter().filter_map(|&file| {
        let bytes = listing.tree.read(file).ok()?;
        Some((file, decode::dimensions(&bytes).ok()?))
    });
    match headers.into_iter().next() {
        // All of them will be reported when they are decoded.
        None => Ok(1),
        Some((_, (width, height))) if width == height => Ok(width as usize),
        Some((file, (width, height))) => {
            let name = listing.tree.path().join(&listing.tree.files()[file]);
            let message = format!("found {width}x{height} pixels, expected a square");
            Err(Error::bad(name, message).with_hint("--set prepare.side=N crops and resizes all images to NxN"))
        }
    }
}
