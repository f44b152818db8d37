//! Images that are odd, but valid: what comes out is what the field's tools make of them, or a refusal by name. The files
//! in `images/` are Pillow's, except `huge.png` and `deep.png`, which are a header and one deflated stream.

use crate::support::{Files, Lab, image, pixel, write_folder};
use std::fs;

const RESIZED: &str = r#"{"dataset": "image-folder", "side": 4}"#;

fn odd(name: &str) -> Vec<u8> {
    fs::read(format!("{}/tests/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A folder of one class with these training images, and a plain test image.
fn folder(lab: &Lab, images: &[(&str, Vec<u8>)]) {
    let mut files: Files = images.iter().map(|(name, bytes)| (format!("train/a/{name}"), bytes.clone())).collect();
    files.push(("test/a/plain.png".into(), image("x.png", 4, 4, [9; 3])));
    write_folder(&lab.path("odd"), &files);
}

#[test]
fn small_deep_animated_and_cmyk_images_are_what_pillow_makes_of_them() {
    let lab = Lab::new();
    folder(
        &lab,
        &[
            ("1-single-pixel.png", image("x.png", 1, 1, [1, 2, 3])),
            // 16 bits, 0x8000 0x00ff 0xffff, rounded to 8.
            ("2-deep.png", odd("deep.png")),
            // The first of two frames is red.
            ("3-animated.png", odd("animated.png")),
            ("4-animated.webp", odd("animated.webp")),
            // Pillow's convert("RGB") gives 225, 49, 137.
            ("5-cmyk.jpg", odd("cmyk.jpg")),
            // A name that is wrong about the format changes nothing.
            ("6-renamed.jpg", odd("animated.webp")),
        ],
    );
    let dataset = lab.dataset(RESIZED, &["--data", "odd"]);
    let found: Vec<[u8; 3]> = (0..dataset.train.count).map(|index| pixel(&dataset, true, index)).collect();
    let red = [200, 10, 20];
    assert_eq!(found, [[1, 2, 3], [128, 1, 255], red, red, [225, 49, 137], red]);
}

/// 400 million pixels in 48 kilobytes.
#[test]
fn an_image_that_is_too_large_is_refused_by_name() {
    let lab = Lab::new();
    folder(&lab, &[("huge.png", odd("huge.png")), ("fine.png", image("x.png", 4, 4, [1; 3]))]);
    let reason = "train/a/huge.png (larger than 16384x16384 or 128 MiB decoded)";
    lab.fails(RESIZED, &["--data", "odd"], &["found 1 bad images: ", reason]);
}

#[test]
fn a_gif_is_no_image_here_by_name_or_by_content() {
    let lab = Lab::new();
    folder(&lab, &[("animated.gif", odd("animated.gif")), ("fine.png", image("x.png", 4, 4, [1; 3]))]);
    let outcome = lab.run(RESIZED, &["--data", "odd"], "2");
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(
        outcome.err.contains("ignored 1 file that is not png, jpg, jpeg or webp: train/a/animated.gif"),
        "{outcome:?}"
    );
    let lab = Lab::new();
    folder(&lab, &[("renamed.png", odd("animated.gif"))]);
    lab.fails(RESIZED, &["--data", "odd"], &["train/a/renamed.png (not a PNG, JPEG or WebP image)"]);
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let lab = Lab::new();
    folder(&lab, &[("fine.png", image("x.png", 4, 4, [1; 3]))]);
    std::os::unix::fs::symlink("/dev/zero", lab.path("odd/train/a/endless.png")).unwrap();
    lab.fails(RESIZED, &["--data", "odd"], &["odd/train/a/endless.png: found neither a file nor a directory"]);
    fs::remove_file(lab.path("odd/train/a/endless.png")).unwrap();
    std::os::unix::fs::symlink("nowhere.png", lab.path("odd/train/a/lost.png")).unwrap();
    lab.fails(RESIZED, &["--data", "odd"], &["odd/train/a/lost.png: found a link that leads nowhere"]);
}

#[test]
fn a_split_that_is_not_there_is_named() {
    let lab = Lab::new();
    folder(&lab, &[("fine.png", image("x.png", 4, 4, [1; 3]))]);
    fs::remove_dir_all(lab.path("odd/test")).unwrap();
    lab.fails(RESIZED, &["--data", "odd"], &["odd: found no directory test in it, expected train and test"]);
}

/// A name with a line break and a command to the terminal.
#[test]
fn names_are_shown_on_one_line() {
    let lab = Lab::new();
    folder(&lab, &[("a\n\x1b[31m.png", Vec::new())]);
    lab.fails(RESIZED, &["--data", "odd"], &["train/a/a\\n\\u{1b}[31m.png (empty)"]);
}
