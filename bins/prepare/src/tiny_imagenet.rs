//! Tiny-ImageNet-200 in its original layout. Our test split is its `val`, since its `test` has no labels; classes are
//! the sorted wnids, whatever the order of `wnids.txt`.

use crate::{
    failures::Failures,
    folder::{Images, Listing},
    tree::Tree,
};
use lcf_store::Result;
use std::{collections::HashMap, path::Path};

/// C, H, W.
pub const SHAPE: [usize; 3] = [3, 64, 64];
/// The directory in the official archive.
const INNER: &str = "tiny-imagenet-200";
const WNIDS: &str = "wnids.txt";
const ANNOTATIONS: &str = "val/val_annotations.txt";
const VAL: &str = "val/images/";
const HINT: &str = "fetch tiny-imagenet-200.zip again; only its original layout is read";

/// Lists the zip archive or folder at `path`.
///
/// # Errors
/// [`lcf_store::Error::Bad`] naming the annotations without image, images without annotation, unknown or missing
/// classes.
pub fn list(path: &Path) -> Result<Listing> {
    let tree = Tree::open(path, INNER, &["train", "val", WNIDS])?;
    let text = tree.text(WNIDS)?;
    let mut classes: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    classes.sort_unstable();
    classes.dedup();
    let train = train(&tree, &classes)?;
    let test = val(&tree, &classes)?;
    missing(path, &classes, &train, &test)?;
    let texts = [WNIDS, ANNOTATIONS].into_iter().filter_map(|name| tree.find(name)).collect();
    Ok(Listing { tree, classes, train, test, texts })
}

fn is_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case("jpeg"))
}

fn class_of(classes: &[String], wnid: &str) -> Option<i64> {
    classes.binary_search_by(|class| class.as_str().cmp(wnid)).ok().map(|class| class as i64)
}

/// `train/WNID/images/*.JPEG`.
fn train(tree: &Tree, classes: &[String]) -> Result<Images> {
    let mut failures = Failures::default();
    let mut images = Vec::new();
    for (index, name) in tree.files().iter().enumerate() {
        let parts: Vec<&str> = name.split('/').collect();
        let ["train", wnid, "images", file] = parts[..] else { continue };
        match class_of(classes, wnid) {
            _ if !is_image(file) => {}
            Some(class) => images.push((class, index)),
            None => failures.add(name, "its class is not in wnids.txt"),
        }
    }
    failures.check(tree.path(), "training images", HINT)?;
    Ok(Images::sorted(tree, images))
}

/// `val/images/*.JPEG` with the classes of `val_annotations.txt`: file, wnid and a box, separated by tabs.
fn val(tree: &Tree, classes: &[String]) -> Result<Images> {
    let text = tree.text(ANNOTATIONS)?;
    let mut left: HashMap<&str, usize> = tree
        .files()
        .iter()
        .enumerate()
        .filter_map(|(index, name)| Some((name.strip_prefix(VAL).filter(|name| is_image(name))?, index)))
        .collect();
    let mut failures = Failures::default();
    let mut images = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut fields = line.split('\t').map(str::trim);
        let (file, wnid) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        let at = format!("{ANNOTATIONS} line {}", number + 1);
        match (left.remove(file), class_of(classes, wnid)) {
            (Some(index), Some(class)) => images.push((class, index)),
            (None, _) => failures.add(&at, &format!("{file:?} is not in {VAL} or annotated twice")),
            (_, None) => failures.add(&at, &format!("class {wnid:?} is not in wnids.txt")),
        }
    }
    let mut unannotated: Vec<&str> = left.into_keys().collect();
    unannotated.sort_unstable();
    for file in unannotated {
        failures.add(&format!("{VAL}{file}"), "has no annotation");
    }
    failures.check(tree.path(), "annotations", HINT)?;
    Ok(Images::sorted(tree, images))
}

fn missing(path: &Path, classes: &[String], train: &Images, test: &Images) -> Result<()> {
    let mut failures = Failures::default();
    for (images, split) in [(train, "train"), (test, "val")] {
        for class in images.missing(classes.len()) {
            failures.add(&classes[class], &format!("no images in {split}"));
        }
    }
    failures.check(path, "classes", HINT)
}
