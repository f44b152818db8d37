//! SHA-256 of bytes and files, written as 64 lowercase hexadecimal digits.

use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::{fs::File, io::Read, path::Path};

/// SHA-256 of `bytes`.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size in bytes and SHA-256 of the file at `path`, read once.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub fn of_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer).map_err(Error::io(path, "read"))?;
        if n == 0 {
            return Ok((size, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn bytes_and_files_agree_with_the_standard() {
        assert_eq!(of_bytes(b"abc"), ABC);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(of_file(&path).unwrap(), (3, ABC.to_owned()));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = of_file(Path::new("/no/such/file")).unwrap_err();
        assert_eq!(error.to_string(), "/no/such/file: cannot open");
    }
}
