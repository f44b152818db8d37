//! Arrays on disk in NumPy's `.npy` format (version 1.0, C order, little endian): a short text header, then raw
//! numbers. Written in one pass, read through a memory map, opened by `numpy.load(path, mmap_mode="r")` as they are.

use crate::{Error, Result};
use bytemuck::Pod;
use memmap2::Mmap;
use std::{
    fs::File,
    io::{BufWriter, Write},
    marker::PhantomData,
    path::{Path, PathBuf},
};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// Headers are padded to a multiple of this, so that the numbers are aligned in the map.
const ALIGN: usize = 64;

/// A number type of `.npy` files.
pub trait Element: Pod {
    /// NumPy's name of the type, like `<f4`.
    const DESCR: &'static str;
    /// The type as people call it, like `float32`.
    const NAME: &'static str;
}

impl Element for u8 {
    const DESCR: &'static str = "|u1";
    const NAME: &'static str = "uint8";
}
impl Element for i64 {
    const DESCR: &'static str = "<i8";
    const NAME: &'static str = "int64";
}
impl Element for f32 {
    const DESCR: &'static str = "<f4";
    const NAME: &'static str = "float32";
}
impl Element for f64 {
    const DESCR: &'static str = "<f8";
    const NAME: &'static str = "float64";
}

/// Writes an array of known shape row by row.
#[derive(Debug)]
pub struct Writer<T> {
    path: PathBuf,
    file: BufWriter<File>,
    left: usize,
    element: PhantomData<T>,
}

impl<T: Element> Writer<T> {
    /// Creates the file and writes the header for `shape`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(path: &Path, shape: &[usize]) -> Result<Self> {
        let file = File::create(path).map_err(Error::io(path, "create"))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&header(T::DESCR, shape)).map_err(Error::io(path, "write"))?;
        Ok(Self { path: path.to_owned(), file, left: shape.iter().product(), element: PhantomData })
    }

    /// Appends numbers.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When more numbers come than the shape holds.
    pub fn write(&mut self, values: &[T]) -> Result<()> {
        assert!(values.len() <= self.left, "{}: more numbers than its shape holds", self.path.display());
        self.left -= values.len();
        self.file.write_all(bytemuck::cast_slice(values)).map_err(Error::io(&self.path, "write"))
    }

    /// Flushes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When fewer numbers came than the shape holds.
    pub fn finish(self) -> Result<()> {
        assert_eq!(self.left, 0, "{}: fewer numbers than its shape holds", self.path.display());
        self.file.into_inner().map_err(|e| Error::io(&self.path, "write")(e.into_error()))?;
        Ok(())
    }
}

/// Writes a whole array.
///
/// # Errors
/// [`Error::Io`].
pub fn write<T: Element>(path: &Path, shape: &[usize], values: &[T]) -> Result<()> {
    let mut writer = Writer::create(path, shape)?;
    writer.write(values)?;
    writer.finish()
}

/// A memory-mapped array.
#[derive(Debug)]
pub struct Npy<T> {
    path: PathBuf,
    map: Mmap,
    offset: usize,
    shape: Vec<usize>,
    element: PhantomData<T>,
}

impl<T: Element> Npy<T> {
    /// Maps the file and checks its header, type and size.
    ///
    /// # Errors
    /// [`Error::Bad`] when it is not a C-order `.npy` of `T`, or its size does not match its shape.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let Header { descr, shape, offset } = parse(&map).map_err(|message| Error::bad(path, message))?;
        if descr != T::DESCR {
            let expected = format!("{} ({})", T::DESCR, T::NAME);
            return Err(Error::bad(path, format!("found numbers of type {descr}, expected {expected}")));
        }
        // A dimension of 0 hides the others, but rows of them are counted too.
        let fits = shape.iter().try_fold(size_of::<T>(), |size, &n| size.checked_mul(n.max(1))).is_some();
        let found = map.len() - offset;
        if !fits || shape.iter().product::<usize>() * size_of::<T>() != found {
            return Err(Error::bad(path, format!("found {found} bytes of numbers, not what shape {shape:?} holds")));
        }
        if offset % align_of::<T>() != 0 {
            return Err(Error::bad(path, format!("its numbers start at byte {offset}, expected a multiple of 8")));
        }
        Ok(Self { path: path.to_owned(), map, offset, shape, element: PhantomData })
    }

    /// Sizes of the dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the first dimension.
    pub fn len(&self) -> usize {
        self.shape.first().copied().unwrap_or(0)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Numbers in one entry of the first dimension.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// All numbers in C order.
    pub fn values(&self) -> &[T] {
        bytemuck::cast_slice(&self.map[self.offset..])
    }

    /// The numbers of rows `start..start + n` of the first dimension.
    ///
    /// # Panics
    /// When they are out of range.
    pub fn rows(&self, start: usize, n: usize) -> &[T] {
        let row = self.row_len();
        &self.values()[start * row..(start + n) * row]
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    // SAFETY: the map is read-only. Published artifacts are never written again; a file that another program truncates
    // while it is mapped would end this process with SIGBUS, which loses nothing that was published.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path, "map"))
}

/// What the text at the start of a `.npy` file says.
#[derive(Debug, PartialEq)]
pub struct Header {
    /// NumPy's name of the number type.
    pub descr: String,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Where the numbers start.
    pub offset: usize,
}

fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let comma = if shape.len() == 1 { "," } else { "" };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", dims.join(", "));
    let unpadded = MAGIC.len() + 2 + text.len() + 1;
    text += &" ".repeat(unpadded.next_multiple_of(ALIGN) - unpadded);
    text.push('\n');
    let length = u16::try_from(text.len()).expect("a header of a few dimensions is short");
    [MAGIC, &length.to_le_bytes(), text.as_bytes()].concat()
}

