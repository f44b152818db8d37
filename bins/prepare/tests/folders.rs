//! Tiny-ImageNet, image folders and synthetic images.

use crate::support::{Files, Lab, counts, encode, image, pixel, write_folder, write_zip};
use image::{DynamicImage, GrayImage, ImageBuffer, Luma, Rgba, RgbaImage};
use std::fs;

const TINY: &str = r#"{"dataset": "tiny-imagenet"}"#;
const FOLDER: &str = r#"{"dataset": "image-folder"}"#;
const SYNTHETIC: &str = r#"{"dataset": "synthetic", "synthetic": {"train": 60, "test": 20}}"#;

/// wnids in the order of `wnids.txt`, which is not the order of the classes.
const WNIDS: [&str; 3] = ["n03", "n01", "n02"];

/// Three classes of 12 training images; image k of class c is grey of 80 c + 5 k. Validation image k has class k mod 3.
fn tiny() -> Files {
    let mut files = vec![("wnids.txt".to_owned(), WNIDS.join("\n").into_bytes())];
    for wnid in WNIDS {
        let class = wnid.as_bytes()[2] - b'1';
        files.push((format!("train/{wnid}/{wnid}_boxes.txt"), b"boxes".to_vec()));
        for k in 0..12 {
            let grey = DynamicImage::from(GrayImage::from_pixel(64, 64, Luma([80 * class + 5 * k])));
            files.push((format!("train/{wnid}/images/{wnid}_{k}.JPEG"), encode(&grey, "x.jpeg")));
        }
    }
    let mut annotations = String::new();
    for k in 0..6 {
        files.push((format!("val/images/val_{k}.JPEG"), image("x.jpeg", 64, 64, [20 * k as u8, 100, 200])));
        annotations += &format!("val_{k}.JPEG\t{}\t0\t0\t62\t62\n", WNIDS[k % 3]);
    }
    files.push(("val/val_annotations.txt".to_owned(), annotations.into_bytes()));
    files.push(("test/images/test_0.JPEG".to_owned(), b"not looked at".to_vec()));
    files
}

fn near(found: [u8; 3], expected: [u8; 3]) -> bool {
    found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= 3)
}

#[test]
fn tiny_imagenet_from_folder_and_zip() {
    let lab = Lab::new();
    write_folder(&lab.path("tiny"), &tiny());
    let one = lab.dataset(TINY, &["--data", "tiny"]);
    assert_eq!(one.meta.classes, ["n01", "n02", "n03"]);
    assert_eq!((one.train.count, one.test.count, one.meta.height), (36, 6, 64));
    assert_eq!(counts(one.train.labels(), 3), [12, 12, 12]);
    // Bytewise by name: _0, _1, _10, _11, _2, ...
    assert_eq!(one.train.labels()[12 + 2], 1);
    assert!(near(pixel(&one, true, 12 + 2), [80 + 50; 3]), "{:?}", pixel(&one, true, 14));
    // val_1 and val_4 are n01, val_2 and val_5 n02, val_0 and val_3 n03.
    assert_eq!(one.test.labels(), [0, 0, 1, 1, 2, 2]);
    assert!(near(pixel(&one, false, 1), [80, 100, 200]) && near(pixel(&one, false, 4), [0, 100, 200]));
    let nested: Files = tiny().into_iter().map(|(name, bytes)| (format!("tiny-imagenet-200/{name}"), bytes)).collect();
    write_zip(&lab.path("tiny.zip"), &nested);
    let two = lab.dataset(TINY, &["--data", "tiny.zip"]);
    assert_eq!(two.artifact.digest(), one.artifact.digest());
    let single = Lab::new();
    write_zip(&single.path("tiny.zip"), &nested);
    let outcome = single.run(TINY, &["--data", "tiny.zip", "--json"], "1");
    let result: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(result["digest"], one.artifact.digest());
}

