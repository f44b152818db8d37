//! Readers of images and of archives of them.

use crate::{SCRATCH, parts};
use flate2::{Compression, write::GzEncoder};
use lcf_prepare::{cifar10, image_folder, tiny_imagenet, tree::Tree};
use lcf_store::decode;
use std::{
    fs,
    io::{Cursor, Write},
    path::Path,
};
use zip::write::{SimpleFileOptions, ZipWriter};

/// Largest member of an archive that a reader may return.
const MAX_FILE: usize = 64 << 20;

/// CIFAR-10's files, one record each: the first two parts are a batch and the names of the classes.
pub fn cifar(data: &[u8]) {
    let [batch, names] = parts(data);
    SCRATCH.with(|scratch| {
        let written = scratch.write("cifar/test_batch.bin", batch);
        for other in (1..=5).map(|i| scratch.path(&format!("cifar/data_batch_{i}.bin"))) {
            if !other.exists() {
                fs::hard_link(&written, &other).expect("a second name of the file");
            }
        }
        scratch.write("cifar/batches.meta.txt", names);
        read_cifar(&scratch.path("cifar"));
    });
}

/// CIFAR-10's archive. The first byte says whether the rest is a tar.gz, or a tar that is compressed here.
pub fn tar(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let packed = match kind & 1 {
        0 => rest.to_vec(),
        _ => {
            let mut gz = GzEncoder::new(Vec::new(), Compression::none());
            gz.write_all(rest).expect("into memory");
            gz.finish().expect("into memory")
        }
    };
    SCRATCH.with(|scratch| read_cifar(&scratch.write("cifar.tar.gz", &packed)));
}

fn read_cifar(path: &Path) {
    let Ok(source) = cifar10::read(path, 1) else { return };
    assert_eq!((source.train.labels.len(), source.test.labels.len(), source.classes.len()), (5, 1, 10));
    let mut pixels = vec![0; 3072];
    for (split, index) in [(&source.train, 0), (&source.train, 4), (&source.test, 0)] {
        (split.pixels)(index, &mut pixels).expect("a record that was accepted");
        assert!((0..10).contains(&split.labels[index]));
    }
}

/// A zip archive of an image folder: every member is read.
pub fn zip(data: &[u8]) {
    SCRATCH.with(|scratch| {
        let path = scratch.write("images.zip", data);
        let Ok(tree) = Tree::open(&path, "images", &["train", "test"]) else { return };
        for (index, name) in tree.files().iter().enumerate() {
            assert!(!name.split('/').any(|part| part == "..") && !name.starts_with('/'), "{name} leads out");
            if let Ok(bytes) = tree.read(index) {
                assert!(bytes.len() <= MAX_FILE);
            }
        }
        let _ = image_folder::list(&path);
    });
}

/// Tiny-ImageNet's texts beside two images: the list of classes, and the annotations.
pub fn tiny_imagenet(data: &[u8]) {
    let [wnids, annotations] = parts(data);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let files: [(&str, &[u8]); 5] = [
        ("wnids.txt", wnids),
        ("val/val_annotations.txt", annotations),
        ("val/images/val_0.JPEG", b"x"),
        ("train/n01/images/n01_0.JPEG", b"x"),
        ("train/n02/images/n02_0.JPEG", b"x"),
    ];
    for (name, content) in files {
        archive.start_file(name, SimpleFileOptions::default()).expect("into memory");
        archive.write_all(content).expect("into memory");
    }
    let bytes = archive.finish().expect("into memory").into_inner();
    SCRATCH.with(|scratch| {
        let Ok(listing) = tiny_imagenet::list(&scratch.write("tiny.zip", &bytes)) else { return };
        let classes = listing.classes.len() as i64;
        for images in [&listing.train, &listing.test] {
            assert!(images.labels.iter().all(|label| (0..classes).contains(label)));
        }
    });
}

/// One encoded image.
pub fn decode(data: &[u8]) {
    let header = decode::dimensions(data);
    if let Ok(image) = decode::rgb(data) {
        assert_eq!(header, Ok(image.dimensions()));
        assert!(u64::from(image.width()) * u64::from(image.height()) * 3 <= 3 << 28);
    }
}

/// A `.npz` of images.
pub fn npz(data: &[u8]) {
    SCRATCH.with(|scratch| {
        let path = scratch.write("x.npz", data);
        if let Ok((values, shape)) = lcf_fid::npz::read(&path) {
            assert_eq!(values.len(), shape.iter().product::<usize>());
        }
        fs::remove_file(path).expect("written above");
    });
}
