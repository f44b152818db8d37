//! CIFAR-10 in the official binary layout: records of a label byte and 3072 pixels in planes.
//! Format: <https://www.cs.toronto.edu/~kriz/cifar.html>.

use crate::{
    failures::Failures,
    source::{Pixels, Source, Split},
    tree,
};
use flate2::read::MultiGzDecoder;
use lcf_store::{Error, Result, digest};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Records in each of the six official files.
pub const RECORDS: usize = 10_000;
/// Bytes of a record.
pub const RECORD: usize = 1 + SHAPE[0] * SHAPE[1] * SHAPE[2];

const SHAPE: [usize; 3] = [3, 32, 32];
const CLASSES: usize = 10;
/// Most bytes that an archive is unpacked to; the official one holds 184 MB.
const MAX_UNPACKED: u64 = 1 << 30;
/// The directory in the official archive.
const INNER: &str = "cifar-10-batches-bin";
const NAMES: &str = "batches.meta.txt";
const TEST: &str = "test_batch.bin";
const FILES: [&str; 7] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin", TEST, NAMES];
const HINT: &str = "fetch cifar-10-binary.tar.gz again; only the official binary layout is read";

/// Digest of the archive or folder at `path`.
///
/// # Errors
/// When it cannot be read, or a folder lacks one of the files.
pub fn raw_digest(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return Ok(digest::of_file(path)?.1);
    }
    let root = root(path);
    let mut missing = Failures::default();
    FILES.iter().filter(|name| !root.join(name).is_file()).for_each(|name| missing.add(name, "missing"));
    missing.check(&root, "files", HINT)?;
    tree::folder_digest(&root, FILES.to_vec())
}

/// Reads the tar.gz or folder at `path`, whose files hold `records` records each ([`RECORDS`], except in tests).
///
/// # Errors
/// [`Error::Bad`] naming the files that are missing, of the wrong size or cut off, or the records with a bad label.
pub fn read(path: &Path, records: usize) -> Result<Source> {
    let size = records * RECORD;
    let files = if path.is_dir() { read_folder(&root(path), size) } else { read_archive(path, size) }?;
    check_sizes(path, &files, size as u64)?;
    let mut files: BTreeMap<_, _> = files.into_iter().map(|(name, file)| (name, file.bytes)).collect();
    let classes = class_names(path, &files.remove(NAMES).unwrap_or_default())?;
    check_labels(path, &files)?;
    let test = files.remove(TEST).unwrap_or_default();
    // The map gives data_batch_1 to 5 in their order.
    let train = files.into_values().collect();
    Ok(Source { path: path.to_owned(), classes, shape: SHAPE, train: split(train), test: split(vec![test]) })
}

fn root(path: &Path) -> PathBuf {
    let nested = path.join(INNER);
    if nested.is_dir() { nested } else { path.to_owned() }
}

type Files = BTreeMap<&'static str, Content>;

/// A file: its size, and its bytes up to the expected size.
struct Content {
    size: u64,
    bytes: Vec<u8>,
}

impl Content {
    fn read(from: impl Read, size: u64, most: usize) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(size.min(most as u64) as usize);
        from.take(most as u64).read_to_end(&mut bytes)?;
        Ok(Self { size, bytes })
    }
}

fn read_folder(root: &Path, most: usize) -> Result<Files> {
    let read = |name: &'static str| {
        let path = root.join(name);
        let file = File::open(&path).map_err(Error::io(&path, "open"))?;
        let size = file.metadata().map_err(Error::io(&path, "stat"))?.len();
        Ok((name, Content::read(file, size, most).map_err(Error::io(&path, "read"))?))
    };
    FILES.into_iter().filter(|name| root.join(name).exists()).map(read).collect()
}

