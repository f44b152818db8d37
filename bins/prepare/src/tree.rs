//! The files of a folder or of a zip archive, by name, in one order. Archives are read in place, never unpacked.

use lcf_store::{Error, Result, decode, digest};
use rayon::prelude::*;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use zip::ZipArchive;

/// Deepest folder below the root that is listed. More is a loop of links.
const MAX_DEPTH: usize = 16;

/// A folder or zip archive: its files and directories below some top-level names, sorted bytewise.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    files: Vec<String>,
    dirs: Vec<String>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The directory that `files` are relative to.
    Folder(PathBuf),
    /// The archive, and the number in it of each of `files`.
    Zip(ZipArchive<SharedFile>, Vec<usize>),
}

impl Tree {
    /// Lists the files at `path` that are at, or below, one of `tops`, of which the first must be there, either in
    /// `path` itself or in its directory `inner`. Hidden files are left out.
    ///
    /// # Errors
    /// [`Error::Bad`] when `path` is neither a folder nor a zip archive, or the first of `tops` is not in it.
    pub fn open(path: &Path, inner: &str, tops: &[&str]) -> Result<Self> {
        let meta = fs::metadata(path).map_err(Error::io(path, "open"))?;
        let tree = if meta.is_dir() { folder(path, inner, tops) } else { archive(path, inner, tops) }?;
        match tree.files.iter().chain(&tree.dirs).any(|name| is_below(name, tops[0])) {
            true => Ok(tree),
            false => Err(Error::bad(path, format!("found no {0} in it, expected {0} and {1}", tops[0], tops[1]))),
        }
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all files, with `/`, sorted bytewise.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Names of all directories, likewise.
    pub fn dirs(&self) -> &[String] {
        &self.dirs
    }

    /// Number of the file called `name`.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.files.binary_search_by(|file| file.as_str().cmp(name)).ok()
    }

    /// Reads file number `index`. Safe to call from many threads at once.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self, index: usize) -> Result<Vec<u8>, String> {
        match &self.place {
            Place::Folder(root) => {
                let file = open_file(&root.join(&self.files[index])).map_err(|e| e.to_string())?;
                let size = file.metadata().map_or(0, |meta| meta.len());
                decode::file(file, size)
            }
            Place::Zip(archive, members) => {
                // A clone shares the directory of the archive and has its own place in the file.
                let mut archive = archive.clone();
                let member = archive.by_index(members[index]).map_err(|e| e.to_string())?;
                let size = member.size();
                decode::file(member, size)
            }
        }
    }

    /// Reads the text file called `name`.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is not there or not UTF-8.
    pub fn text(&self, name: &str) -> Result<String> {
        let bad = |message: String| Error::bad(self.path.join(name), message).with_hint("fetch the data again");
        let index = self.find(name).ok_or_else(|| bad("missing".into()))?;
        String::from_utf8(self.read(index).map_err(bad)?).map_err(|_| bad("not UTF-8 text".into()))
    }

    /// Digest of the raw data: that of the archive, or of the names and hashes of those files of the folder that `used`
    /// lists by number.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read.
    pub fn digest(&self, used: &[usize]) -> Result<String> {
        match &self.place {
            Place::Zip(..) => Ok(digest::of_file(&self.path)?.1),
            Place::Folder(root) => folder_digest(root, used.iter().map(|&index| self.files[index].as_str()).collect()),
        }
    }
}

/// Opens a file, or what a link leads to. A pipe would be waited for, and a device may have no end.
fn open_file(path: &Path) -> Result<File> {
    let bad = |message: &str| Error::bad(path, message).with_hint("remove it");
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => File::open(path).map_err(Error::io(path, "open")),
        Ok(_) => Err(bad("found neither a file nor a directory")),
        Err(error) if path.is_symlink() => Err(bad(&format!("found a link that leads nowhere ({error})"))),
        Err(error) => Err(Error::io(path, "open")(error)),
    }
}

