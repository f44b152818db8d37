//! Running the binary and making inputs.

use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use lcf_store::dataset::Dataset;
use std::{
    fs::{self, File},
    io::{Cursor, Write},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use zip::write::{SimpleFileOptions, ZipWriter};

/// An empty directory with a store of its own.
pub struct Lab {
    pub dir: TempDir,
}

/// What one run of the binary did.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Lab {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs on the config `{"prepare": section}`.
    pub fn run(&self, section: &str, args: &[&str], threads: &str) -> Outcome {
        let config = self.path("run.json");
        fs::write(&config, format!("{{\"prepare\": {section}}}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lcf-prepare"));
        command.env("RAYON_NUM_THREADS", threads).env("LCF_REVISION", "test").current_dir(self.dir.path());
        command.arg("--config").arg(config).args(["--store", "store", "--link", "runs/prepare"]).args(args);
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Builds and opens the dataset behind the link.
    pub fn dataset(&self, section: &str, args: &[&str]) -> Dataset {
        let outcome = self.run(section, args, "2");
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(outcome.err.lines().all(|line| line.starts_with("prepare: note: ")), "{}", outcome.err);
        Dataset::open(&self.path("runs/prepare")).unwrap()
    }

    /// Runs and expects exit code 1, nothing published, a hint, and every one of `parts` in the message.
    pub fn fails(&self, section: &str, args: &[&str], parts: &[&str]) {
        let outcome = self.run(section, args, "2");
        assert_eq!((outcome.code, outcome.out.as_str()), (1, ""), "{outcome:?}");
        assert!(outcome.err.contains("prepare: error: ") && outcome.err.contains("\nhint: "), "{}", outcome.err);
        parts.iter().for_each(|part| assert!(outcome.err.contains(part), "{part:?} is not in {}", outcome.err));
        self.expect_nothing_published();
    }

    /// Runs and expects exit code 2 and `message`.
    pub fn misused(&self, section: &str, args: &[&str], message: &str) {
        let outcome = self.run(section, args, "2");
        assert_eq!((outcome.code, outcome.out.as_str()), (2, ""), "{outcome:?}");
        assert!(outcome.err.contains(message), "{}", outcome.err);
        self.expect_nothing_published();
    }

    fn expect_nothing_published(&self) {
        assert!(!self.path("runs/prepare").exists());
        let Ok(entries) = fs::read_dir(self.path("store/prepare")) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            assert!(name.starts_with('.'), "{name} was published");
            assert!(!path.is_dir() || fs::read_dir(&path).unwrap().next().is_none(), "{name} was left behind");
        }
    }
}

/// A file in the format of its extension, of one colour.
pub fn image(name: &str, width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    encode(&DynamicImage::from(RgbImage::from_pixel(width, height, Rgb(colour))), name)
}

/// `image` in the format of the extension of `name`.
pub fn encode(image: &DynamicImage, name: &str) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::from_path(name.to_lowercase()).unwrap()).unwrap();
    bytes.into_inner()
}

/// Names and contents of files.
pub type Files = Vec<(String, Vec<u8>)>;

/// Writes them below `root`.
pub fn write_folder(root: &Path, files: &Files) {
    for (name, bytes) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Writes them to a zip archive.
pub fn write_zip(path: &Path, files: &Files) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in files {
        zip.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

/// First pixel of image `index`, by channel.
pub fn pixel(dataset: &Dataset, is_train: bool, index: usize) -> [u8; 3] {
    let plane = dataset.meta.height * dataset.meta.width;
    let mut out = vec![0; 3 * plane];
    let split = if is_train { &dataset.train } else { &dataset.test };
    split.copy(index, 1, &mut out);
    [out[0], out[plane], out[2 * plane]]
}

/// How many labels of each class.
pub fn counts(labels: &[i64], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    labels.iter().for_each(|&label| counts[label as usize] += 1);
    counts
}