fn read_archive(path: &Path, most: usize) -> Result<Files> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let unpacked = MultiGzDecoder::new(io::BufReader::with_capacity(1 << 20, file)).take(MAX_UNPACKED);
    let mut archive = tar::Archive::new(unpacked);
    let mut files = Files::new();
    let result = (|| {
        // Raw: a long name is a member of its own, whose size is anything; the official names are short.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let Some(name) = official_name(&entry.path()?) else { continue };
            let size = entry.size();
            let content = Content::read(&mut entry, size, most)?;
            if files.insert(name, content).is_some() {
                return Err(io::Error::other(format!("{name} is in it twice")));
            }
        }
        // The checksum comes last.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink())?;
        match rest.limit() {
            0 => Err(io::Error::other(format!("it unpacks to more than {} MiB", MAX_UNPACKED >> 20))),
            _ => Ok(()),
        }
    })();
    match result {
        Ok(()) => Ok(files),
        Err(error) => {
            let whole = format!("{} of {} files are whole", files.len(), FILES.len());
            Err(Error::bad(path, format!("not a complete tar.gz ({error}; {whole})")).with_hint(HINT))
        }
    }
}

/// The official file that a member is, wherever in the archive's directories.
fn official_name(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    let parent = path.parent()?.file_name();
    let is_inner = parent.is_none_or(|parent| parent == INNER);
    FILES.into_iter().find(|file| is_inner && *file == name)
}

fn check_sizes(path: &Path, files: &Files, expected: u64) -> Result<()> {
    let mut failures = Failures::default();
    for name in FILES {
        match files.get(name).map(|file| file.size) {
            None => failures.add(name, "missing"),
            Some(found) if name == NAMES || found == expected => {}
            Some(found) => {
                let (whole, rest) = (found / RECORD as u64, found % RECORD as u64);
                let what = match found.checked_sub(expected) {
                    Some(more) => format!(", {more} too many"),
                    None if rest > 0 => format!(", {whole} records and a truncated one"),
                    None => String::new(),
                };
                failures.add(name, &format!("found {found} bytes{what}, expected {expected} bytes"));
            }
        }
    }
    failures.check(path, "files", HINT)
}

fn class_names(path: &Path, text: &[u8]) -> Result<Vec<String>> {
    let text = String::from_utf8_lossy(text);
    let names: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    match names.len() {
        CLASSES => Ok(names),
        n => Err(Error::bad(path, format!("found {n} class names in {NAMES}, expected {CLASSES}")).with_hint(HINT)),
    }
}

fn check_labels(path: &Path, files: &BTreeMap<&str, Vec<u8>>) -> Result<()> {
    let mut failures = Failures::default();
    for (name, bytes) in files {
        for (index, record) in bytes.chunks_exact(RECORD).enumerate() {
            if usize::from(record[0]) >= CLASSES {
                let reason = format!("label {}, expected 0..={}", record[0], CLASSES - 1);
                failures.add(&format!("{name} record {index}"), &reason);
            }
        }
    }
    failures.check(path, "labels", HINT)
}