/// A copy of [`tiny`] with one file replaced (or added, or, with `None`, removed).
fn tiny_with(name: &str, content: Option<&[u8]>) -> Lab {
    let lab = Lab::new();
    let mut files = tiny();
    files.retain(|(file, _)| file != name);
    files.extend(content.map(|bytes| (name.to_owned(), bytes.to_vec())));
    write_folder(&lab.path("tiny"), &files);
    lab
}

#[test]
fn tiny_imagenet_that_does_not_fit_together_is_refused() {
    let lines = |text: &str| text.replace('|', "\t").into_bytes();
    let fits = "val_0.JPEG|n03\nval_1.JPEG|n01\nval_2.JPEG|n02\nval_3.JPEG|n03\nval_4.JPEG|n01\nval_5.JPEG|";
    for (name, content, part) in [
        ("val/images/val_3.JPEG", None, "val/val_annotations.txt line 4 (\"val_3.JPEG\" is not in val/images/"),
        ("val/images/val_9.JPEG", Some(lines("x")), "val/images/val_9.JPEG (has no annotation)"),
        ("val/val_annotations.txt", Some(lines(&format!("{fits}n99"))), "line 6 (class \"n99\" is not in wnids.txt)"),
        ("val/val_annotations.txt", Some(lines(&format!("{fits}n02\nval_5.JPEG|n02"))), "or annotated twice"),
        ("val/val_annotations.txt", None, "val/val_annotations.txt: missing"),
        ("wnids.txt", Some(lines("n01\nn02\nn03\nn04")), "n04 (no images in train); n04 (no images in val)"),
        (
            "wnids.txt",
            Some(lines("n01\nn02")),
            "found 12 bad training images, the first 5: train/n03/images/n03_0.JPEG",
        ),
        ("wnids.txt", None, "wnids.txt: missing"),
        (
            "train/n01/images/n01_3.JPEG",
            Some(lines("?")),
            "train/n01/images/n01_3.JPEG (not a PNG, JPEG or WebP image)",
        ),
        ("train/n01/images/n01_3.JPEG", Some(image("x.jpeg", 64, 32, [0; 3])), "found 64x32 pixels, expected 64x64"),
    ] {
        let lab = tiny_with(name, content.as_deref());
        lab.fails(TINY, &["--data", "tiny"], &["tiny", part]);
    }
}

/// Two classes and the four extensions, some in capitals, some misleading; files to be ignored beside them.
fn pictures(side: u32) -> Files {
    let file = |name: &str, colour| (name.to_owned(), image(name, side, side, colour));
    vec![
        file("train/cat/a.png", [1, 2, 3]),
        file("train/cat/B.PNG", [4, 5, 6]),
        file("train/dog/c.webp", [7, 8, 9]),
        ("train/dog/d.jpg".to_owned(), image("x.png", side, side, [10, 11, 12])),
        file("test/cat/e.jpeg", [128, 128, 128]),
        file("test/dog/f.JPG", [64, 64, 64]),
        ("train/dog/.hidden.png".to_owned(), b"no".to_vec()),
        ("train/dog/notes.txt".to_owned(), b"no".to_vec()),
        ("train/README".to_owned(), b"no".to_vec()),
        ("extra/x.png".to_owned(), b"no".to_vec()),
    ]
}

