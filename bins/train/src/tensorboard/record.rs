//! The framing of event files (TFRecord): length, masked CRC-32C of the length, payload, masked CRC-32C of the payload.

/// CRC-32C (Castagnoli, reflected), one table entry a byte.
const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)])
}

/// The checksum as it is stored, so that one over data that holds checksums stays a good one.
fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A record around `payload`.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    [&length[..], &masked(&length).to_le_bytes(), payload, &masked(payload).to_le_bytes()].concat()
}

/// The payload of the record at the start of `bytes` and what follows it; `None` where it is cut short or damaged.
pub fn unframe(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(8)?;
    let (check, rest) = rest.split_at_checked(4)?;
    let n = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (payload, rest) = rest.split_at_checked(n)?;
    let (payload_check, rest) = rest.split_at_checked(4)?;
    let good = check == masked(length).to_le_bytes() && payload_check == masked(payload).to_le_bytes();
    good.then_some((payload, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn records_come_back_and_every_damage_is_seen() {
        let file = [frame(b"one"), frame(b"")].concat();
        let (first, rest) = unframe(&file).unwrap();
        assert_eq!((first, unframe(rest)), (&b"one"[..], Some((&b""[..], &b""[..]))));
        let one = frame(b"one");
        assert!((0..one.len()).all(|cut| unframe(&one[..cut]).is_none()));
        for at in 0..one.len() {
            let mut bad = one.clone();
            bad[at] ^= 1;
            assert!(unframe(&bad).is_none(), "{at}");
        }
        assert!(unframe(&[0xff; 64]).is_none());
    }
}
