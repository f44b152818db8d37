//! CIFAR-10: full-size files, since the binary takes no others.

use crate::support::{Lab, counts, pixel};
use flate2::{Compression, write::GzEncoder};
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
};
use tempfile::TempDir;

const SECTION: &str = r#"{"dataset": "cifar10"}"#;
const INNER: &str = "cifar-10-batches-bin";
const ARCHIVE: &str = "cifar.tar.gz";
const RECORD: usize = 3073;
const RECORDS: usize = 10_000;
const BATCHES: [&str; 6] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
    "test_batch.bin",
];

/// Record `index` of batch `batch`: label `index % 10`, red `batch`, green `index / 100`, blue `index % 100`.
fn batch(batch: usize) -> Vec<u8> {
    let mut bytes = vec![0; RECORDS * RECORD];
    for (index, record) in bytes.chunks_exact_mut(RECORD).enumerate() {
        record[0] = (index % 10) as u8;
        record[1..1025].fill(batch as u8);
        record[1025..2049].fill((index / 100) as u8);
        record[2049..].fill((index % 100) as u8);
    }
    bytes
}

/// A folder that holds `cifar-10-batches-bin` and its tar.gz, 190 MB shared by the tests that run at a time.
fn raw() -> Arc<TempDir> {
    static RAW: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut raw = RAW.lock().unwrap();
    raw.upgrade().unwrap_or_else(|| {
        let made = Arc::new(make_raw());
        *raw = Arc::downgrade(&made);
        made
    })
}

fn make_raw() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join(INNER);
    fs::create_dir(&inner).unwrap();
    BATCHES.iter().enumerate().for_each(|(i, name)| fs::write(inner.join(name), batch(i)).unwrap());
    let names = "airplane automobile bird cat deer dog frog horse ship truck".replace(' ', "\n");
    fs::write(inner.join("batches.meta.txt"), names + "\n\n").unwrap();
    let file = File::create(dir.path().join(ARCHIVE)).unwrap();
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    tar.append_dir_all("./cifar-10-batches-bin", &inner).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    dir
}

/// A folder of links to the good files in `raw`, without the file `except`, and the path of that file.
fn copy_without(raw: &TempDir, lab: &Lab, except: &str) -> PathBuf {
    let dir = lab.path("broken");
    fs::create_dir(&dir).unwrap();
    for name in BATCHES.into_iter().chain(["batches.meta.txt"]).filter(|&name| name != except) {
        symlink(raw.path().join(INNER).join(name), dir.join(name)).unwrap();
    }
    dir.join(except)
}

#[test]
fn archive_and_folder_give_the_same_dataset() {
    let lab = Lab::new();
    let raw = raw();
    let folder = raw.path().to_str().unwrap();
    let one = lab.dataset(SECTION, &["--data", folder]);
    assert_eq!((one.train.count, one.test.count), (50_000, 10_000));
    assert_eq!((one.meta.channels, one.meta.height, one.meta.width), (3, 32, 32));
    assert_eq!((one.meta.classes[0].as_str(), one.meta.classes[9].as_str()), ("airplane", "truck"));
    assert_eq!((one.train.shards.len(), one.test.shards.len()), (5, 1));
    assert_eq!(pixel(&one, true, 30_017), [3, 0, 17]);
    assert_eq!(pixel(&one, false, 9_999), [5, 99, 99]);
    assert_eq!(one.train.labels()[30_017], 7);
    assert!((one.meta.mean[0] - (2.0 / 127.5 - 1.0)).abs() < 1e-12 && (one.meta.std[0] - 2f64.sqrt() / 127.5) < 1e-12);
    let two = lab.dataset(SECTION, &["--data", raw.path().join(ARCHIVE).to_str().unwrap()]);
    assert_eq!(one.artifact.digest(), two.artifact.digest());
    // Other raw bytes are another build, even where the dataset comes out the same.
    assert_ne!(one.artifact.manifest().key, two.artifact.manifest().key);
    let inner = raw.path().join(INNER);
    let again = lab.run(SECTION, &["--data", inner.to_str().unwrap(), "--json"], "2");
    let result: serde_json::Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!(result["built"], false);
    assert_eq!(result["digest"], one.artifact.digest());
    assert_eq!(result["artifact"], one.artifact.dir().to_str().unwrap());
}