#[test]
fn image_folders() {
    let lab = Lab::new();
    write_folder(&lab.path("pets"), &pictures(8));
    let one = lab.dataset(FOLDER, &["--data", "pets"]);
    assert_eq!(one.meta.classes, ["cat", "dog"]);
    let note = "prepare: note: ignored 2 files that are not png, jpg, jpeg or webp, like train/README\n";
    assert_eq!(lab.run(FOLDER, &["--data", "pets"], "2").err, note);
    fs::remove_file(lab.path("pets/train/README")).unwrap();
    let note = "prepare: note: ignored 1 file that is not png, jpg, jpeg or webp: train/dog/notes.txt\n";
    assert_eq!(lab.run(FOLDER, &["--data", "pets"], "2").err, note);
    let train: Vec<_> = (0..4).map(|index| pixel(&one, true, index)).collect();
    assert_eq!(train, [[4, 5, 6], [1, 2, 3], [7, 8, 9], [10, 11, 12]]);
    assert_eq!((one.train.labels(), one.test.labels()), (&[0, 0, 1, 1][..], &[0, 1][..]));
    assert!(near(pixel(&one, false, 0), [128; 3]));
    write_zip(&lab.path("pets.zip"), &pictures(8));
    assert_eq!(lab.dataset(FOLDER, &["--data", "pets.zip"]).artifact.digest(), one.artifact.digest());
    // What is ignored is not in the key; what is used is.
    let key = &one.artifact.manifest().key;
    fs::write(lab.path("pets/train/dog/notes.txt"), "changed").unwrap();
    assert_eq!(lab.dataset(FOLDER, &["--data", "pets"]).artifact.manifest().key, *key);
    fs::write(lab.path("pets/train/dog/c.webp"), image("c.webp", 8, 8, [0; 3])).unwrap();
    assert_ne!(lab.dataset(FOLDER, &["--data", "pets"]).artifact.manifest().key, *key);
}

#[test]
fn odd_pixels_become_rgb_of_the_wanted_side() {
    let lab = Lab::new();
    let mut files = pictures(8);
    let deep = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(9, 7, Luma([0x8000])));
    let clear = DynamicImage::from(RgbaImage::from_pixel(30, 20, Rgba([9, 8, 7, 0])));
    files.push(("train/cat/0.png".to_owned(), encode(&deep, "x.png")));
    files.push(("train/cat/1.webp".to_owned(), encode(&clear, "x.webp")));
    write_folder(&lab.path("pets"), &files);
    let dataset = lab.dataset(FOLDER, &["--data", "pets", "--set", "prepare.side=4"]);
    assert_eq!((dataset.meta.height, dataset.meta.width, dataset.train.count), (4, 4, 6));
    assert_eq!([0, 1].map(|index| pixel(&dataset, true, index)), [[128; 3], [9, 8, 7]]);
    lab.dataset(FOLDER, &["--data", "pets", "--set", "prepare.side=4"]);
    let unsized_lab = Lab::new();
    write_folder(&unsized_lab.path("pets"), &files);
    unsized_lab.fails(
        FOLDER,
        &["--data", "pets"],
        &["train/cat/0.png: found 9x7 pixels, expected a square", "prepare.side"],
    );
}

#[test]
fn unreadable_images_are_named_five_and_counted() {
    let lab = Lab::new();
    let mut files = pictures(8);
    let whole = image("x.jpg", 8, 8, [50, 60, 70]);
    for k in 0..3 {
        files.push((format!("train/cat/z{k}.jpg"), whole[..whole.len() - 20].to_vec()));
        files.push((format!("test/dog/z{k}.png"), Vec::new()));
    }
    files.push(("train/dog/z.png".to_owned(), image("x.png", 8, 9, [0; 3])));
    write_folder(&lab.path("pets"), &files);
    let first = "pets: found 7 bad images, the first 5: train/cat/z0.jpg (a JPEG that is cut off); train/cat/z1.jpg";
    let rest = "train/dog/z.png (found 8x9 pixels, expected 8x8); test/dog/z0.png (empty)\n";
    lab.fails(FOLDER, &["--data", "pets"], &[first, rest]);
}