/// Parses the header at the start of a `.npy` file of version 1, 2 or 3.
///
/// # Errors
/// What was found and what was expected.
pub fn parse(bytes: &[u8]) -> Result<Header, String> {
    let not = || "not a .npy file".to_owned();
    if bytes.get(..6) != Some(&MAGIC[..6]) {
        return Err(not());
    }
    let (start, length) = match bytes.get(6) {
        Some(1) => (10, u16::from_le_bytes(bytes.get(8..10).ok_or_else(not)?.try_into().expect("2 bytes")) as usize),
        Some(2 | 3) => {
            (12, u32::from_le_bytes(bytes.get(8..12).ok_or_else(not)?.try_into().expect("4 bytes")) as usize)
        }
        _ => return Err("a .npy file of an unknown version".into()),
    };
    let text = bytes.get(start..start + length).ok_or("a .npy file cut off in its header")?;
    let text = std::str::from_utf8(text).map_err(|_| "a .npy header that is not text")?;
    let field = |name: &str| {
        let rest = text.split_once(&format!("'{name}':")).map(|(_, rest)| rest.trim_start());
        rest.ok_or_else(|| format!("a .npy header without {name}"))
    };
    let descr = field("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
    let descr = descr.ok_or("a .npy file of structured records, expected plain numbers")?.0.to_owned();
    if !field("fortran_order")?.starts_with("False") {
        return Err("a .npy file in Fortran order, expected C order".into());
    }
    let dims = field("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let dims = dims.ok_or("a .npy header without a shape")?.0;
    let shape: Result<Vec<usize>, _> =
        dims.split(',').map(str::trim).filter(|d| !d.is_empty()).map(str::parse).collect();
    let shape = shape.map_err(|_| format!("a .npy header with shape ({dims})"))?;
    Ok(Header { descr, shape, offset: start + length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn round_trip_and_alignment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        write(&path, &[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let npy = Npy::<f32>::open(&path).unwrap();
        assert_eq!((npy.shape(), npy.len(), npy.row_len()), (&[2, 3][..], 2, 3));
        assert_eq!(npy.rows(1, 1), [4.0, 5.0, 6.0]);
        assert_eq!(npy.offset % ALIGN, 0);
    }

    /// Byte for byte what `numpy.save` writes for `np.arange(3, dtype=np.uint8)`.
    #[test]
    fn the_header_is_numpys() {
        let text = "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }";
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(text.as_bytes());
        expected.resize(127, b' ');
        expected.push(b'\n');
        let ours = header("|u1", &[3]);
        // NumPy pads to 128 here because it keeps room for the first dimension to grow; readers accept any padding.
        assert_eq!(parse(&expected).unwrap(), Header { descr: "|u1".into(), shape: vec![3], offset: 128 });
        assert_eq!(parse(&ours).unwrap().shape, [3]);
        assert_eq!(ours.len() % ALIGN, 0);
    }

    #[test]
    fn every_way_a_file_can_be_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let good = [header("|u1", &[4]), vec![1, 2, 3, 4]].concat();
        let message = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            Npy::<u8>::open(&path).unwrap_err().to_string()
        };
        assert!(message(&good[..good.len() - 1]).contains("found 3 bytes"));
        assert!(message(&[&good[..], &[5]].concat()).contains("found 5 bytes"));
        assert!(message(&good[..20]).contains("cut off"));
        assert!(message(b"PK\x03\x04").contains("not a .npy file"));
        assert!(message(b"\x93NUMPY\x09\x00\x00\x00").contains("unknown version"));
        let text = |from: &str, to: &str| String::from_utf8_lossy(&good[10..]).replace(from, to).into_bytes();
        let edit = |from: &str, to: &str| message(&[&good[..10], &text(from, to)[..]].concat());
        assert!(edit("False", "True ").contains("Fortran"));
        assert!(edit("|u1", "<f4").contains("type <f4, expected |u1"));
        assert!(edit("(4,)", "(x,)").contains("shape (x,)"));
        assert!(message(&[header("|u1", &[usize::MAX, usize::MAX]), vec![0]].concat()).contains("not what shape"));
        assert!(message(&header("|u1", &[0, usize::MAX, usize::MAX])).contains("not what shape"));
    }
}