/// SHA-256 of `SHA256 NAME` lines of the files `names` in `root`, in the order of their names.
///
/// # Errors
/// [`Error::Io`] for the first, by name, that cannot be read.
pub fn folder_digest(root: &Path, mut names: Vec<&str>) -> Result<String> {
    names.sort_unstable();
    let line = |name: &&str| {
        let path = root.join(name);
        open_file(&path)?;
        Ok(format!("{} {name}\n", digest::of_file(&path)?.1))
    };
    let lines: Vec<Result<String>> = names.par_iter().map(line).collect();
    let text: Result<String> = lines.into_iter().collect();
    Ok(digest::of_bytes(text?.as_bytes()))
}

fn is_below(name: &str, top: &str) -> bool {
    name.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn folder(path: &Path, inner: &str, tops: &[&str]) -> Result<Tree> {
    let nested = path.join(inner);
    let root = if !path.join(tops[0]).exists() && nested.join(tops[0]).exists() { nested } else { path.to_owned() };
    let (mut files, mut dirs) = (Vec::new(), Vec::new());
    for &top in tops {
        if root.join(top).exists() {
            list(&root, top, 0, &mut files, &mut dirs)?;
        }
    }
    files.sort_unstable();
    dirs.sort_unstable();
    Ok(Tree { path: path.to_owned(), files, dirs, place: Place::Folder(root) })
}

fn list(root: &Path, name: &str, depth: usize, files: &mut Vec<String>, dirs: &mut Vec<String>) -> Result<()> {
    let path = root.join(name);
    if !path.is_dir() {
        files.push(name.to_owned());
        return Ok(());
    }
    if depth == MAX_DEPTH {
        let message = format!("directories are nested {MAX_DEPTH} deep");
        return Err(Error::bad(path, message).with_hint("remove the link that leads back to one of them"));
    }
    dirs.push(name.to_owned());
    for entry in fs::read_dir(&path).map_err(Error::io(&path, "list"))? {
        let entry = entry.map_err(Error::io(&path, "list"))?;
        let child = entry.file_name();
        let child = child.to_str().ok_or_else(|| {
            Error::bad(entry.path(), "found a file name that is not UTF-8").with_hint("rename it, or remove it")
        })?;
        if child.starts_with('.') {
            continue;
        }
        // Asking the directory for the type saves a look at each of 100,000 files; a link has to be followed.
        match entry.file_type().is_ok_and(|kind| kind.is_file()) {
            true => files.push(format!("{name}/{child}")),
            false => list(root, &format!("{name}/{child}"), depth + 1, files, dirs)?,
        }
    }
    Ok(())
}

fn archive(path: &Path, inner: &str, tops: &[&str]) -> Result<Tree> {
    let bad = |error: zip::result::ZipError| {
        Error::bad(path, format!("not a zip archive or a folder ({error})"))
            .with_hint("it may be cut off: fetch it again")
    };
    let archive = ZipArchive::new(SharedFile::open(path)?).map_err(bad)?;
    let inner = format!("{inner}/");
    let is_nested = !archive.file_names().any(|name| is_below(name, tops[0]));
    let mut named = Vec::new();
    let mut dirs = BTreeSet::new();
    for member in 0..archive.len() {
        let Some(name) = archive.name_for_index(member) else { continue };
        let Some(name) = (if is_nested { name.strip_prefix(&inner) } else { Some(name) }) else { continue };
        let is_hidden = name.split('/').any(|part| part.starts_with('.'));
        if is_hidden || !tops.iter().any(|top| is_below(name, top)) {
            continue;
        }
        // An archive may, but need not, have its directories as members of their own.
        dirs.extend(name.match_indices('/').map(|(end, _)| name[..end].to_owned()));
        if !name.ends_with('/') {
            named.push((name.to_owned(), member));
        }
    }
    named.sort_unstable();
    let (files, members) = named.into_iter().unzip();
    let dirs = dirs.into_iter().collect();
    Ok(Tree { path: path.to_owned(), files, dirs, place: Place::Zip(archive, members) })
}

/// A file that any number of readers share, each with its own position.
#[derive(Clone, Debug)]
struct SharedFile {
    file: Arc<File>,
    length: u64,
    position: u64,
}

impl SharedFile {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "stat"))?.len();
        Ok(Self { file: Arc::new(file), length, position: 0 })
    }
}