/// A split of files of equal length.
fn split(files: Vec<Vec<u8>>) -> Split {
    let labels = files.iter().flat_map(|file| file.chunks_exact(RECORD)).map(|record| i64::from(record[0])).collect();
    let records = files[0].len() / RECORD;
    let files = Arc::new(files);
    let pixels: Pixels = Box::new(move |index, out| {
        let start = (index % records) * RECORD + 1;
        out.copy_from_slice(&files[index / records][start..start + RECORD - 1]);
        Ok(())
    });
    Split { labels, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::fs;

    const N: usize = 4;

    /// Record `index` of the `file`-th file: label `index`, all pixels `10 file + index`.
    fn contents() -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for (file, name) in FILES.iter().filter(|&&name| name != NAMES).enumerate() {
            let record = |index: usize| [vec![index as u8], vec![(10 * file + index) as u8; RECORD - 1]].concat();
            files.insert((*name).to_owned(), (0..N).flat_map(record).collect());
        }
        files.insert(NAMES.to_owned(), b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n".to_vec());
        files
    }

    fn folder(files: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(INNER)).unwrap();
        files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(INNER).join(name), bytes).unwrap());
        dir
    }

    fn archive(files: &BTreeMap<String, Vec<u8>>, prefix: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            // Not append_data, which would drop a leading "./".
            header.as_old_mut().name[..prefix.len() + name.len()].copy_from_slice(format!("{prefix}{name}").as_bytes());
            header.set_cksum();
            tar.append(&header, &bytes[..]).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    fn message(files: &BTreeMap<String, Vec<u8>>) -> String {
        let dir = folder(files);
        let error = read(dir.path(), N).err().unwrap();
        assert!(error.hint().is_some());
        error.to_string().replace(&dir.path().display().to_string(), "DIR")
    }

    fn check(source: &Source) {
        assert_eq!(source.classes, ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]);
        assert_eq!(source.train.labels, [0, 1, 2, 3].repeat(5));
        assert_eq!(source.test.labels, [0, 1, 2, 3]);
        let mut out = vec![0; RECORD - 1];
        (source.train.pixels)(2 * N + 3, &mut out).unwrap();
        assert!(out.iter().all(|&pixel| pixel == 23));
        (source.test.pixels)(1, &mut out).unwrap();
        assert!(out.iter().all(|&pixel| pixel == 51));
    }

    #[test]
    fn folders_and_archives_in_file_order() {
        let dir = folder(&contents());
        check(&read(dir.path(), N).unwrap());
        check(&read(&dir.path().join(INNER), N).unwrap());
        assert_eq!(raw_digest(dir.path()).unwrap(), raw_digest(&dir.path().join(INNER)).unwrap());
        for prefix in ["cifar-10-batches-bin/", "./cifar-10-batches-bin/", ""] {
            let file = dir.path().join("x.tar.gz");
            fs::write(&file, archive(&contents(), prefix)).unwrap();
            check(&read(&file, N).unwrap());
        }
    }

    #[test]
    fn sizes_are_checked() {
        let mut files = contents();
        files.get_mut(TEST).unwrap().truncate(3 * RECORD + 5);
        let text = message(&files);
        assert!(text.contains("DIR: found 1 bad files: test_batch.bin (found 9224 bytes, 3 records and a truncated one, expected 12292 bytes)"), "{text}");
        files.get_mut(TEST).unwrap().truncate(3 * RECORD);
        files.get_mut("data_batch_2.bin").unwrap().push(0);
        files.remove("data_batch_3.bin");
        let text = message(&files);
        for part in [
            "3 bad files",
            "2.bin (found 12293 bytes, 1 too many, expected 12292",
            "3.bin (missing)",
            "9219 bytes, expected",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn labels_and_names_are_checked() {
        let mut files = contents();
        for index in 0..N {
            files.get_mut("data_batch_5.bin").unwrap()[index * RECORD] = 10;
            files.get_mut(TEST).unwrap()[index * RECORD] = 255;
        }
        let text = message(&files);
        assert!(text.contains("8 bad labels, the first 5: data_batch_5.bin record 0 (label 10"), "{text}");
        assert!(text.ends_with("test_batch.bin record 0 (label 255, expected 0..=9)"), "{text}");
        let mut files = contents();
        files.insert(NAMES.to_owned(), b"a\nb\n".to_vec());
        assert!(message(&files).contains("found 2 class names in batches.meta.txt, expected 10"));
    }

    #[test]
    fn broken_archives_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar.gz");
        let whole = archive(&contents(), "cifar-10-batches-bin/");
        let fails = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            read(&file, N).err().unwrap().to_string()
        };
        assert!(fails(&whole[..whole.len() / 2]).contains("not a complete tar.gz"));
        // Cut off in the checksum, after all seven files.
        assert!(fails(&whole[..whole.len() - 4]).contains("7 of 7 files are whole"));
        assert!(fails(b"not gzip at all").contains("not a complete tar.gz"));
        let mut corrupt = whole.clone();
        let n = corrupt.len();
        corrupt[n - 8] ^= 1;
        assert!(fails(&corrupt).contains("not a complete tar.gz"));
    }
}