#[test]
fn limits_are_balanced_and_follow_the_seed_alone() {
    let lab = Lab::new();
    let raw = raw();
    let folder = raw.path().to_str().unwrap();
    let take = |section: &str, limit: &str| lab.dataset(section, &["--data", folder, "--limit", limit]);
    let one = take(r#"{"dataset": "cifar10", "limit_test": 25}"#, "1000");
    assert_eq!(counts(one.train.labels(), 10), [100; 10]);
    let shares = counts(one.test.labels(), 10);
    assert!(one.test.count == 25 && shares.iter().all(|&n| n == 2 || n == 3), "{shares:?}");
    // The same by --set, in one thread.
    let lab2 = Lab::new();
    let set = ["--data", folder, "--set", "prepare.limit=1000", "--set", "prepare.limit_test=25", "--json"];
    let outcome = lab2.run(SECTION, &set, "1");
    let result: serde_json::Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(result["digest"], one.artifact.digest());
    let other = take(r#"{"dataset": "cifar10", "limit_test": 25, "seed": 1}"#, "1000");
    assert_ne!(other.artifact.digest(), one.artifact.digest());
    let lab3 = Lab::new();
    lab3.misused(SECTION, &["--data", folder, "--limit", "50001"], "prepare.limit: 50001 is not in 10..=50000");
    lab3.misused(
        SECTION,
        &["--data", folder, "--limit", "0"],
        "--set prepare.limit=0: prepare.limit: 0 is not in 1..=10000000",
    );
}

#[test]
fn wrong_files_are_named_and_nothing_is_published() {
    let raw = raw();
    for (name, bytes, parts) in [
        ("data_batch_4.bin", batch(3)[..RECORD * 9].to_vec(), &["found 27657 bytes, expected 30730000"][..]),
        ("test_batch.bin", batch(5)[..RECORD * 9 + 1].to_vec(), &["found 27658 bytes, 9 records and a truncated one"]),
        ("batches.meta.txt", b"cat\ndog\n".to_vec(), &["found 2 class names", "expected 10"]),
    ] {
        let lab = Lab::new();
        fs::write(copy_without(&raw, &lab, name), bytes).unwrap();
        lab.fails(SECTION, &["--data", "broken"], &[parts, &[name]].concat());
    }
    let lab = Lab::new();
    copy_without(&raw, &lab, "data_batch_1.bin");
    lab.fails(SECTION, &["--data", "broken"], &["data_batch_1.bin (missing)"]);
}

#[test]
fn bad_labels_are_named_five_and_counted() {
    let raw = raw();
    let lab = Lab::new();
    let mut bytes = batch(1);
    (0..7).for_each(|index| bytes[(100 + index) * RECORD] = 10 + index as u8);
    fs::write(copy_without(&raw, &lab, "data_batch_2.bin"), bytes).unwrap();
    let first = "found 7 bad labels, the first 5: data_batch_2.bin record 100 (label 10, expected 0..=9)";
    lab.fails(SECTION, &["--data", "broken"], &[first, "record 104 (label 14, expected 0..=9)\n"]);
}

#[test]
fn a_cut_archive_is_refused() {
    let raw = raw();
    let lab = Lab::new();
    let whole = fs::read(raw.path().join(ARCHIVE)).unwrap();
    fs::write(lab.path("cut.tar.gz"), &whole[..whole.len() / 2]).unwrap();
    lab.fails(SECTION, &["--data", "cut.tar.gz"], &["cut.tar.gz: not a complete tar.gz"]);
}

/// Without `--data` the archive comes through SOURCES.json, here from a `file:` address.
#[test]
fn downloads_are_verified() {
    let raw = raw();
    let lab = Lab::new();
    let archive = raw.path().join(ARCHIVE);
    let (bytes, sha256) = lcf_store::digest::of_file(&archive).unwrap();
    let describe = |sha256: &str| {
        let url = format!("file://{}", archive.display());
        let source =
            serde_json::json!({"cifar10": {"file": "c.tgz", "bytes": bytes, "sha256": sha256, "from": {"url": url}}});
        fs::write(lab.path("sources.json"), source.to_string()).unwrap();
    };
    let args = ["--sources", "sources.json", "--downloads", "downloads", "--limit", "10"];
    describe(&"0".repeat(64));
    lab.fails(SECTION, &args, &["c.tgz.part: found sha256", "expected 0000"]);
    describe(&sha256);
    let outcome = lab.run(SECTION, &args, "2");
    assert!(outcome.code == 0 && outcome.err.starts_with("fetching downloads/c.tgz"), "{outcome:?}");
    assert!(
        outcome.out.starts_with("cifar10: built in ") && outcome.out.contains("10 train, 10000 test"),
        "{outcome:?}"
    );
    let again = lab.run(SECTION, &args, "2");
    assert_eq!((again.code, again.err.as_str()), (0, ""));
    assert!(again.out.starts_with("cifar10: up to date\n"), "{}", again.out);
}