#[test]
fn classes_without_images_are_named() {
    let lab = Lab::new();
    let mut files = pictures(8);
    files.push(("train/emu/a.png".to_owned(), image("a.png", 8, 8, [0; 3])));
    files.push(("train/yak/a.gif".to_owned(), b"GIF89a".to_vec()));
    write_folder(&lab.path("pets"), &files);
    lab.fails(
        FOLDER,
        &["--data", "pets"],
        &["found 3 bad classes: yak (no png, jpg", "emu (no png, jpg, jpeg, webp in test)"],
    );
    // A class is a directory, whether or not anything is in it; in an archive too, with members for directories.
    let (lab, mut files) = (Lab::new(), pictures(8));
    write_folder(&lab.path("pets"), &files);
    for split in ["train", "test"] {
        fs::create_dir(lab.path("pets").join(split).join("gnu")).unwrap();
        fs::create_dir(lab.path("pets").join(split).join(".cache")).unwrap();
        files.push((format!("{split}/gnu/"), Vec::new()));
    }
    write_zip(&lab.path("pets.zip"), &files);
    for name in ["pets", "pets.zip"] {
        let parts =
            ["found 2 bad classes: gnu (no png, jpg, jpeg, webp in train); gnu (no png, jpg, jpeg, webp in test)"];
        lab.fails(FOLDER, &["--data", name], &parts);
    }
    fs::create_dir(lab.path("empty")).unwrap();
    let outcome = lab.run(FOLDER, &["--data", "empty"], "2");
    assert!(outcome.code == 1 && outcome.err.contains("empty: found no train in it"), "{outcome:?}");
    let outcome = lab.run(FOLDER, &["--data", "none"], "2");
    assert!(outcome.code == 1 && outcome.err.contains("none: cannot open"), "{outcome:?}");
    lab.misused(FOLDER, &[], "--data: missing, expected a folder");
    lab.misused(FOLDER, &["--data", "https://x/y.zip"], "--data https://x/y.zip: found an address, expected a folder");
}

#[test]
fn images_at_another_depth_are_named() {
    let (lab, mut files) = (Lab::new(), pictures(8));
    let picture = image("x.png", 8, 8, [0; 3]);
    files.extend((0..5).map(|k| (format!("train/cow/red/{k}.png"), picture.clone())));
    files.push(("test/dog/a/b/c/d/e/f.png".to_owned(), picture.clone()));
    files.push(("train/loose.png".to_owned(), picture));
    write_folder(&lab.path("pets"), &files);
    write_zip(&lab.path("pets.zip"), &files);
    let first = "found 7 bad images, the first 5: test/dog/a/b/c/d/e/f.png (not in test/CLASS itself); train/cow/red/0";
    let rest = "train/cow/red/3.png (not in train/CLASS itself)\nhint: move them to train/CLASS or test/CLASS";
    for name in ["pets", "pets.zip"] {
        lab.fails(FOLDER, &["--data", name], &[name, first, rest]);
    }
}

#[test]
fn synthetic_images_depend_on_the_seed_alone() {
    let lab = Lab::new();
    let one = lab.dataset(SYNTHETIC, &[]);
    assert_eq!((one.train.count, one.test.count, one.meta.height, one.meta.classes.len()), (60, 20, 16, 10));
    assert_eq!(counts(one.train.labels(), 10), [6; 10]);
    let single = Lab::new();
    let outcome = single.run(SYNTHETIC, &["--json"], "1");
    let result: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!((&result["built"], &result["digest"]), (&true.into(), &one.artifact.digest().into()));
    let seeded = lab.dataset(SYNTHETIC, &["--set", "prepare.seed=1"]);
    assert_ne!(seeded.artifact.digest(), one.artifact.digest());
    Lab::new().misused(SYNTHETIC, &["--data", "x"], "--data x: the synthetic dataset reads nothing");
    Lab::new().misused(r#"{"dataset": "cifar10", "side": 3}"#, &[], "prepare.side: only for dataset image-folder");
}

/// A build that was killed leaves half-written files in its work directory.
#[test]
fn an_interrupted_build_starts_afresh() {
    let lab = Lab::new();
    let key = lab.dataset(SYNTHETIC, &[]).artifact.manifest().key[..12].to_owned();
    let fresh = Lab::new();
    let work = fresh.path("store/prepare").join(format!(".work-{key}"));
    fs::create_dir_all(&work).unwrap();
    fs::write(work.join("train-000.npy"), "half").unwrap();
    fs::write(work.join("stray.npy"), "half").unwrap();
    let dataset = fresh.dataset(SYNTHETIC, &[]);
    assert!(!dataset.artifact.dir().join("stray.npy").exists());
}
