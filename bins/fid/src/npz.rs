//! NumPy's `.npz`: a zip of `.npy` files, stored or deflated.

use lcf_store::{
    Error, Result,
    npy::{self, Element},
};
use std::{fs::File, io::Read, path::Path};
use zip::ZipArchive;

/// The numbers and the shape of the array of uint8 in the file: the only one, or `arr_0`, which is what `numpy.savez`
/// calls an array without a name.
///
/// # Errors
/// [`Error::Bad`] when there is no such array, or it is not uint8 in C order.
pub fn read(path: &Path) -> Result<(Vec<u8>, Vec<usize>)> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let bad = |message: String| Error::bad(path, message);
    let mut zip = ZipArchive::new(file).map_err(|error| bad(format!("not a .npz file: {error}")))?;
    let name = pick(&zip).map_err(bad)?;
    let unreadable = |error: &dyn std::fmt::Display| bad(format!("{name}: cannot be unpacked: {error}"));
    let member = zip.by_name(&name).map_err(|e| unreadable(&e))?;
    // A member says how large it is; one that unpacks to more is not read on.
    let size = member.size();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX)).map_err(|e| unreadable(&e))?;
    member.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| unreadable(&e))?;
    let header = npy::parse(&bytes).map_err(|message| bad(format!("{name}: {message}")))?;
    if header.descr != u8::DESCR {
        return Err(bad(format!("{name}: found numbers of type {}, expected {} (uint8)", header.descr, u8::DESCR)));
    }
    let expected = header.shape.iter().try_fold(1usize, |size, &n| size.checked_mul(n));
    let found = bytes.len() - header.offset;
    if expected != Some(found) {
        return Err(bad(format!("{name}: found {found} bytes of numbers, not what shape {:?} holds", header.shape)));
    }
    bytes.drain(..header.offset);
    Ok((bytes, header.shape))
}

fn pick(zip: &ZipArchive<File>) -> Result<String, String> {
    let names: Vec<&str> = zip.file_names().filter(|name| name.ends_with(".npy")).collect();
    match names[..] {
        [name] => Ok(name.to_owned()),
        _ if names.contains(&"arr_0.npy") => Ok("arr_0.npy".to_owned()),
        _ => {
            let mut found: Vec<&str> = names.iter().map(|name| name.trim_end_matches(".npy")).collect();
            found.sort_unstable();
            Err(format!("found the arrays [{}], expected a single one or arr_0", found.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

    /// A `.npy` of zeros whose header says what is given.
    fn npy_file(descr: &str, fortran: &str, bytes: usize) -> Vec<u8> {
        let text = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': (2, 1, 1, 3), }}\n");
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((text.len() as u16).to_le_bytes());
        file.extend(text.as_bytes());
        file.extend((0..bytes).map(|i| i as u8));
        file
    }

    fn read_zip(method: CompressionMethod, files: &[(&str, Vec<u8>)]) -> Result<(Vec<u8>, Vec<usize>), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in files {
            zip.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn stored_and_deflated_are_read() {
        for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
            let single = read_zip(method, &[("images.npy", npy_file("|u1", "False", 6))]).unwrap();
            assert_eq!(single, (vec![0, 1, 2, 3, 4, 5], vec![2, 1, 1, 3]));
            let labels = ("arr_1.npy", npy_file("<i8", "False", 6));
            assert_eq!(read_zip(method, &[labels, ("arr_0.npy", npy_file("|u1", "False", 6))]).unwrap(), single);
        }
    }

    #[test]
    fn every_way_a_file_can_be_wrong() {
        let message = |files: &[_]| read_zip(CompressionMethod::Deflated, files).unwrap_err();
        assert!(message(&[("a.npy", npy_file("<f4", "False", 24))]).contains("a.npy: found numbers of type <f4"));
        assert!(message(&[("a.npy", npy_file("|u1", "True", 6))]).contains("Fortran order, expected C order"));
        assert!(message(&[("a.npy", npy_file("|u1", "False", 5))]).contains("found 5 bytes of numbers"));
        assert!(message(&[("a.npy", b"text".to_vec())]).contains("not a .npy file"));
        let two = [("sigma.npy", Vec::new()), ("mu.npy", Vec::new())];
        assert!(message(&two).contains("found the arrays [mu, sigma], expected a single one or arr_0"));
        assert!(message(&[]).contains("found the arrays []"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npz");
        std::fs::write(&path, "text").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("not a .npz file"));
    }
}
