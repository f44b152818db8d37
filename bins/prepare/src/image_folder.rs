//! Any folder, or zip archive, of `train/CLASS/IMAGE` and `test/CLASS/IMAGE`, where images are PNG, JPEG or WebP.

use crate::{
    failures::Failures,
    folder::{Images, Listing},
    source::Source,
    tree::Tree,
};
use lcf_store::{
    Error, Result,
    decode::{self, EXTENSIONS, is_image_name},
    say,
    text::visible,
};
use std::{collections::BTreeSet, path::Path};

const SPLITS: [&str; 2] = ["train", "test"];
const HINT: &str = "add what is missing, or remove the class from both splits";
const MISPLACED: &str = "move them to train/CLASS or test/CLASS; a directory below a class is no class of its own";

/// Lists the folder or zip archive at `path`. Classes are the sorted directories of both splits, empty ones too. Other
/// files than images are left out, with a note on stderr.
///
/// # Errors
/// [`Error::Bad`] naming the images that are not two directories deep, or the classes without images in a split.
pub fn list(path: &Path) -> Result<Listing> {
    let inner = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let tree = Tree::open(path, inner, &SPLITS)?;
    if !tree.dirs().iter().any(|name| name == SPLITS[1]) {
        let message = format!("found no directory {} in it, expected {} and {}", SPLITS[1], SPLITS[0], SPLITS[1]);
        return Err(Error::bad(path, message).with_hint("move some images of each class to test/CLASS"));
    }
    if let Some(note) = ignored(&tree) {
        say!("prepare: note: {note}");
    }
    misplaced(&tree)?;
    let classes: BTreeSet<&str> = tree.dirs().iter().filter_map(|name| class_directory(name)).collect();
    let classes: Vec<String> = classes.into_iter().map(str::to_owned).collect();
    let (train, test) = (images(&tree, &classes, "train"), images(&tree, &classes, "test"));
    let mut failures = Failures::default();
    for (images, split) in [&train, &test].into_iter().zip(SPLITS) {
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

/// What is left out, where there is any.
fn ignored(tree: &Tree) -> Option<String> {
    let mut others = tree.files().iter().filter(|name| !is_image_name(name));
    let first = others.next()?;
    Some(match others.count() {
        0 => format!("ignored 1 file that is not png, jpg, jpeg or webp: {}", visible(first)),
        n => format!("ignored {} files that are not png, jpg, jpeg or webp, like {}", n + 1, visible(first)),
    })
}

fn misplaced(tree: &Tree) -> Result<()> {
    let mut failures = Failures::default();
    for name in tree.files().iter().filter(|name| is_image_name(name) && parts(name).is_none()) {
        let split = name.split('/').next().unwrap_or_default();
        failures.add(name, &format!("not in {split}/CLASS itself"));
    }
    failures.check(tree.path(), "images", MISPLACED)
}

/// The class whose images of one split are in the directory `name`.
fn class_directory(name: &str) -> Option<&str> {
    name.split_once('/').map(|(_, class)| class).filter(|class| !class.contains('/'))
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
        let label = classes.binary_search_by(|known| known.as_str().cmp(class)).ok()?;
        (top == split && is_image_name(file)).then_some((label as i64, index))
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