impl Read for SharedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.position)?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.length.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::{SimpleFileOptions, ZipWriter};

    const FILES: [(&str, &str); 5] = [
        ("set/train/b/2.png", "two"),
        ("set/train/b/10.png", "ten"),
        ("set/train/.hidden/1.png", "no"),
        ("set/val/notes.txt", "text"),
        ("set/other/x.png", "no"),
    ];

    fn make_folder(root: &Path) {
        for (name, text) in FILES {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn make_zip(path: &Path, strip: &str) {
        let mut zip = ZipWriter::new(File::create(path).unwrap());
        for (name, text) in FILES {
            zip.start_file(name.strip_prefix(strip).unwrap(), SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    }

    #[test]
    fn folders_and_archives_list_and_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(dir.path());
        make_zip(&dir.path().join("nested.zip"), "");
        make_zip(&dir.path().join("flat.zip"), "set/");
        for name in ["", "set", "nested.zip", "flat.zip"] {
            let tree = Tree::open(&dir.path().join(name), "set", &["train", "val"]).unwrap();
            assert_eq!(tree.files(), ["train/b/10.png", "train/b/2.png", "val/notes.txt"], "{name}");
            assert_eq!(tree.dirs(), ["train", "train/b", "val"], "{name}");
            assert_eq!(tree.read(tree.find("train/b/10.png").unwrap()).unwrap(), b"ten");
            assert_eq!(tree.text("val/notes.txt").unwrap(), "text");
            assert!(tree.text("val/none.txt").unwrap_err().to_string().ends_with("val/none.txt: missing"));
        }
    }

    #[test]
    fn the_digest_follows_the_used_files_alone() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(dir.path());
        let digest = || {
            let tree = Tree::open(dir.path(), "set", &["train", "val"]).unwrap();
            tree.digest(&[0, 1]).unwrap()
        };
        let before = digest();
        fs::write(dir.path().join("set/val/notes.txt"), "other").unwrap();
        assert_eq!(digest(), before);
        fs::write(dir.path().join("set/train/b/2.png"), "TWO").unwrap();
        assert_ne!(digest(), before);
    }

    #[test]
    fn a_loop_of_links_is_named() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(dir.path());
        std::os::unix::fs::symlink("..", dir.path().join("set/train/b/loop")).unwrap();
        let error = Tree::open(dir.path(), "set", &["train", "val"]).unwrap_err();
        assert!(error.to_string().ends_with("b/loop: directories are nested 16 deep"), "{error}");
        assert!(error.hint().unwrap().contains("link"));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        make_folder(dir.path());
        let at = |name: &str| dir.path().join("set/train/b").join(name);
        std::os::unix::fs::symlink("/dev/zero", at("endless.png")).unwrap();
        std::os::unix::fs::symlink("nowhere", at("lost.png")).unwrap();
        let tree = Tree::open(dir.path(), "set", &["train", "val"]).unwrap();
        for (name, part) in [("endless", "neither a file nor a directory"), ("lost", "a link that leads nowhere")] {
            let file = tree.find(&format!("train/b/{name}.png")).unwrap();
            let error = tree.digest(&[file]).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.hint().unwrap(), "remove it");
            assert!(tree.read(file).unwrap_err().contains(part));
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| Tree::open(path, "set", &["train", "val"]).unwrap_err();
        assert!(open(dir.path()).to_string().contains("found no train in it"));
        let file = dir.path().join("x.zip");
        make_zip(&file, "");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert!(open(&file).to_string().contains("not a zip archive or a folder"));
        assert!(open(&dir.path().join("none")).to_string().ends_with("none: cannot open"));
    }
}
